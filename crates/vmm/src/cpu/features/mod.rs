//! What processors can do, by name, and a VM that sees no more of it than it was promised.
//!
//! ```text
//!   KVM's table ──of()──▶ names of what a guest could have here ──(all hosts of a cluster)──▶ a list, kept with the VM
//!        │                                                                                     │
//!        └───────────────────────────── restrict() ◀───────────────────────────────────────────┘
//!                                           │
//!                                           ▼
//!                    the table of its vCPUs, the same on each host that has what the list names; else an error that names the rest
//! ```
//!
//! A list says all that may differ between hosts: a bit without a name, a leaf that is not known here, a part of the XSAVE area whose
//! feature is not listed are not shown. Model, caches and brand are those of the host that the VM starts on, and move along with it.

mod names;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

use names::{COMPONENTS, NEEDS, REGISTERS, Register, SYSTEM_COMPONENTS, VENDORS};

/// Why a VM cannot have the processors that it is to have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FeatureError {
    /// No such name.
    #[error("'{0}' is no CPU feature that this release knows; `maru-vmm --cpu-features` lists those of a host")]
    Unknown(String),
    /// A list that no processor has.
    #[error("the list of CPU features has {name}, but not {needs}, without which it is no use: add that, or take {name} out")]
    Needs {
        /// What is in the list.
        name: &'static str,
        /// What is not.
        needs: &'static str,
    },
    /// The host has less.
    #[error(
        "the processors of this host, or its KVM, lack what the VM was promised: {}; run it on a host that has that, or shorten its list of CPU features while it is off",
        .0.join(", ")
    )]
    Missing(Vec<String>),
    /// Processors of another maker.
    #[error(
        "the VM runs on processors of '{saved}', and those of this host are of '{here}': shut it down, and start it here anew"
    )]
    Vendor {
        /// Of whom the VM has processors.
        saved: String,
        /// Of whom the host has.
        here: String,
    },
    /// Fewer address lines.
    #[error(
        "the VM has processors with {saved} bits of physical addresses, and those of this host have {here}: run it on a host that has as many"
    )]
    AddressBits {
        /// How many the VM's have.
        saved: u32,
        /// How many the host's have.
        here: u32,
    },
}

/// The highest width of physical addresses that a VM with a list sees: what servers of the last ten years have at least.
const ADDRESS_BITS: u32 = 46;
/// The length of an XSAVE area with nothing but x87, SSE and its header.
const XSAVE_BASE: u32 = 576;
/// Leaves that a VM with a list has besides those with features: model, caches, XSAVE, topology, brand, TLBs.
const OTHER_LEAVES: &[u32] = &[
    0,
    2,
    4,
    0xd,
    0x4000_0000,
    0x8000_0000,
    0x8000_0002,
    0x8000_0003,
    0x8000_0004,
    0x8000_0005,
    0x8000_0006,
    0x8000_0019,
    0x8000_001d,
    0x8000_001e,
];

fn value(entry: &kvm_cpuid_entry2, register: Register) -> u32 {
    match register {
        Register::Eax => entry.eax,
        Register::Ebx => entry.ebx,
        Register::Ecx => entry.ecx,
        Register::Edx => entry.edx,
    }
}

fn value_mut(entry: &mut kvm_cpuid_entry2, register: Register) -> &mut u32 {
    match register {
        Register::Eax => &mut entry.eax,
        Register::Ebx => &mut entry.ebx,
        Register::Ecx => &mut entry.ecx,
        Register::Edx => &mut entry.edx,
    }
}

fn find(table: &CpuId, function: u32, index: u32) -> Option<&kvm_cpuid_entry2> {
    table.as_slice().iter().find(|entry| (entry.function, entry.index) == (function, index))
}

fn register(table: &CpuId, function: u32, index: u32, register: Register) -> u32 {
    find(table, function, index).map_or(0, |entry| value(entry, register))
}

/// Bits of XCR0 and IA32_XSS that a table allows.
fn components(table: &CpuId) -> (u64, u64) {
    let wide = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    let user = find(table, 0xd, 0).map_or(0, |entry| wide(entry.eax, entry.edx));
    let system = find(table, 0xd, 1).map_or(0, |entry| wide(entry.ecx, entry.edx));
    (user, system)
}

