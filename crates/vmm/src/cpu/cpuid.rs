//! What `CPUID` tells the guest: what KVM supports on this host, with the VM's own topology.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

use super::Topology;

const HYPERVISOR: u32 = 1 << 31;
const TSC_DEADLINE: u32 = 1 << 24;
const X2APIC: u32 = 1 << 21;
const HTT: u32 = 1 << 28;
/// AMD: more than one core, numbered the way Intel numbers hyper-threads.
const CMP_LEGACY: u32 = 1 << 1;
/// AMD: leaves 0x8000_001d and 0x8000_001e are there.
const TOPOLOGY_EXTENSIONS: u32 = 1 << 22;

/// The table for the vCPU with APIC id `apic_id`. `supported` is what KVM supports; `tsc_deadline` whether its APIC timer knows that mode
/// (KVM leaves it out of its table).
pub fn for_vcpu(supported: &CpuId, topology: &Topology, apic_id: u32, tsc_deadline: bool) -> CpuId {
    let mut entries: Vec<kvm_cpuid_entry2> =
        supported.as_slice().iter().copied().filter(|e| !matches!(e.function, 0xb | 0x1f)).collect();
    let logical = topology.per_socket();
    for entry in &mut entries {
        match entry.function {
            0 => entry.eax = entry.eax.max(0xb),
            1 => {
                let count = logical.next_power_of_two().min(255);
                entry.ebx = (entry.ebx & 0xffff) | (count << 16) | ((apic_id & 0xff) << 24);
                entry.ecx |= HYPERVISOR | X2APIC | if tsc_deadline { TSC_DEADLINE } else { 0 };
                entry.edx = (entry.edx & !HTT) | if logical > 1 { HTT } else { 0 };
            }
            4 if entry.eax & 0x1f != 0 => {
                entry.eax = with_sharing(entry.eax, topology) & !(0x3f << 26) | ((topology.cores - 1).min(0x3f) << 26);
            }
            0x8000_001d if entry.eax & 0x1f != 0 => entry.eax = with_sharing(entry.eax, topology),
            0x8000_0001 if entry.ecx & TOPOLOGY_EXTENSIONS != 0 => {
                entry.ecx = (entry.ecx & !CMP_LEGACY) | if logical > 1 { CMP_LEGACY } else { 0 };
            }
            // Only AMD defines ECX of this leaf.
            0x8000_0008 if entry.ecx != 0 || logical > 1 => {
                entry.ecx = (logical - 1).min(0xff) | (topology.socket_shift() << 12);
            }
            0x8000_001e => {
                entry.eax = apic_id;
                entry.ebx = ((apic_id >> topology.thread_bits()) & 0xff) | ((topology.threads - 1) << 8);
                entry.ecx = (apic_id >> topology.socket_shift()) & 0xff;
            }
            _ => {}
        }
    }
    // Extended topology: threads in a core, then threads in a socket, then the end.
    let levels = [(topology.thread_bits(), topology.threads, 1), (topology.socket_shift(), logical, 2), (0, 0, 0)];
    for (index, (shift, count, kind)) in (0u32..).zip(levels) {
        entries.push(kvm_cpuid_entry2 {
            function: 0xb,
            index,
            flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
            eax: shift,
            ebx: count,
            ecx: index | (kind << 8),
            edx: apic_id,
            ..Default::default()
        });
    }
    CpuId::from_entries(&entries).expect("KVM's own table and three entries fit KVM's limit of 256")
}

/// Level 1 and 2 caches belong to a core, level 3 to a socket (bits 25:14 hold the number of ids that share it, less one).
fn with_sharing(eax: u32, topology: &Topology) -> u32 {
    let level = (eax >> 5) & 7;
    let sharing = if level >= 3 { 1 << topology.socket_shift() } else { 1 << topology.thread_bits() };
    (eax & !(0xfff << 14)) | (((sharing - 1) & 0xfff) << 14)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, index, ..Default::default() }
    }

    #[test]
    fn each_vcpu_finds_itself_in_the_topology() {
        let topology = Topology { max: 8, threads: 2, cores: 2, sockets: 2 };
        let mut cache = entry(4, 3);
        cache.eax = 3 << 5 | 3;
        let supported = CpuId::from_entries(&[entry(0, 0), entry(1, 0), cache, entry(0xb, 0), entry(0x8000_001e, 0)]).unwrap();
        let apic_id = topology.apic_id(6);
        let table = for_vcpu(&supported, &topology, apic_id, true);
        let find = |f, i| table.as_slice().iter().find(|e| e.function == f && e.index == i).copied().unwrap();
        assert_eq!(find(0, 0).eax, 0xb);
        assert_eq!(find(1, 0).ebx >> 16, (apic_id << 8) | 4);
        assert_ne!(find(1, 0).ecx & TSC_DEADLINE, 0);
        assert_eq!((find(4, 3).eax >> 14) & 0xfff, 3);
        assert_eq!(table.as_slice().iter().filter(|e| e.function == 0xb).count(), 3);
        assert_eq!((find(0xb, 1).eax, find(0xb, 1).ebx, find(0xb, 1).edx), (2, 4, apic_id));
        assert_eq!(find(0x8000_001e, 0).ecx, 1);
    }
}
