//! Saving a machine, and putting one together from what was saved.
//!
//! Sections, in this order: `config`, `memory` (many), `kvm`, `vcpu` (one each), `acpi`, one for each platform device,
//! `device` (one each).

use std::io::{Read, Write};

use prost::Message;

use super::events::EventSender;
use super::kvm::{KvmError, KvmState};
use super::{Machine, MachineError, RunState};
use crate::acpi::controller::AcpiState;
use crate::config::{ConfigError, VmConfig};
use crate::cpu::state::{VcpuState, VcpuStateError, restore as restore_vcpu, save as save_vcpu};
use crate::cpu::{cpuid, features};
use crate::pci::state::VirtioPciState;
use crate::state::{Reader, Section, StateError, Writer, load_memory_chunk, save_memory};
use crate::virtio::RestoreError;

const VERSION: u32 = 1;
/// Serial port, clock, panic notifier, VM generation.
const PLATFORM_DEVICES: usize = 4;

/// A virtio device's section.
#[derive(Clone, PartialEq, Message)]
pub struct DeviceSection {
    /// The device's name.
    #[prost(string, tag = "1")]
    pub id: String,
    /// Its PCI slot.
    #[prost(uint32, tag = "2")]
    pub slot: u32,
    /// Transport and device.
    #[prost(message, optional, tag = "3")]
    pub state: Option<VirtioPciState>,
}

