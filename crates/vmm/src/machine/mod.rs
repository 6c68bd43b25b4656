//! The machine: everything of a VM, put together, and what can be done with it as a whole.
//!
//! ```text
//!            boot() or restore()            pause()
//!  created ─────────────────────▶ paused ◀──────────▶ running
//!                                   │      resume()
//!                                   └── save(), reset() and then on
//! ```
//!
//! One thread owns the machine and calls its methods; vCPUs and devices report to it through the [event queue](events). Pausing stops
//! vCPUs first, devices then; resuming goes the other way: nothing that a vCPU does finds its device asleep.

mod devices;
pub mod events;
mod kvm;
mod layers;
mod platform;
mod snapshot;

use std::sync::{Arc, Mutex};

use crate::acpi::controller::{AcpiController, AcpiRequest, SIZE as ACPI_SIZE};
use crate::acpi::{AcpiConfig, AcpiError, write_tables};
use crate::boot::{BootError, BootFiles, set_registers};
use crate::bus::{Bus, Overlap};
use crate::config::{ConsoleConfig, VmConfig};
use crate::cpu::cpuid;
use crate::cpu::state::{VcpuState, VcpuStateError, restore as restore_vcpu, save as save_vcpu};
use crate::cpu::vcpu::{Buses, Vcpu};
use crate::devices::console::host::{ConsoleInput, ConsoleOutput};
use crate::devices::vmgenid::VmGenerationIdError;
use crate::interrupts::{InterruptError, Interrupts};
use crate::memory::dirty::DirtyRegion;
use crate::memory::layout::{ACPI_IRQ, ACPI_PORT, ECAM_SIZE, ECAM_START, PCI_WINDOW_64_SIZE};
use crate::memory::{Memory, MemoryError};
use crate::pci::virtio::Platform;
use crate::pci::{ConfigPorts, PciRoot};
use crate::sandbox::{ThreadKind, confine_thread};
use crate::virtio::spawner::Spawner;
pub use devices::{DeviceError, DeviceHandle, DeviceSlot};
use events::{EventSender, MachineEvent};
pub use kvm::{KvmError, cpu_features};
use kvm::{KvmState, KvmVm, call};
pub use layers::LayersError;
use platform::PlatformDevices;
pub use snapshot::{RestoreFailure, SaveFailure, saved_config};