/// Which of `parts` a list names.
fn named_components(parts: &[(&str, u64)], listed: impl Fn(&str) -> bool) -> u64 {
    parts.iter().filter(|(name, _)| listed(name)).fold(0, |bits, (_, part)| bits | part)
}

fn vendor(table: &CpuId) -> [u8; 12] {
    let mut text = [0; 12];
    if let Some(leaf) = find(table, 0, 0) {
        let words = [leaf.ebx, leaf.edx, leaf.ecx];
        text.chunks_exact_mut(4).zip(words).for_each(|(to, word)| to.copy_from_slice(&word.to_le_bytes()));
    }
    text
}

/// The names of what a guest could have, where `table` is what KVM supports and `tsc_deadline` whether its APIC timer knows that mode. Sorted,
/// and the same for the same processors whatever release or kernel is there, as far as that supports them. What needs something that is not
/// there is left out.
pub fn of(table: &CpuId, tsc_deadline: bool) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for place in &REGISTERS {
        let bits = register(table, place.function, place.index, place.register);
        names.extend(place.named().filter(|(bit, _)| bits >> bit & 1 == 1).map(|(_, name)| name));
    }
    let maker = vendor(table);
    names.extend(VENDORS.iter().filter(|(text, _)| **text == maker).map(|(_, name)| name));
    if tsc_deadline {
        names.insert("tsc_deadline_timer");
    }
    let (user, system) = components(table);
    names.retain(|name| {
        let whole = |parts: &[(&str, u64)], bits: u64| named_components(parts, |part| part == *name) & !bits == 0;
        whole(COMPONENTS, user) && whole(SYSTEM_COMPONENTS, system)
    });
    while let Some((name, _)) =
        NEEDS.iter().find(|(name, needs)| names.contains(name) && !needs.iter().all(|n| names.contains(n)))
    {
        names.remove(name);
    }
    names.into_iter().map(String::from).collect()
}

fn is_name(name: &str) -> bool {
    let known = |place: &names::Features| place.named().any(|(_, known)| known == name);
    REGISTERS.iter().any(known) || VENDORS.iter().any(|(_, known)| *known == name)
}

/// Whether a VM with this list could be, on some host.
///
/// # Errors
/// A name that is none, and one whose needs are not listed.
pub fn check(listed: &BTreeSet<String>) -> Result<(), FeatureError> {
    if let Some(name) = listed.iter().find(|name| !is_name(name)) {
        return Err(FeatureError::Unknown(name.clone()));
    }
    for &(name, needs) in NEEDS.iter().filter(|(name, _)| listed.contains(*name)) {
        if let Some(&needs) = needs.iter().find(|needs| !listed.contains(**needs)) {
            return Err(FeatureError::Needs { name, needs });
        }
    }
    Ok(())
}

/// What vCPUs see that were promised what is `listed`, no more and no less, where `supported` and `tsc_deadline` are as for [`of`]; and
/// whether the deadline mode is among it.
///
/// # Errors
/// As for [`check`], and if the host lacks some of it.
pub fn restrict(supported: &CpuId, tsc_deadline: bool, listed: &BTreeSet<String>) -> Result<(CpuId, bool), FeatureError> {
    check(listed)?;
    let here = of(supported, tsc_deadline);
    let missing: Vec<String> = listed.difference(&here).cloned().collect();
    if !missing.is_empty() {
        return Err(FeatureError::Missing(missing));
    }
    let has = |name: &str| listed.contains(name);
    let (user, system) = components(supported);
    let user = if has("xsave") { user & (3 | named_components(COMPONENTS, has)) } else { 0 };
    let system = if has("xsaves") { system & named_components(SYSTEM_COMPONENTS, has) } else { 0 };

    let is_known = |entry: &&kvm_cpuid_entry2| {
        let place = |place: &names::Features| place.function == entry.function && place.index == entry.index;
        match entry.function {
            0xd => has("xsave") && (entry.index < 2 || entry.index < 64 && (user | system) >> entry.index & 1 == 1),
            0x8000_000a => has("svm"),
            0x8000_001d | 0x8000_001e => has("topoext"),
            function => OTHER_LEAVES.contains(&function) || REGISTERS.iter().any(place),
        }
    };
    let mut entries: Vec<kvm_cpuid_entry2> = supported.as_slice().iter().filter(is_known).copied().collect();
    let area = |bits: u64| {
        let end = |index: u32| find(supported, 0xd, index).map_or(0, |part| part.eax.saturating_add(part.ebx));
        (2..63u32).filter(|index| bits >> index & 1 == 1).map(end).fold(XSAVE_BASE, u32::max)
    };
    let highest = |range: std::ops::Range<u32>| entries.iter().map(|e| e.function).filter(|f| range.contains(f)).max();
    let (basic, extended) = (highest(0..0x4000_0000), highest(0x8000_0000..0xc000_0000));
    for entry in &mut entries {
        restrict_features(entry, &has);
        match (entry.function, entry.index) {
            (0, _) => entry.eax = basic.unwrap_or(0),
            (7, 0) => entry.eax = entry.eax.min(2),
            // KVM sets the sizes for what the guest has enabled, as it does.
            (0xd, 0) => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (user as u32, XSAVE_BASE, area(user), (user >> 32) as u32),
            (0xd, 1) => (entry.ebx, entry.ecx, entry.edx) = (XSAVE_BASE, system as u32, (system >> 32) as u32),
            (0x8000_0000, _) => entry.eax = extended.unwrap_or(0x8000_0000),
            (0x8000_0008, _) => {
                let linear = if has("la57") { 57 } else { 48 };
                entry.eax = (entry.eax & 0xff).min(ADDRESS_BITS) | linear << 8;
                entry.edx = if has("rdpru") { entry.edx } else { 0 };
            }
            _ => {}
        }
    }
    let table = CpuId::from_entries(&entries).expect("no more entries than KVM's own table has");
    Ok((table, tsc_deadline && has("tsc_deadline_timer")))
}

