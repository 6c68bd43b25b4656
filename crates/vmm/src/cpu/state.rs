//! The saved state of a vCPU: KVM's own structures, whose layout is part of the kernel's stable interface, as byte strings with
//! a tag each; a structure that a later kernel makes longer is still read.

use kvm_bindings::{
    CpuId, KVM_VCPUEVENT_VALID_NMI_PENDING, Msrs, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry,
    kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::VcpuFd;
use prost::Message;

/// Everything that a vCPU is.
#[derive(Clone, PartialEq, Message)]
pub struct VcpuState {
    /// The APIC id.
    #[prost(uint32, tag = "1")]
    pub apic_id: u32,
    /// `kvm_cpuid_entry2`, one after the other; empty to leave the table as it is.
    #[prost(bytes = "vec", tag = "2")]
    pub cpuid: Vec<u8>,
    /// `kvm_regs`.
    #[prost(bytes = "vec", tag = "3")]
    pub regs: Vec<u8>,
    /// `kvm_sregs`.
    #[prost(bytes = "vec", tag = "4")]
    pub sregs: Vec<u8>,
    /// `kvm_xsave`, 4 KiB.
    #[prost(bytes = "vec", tag = "5")]
    pub xsave: Vec<u8>,
    /// `kvm_xcrs`; empty where the CPU has none.
    #[prost(bytes = "vec", tag = "6")]
    pub xcrs: Vec<u8>,
    /// `kvm_lapic_state`.
    #[prost(bytes = "vec", tag = "7")]
    pub lapic: Vec<u8>,
    /// `kvm_mp_state`.
    #[prost(uint32, tag = "8")]
    pub mp_state: u32,
    /// `kvm_vcpu_events`.
    #[prost(bytes = "vec", tag = "9")]
    pub events: Vec<u8>,
    /// `kvm_debugregs`.
    #[prost(bytes = "vec", tag = "10")]
    pub debug_regs: Vec<u8>,
    /// Model-specific registers.
    #[prost(message, repeated, tag = "11")]
    pub msrs: Vec<Msr>,
    /// Frequency of the time stamp counter as the guest sees it.
    #[prost(uint32, tag = "12")]
    pub tsc_khz: u32,
}

impl VcpuState {
    /// The CPUID table that it was saved with.
    ///
    /// # Errors
    /// If it is no such table.
    pub fn cpuid_table(&self) -> Result<CpuId, VcpuStateError> {
        let entries: Vec<kvm_cpuid_entry2> =
            self.cpuid.chunks_exact(size_of::<kvm_cpuid_entry2>()).filter_map(from_bytes).collect();
        CpuId::from_entries(&entries).map_err(|_| VcpuStateError::Short { what: "CPUID table", apic_id: self.apic_id })
    }
}

/// One model-specific register.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct Msr {
    /// Its number.
    #[prost(uint32, tag = "1")]
    pub index: u32,
    /// Its value.
    #[prost(fixed64, tag = "2")]
    pub value: u64,
}

/// Why a vCPU's state could not be read or set.
#[derive(Debug, thiserror::Error)]
pub enum VcpuStateError {
    /// KVM refused.
    #[error("{what} of vCPU {apic_id}: {source}")]
    Kvm {
        /// What was read or set.
        what: &'static str,
        /// The vCPU.
        apic_id: u32,
        /// KVM's answer.
        source: kvm_ioctls::Error,
    },
    /// This host's CPU or kernel lacks a register that the guest used.
    #[error(
        "vCPU {apic_id}: this host does not take model-specific register {index:#x}; the CPU or kernel differs too much from the saving host's"
    )]
    Msr {
        /// The register.
        index: u32,
        /// The vCPU.
        apic_id: u32,
    },
    /// A structure is too short.
    #[error("the saved {what} of vCPU {apic_id} is too short")]
    Short {
        /// Which one.
        what: &'static str,
        /// The vCPU.
        apic_id: u32,
    },
}

