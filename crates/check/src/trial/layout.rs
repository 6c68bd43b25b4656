//! The trial guest's memory: its code, page tables, descriptor tables and mailbox, and the registers it starts with.
//!
//! ```text
//! guest physical               seen by the guest at
//! 0x01000  PML4, PDPTs, PDs    -
//! 0x05000  GDT, IDT, TSS       0xffffffff8000_5000 (kernel half, 2 MiB page)
//! 0x0b000  mailbox, scratch    0xffffffff8000_b000
//! 0x10000  code                0xffffffff8001_0000, and 0x10000 for ring 3
//! 0x28000  ring 0 stack top    0xffffffff8002_8000
//! 0x30000  ring 3 stack top    0x30000
//! 0xd0000000  no memory: a device register, 0xffffffff8020_0000
//! ```

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

/// The guest's whole memory: one large page.
pub(super) const MEMORY_BYTES: usize = 2 << 20;
/// Where the kernel half is mapped (as Linux maps its own text).
const HIGH_BASE: u64 = 0xffff_ffff_8000_0000;
/// Guest physical address of the device register.
pub(super) const MMIO_ADDRESS: u64 = 0xd000_0000;

pub(super) const COMMAND_PORT: u16 = 0x510;
pub(super) const FAULT_PORT: u16 = 0x511;
pub(super) const PING_PORT: u16 = 0x512;

/// Mailbox words, guest physical.
pub(super) const MAILBOX: u64 = 0xb000;
pub(super) const MB_COMMAND: u64 = MAILBOX;
pub(super) const MB_ARGUMENT: u64 = MAILBOX + 8;
pub(super) const MB_RESULT: u64 = MAILBOX + 16;
pub(super) const MB_FAULT_VECTOR: u64 = MAILBOX + 24;

const PML4: u64 = 0x1000;
const PDPT_LOW: u64 = 0x2000;
const PD_LOW: u64 = 0x3000;
const PDPT_HIGH: u64 = 0x4000;
const GDT: u64 = 0x5000;
const IDT: u64 = 0x6000;
const TSS: u64 = 0x7000;
const PD_HIGH: u64 = 0xa000;
const CODE: u64 = 0x1_0000;
const KERNEL_STACK_TOP: u64 = 0x2_8000;

const PRESENT_WRITABLE: u64 = 0x3;
const USER: u64 = 0x4;
const CACHE_DISABLED: u64 = 0x10;
const LARGE: u64 = 0x80;

const KERNEL_CODE: u16 = 0x08;
const KERNEL_DATA: u16 = 0x10;
const TASK: u16 = 0x30;
/// Null, ring 0 code and data, ring 3 32-bit code (unused, but `sysret` counts from it), data and 64-bit code.
const GDT_ENTRIES: [u64; 6] =
    [0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x00cf_fb00_0000_ffff, 0x00cf_f300_0000_ffff, 0x00af_fb00_0000_ffff];

unsafe extern "C" {
    static maru_trial_start: u8;
    static maru_trial_end: u8;
    fn maru_trial_loop(rounds: u64, scratch: *mut u64) -> u64;
}

// One image: the order matters, handlers.s closes it.
core::arch::global_asm!(include_str!("guest/server.s"), include_str!("guest/proofs.s"), include_str!("guest/handlers.s"),);

/// Offsets that the guest image starts with, in this order.
#[derive(Clone, Copy)]
#[repr(usize)]
enum Entry {
    Main = 0,
    Faults,
    Divide,
    Breakpoint,
    Undefined,
    PageFault,
    Timer,
    Software,
    UserCall,
}

/// The guest's code as the linker placed it in this program.
fn image() -> &'static [u8] {
    let start = &raw const maru_trial_start;
    let end = &raw const maru_trial_end;
    // SAFETY: both symbols are defined in guest/*.s in one section, end after start, so the range is one mapped, readable
    // object of this program (its text) that nothing writes to.
    unsafe { std::slice::from_raw_parts(start, end.addr().saturating_sub(start.addr())) }
}

fn entry(image: &[u8], which: Entry) -> u64 {
    let at = which as usize * 4;
    let offset = image.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_le_bytes);
    HIGH_BASE + CODE + u64::from(offset)
}

/// The guest's loop, run by this thread: what the guest's time is compared with.
pub(super) fn native_loop(rounds: u64) -> u64 {
    let mut scratch = [0u64; 32];
    // SAFETY: maru_trial_loop follows the System V ABI, uses no stack and touches only the 32 words behind its second
    // argument, which are ours and live through the call. Zero rounds would wrap around to 2^64 and never end: avoided.
    unsafe { maru_trial_loop(rounds.max(1), scratch.as_mut_ptr()) }
}