/// Clears what is not listed in the registers of a leaf that have features. What else such a leaf says of the host goes, where it is no
/// width, model or the like.
fn restrict_features(entry: &mut kvm_cpuid_entry2, has: &impl Fn(&str) -> bool) {
    let all = [Register::Eax, Register::Ebx, Register::Ecx, Register::Edx];
    let places: Vec<_> = REGISTERS.iter().filter(|p| (p.function, p.index) == (entry.function, entry.index)).collect();
    for place in &places {
        let mask = place.named().filter(|(_, name)| has(name)).fold(0, |mask, (bit, _)| mask | 1 << bit);
        *value_mut(entry, place.register) &= mask;
    }
    let kept: &[Register] = match (entry.function, entry.index) {
        (1, _) => &[Register::Eax, Register::Ebx],
        (7, 0) => &[Register::Eax],
        (0xd, _) | (0x8000_0008, _) => &all,
        (0x8000_0001, _) => &[Register::Eax, Register::Ebx],
        (0x8000_000a, _) => &[Register::Eax, Register::Ebx],
        _ if places.is_empty() => &all,
        _ => &[],
    };
    for register in all {
        if !kept.contains(&register) && !places.iter().any(|place| place.register == register) {
            *value_mut(entry, register) = 0;
        }
    }
}

/// Whether a vCPU that was saved with the table `saved` can go on where a new one would have `here` without a list.
///
/// # Errors
/// What is missing here. Bits that have no name are looked at, too: a guest may use all that it was shown.
pub fn check_saved(saved: &CpuId, here: &CpuId) -> Result<(), FeatureError> {
    let (saved_vendor, vendor) = (vendor(saved), vendor(here));
    if saved_vendor != vendor {
        let text = |vendor: [u8; 12]| String::from_utf8_lossy(&vendor).trim_end_matches('\0').to_owned();
        return Err(FeatureError::Vendor { saved: text(saved_vendor), here: text(vendor) });
    }
    let mut missing = BTreeSet::new();
    for place in &REGISTERS {
        let bits = |table| register(table, place.function, place.index, place.register);
        let lost = bits(saved) & !bits(here) & !place.own();
        for (bit, name) in (0u32..).zip(place.names()).filter(|(bit, _)| lost >> bit & 1 == 1) {
            missing.insert(match name {
                "-" => format!("bit {bit} of {:?} in CPUID leaf {:#x}.{}", place.register, place.function, place.index),
                name => name.to_owned(),
            });
        }
    }
    if !missing.is_empty() {
        return Err(FeatureError::Missing(missing.into_iter().collect()));
    }
    let width = |table| register(table, 0x8000_0008, 0, Register::Eax) & 0xff;
    match (width(saved), width(here)) {
        (saved, here) if saved > here => Err(FeatureError::AddressBits { saved, here }),
        _ => Ok(()),
    }
}