/// Why a machine could not be made or changed.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// Memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Kernel, initrd or command line.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// ACPI tables.
    #[error(transparent)]
    Acpi(#[from] AcpiError),
    /// Interrupts.
    #[error(transparent)]
    Interrupt(#[from] InterruptError),
    /// A device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A vCPU's state.
    #[error(transparent)]
    Vcpu(#[from] VcpuStateError),
    /// The generation ID.
    #[error(transparent)]
    Generation(#[from] VmGenerationIdError),
    /// Two devices at one address: a bug.
    #[error(transparent)]
    Overlap(#[from] Overlap),
    /// No thread.
    #[error("starting a thread")]
    Thread(#[source] std::io::Error),
    /// A vCPU's thread is gone.
    #[error("vCPU {0} does not answer: its thread has ended")]
    VcpuGone(u32),
    /// None, or more vCPUs than planned.
    #[error("{wanted} vCPUs wanted, but the VM was made for 1 to {max}")]
    VcpuCount {
        /// vCPUs asked for.
        wanted: u32,
        /// vCPUs that it may have.
        max: u32,
    },
}

/// Whether the guest runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunState {
    /// Nothing runs.
    Paused,
    /// The guest runs.
    Running,
}

/// A VM.
pub struct Machine {
    config: VmConfig,
    kvm: KvmVm,
    memory: Memory,
    buses: Buses,
    platform: Platform,
    pci: Arc<Mutex<PciRoot>>,
    acpi: Arc<Mutex<AcpiController>>,
    platform_devices: PlatformDevices,
    console: ConsoleOutput,
    /// The console itself, unless that is a virtio one.
    serial_output: ConsoleOutput,
    slots: Vec<DeviceSlot>,
    vcpus: Vec<Vcpu>,
    /// vCPUs that the guest gave back, the first one last, with what they are at power-on: KVM keeps them as long as the VM.
    parked: Vec<(Vcpu, VcpuState)>,
    boot: BootFiles,
    /// What vCPUs and interrupt controllers are at power-on, to which a reset takes them back.
    power_on: (Vec<VcpuState>, KvmState),
    events: EventSender,
    state: RunState,
}

impl Machine {
    /// Puts a machine together. All files and sockets of its configuration are opened here, and never later: the calling thread is
    /// confined as the control thread after that.
    pub fn new(config: VmConfig, events: EventSender) -> Result<Machine, MachineError> {
        let boot = BootFiles::open(&config.boot.kernel, config.boot.initrd.as_deref(), &config.boot.command_line)?;
        let kvm = KvmVm::new(&config.cpus)?;
        let memory = Memory::new(&config.memory)?;
        memory.register(&kvm.vm, false)?;
        let interrupts = Arc::new(Interrupts::new(kvm.vm.clone())?);
        let buses = Buses { ports: Arc::new(Bus::default()), memory: Arc::new(Bus::default()) };
        let reporter = events.clone();
        let platform = Platform {
            vm: kvm.vm.clone(),
            memory: memory.guest.clone(),
            interrupts: interrupts.clone(),
            mmio: buses.memory.clone(),
            spawner: Arc::new(Spawner::new().map_err(MachineError::Thread)?),
            report: Arc::new(move |id, reason| reporter.send(MachineEvent::DeviceFailed { id: id.into(), reason })),
        };

        let pci = Arc::new(Mutex::new(PciRoot::default()));
        buses.memory.insert(ECAM_START, ECAM_SIZE, pci.clone())?;
        buses.ports.insert(0xcf8, 8, Arc::new(Mutex::new(ConfigPorts(pci.clone()))))?;
        let sender = events.clone();
        let acpi = AcpiController::new(kvm.topology.max, config.cpus.count, interrupts.line(ACPI_IRQ)?, move |request| {
            sender.send(match request {
                AcpiRequest::PowerOff => MachineEvent::PowerOff,
                AcpiRequest::Reset => MachineEvent::Reset,
                AcpiRequest::Eject(slot) => MachineEvent::Eject(slot),
                AcpiRequest::EjectCpu => MachineEvent::EjectCpu,
            });
        });
        let acpi = Arc::new(Mutex::new(acpi));
        buses.ports.insert(ACPI_PORT, ACPI_SIZE, acpi.clone())?;
        let console = ConsoleOutput::new();
        // With a virtio console, what the serial port prints (a firmware, an early crash) is kept apart.
        let serial_output = if config.console == ConsoleConfig::Serial { console.clone() } else { ConsoleOutput::new() };
        let platform_devices = PlatformDevices::new(&buses.ports, &interrupts, serial_output.clone(), &events)?;

        let power_on = (Vec::new(), KvmState::save(&kvm.vm)?);
        let mut machine = Machine {
            config,
            kvm,
            memory,
            buses,
            platform,
            pci,
            acpi,
            platform_devices,
            console,
            serial_output,
            slots: Vec::new(),
            vcpus: Vec::new(),
            parked: Vec::new(),
            boot,
            power_on,
            events,
            state: RunState::Paused,
        };
        for index in 0..machine.config.cpus.count {
            machine.create_vcpu(index)?;
        }
        machine.create_devices()?;
        // Nothing is opened by name from here on; kernels and saved states, which may come from strangers, are read after this.
        confine_thread(ThreadKind::Control);
        Ok(machine)
    }

    /// Loads the kernel and sets the first vCPU to its entry.
    pub fn boot(&mut self) -> Result<(), MachineError> {
        let tables = AcpiConfig {
            topology: &self.kvm.topology,
            present_cpus: self.config.cpus.count,
            pci_window_64: (self.memory.end(), PCI_WINDOW_64_SIZE),
        };
        write_tables(&tables, &self.memory.guest)?;
        self.platform_devices.write_generation(&self.memory.guest)?;
        let entry = self.boot.load(&self.memory)?;
        let guest = self.memory.guest.clone();
        self.on_vcpu(0, move |fd, apic_id| set_registers(fd, apic_id, entry, &guest))??;
        Ok(())
    }

    /// Makes a vCPU, or takes up the one that there was.
    fn create_vcpu(&mut self, index: u32) -> Result<(), MachineError> {
        if let Some((vcpu, state)) = self.parked.pop() {
            self.vcpus.push(vcpu);
            self.power_on.0.push(state.clone());
            return Ok(self.on_vcpu(index, move |fd, _| restore_vcpu(fd, &state, 0))??);
        }
        let apic_id = self.kvm.topology.apic_id(index);
        let fd = self.kvm.vm.create_vcpu(u64::from(apic_id)).map_err(call("creating a vCPU"))?;
        let table = cpuid::for_vcpu(&self.kvm.shown.0, &self.kvm.topology, apic_id, self.kvm.shown.1);
        fd.set_cpuid2(&table).map_err(call("setting a CPUID table"))?;
        self.power_on.0.push(for_reset(save_vcpu(&fd, apic_id, &self.kvm.msr_indices)?));
        let events = self.events.clone();
        let report = move |event| events.send(MachineEvent::Vcpu { index, event });
        let vcpu = Vcpu::spawn(index, apic_id, fd, self.buses.clone(), report).map_err(MachineError::Thread)?;
        self.vcpus.push(vcpu);
        Ok(())
    }

    /// Adds vCPUs until there are `count`, and tells the guest; or asks it to give back what is beyond, which
    /// [`MachineEvent::EjectCpu`] reports for each, and a reset does.
    pub fn set_vcpus(&mut self, count: u32) -> Result<(), MachineError> {
        let max = self.kvm.topology.max;
        if count == 0 || count > max {
            return Err(MachineError::VcpuCount { wanted: count, max });
        }
        self.take_ejected_vcpus();
        self.acpi.lock().expect("device lock").want_cpus(count);
        for index in self.config.cpus.count..count {
            self.create_vcpu(index)?;
            self.config.cpus.count = index + 1;
            // KVM finds a vCPU by its APIC id in a map that it makes anew when an APIC's state is set, but not when a vCPU is made:
            // without this, the guest's wake-up call would reach nobody.
            self.on_vcpu(index, |fd, _| fd.get_lapic().and_then(|lapic| fd.set_lapic(&lapic)))?
                .map_err(call("setting a local APIC"))?;
            if self.state == RunState::Running {
                self.vcpus[index as usize].run();
            }
            self.acpi.lock().expect("device lock").cpu_added(index);
        }
        Ok(())
    }

    /// Takes away the vCPUs that the guest has given back; whether there were any.
    pub fn take_ejected_vcpus(&mut self) -> bool {
        let present = self.acpi.lock().expect("device lock").present_cpus().max(1);
        let before = self.vcpus.len();
        while self.vcpus.len() > present as usize {
            let (Some(vcpu), Some(state)) = (self.vcpus.pop(), self.power_on.0.pop()) else { break };
            // One that has ended hangs up, which is as good as paused.
            let _ = vcpu.pause().recv();
            self.parked.push((vcpu, state));
            self.config.cpus.count = self.vcpus.len() as u32;
        }
        self.vcpus.len() < before
    }

    /// Runs a job on a paused vCPU's thread.
    fn on_vcpu<T: Send + 'static>(
        &self,
        index: u32,
        job: impl FnOnce(&mut kvm_ioctls::VcpuFd, u32) -> T + Send + 'static,
    ) -> Result<T, MachineError> {
        let vcpu = self.vcpus.get(index as usize).ok_or(MachineError::VcpuGone(index))?;
        let apic_id = vcpu.apic_id;
        vcpu.submit(move |fd| job(fd, apic_id)).recv().map_err(|_| MachineError::VcpuGone(index))
    }

    /// Runs a job on the threads of all (paused) vCPUs at once.
    fn on_all_vcpus<T: Send + 'static>(
        &self,
        job: impl Fn(u32, &mut kvm_ioctls::VcpuFd, u32) -> T + Send + Sync + 'static,
    ) -> Result<Vec<T>, MachineError> {
        let job = Arc::new(job);
        let pending: Vec<_> = (0u32..)
            .zip(&self.vcpus)
            .map(|(index, vcpu)| {
                let (job, apic_id) = (job.clone(), vcpu.apic_id);
                (index, vcpu.submit(move |fd| job(index, fd, apic_id)))
            })
            .collect();
        pending.into_iter().map(|(index, result)| result.recv().map_err(|_| MachineError::VcpuGone(index))).collect()
    }

    /// Whether the guest runs.
    pub fn run_state(&self) -> RunState {
        self.state
    }

    /// What the machine is made of now, devices that were added included.
    pub fn config(&self) -> &VmConfig {
        &self.config
    }

    /// The guest's memory.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Where input for the guest's console goes.
    pub fn console_input(&self) -> Arc<dyn ConsoleInput> {
        for slot in &self.slots {
            if let DeviceHandle::Console(console) = &slot.handle {
                return Arc::new(console.clone());
            }
        }
        self.platform_devices.serial.clone()
    }

    /// Makes this machine, restored from a saved one that may be restored again, another one: guests draw new random seeds, and
    /// the network learns where it is now. Call it before it runs.
    pub fn begin_new_life(&mut self) -> Result<(), MachineError> {
        self.platform_devices.new_generation(&self.memory.guest)?;
        self.acpi.lock().expect("device lock").generation_changed();
        self.announce_nets();
        Ok(())
    }

    /// What the guest prints on its console.
    pub fn console(&self) -> &ConsoleOutput {
        &self.console
    }

    /// What the guest prints on its serial port where its console is another one: an early crash, for example.
    pub fn serial_output(&self) -> Option<&ConsoleOutput> {
        (self.config.console != ConsoleConfig::Serial).then_some(&self.serial_output)
    }

    /// Lets the guest run. Does nothing if it does already.
    pub fn resume(&mut self) {
        if self.state == RunState::Running {
            return;
        }
        for slot in &self.slots {
            slot.transport.lock().expect("device lock").resume();
        }
        self.vcpus.iter().for_each(Vcpu::run);
        self.state = RunState::Running;
    }

    /// Stops the guest between two instructions, and its devices between two requests. Does nothing if it is paused already.
    pub fn pause(&mut self) {
        if self.state == RunState::Paused {
            return;
        }
        self.pause_vcpus();
        for slot in &self.slots {
            slot.transport.lock().expect("device lock").pause();
        }
        // The guest shall not take the pause for a hang.
        let _ = self.on_all_vcpus(|_, fd, _| fd.kvmclock_ctrl());
        self.state = RunState::Paused;
    }

    fn pause_vcpus(&self) {
        // All at once, then wait for each. One that has ended hangs up, which is as good as paused.
        let waiting: Vec<_> = self.vcpus.iter().map(Vcpu::pause).collect();
        for paused in waiting {
            let _ = paused.recv();
        }
    }

    /// Resets the machine: everything back to power-on, the kernel loaded anew. It stays paused.
    pub fn reset(&mut self) -> Result<(), MachineError> {
        self.pause();
        for slot in &self.slots {
            slot.transport.lock().expect("device lock").reset();
        }
        for slot in &self.slots {
            slot.transport.lock().expect("device lock").map_registers();
        }
        self.acpi.lock().expect("device lock").reset();
        self.take_ejected_vcpus();
        self.platform_devices.reset();
        self.reset_memory_device();
        self.power_on.1.restore_controllers(&self.kvm.vm)?;
        let states = self.power_on.0.clone();
        let results = self.on_all_vcpus(move |index, fd, _| restore_vcpu(fd, &states[index as usize], 0))?;
        results.into_iter().collect::<Result<(), VcpuStateError>>()?;
        self.boot()
    }

    /// Starts noting which pages of memory change.
    pub fn start_dirty_log(&self) -> Result<(), MachineError> {
        for slot in &self.slots {
            if let DeviceHandle::VhostUser(net) = &slot.handle {
                net.start_dirty_log(&self.memory.guest).map_err(|error| DeviceError::DirtyLog { id: slot.id.clone(), error })?;
            }
        }
        Ok(self.memory.start_dirty_log(&self.kvm.vm)?)
    }

    /// The pages that changed since the last call, whoever changed them.
    pub fn take_dirty_log(&self) -> Result<Vec<DirtyRegion>, MachineError> {
        let mut regions = self.memory.take_dirty(&self.kvm.vm)?;
        for slot in &self.slots {
            if let DeviceHandle::VhostUser(net) = &slot.handle
                && let Some(log) = net.fetch_dirty_log()
            {
                regions.iter_mut().for_each(|region| region.merge(&log));
            }
        }
        Ok(regions)
    }

    /// Stops noting changes.
    pub fn stop_dirty_log(&self) -> Result<(), MachineError> {
        for slot in &self.slots {
            if let DeviceHandle::VhostUser(net) = &slot.handle {
                net.stop_dirty_log().map_err(|error| DeviceError::DirtyLog { id: slot.id.clone(), error })?;
            }
        }
        Ok(self.memory.stop_dirty_log(&self.kvm.vm)?)
    }

    /// Presses the power button.
    pub fn press_power_button(&self) {
        self.acpi.lock().expect("device lock").press_power_button();
    }

    /// Brings everything to an end: vCPUs, then devices.
    pub fn stop(&mut self) {
        self.pause();
        self.vcpus.clear();
        self.parked.clear();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What a reset sets of a vCPU's power-on state. Its CPUID table cannot change any more, and its time stamp counter must not go back.
fn for_reset(mut state: VcpuState) -> VcpuState {
    const MSR_TSC: u32 = 0x10;
    state.cpuid.clear();
    state.msrs.retain(|msr| msr.index != MSR_TSC);
    state
}
