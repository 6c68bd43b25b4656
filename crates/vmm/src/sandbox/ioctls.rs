//! Numbers of the ioctls that confined threads use.

use kvm_bindings::*;

const WRITE: u32 = 1;
const READ: u32 = 2;

/// `_IOC` of `asm-generic/ioctl.h`, for KVM's.
const fn kvm(direction: u32, number: u32, bytes: usize) -> u32 {
    direction << 30 | (bytes as u32) << 16 | 0xae << 8 | number
}

const KVM_RUN: u32 = kvm(0, 0x80, 0);

/// What vCPU threads ask of KVM: running, their own state, and the interrupts and notifications that the guest sets up. The most
/// frequent is the first.
pub const VCPU: [u32; 28] = [
    KVM_RUN,
    kvm(WRITE, 0x76, size_of::<kvm_irqfd>()),
    kvm(WRITE, 0x79, size_of::<kvm_ioeventfd>()),
    kvm(WRITE, 0x6a, size_of::<kvm_irq_routing>()),
    kvm(READ, 0x81, size_of::<kvm_regs>()),
    kvm(WRITE, 0x82, size_of::<kvm_regs>()),
    kvm(READ, 0x83, size_of::<kvm_sregs>()),
    kvm(WRITE, 0x84, size_of::<kvm_sregs>()),
    kvm(READ | WRITE, 0x88, size_of::<kvm_msrs>()),
    kvm(WRITE, 0x89, size_of::<kvm_msrs>()),
    kvm(READ, 0x8e, size_of::<kvm_lapic_state>()),
    kvm(WRITE, 0x8f, size_of::<kvm_lapic_state>()),
    kvm(WRITE, 0x90, size_of::<kvm_cpuid2>()),
    kvm(READ | WRITE, 0x91, size_of::<kvm_cpuid2>()),
    kvm(READ, 0x98, size_of::<kvm_mp_state>()),
    kvm(WRITE, 0x99, size_of::<kvm_mp_state>()),
    kvm(READ, 0x9f, size_of::<kvm_vcpu_events>()),
    kvm(WRITE, 0xa0, size_of::<kvm_vcpu_events>()),
    kvm(READ, 0xa1, size_of::<kvm_debugregs>()),
    kvm(WRITE, 0xa2, size_of::<kvm_debugregs>()),
    kvm(READ, 0xa4, size_of::<kvm_xsave>()),
    kvm(WRITE, 0xa5, size_of::<kvm_xsave>()),
    kvm(READ, 0xa6, size_of::<kvm_xcrs>()),
    kvm(WRITE, 0xa7, size_of::<kvm_xcrs>()),
    // KVM_SET_TSC_KHZ, KVM_GET_TSC_KHZ, KVM_KVMCLOCK_CTRL, KVM_CHECK_EXTENSION.
    kvm(0, 0xa2, 0),
    kvm(0, 0xa3, 0),
    kvm(0, 0xad, 0),
    kvm(0, 0x03, 0),
];

/// What the main thread asks of KVM besides: new vCPUs, memory and its dirty log, interrupt controllers, the clock.
pub const MACHINE: [u32; 7] = [
    // KVM_CREATE_VCPU.
    kvm(0, 0x41, 0),
    kvm(WRITE, 0x42, size_of::<kvm_dirty_log>()),
    kvm(WRITE, 0x46, size_of::<kvm_userspace_memory_region>()),
    kvm(READ | WRITE, 0x62, size_of::<kvm_irqchip>()),
    kvm(READ, 0x63, size_of::<kvm_irqchip>()),
    kvm(WRITE, 0x7b, size_of::<kvm_clock_data>()),
    kvm(READ, 0x7c, size_of::<kvm_clock_data>()),
];

/// A TAP in use: offloads, attaching and detaching queues.
pub const TAP: [u32; 2] = [libc::TUNSETOFFLOAD as u32, libc::TUNSETQUEUE as u32];

/// A TAP that was handed in: its flags, its header size.
pub const NEW_TAP: [u32; 2] = [libc::TUNGETIFF as u32, libc::TUNSETVNETHDRSZ as u32];

/// `BLKDISCARD`.
pub const DISCARD: [u32; 1] = [0x1277];

/// A block device's sizes: `BLKSSZGET`, `BLKPBSZGET`, `BLKGETSIZE64`.
pub const DISK_SIZE: [u32; 3] = [0x1268, 0x127b, 0x8008_1272];

/// With this, sockets are made non-blocking.
pub const SOCKET: [u32; 1] = [libc::FIONBIO as u32];