/// Fills the guest's memory.
pub(super) fn load(memory: &GuestMemoryMmap) -> Result<(), GuestMemoryError> {
    let image = image();
    memory.write_slice(image, GuestAddress(CODE))?;
    let put = |address: u64, value: u64| memory.write_obj(value, GuestAddress(address));

    put(PML4, PDPT_LOW | PRESENT_WRITABLE | USER)?;
    put(PDPT_LOW, PD_LOW | PRESENT_WRITABLE | USER)?;
    put(PD_LOW, LARGE | PRESENT_WRITABLE | USER)?;
    put(PML4 + 511 * 8, PDPT_HIGH | PRESENT_WRITABLE)?;
    put(PDPT_HIGH + 510 * 8, PD_HIGH | PRESENT_WRITABLE)?;
    put(PD_HIGH, LARGE | PRESENT_WRITABLE)?;
    put(PD_HIGH + 8, MMIO_ADDRESS | LARGE | PRESENT_WRITABLE | CACHE_DISABLED)?;

    for (index, descriptor) in (0u64..).zip(GDT_ENTRIES) {
        put(GDT + index * 8, descriptor)?;
    }
    // The 16-byte descriptor of the TSS, "available": ltr wants it so and marks it busy.
    let base = HIGH_BASE + TSS;
    let low = 0x67 | (base & 0xff_ffff) << 16 | 0x89 << 40 | (base >> 24 & 0xff) << 56;
    put(GDT + u64::from(TASK), low)?;
    put(GDT + u64::from(TASK) + 8, base >> 32)?;
    memory.write_obj(HIGH_BASE + KERNEL_STACK_TOP - 0x1000, GuestAddress(TSS + 4))?;
    memory.write_obj(0x68u16, GuestAddress(TSS + 102))?;

    for vector in 0..32 {
        gate(memory, vector, entry(image, Entry::Faults) + vector * 16, 0)?;
    }
    gate(memory, 0, entry(image, Entry::Divide), 0)?;
    gate(memory, 3, entry(image, Entry::Breakpoint), 0)?;
    gate(memory, 6, entry(image, Entry::Undefined), 0)?;
    gate(memory, 14, entry(image, Entry::PageFault), 0)?;
    gate(memory, 0x40, entry(image, Entry::Timer), 0)?;
    gate(memory, 0x80, entry(image, Entry::Software), 0)?;
    gate(memory, 0x81, entry(image, Entry::UserCall), 3)?;

    pointer(memory, MAILBOX + 0x100, HIGH_BASE + GDT, 0x3f)?;
    pointer(memory, MAILBOX + 0x110, HIGH_BASE + IDT, 0xfff)
}

/// Writes one interrupt gate.
fn gate(memory: &GuestMemoryMmap, vector: u64, handler: u64, privilege: u64) -> Result<(), GuestMemoryError> {
    let kind = (0x8e00 | privilege << 13) << 32;
    let low = handler & 0xffff | u64::from(KERNEL_CODE) << 16 | kind | (handler >> 16 & 0xffff) << 48;
    memory.write_obj(low, GuestAddress(IDT + vector * 16))?;
    memory.write_obj(handler >> 32, GuestAddress(IDT + vector * 16 + 8))
}

/// Writes the operand of `lgdt` or `lidt`.
fn pointer(memory: &GuestMemoryMmap, at: u64, base: u64, limit: u16) -> Result<(), GuestMemoryError> {
    memory.write_obj(limit, GuestAddress(at))?;
    memory.write_obj(base, GuestAddress(at + 2))
}

/// The general registers at the start.
pub(super) fn registers() -> kvm_regs {
    kvm_regs {
        rip: entry(image(), Entry::Main),
        rbx: HIGH_BASE + MAILBOX,
        rsp: HIGH_BASE + KERNEL_STACK_TOP,
        rflags: 0x2,
        ..Default::default()
    }
}

/// Puts the processor into 64-bit ring 0 with the tables of [`load`].
pub(super) fn long_mode(sregs: &mut kvm_sregs) {
    let code =
        kvm_segment { selector: KERNEL_CODE, limit: 0xffff_ffff, type_: 0xb, present: 1, s: 1, l: 1, g: 1, ..Default::default() };
    let data = kvm_segment { selector: KERNEL_DATA, type_: 0x3, l: 0, db: 1, ..code };
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.ss, sregs.fs, sregs.gs) = (data, data, data, data, data);
    sregs.tr = kvm_segment { base: HIGH_BASE + TSS, limit: 0x67, selector: TASK, type_: 0xb, present: 1, ..Default::default() };
    (sregs.gdt.base, sregs.gdt.limit) = (HIGH_BASE + GDT, 0x3f);
    (sregs.idt.base, sregs.idt.limit) = (HIGH_BASE + IDT, 0xfff);
    sregs.cr0 = 0x8005_0033; // PG AM WP NE ET MP PE, as Linux has it
    sregs.cr3 = PML4;
    sregs.cr4 = 0x620; // OSXMMEXCPT OSFXSR PAE
    sregs.efer = 0xd00; // NXE LMA LME
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The loop of guest/server.s, in Rust.
    fn model(rounds: u64) -> u64 {
        let mut scratch: Vec<u64> = (0..32).collect();
        let mut value = 0x4d61_7275u64;
        for left in (1..=rounds).rev() {
            value = value.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(left);
            let slot = (value >> 59) as usize;
            let word = scratch[slot];
            value ^= word;
            scratch[slot] = word.rotate_left(7).wrapping_add(left);
        }
        value
    }

    #[test]
    fn the_assembled_loop_computes_what_its_model_does() {
        for rounds in [1, 2, 31, 32, 33, 1000] {
            assert_eq!(native_loop(rounds), model(rounds), "{rounds} rounds");
        }
    }

    #[test]
    fn the_guest_fits_between_its_code_address_and_its_stack() {
        let image = image();
        assert!(image.len() > 256);
        assert!(image.len() as u64 + 0x1000 < KERNEL_STACK_TOP - CODE);
        assert!(entry(image, Entry::UserCall) < HIGH_BASE + CODE + image.len() as u64);
    }
}