/// Time stamp counter.
const MSR_TSC: u32 = 0x10;
/// Deadline of the APIC timer: set after the APIC's mode.
const MSR_TSC_DEADLINE: u32 = 0x6e0;

fn bytes_of<T: Copy>(value: &T) -> Vec<u8> {
    // SAFETY: the structures are plain old data of the kernel's interface, without padding that matters; all their bytes were
    // written, as they start from zero.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast::<u8>(), size_of::<T>()) }.to_vec()
}

fn from_bytes<T: Copy + Default>(bytes: &[u8]) -> Option<T> {
    let mut value = T::default();
    if bytes.len() < size_of::<T>() {
        return None;
    }
    // SAFETY: the structures are plain old data in which all bit patterns are valid, and the source is long enough.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), std::ptr::from_mut(&mut value).cast::<u8>(), size_of::<T>()) };
    Some(value)
}

/// Reads everything, in the order that KVM wants: pending events of the APIC last change with `mp_state`.
pub fn save(fd: &VcpuFd, apic_id: u32, msr_indices: &[u32]) -> Result<VcpuState, VcpuStateError> {
    let kvm = |what| move |source| VcpuStateError::Kvm { what, apic_id, source };
    let mp_state = fd.get_mp_state().map_err(kvm("reading the run state"))?;
    let cpuid = fd.get_cpuid2(kvm_bindings::KVM_MAX_CPUID_ENTRIES).map_err(kvm("reading the CPUID table"))?;
    let xsave = fd.get_xsave().map_err(kvm("reading the extended registers"))?;
    Ok(VcpuState {
        apic_id,
        cpuid: cpuid.as_slice().iter().flat_map(bytes_of).collect(),
        regs: bytes_of(&fd.get_regs().map_err(kvm("reading the registers"))?),
        sregs: bytes_of(&fd.get_sregs().map_err(kvm("reading the system registers"))?),
        xsave: bytes_of(&xsave.region),
        xcrs: fd.get_xcrs().map(|x| bytes_of(&x)).unwrap_or_default(),
        lapic: bytes_of(&fd.get_lapic().map_err(kvm("reading the local APIC"))?),
        mp_state: mp_state.mp_state,
        debug_regs: bytes_of(&fd.get_debug_regs().map_err(kvm("reading the debug registers"))?),
        msrs: read_msrs(fd, msr_indices).map_err(kvm("reading the model-specific registers"))?,
        tsc_khz: fd.get_tsc_khz().unwrap_or(0),
        events: bytes_of(&fd.get_vcpu_events().map_err(kvm("reading the pending events"))?),
    })
}

/// Reads those of the registers that this CPU has.
fn read_msrs(fd: &VcpuFd, indices: &[u32]) -> Result<Vec<Msr>, kvm_ioctls::Error> {
    let mut values = Vec::with_capacity(indices.len());
    let mut rest = indices;
    while !rest.is_empty() {
        let wanted: Vec<kvm_msr_entry> = rest.iter().map(|&index| kvm_msr_entry { index, ..Default::default() }).collect();
        let mut msrs = Msrs::from_entries(&wanted).map_err(|_| kvm_ioctls::Error::new(libc::E2BIG))?;
        let read = fd.get_msrs(&mut msrs)?;
        values.extend(msrs.as_slice()[..read].iter().map(|m| Msr { index: m.index, value: m.data }));
        // KVM stops at the first register that it cannot read: leave that one out.
        rest = rest.get(read + 1..).unwrap_or_default();
    }
    Ok(values)
}

