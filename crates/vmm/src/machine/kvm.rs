//! KVM's side of a machine: the VM, its interrupt controllers, its clock.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use kvm_bindings::{CpuId, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_irqchip};
use kvm_ioctls::{Cap, Kvm, VmFd};
use prost::Message;

use crate::cpu::features::{self, FeatureError};
use crate::cpu::{CpuConfig, CpuConfigError, Topology};
use crate::memory::layout::{KVM_IDENTITY_MAP, KVM_TSS};

/// Why there is no VM.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// The device is not there or not for us.
    #[error("/dev/kvm: {source}; {remedy} (see `maru host check`)")]
    Open {
        /// Why.
        source: io::Error,
        /// What to do.
        remedy: &'static str,
    },
    /// Too old or too new.
    #[error("KVM speaks version {0} of its interface, 12 is needed")]
    Version(i32),
    /// Something that every KVM of the last years has.
    #[error("KVM lacks {0}; use Linux 6.1 or newer")]
    Capability(&'static str),
    /// It refused.
    #[error("{what}: {source}")]
    Call {
        /// What was tried.
        what: &'static str,
        /// Its answer.
        source: kvm_ioctls::Error,
    },
    /// The vCPUs.
    #[error(transparent)]
    Cpus(#[from] CpuConfigError),
    /// What the vCPUs are to be able to do.
    #[error(transparent)]
    Features(#[from] FeatureError),
}

/// Attaches what was tried.
pub fn call(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> KvmError {
    move |source| KvmError::Call { what, source }
}

/// What KVM on this host offers, and the VM made with it.
pub struct KvmVm {
    /// The VM.
    pub vm: Arc<VmFd>,
    /// The vCPUs' arrangement.
    pub topology: Topology,
    /// The CPUID table that KVM supports, and whether the APIC timer has a deadline mode.
    pub supported: (CpuId, bool),
    /// The same for this VM, of which it sees no more: the table that those of its vCPUs are made of.
    pub shown: (CpuId, bool),
    /// The model-specific registers that make up a vCPU's state.
    pub msr_indices: Vec<u32>,
}

fn open() -> Result<Kvm, KvmError> {
    Kvm::new().map_err(|error| {
        let source = io::Error::from_raw_os_error(error.errno());
        let remedy = match source.kind() {
            io::ErrorKind::NotFound => "load kvm_amd or kvm_intel, or switch virtualization on in the firmware",
            io::ErrorKind::PermissionDenied => "add yourself to the group kvm",
            _ => "virtualization may be switched off or in use",
        };
        KvmError::Open { source, remedy }
    })
}

fn supported(kvm: &Kvm) -> Result<(CpuId, bool), KvmError> {
    let table = kvm.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES);
    Ok((table.map_err(call("reading the supported CPUID table"))?, kvm.check_extension(Cap::TscDeadlineTimer)))
}

/// What guests on this host could have of its processors: see [`features`].
///
/// # Errors
/// If KVM cannot be used.
pub fn cpu_features() -> Result<BTreeSet<String>, KvmError> {
    let (table, tsc_deadline) = supported(&open()?)?;
    Ok(features::of(&table, tsc_deadline))
}

impl KvmVm {
    /// Makes a VM with interrupt controllers in the kernel.
    pub fn new(cpus: &CpuConfig) -> Result<KvmVm, KvmError> {
        let kvm = open()?;
        if kvm.get_api_version() != 12 {
            return Err(KvmError::Version(kvm.get_api_version()));
        }
        let needed = [
            (Cap::Irqchip, "interrupt controllers in the kernel"),
            (Cap::Irqfd, "irqfd"),
            (Cap::Ioeventfd, "ioeventfd"),
            (Cap::ImmediateExit, "immediate exit"),
            (Cap::UserMemory, "user memory"),
            (Cap::ExtCpuid, "CPUID tables"),
            (Cap::Xsave, "XSAVE state"),
            (Cap::AdjustClock, "an adjustable clock"),
        ];
        if let Some((_, name)) = needed.into_iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
            return Err(KvmError::Capability(name));
        }
        let topology = Topology::new(cpus, kvm.get_max_vcpus() as u32, kvm.get_max_vcpu_id() as u32)?;
        let supported = supported(&kvm)?;
        let shown = match &cpus.features {
            Some(listed) => features::restrict(&supported.0, supported.1, listed)?,
            None => supported.clone(),
        };
        let msr_indices = kvm.get_msr_index_list().map_err(call("reading the list of registers"))?.as_slice().to_vec();
        let vm = loop {
            match kvm.create_vm() {
                Err(error) if error.errno() == libc::EINTR => {}
                other => break other.map_err(call("creating a VM"))?,
            }
        };
        vm.set_identity_map_address(KVM_IDENTITY_MAP).map_err(call("placing the identity map"))?;
        vm.set_tss_address(KVM_TSS as usize).map_err(call("placing the task state"))?;
        vm.create_irq_chip().map_err(call("creating the interrupt controllers"))?;
        Ok(KvmVm { vm: Arc::new(vm), topology, supported, shown, msr_indices })
    }
}

/// The saved state of what KVM keeps for the machine as a whole.
#[derive(Clone, PartialEq, Message)]
pub struct KvmState {
    /// The interrupt controllers, `kvm_irqchip` each: both PICs and the I/O APIC.
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub interrupt_controllers: Vec<Vec<u8>>,
    /// The guest's clock (kvmclock), in nanoseconds.
    #[prost(fixed64, tag = "2")]
    pub clock_ns: u64,
    /// What time it was then, in nanoseconds since 1970.
    #[prost(fixed64, tag = "3")]
    pub realtime_ns: u64,
}

const CONTROLLERS: [u32; 3] = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];