/// Why a machine could not be saved.
#[derive(Debug, thiserror::Error)]
pub enum SaveFailure {
    /// It runs.
    #[error("a VM must be paused to be saved")]
    Running,
    /// Writing.
    #[error(transparent)]
    State(#[from] StateError),
    /// Reading the machine's state.
    #[error(transparent)]
    Machine(#[from] MachineError),
}

/// Why a machine could not be restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreFailure {
    /// Reading.
    #[error(transparent)]
    State(#[from] StateError),
    /// The saved configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Putting the machine together.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// A device.
    #[error("device '{id}': {source}")]
    Device {
        /// Which one.
        id: String,
        /// Why.
        source: RestoreError,
    },
    /// Something that does not belong together.
    #[error("the saved VM is not complete: {0}")]
    Incomplete(String),
}

/// The configuration of a saved VM, for who restores it with disks, TAPs or sockets that are elsewhere now: `maru-vmm --restore` takes
/// what is made of it with `--config`.
///
/// # Errors
/// If it cannot be read, or is no saved VM.
pub fn saved_config<R: Read>(input: R) -> Result<VmConfig, RestoreFailure> {
    read_config(&mut Reader::new(input)?)
}

fn read_config<R: Read>(reader: &mut Reader<R>) -> Result<VmConfig, RestoreFailure> {
    let first = reader.next_section()?.filter(|section| section.kind == "config");
    let first = first.ok_or_else(|| RestoreFailure::Incomplete("it has no configuration".into()))?;
    first.check_version(VERSION)?;
    Ok(VmConfig::from_json(&first.payload)?)
}

impl Machine {
    /// Writes the whole (paused) machine. `progress` is told bytes of memory looked at, and bytes in all. Returns the length in bytes.
    pub fn save<W: Write>(&self, out: W, progress: impl FnMut(u64, u64)) -> Result<(W, u64), SaveFailure> {
        if self.state == RunState::Running {
            return Err(SaveFailure::Running);
        }
        let mut writer = Writer::new(out)?;
        let config = serde_json::to_vec(&self.config).map_err(|e| StateError::malformed("config", e))?;
        writer.section("config", VERSION, &config)?;
        save_memory(&self.memory, &mut writer, progress)?;
        let kvm = KvmState::save(&self.kvm.vm).map_err(MachineError::from)?;
        writer.section("kvm", VERSION, &kvm.encode_to_vec())?;
        let indices = self.kvm.msr_indices.clone();
        let vcpus = self.on_all_vcpus(move |_, fd, apic_id| save_vcpu(fd, apic_id, &indices))?;
        for vcpu in vcpus {
            writer.section("vcpu", VERSION, &vcpu.map_err(MachineError::from)?.encode_to_vec())?;
        }
        writer.section("acpi", VERSION, &self.acpi.lock().expect("device lock").save().encode_to_vec())?;
        for (kind, state) in self.platform_devices.save() {
            writer.section(kind, VERSION, &state)?;
        }
        for slot in &self.slots {
            let state = slot.transport.lock().expect("device lock").save();
            let section = DeviceSection { id: slot.id.clone(), slot: u32::from(slot.slot), state: Some(state) };
            writer.section("device", VERSION, &section.encode_to_vec())?;
        }
        Ok(writer.finish()?)
    }

    /// Puts a machine together from a saved one; it is paused, its clock set when it is resumed. `adapt` may change what is the
    /// host's in the configuration: paths, TAPs, sockets.
    pub fn restore<R: Read>(
        input: R,
        adapt: impl FnOnce(VmConfig) -> Result<VmConfig, ConfigError>,
        events: EventSender,
        mut progress: impl FnMut(u64),
    ) -> Result<Machine, RestoreFailure> {
        let mut reader = Reader::new(input)?;
        let config = adapt(read_config(&mut reader)?)?;
        let mut machine = Machine::new(config, events)?;
        let mut loaded = 0;
        let mut rest = Vec::new();
        while let Some(section) = reader.next_section()? {
            if section.kind == "memory" {
                section.check_version(VERSION)?;
                load_memory_chunk(&machine.memory, &section.payload)?;
                loaded += section.payload.len() as u64;
                progress(loaded);
                reader.recycle(section);
            } else {
                rest.push(section);
            }
        }
        // Nothing is applied before all of it was read and found whole.
        machine.apply(rest)?;
        Ok(machine)
    }

    fn apply(&mut self, sections: Vec<Section>) -> Result<(), RestoreFailure> {
        let mut kvm = None;
        let mut acpi = None;
        let mut vcpus: Vec<VcpuState> = Vec::new();
        let mut devices: Vec<DeviceSection> = Vec::new();
        let mut platform = Vec::new();
        for section in sections {
            match section.kind.as_str() {
                "kvm" => kvm = Some(section.decode::<KvmState>(VERSION)?),
                "vcpu" => vcpus.push(section.decode(VERSION)?),
                "device" => devices.push(section.decode(VERSION)?),
                "acpi" => acpi = Some(section.decode::<AcpiState>(VERSION)?),
                _ => {
                    section.check_version(VERSION)?;
                    platform.push(section);
                }
            }
        }
        let incomplete = |what: String| RestoreFailure::Incomplete(what);
        let kvm = kvm.ok_or_else(|| incomplete("the interrupt controllers are missing".into()))?;
        let acpi = acpi.ok_or_else(|| incomplete("the power management is missing".into()))?;
        if platform.len() != PLATFORM_DEVICES {
            return Err(incomplete("a platform device is missing".into()));
        }
        let expected: Vec<u32> = self.vcpus.iter().map(|vcpu| vcpu.apic_id).collect();
        let found: Vec<u32> = vcpus.iter().map(|vcpu| vcpu.apic_id).collect();
        if expected != found {
            return Err(incomplete(format!("the VM has vCPUs {expected:?}, saved were {found:?}")));
        }
        if vcpus.iter().any(|vcpu| vcpu.cpuid.is_empty()) {
            return Err(incomplete("a vCPU has no CPUID table".into()));
        }
        for vcpu in &vcpus {
            let saved = vcpu.cpuid_table().map_err(MachineError::from)?;
            let (supported, tsc_deadline) = &self.kvm.supported;
            let here = cpuid::for_vcpu(supported, &self.kvm.topology, vcpu.apic_id, *tsc_deadline);
            features::check_saved(&saved, &here).map_err(|error| MachineError::from(KvmError::from(error)))?;
            // vCPUs that are added later are of the same kind. The table says whether there is a deadline mode.
            self.kvm.shown = (saved, false);
        }
        // Interrupt controllers first: what a device raises while it is restored must not be overwritten.
        if !kvm.restore_controllers(&self.kvm.vm).map_err(MachineError::from)? {
            return Err(StateError::malformed("kvm", "not the interrupt controllers of a PC").into());
        }
        let elapsed_ns = kvm.elapsed_ns();
        let results = self.on_all_vcpus(move |index, fd, _| {
            let state = &vcpus[index as usize];
            let advance = u128::from(elapsed_ns) * u128::from(state.tsc_khz) / 1_000_000;
            restore_vcpu(fd, state, advance as u64)
        })?;
        results.into_iter().collect::<Result<(), VcpuStateError>>().map_err(MachineError::from)?;
        kvm.restore_clock(&self.kvm.vm).map_err(MachineError::from)?;
        if !self.acpi.lock().expect("device lock").restore(acpi) {
            return Err(StateError::malformed("acpi", "another number of vCPUs").into());
        }
        self.take_ejected_vcpus();
        for section in platform {
            let kind = section.kind.as_str();
            let restored = self.platform_devices.restore(kind, &section.payload);
            let unknown = || StateError::malformed(kind, "this release does not know this kind of section");
            restored.ok_or_else(unknown)?.map_err(|source| RestoreFailure::Device { id: kind.into(), source })?;
        }
        self.apply_devices(&devices)
    }

    fn apply_devices(&mut self, devices: &[DeviceSection]) -> Result<(), RestoreFailure> {
        if devices.len() != self.slots.len() {
            let (saved, here) = (devices.len(), self.slots.len());
            return Err(RestoreFailure::Incomplete(format!("{saved} devices were saved, the VM has {here}")));
        }
        // The guest may have put one device where another one starts.
        for slot in &self.slots {
            slot.transport.lock().expect("device lock").unmap_registers();
        }
        for device in devices {
            let incomplete = |what: &str| RestoreFailure::Incomplete(format!("device '{}' {what}", device.id));
            let place = self.slots.iter().find(|slot| slot.id == device.id);
            let slot = place.ok_or_else(|| incomplete("was saved, the VM has none of that name"))?;
            if u32::from(slot.slot) != device.slot {
                return Err(incomplete("is in another slot"));
            }
            let state = device.state.as_ref().ok_or_else(|| incomplete("has no state"))?;
            let restored = slot.transport.lock().expect("device lock").restore(state);
            restored.map_err(|source| RestoreFailure::Device { id: device.id.clone(), source })?;
        }
        Ok(())
    }
}