/// Sets everything. `tsc_advance` is added to the time stamp counter: the time that went by since the state was saved.
pub fn restore(fd: &VcpuFd, state: &VcpuState, tsc_advance: u64) -> Result<(), VcpuStateError> {
    let apic_id = state.apic_id;
    let kvm = |what| move |source| VcpuStateError::Kvm { what, apic_id, source };
    let short = |what| VcpuStateError::Short { what, apic_id };

    // A vCPU that has run keeps the table it ran with: KVM takes no other.
    if !state.cpuid.is_empty() {
        let cpuid = state.cpuid_table()?;
        fd.set_cpuid2(&cpuid).map_err(kvm("setting the CPUID table"))?;
    }
    let host_khz = fd.get_tsc_khz().unwrap_or(0);
    // Crystals differ by some hundred parts in a million from boot to boot; the guest's clock disciplines that away.
    if state.tsc_khz != 0 && host_khz.abs_diff(state.tsc_khz) > state.tsc_khz / 4000 {
        fd.set_tsc_khz(state.tsc_khz).map_err(kvm("setting the frequency of the time stamp counter"))?;
    }
    fd.set_mp_state(kvm_mp_state { mp_state: state.mp_state }).map_err(kvm("setting the run state"))?;
    let regs = from_bytes::<kvm_regs>(&state.regs).ok_or(short("registers"))?;
    fd.set_regs(&regs).map_err(kvm("setting the registers"))?;
    let sregs = from_bytes::<kvm_sregs>(&state.sregs).ok_or(short("system registers"))?;
    fd.set_sregs(&sregs).map_err(kvm("setting the system registers"))?;
    let mut xsave = kvm_xsave::default();
    let words = state.xsave.chunks_exact(4).map(|w| u32::from_le_bytes([w[0], w[1], w[2], w[3]]));
    if words.len() < xsave.region.len() {
        return Err(short("extended registers"));
    }
    xsave.region.iter_mut().zip(words).for_each(|(to, word)| *to = word);
    // SAFETY: no feature beyond the 4 KiB of `kvm_xsave` was enabled for this process (that takes an arch_prctl).
    unsafe { fd.set_xsave(&xsave) }.map_err(kvm("setting the extended registers"))?;
    if let Some(xcrs) = from_bytes::<kvm_xcrs>(&state.xcrs) {
        fd.set_xcrs(&xcrs).map_err(kvm("setting the extended control registers"))?;
    }
    let debug_regs = from_bytes::<kvm_debugregs>(&state.debug_regs).ok_or(short("debug registers"))?;
    fd.set_debug_regs(&debug_regs).map_err(kvm("setting the debug registers"))?;
    let lapic = from_bytes::<kvm_lapic_state>(&state.lapic).ok_or(short("local APIC"))?;
    fd.set_lapic(&lapic).map_err(kvm("setting the local APIC"))?;

    let (deadline, mut msrs): (Vec<Msr>, Vec<Msr>) = state.msrs.iter().partition(|m| m.index == MSR_TSC_DEADLINE);
    for tsc in msrs.iter_mut().filter(|m| m.index == MSR_TSC) {
        tsc.value = tsc.value.wrapping_add(tsc_advance);
    }
    write_msrs(fd, apic_id, &msrs)?;
    write_msrs(fd, apic_id, &deadline)?;

    let mut events = from_bytes::<kvm_vcpu_events>(&state.events).ok_or(short("pending events"))?;
    events.flags |= KVM_VCPUEVENT_VALID_NMI_PENDING;
    fd.set_vcpu_events(&events).map_err(kvm("setting the pending events"))
}

/// Writes the registers; one that this host does not take is an error only if it has a value to lose.
pub fn write_msrs(fd: &VcpuFd, apic_id: u32, values: &[Msr]) -> Result<(), VcpuStateError> {
    let mut rest = values;
    while !rest.is_empty() {
        let entries: Vec<kvm_msr_entry> =
            rest.iter().map(|m| kvm_msr_entry { index: m.index, data: m.value, ..Default::default() }).collect();
        let msrs = Msrs::from_entries(&entries).map_err(|_| VcpuStateError::Short { what: "register list", apic_id })?;
        let written = fd.set_msrs(&msrs).map_err(|source| VcpuStateError::Kvm {
            what: "setting the model-specific registers",
            apic_id,
            source,
        })?;
        if let Some(refused) = rest.get(written)
            && refused.value != 0
        {
            return Err(VcpuStateError::Msr { index: refused.index, apic_id });
        }
        rest = rest.get(written + 1..).unwrap_or_default();
    }
    Ok(())
}
