//! The registers of the first vCPU at its first instruction.

use kvm_bindings::{kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress};

use super::{Entry, PVH_START_INFO, ZERO_PAGE};
use crate::cpu::state::{Msr, VcpuStateError, write_msrs};
use crate::virtio::GuestMemory;

const GDT: u64 = 0x500;
const PML4: u64 = 0x9000;
const PDPT: u64 = 0xa000;
const PAGE_DIRECTORIES: u64 = 0xb000;
const STACK: u64 = 0x8ff0;

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
const MSR_MTRR_DEFAULT_TYPE: u32 = 0x2ff;
/// MTRRs on, default type write-back.
const MTRR_ON_WRITE_BACK: u64 = (1 << 11) | 6;

/// GDT entries: null, unused, code, data, task state. Linux expects the code at selector 0x10 and the data at 0x18
/// (boot protocol, `__BOOT_CS` and `__BOOT_DS`).
const CODE_64: u64 = 0x00af_9b00_0000_ffff;
const CODE_32: u64 = 0x00cf_9b00_0000_ffff;
const DATA: u64 = 0x00cf_9300_0000_ffff;
const TSS: u64 = 0x008f_8b00_0000_ffff;

/// Sets the first vCPU to start at `entry`, and writes the tables it needs to guest memory.
pub fn set_registers(fd: &VcpuFd, apic_id: u32, entry: Entry, guest: &GuestMemory) -> Result<(), VcpuStateError> {
    let kvm = |what| move |source| VcpuStateError::Kvm { what, apic_id, source };
    let memory = |what: &'static str| move |_| VcpuStateError::Short { what, apic_id };
    let mut sregs = fd.get_sregs().map_err(kvm("reading the system registers"))?;
    let (code, regs) = match entry {
        Entry::Linux64 { rip } => {
            // The first 4 GiB one to one, in 2 MiB pages.
            let write = |address: u64, value: u64| guest.write_obj(value, GuestAddress(address));
            write(PML4, PDPT | 3).map_err(memory("page tables"))?;
            for gib in 0..4 {
                let directory = PAGE_DIRECTORIES + gib * 4096;
                write(PDPT + gib * 8, directory | 3).map_err(memory("page tables"))?;
                let entries: Vec<u8> = (0..512u64).flat_map(|i| (((gib * 512 + i) << 21) | 0x83).to_le_bytes()).collect();
                guest.write_slice(&entries, GuestAddress(directory)).map_err(memory("page tables"))?;
            }
            sregs.cr3 = PML4;
            sregs.cr4 |= CR4_PAE;
            sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
            sregs.efer |= EFER_LME | EFER_LMA;
            (CODE_64, kvm_regs { rip, rsi: ZERO_PAGE, rsp: STACK, rbp: STACK, rflags: 2, ..Default::default() })
        }
        Entry::Pvh { rip } => {
            sregs.cr0 = CR0_PE | CR0_ET;
            sregs.cr4 = 0;
            sregs.efer = 0;
            (CODE_32, kvm_regs { rip, rbx: PVH_START_INFO, rflags: 2, ..Default::default() })
        }
    };
    let gdt = [0, 0, code, DATA, TSS];
    let table: Vec<u8> = gdt.iter().flat_map(|e| e.to_le_bytes()).collect();
    guest.write_slice(&table, GuestAddress(GDT)).map_err(memory("descriptor table"))?;
    (sregs.gdt.base, sregs.gdt.limit) = (GDT, table.len() as u16 - 1);
    (sregs.idt.base, sregs.idt.limit) = (0, 0);
    sregs.cs = segment(code, 2);
    let data = segment(DATA, 3);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = kvm_segment { limit: 0x67, ..segment(TSS, 4) };
    fd.set_sregs(&sregs).map_err(kvm("setting the system registers"))?;
    fd.set_regs(&regs).map_err(kvm("setting the registers"))?;
    write_msrs(fd, apic_id, &[Msr { index: MSR_MTRR_DEFAULT_TYPE, value: MTRR_ON_WRITE_BACK }])
}

/// The hidden part of a segment register, from its descriptor.
fn segment(descriptor: u64, index: u16) -> kvm_segment {
    let flag = |bit: u32| (descriptor >> bit) as u8 & 1;
    let limit = (descriptor & 0xffff) | ((descriptor >> 32) & 0xf_0000);
    kvm_segment {
        base: 0,
        limit: if flag(55) == 1 { ((limit << 12) | 0xfff) as u32 } else { limit as u32 },
        selector: index * 8,
        type_: (descriptor >> 40) as u8 & 0xf,
        present: flag(47),
        dpl: (descriptor >> 45) as u8 & 3,
        db: flag(54),
        s: flag(44),
        l: flag(53),
        g: flag(55),
        avl: 0,
        unusable: 0,
        padding: 0,
    }
}
