//! Proves that KVM works: runs a few instructions in a virtual machine of its own.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const KVM_CREATE_VM: u64 = 0xae01;
const KVM_GET_VCPU_MMAP_SIZE: u64 = 0xae04;
const KVM_CREATE_VCPU: u64 = 0xae41;
const KVM_SET_USER_MEMORY_REGION: u64 = 0x4020_ae46;
const KVM_RUN: u64 = 0xae80;
const KVM_GET_REGS: u64 = 0x8090_ae81;
const KVM_SET_REGS: u64 = 0x4090_ae82;
const KVM_GET_SREGS: u64 = 0x8138_ae83;
const KVM_SET_SREGS: u64 = 0x4138_ae84;
const KVM_EXIT_HLT: u32 = 5;

/// Where the code lies in the guest.
const CODE_AT: u64 = 0x1000;
/// Adds bl to al and halts.
const CODE: [u8; 3] = [0x00, 0xd8, 0xf4];
const PAGE: usize = 4096;

#[repr(C)]
struct MemoryRegion {
    slot: u32,
    flags: u32,
    guest_address: u64,
    size: u64,
    user_address: u64,
}

fn ioctl(fd: &impl AsRawFd, request: u64, argument: u64) -> io::Result<i32> {
    // SAFETY: every argument that is a pointer, below, points to memory of the size that the request's number encodes.
    match unsafe { libc::ioctl(fd.as_raw_fd(), request as _, argument) } {
        -1 => Err(io::Error::last_os_error()),
        value => Ok(value),
    }
}

fn map(fd: i32, size: usize, flags: i32) -> io::Result<*mut u8> {
    // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing.
    let address = unsafe { libc::mmap(std::ptr::null_mut(), size, libc::PROT_READ | libc::PROT_WRITE, flags, fd, 0) };
    if address == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(address.cast()) }
}

fn owned(fd: i32) -> OwnedFd {
    // SAFETY: KVM has just returned this descriptor; nobody else owns it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Runs the guest and gives its answer: 2 + 3.
pub fn run() -> io::Result<u64> {
    let kvm = File::options().read(true).write(true).open("/dev/kvm")?;
    let vm = owned(ioctl(&kvm, KVM_CREATE_VM, 0)?);
    let memory = map(-1, PAGE, libc::MAP_SHARED | libc::MAP_ANONYMOUS)?;
    // SAFETY: the mapping is a page long; the code has three bytes. Both mappings live until this short program ends.
    unsafe { std::ptr::copy_nonoverlapping(CODE.as_ptr(), memory, CODE.len()) };
    let region = MemoryRegion { slot: 0, flags: 0, guest_address: CODE_AT, size: PAGE as u64, user_address: memory as u64 };
    ioctl(&vm, KVM_SET_USER_MEMORY_REGION, &raw const region as u64)?;
    let cpu = owned(ioctl(&vm, KVM_CREATE_VCPU, 0)?);
    let size = ioctl(&kvm, KVM_GET_VCPU_MMAP_SIZE, 0)? as usize;
    let shared = map(cpu.as_raw_fd(), size, libc::MAP_SHARED)?;
    // struct kvm_sregs: cs is the first segment; its base is the first field and its selector follows the 32-bit limit.
    let mut special = [0u64; 0x138 / 8];
    ioctl(&cpu, KVM_GET_SREGS, &raw mut special as u64)?;
    special[0] = 0;
    special[1] &= !(0xffff << 32);
    ioctl(&cpu, KVM_SET_SREGS, &raw const special as u64)?;
    // struct kvm_regs: rax, rbx, ... rip is the 17th, rflags the 18th; bit 1 of the flags is always set.
    let mut registers = [0u64; 18];
    (registers[0], registers[1], registers[16], registers[17]) = (2, 3, CODE_AT, 2);
    ioctl(&cpu, KVM_SET_REGS, &raw const registers as u64)?;
    ioctl(&cpu, KVM_RUN, 0)?;
    // SAFETY: struct kvm_run, which `shared` maps, has the exit reason at offset 8.
    let reason = unsafe { shared.add(8).cast::<u32>().read_volatile() };
    ioctl(&cpu, KVM_GET_REGS, &raw mut registers as u64)?;
    match (reason, registers[0]) {
        (KVM_EXIT_HLT, 5) => Ok(5),
        (reason, answer) => {
            Err(io::Error::other(format!("the virtual machine stopped for reason {reason} with {answer} instead of 5")))
        }
    }
}