fn realtime_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64)
}

impl KvmState {
    /// Reads it.
    pub fn save(vm: &VmFd) -> Result<KvmState, KvmError> {
        let mut interrupt_controllers = Vec::new();
        for chip_id in CONTROLLERS {
            let mut chip = kvm_irqchip { chip_id, ..Default::default() };
            vm.get_irqchip(&mut chip).map_err(call("reading an interrupt controller"))?;
            // SAFETY: plain old data; the union's largest member is a byte array, so all bytes are initialised by the default.
            let bytes = unsafe { std::slice::from_raw_parts(std::ptr::from_ref(&chip).cast::<u8>(), size_of_val(&chip)) };
            interrupt_controllers.push(bytes.to_vec());
        }
        let clock = vm.get_clock().map_err(call("reading the clock"))?;
        Ok(KvmState { interrupt_controllers, clock_ns: clock.clock, realtime_ns: realtime_ns() })
    }

    /// Nanoseconds since it was saved; 0 if this host's clock is behind.
    pub fn elapsed_ns(&self) -> u64 {
        realtime_ns().saturating_sub(self.realtime_ns)
    }

    /// Sets the interrupt controllers. `false` if the state is not of this form.
    pub fn restore_controllers(&self, vm: &VmFd) -> Result<bool, KvmError> {
        if self.interrupt_controllers.len() != CONTROLLERS.len() {
            return Ok(false);
        }
        for (bytes, chip_id) in self.interrupt_controllers.iter().zip(CONTROLLERS) {
            let mut chip = kvm_irqchip::default();
            if bytes.len() < size_of_val(&chip) {
                return Ok(false);
            }
            // SAFETY: the source is long enough, and any bytes make a valid structure.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), std::ptr::from_mut(&mut chip).cast(), size_of_val(&chip)) };
            chip.chip_id = chip_id;
            vm.set_irqchip(&chip).map_err(call("setting an interrupt controller"))?;
        }
        Ok(true)
    }

    /// Sets the guest's clock to what it would be had it gone on: time that passed while the VM was saved has passed for it too.
    pub fn restore_clock(&self, vm: &VmFd) -> Result<(), KvmError> {
        let clock = kvm_clock_data { clock: self.clock_ns + self.elapsed_ns(), ..Default::default() };
        vm.set_clock(&clock).map_err(call("setting the clock"))
    }
}
