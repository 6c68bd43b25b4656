//! One trial VM: a vCPU that takes commands, each with a time limit that the guest cannot outsit.

use std::io;
use std::os::fd::AsRawFd;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU8, Ordering};
use std::time::{Duration, Instant};

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_device_attr, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap};

use super::layout;

/// What the guest can be told to do; the numbers are the order of the table in guest/server.s.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub(super) enum Command {
    Loop = 0,
    Port,
    Cpuid,
    Mmio,
    Tables,
    Control,
    Exceptions,
    Vector,
    User,
    Timer,
}

/// What a guest reads from [`layout::PING_PORT`] and from the device register.
pub(super) const PING_ANSWER: u32 = 3;

/// `_IOW(KVMIO, 0xe3, struct kvm_device_attr)`.
const KVM_HAS_DEVICE_ATTR: libc::c_ulong = 0x4018_aee3;

/// Why a trial VM could not be made.
#[derive(Debug, thiserror::Error)]
pub(super) enum SetupError {
    /// One of the calls that make a VM failed.
    #[error("{call}: {source}")]
    Kvm {
        /// The KVM call.
        call: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The guest's memory could not be mapped.
    #[error("guest memory cannot be mapped: {0}")]
    Map(String),
    /// The guest's memory could not be filled.
    #[error("guest memory cannot be filled")]
    Fill(#[from] GuestMemoryError),
}

/// Why a command did not come to its end. The VM is of no use afterwards.
#[derive(Debug, thiserror::Error)]
pub(super) enum StepError {
    /// The guest did not come back in time.
    #[error("did not finish within {} ms", .0.as_millis())]
    TimedOut(Duration),
    /// KVM gave up on the guest.
    #[error("KVM_EXIT_INTERNAL_ERROR suberror {suberror} ({}) at rip {rip:#x}", suberror_name(*.suberror))]
    Internal {
        /// `kvm_run.internal.suberror`.
        suberror: u32,
        /// Where the guest was.
        rip: u64,
    },
    /// The processor refused to enter the guest.
    #[error("KVM_EXIT_FAIL_ENTRY, hardware reason {0:#x}")]
    FailEntry(u64),
    /// The guest took an exception that it should not have.
    #[error("the guest took unexpected exception {vector} at rip {rip:#x}")]
    Fault {
        /// Exception vector.
        vector: u64,
        /// Where the guest's handler ended.
        rip: u64,
    },
    /// The guest stopped for a reason of which its code has none.
    #[error("unexpected exit {0}")]
    Exit(String),
    /// `KVM_RUN` itself failed.
    #[error("KVM_RUN: {0}")]
    Run(io::Error),
    /// The mailbox could not be reached.
    #[error("guest memory cannot be reached")]
    Memory(#[from] GuestMemoryError),
}

fn suberror_name(suberror: u32) -> &'static str {
    match suberror {
        1 => "an instruction that KVM's emulator does not know",
        2 => "simultaneous exceptions",
        3 => "event delivery failed",
        4 => "unexpected exit reason",
        _ => "unknown",
    }
}

/// The `immediate_exit` byte of the vCPU being run, for the alarm's handler.
static IMMEDIATE_EXIT: AtomicPtr<u8> = AtomicPtr::new(ptr::null_mut());

/// `SIGALRM`: makes `KVM_RUN` return `EINTR` whether the signal comes just before it or during it.
extern "C" fn on_alarm(_signal: libc::c_int) {
    let byte = IMMEDIATE_EXIT.load(Ordering::SeqCst);
    if !byte.is_null() {
        // SAFETY: the pointer is published by Alarm::arm for a mapped kvm_run and withdrawn by Alarm's drop before that
        // mapping can go away; this process has one thread (see child.rs), so the handler runs between the two. KVM reads
        // the byte whenever it likes, so it is shared memory and written as an atomic.
        unsafe { AtomicU8::from_ptr(byte) }.store(1, Ordering::SeqCst);
    }
}

/// Installs the alarm's handler. Only for the trial's own process, where nobody else uses `SIGALRM`.
pub(super) fn install_alarm() -> io::Result<()> {
    // SAFETY: an all-zero sigaction is a valid value (no flags, empty mask); the handler is async-signal-safe (two atomic
    // accesses) and has the type that a plain, non-SA_SIGINFO handler needs. The signal set is initialised by sigemptyset.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_alarm as extern "C" fn(libc::c_int) as usize;
        if libc::sigaction(libc::SIGALRM, &action, ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGALRM);
        // The thread that forked may have had it blocked.
        if libc::sigprocmask(libc::SIG_UNBLOCK, &set, ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// An armed time limit for one command; rings once at the limit and then every 20 ms until dropped, so that a ring between
/// two `KVM_RUN`s cannot be the last.
struct Alarm;

impl Alarm {
    fn arm(vcpu: &mut VcpuFd, limit: Duration) -> Self {
        IMMEDIATE_EXIT.store(&raw mut vcpu.get_kvm_run().immediate_exit, Ordering::SeqCst);
        set_timer(limit.max(Duration::from_millis(1)), Duration::from_millis(20));
        Alarm
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        set_timer(Duration::ZERO, Duration::ZERO);
        IMMEDIATE_EXIT.store(ptr::null_mut(), Ordering::SeqCst);
    }
}

fn set_timer(first: Duration, then: Duration) {
    let value = |d: Duration| libc::timeval { tv_sec: d.as_secs() as libc::time_t, tv_usec: d.subsec_micros().into() };
    let timer = libc::itimerval { it_interval: value(then), it_value: value(first) };
    // SAFETY: the timer value is initialised and outlives the call; the old value is not asked for. It cannot fail for
    // values in range, and if it did the parent's own deadline would still end this process.
    unsafe { libc::setitimer(libc::ITIMER_REAL, &timer, ptr::null_mut()) };
}

/// A trial VM. Field order is drop order: the vCPU and the VM go before the memory they use.
pub(super) struct Session {
    vcpu: VcpuFd,
    _vm: VmFd,
    memory: GuestMemoryMmap,
}

impl Session {
    /// Makes the VM and brings its guest to the point where it asks for its first command.
    pub(super) fn new(kvm: &Kvm) -> Result<Self, SetupError> {
        let failed = |call: &'static str| {
            move |error: kvm_ioctls::Error| SetupError::Kvm { call, source: io::Error::from_raw_os_error(error.errno()) }
        };
        let vm = kvm.create_vm().map_err(failed("KVM_CREATE_VM"))?;
        // Below the BIOS, outside our memory; Intel processors without unrestricted guest need it.
        vm.set_tss_address(0xfffb_d000).map_err(failed("KVM_SET_TSS_ADDR"))?;
        vm.create_irq_chip().map_err(failed("KVM_CREATE_IRQCHIP"))?;

        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), layout::MEMORY_BYTES)])
            .map_err(|error| SetupError::Map(error.to_string()))?;
        layout::load(&memory)?;
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: layout::MEMORY_BYTES as u64,
            userspace_addr: memory.get_host_address(GuestAddress(0))? as u64,
        };
        // SAFETY: the range is exactly the mapping that `memory` owns; the session drops the VM and vCPU before it.
        unsafe { vm.set_user_memory_region(region) }.map_err(failed("KVM_SET_USER_MEMORY_REGION"))?;

        let vcpu = vm.create_vcpu(0).map_err(failed("KVM_CREATE_VCPU"))?;
        let mut cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(failed("KVM_GET_SUPPORTED_CPUID"))?;
        for entry in cpuid.as_mut_slice() {
            if entry.function == 1 {
                entry.ecx |= 1 << 21; // x2APIC: KVM's own irqchip has it whatever the processor has
            }
        }
        vcpu.set_cpuid2(&cpuid).map_err(failed("KVM_SET_CPUID2"))?;
        let mut sregs = vcpu.get_sregs().map_err(failed("KVM_GET_SREGS"))?;
        layout::long_mode(&mut sregs);
        vcpu.set_sregs(&sregs).map_err(failed("KVM_SET_SREGS"))?;
        vcpu.set_regs(&layout::registers()).map_err(failed("KVM_SET_REGS"))?;
        Ok(Self { vcpu, _vm: vm, memory })
    }

    /// Runs the guest until it asks for its first command.
    pub(super) fn start(&mut self, limit: Duration) -> Result<(), StepError> {
        self.run_to_command(limit)
    }

    /// Has the guest run one command. The result and the time from entering the guest to its asking for the next command.
    pub(super) fn command(&mut self, command: Command, argument: u64, limit: Duration) -> Result<(u64, Duration), StepError> {
        self.memory.write_obj(command as u64, GuestAddress(layout::MB_COMMAND))?;
        self.memory.write_obj(argument, GuestAddress(layout::MB_ARGUMENT))?;
        let began = Instant::now();
        self.run_to_command(limit)?;
        let took = began.elapsed();
        Ok((self.memory.read_obj(GuestAddress(layout::MB_RESULT))?, took))
    }

    /// True when a vCPU's TSC offset can be read and set (`KVM_VCPU_TSC_OFFSET`).
    pub(super) fn has_tsc_offset(&self) -> bool {
        let attribute = kvm_device_attr {
            group: kvm_bindings::KVM_VCPU_TSC_CTRL,
            attr: u64::from(kvm_bindings::KVM_VCPU_TSC_OFFSET),
            ..Default::default()
        };
        // SAFETY: the vCPU's descriptor is open, the request takes a kvm_device_attr, and with a null `addr` the kernel only
        // looks at the numbers. (kvm-ioctls has the call for aarch64 only.)
        unsafe { libc::ioctl(self.vcpu.as_raw_fd(), KVM_HAS_DEVICE_ATTR, &attribute) == 0 }
    }

    fn run_to_command(&mut self, limit: Duration) -> Result<(), StepError> {
        let _alarm = Alarm::arm(&mut self.vcpu, limit);
        let deadline = Instant::now() + limit;
        loop {
            match self.vcpu.run() {
                Ok(VcpuExit::IoOut(layout::COMMAND_PORT, _)) => return Ok(()),
                Ok(VcpuExit::IoOut(layout::FAULT_PORT, _)) => {
                    let vector = self.memory.read_obj(GuestAddress(layout::MB_FAULT_VECTOR))?;
                    return Err(StepError::Fault { vector, rip: self.rip() });
                }
                Ok(VcpuExit::IoIn(layout::PING_PORT, data) | VcpuExit::MmioRead(layout::MMIO_ADDRESS, data)) => {
                    for (byte, value) in data.iter_mut().zip(PING_ANSWER.to_le_bytes()) {
                        *byte = value;
                    }
                }
                Ok(VcpuExit::MmioWrite(layout::MMIO_ADDRESS, _)) => {}
                Ok(VcpuExit::Intr) => {}
                Ok(VcpuExit::InternalError) => {
                    // SAFETY: for this exit reason KVM fills the union's `internal` member; any bits are valid in it.
                    let suberror = unsafe { self.vcpu.get_kvm_run().__bindgen_anon_1.internal.suberror };
                    return Err(StepError::Internal { suberror, rip: self.rip() });
                }
                Ok(VcpuExit::FailEntry(reason, _)) => return Err(StepError::FailEntry(reason)),
                Ok(other) => return Err(StepError::Exit(format!("{other:?}"))),
                Err(error) if error.errno() == libc::EINTR || error.errno() == libc::EAGAIN => {
                    if Instant::now() >= deadline {
                        return Err(StepError::TimedOut(limit));
                    }
                    self.vcpu.set_kvm_immediate_exit(0);
                }
                Err(error) => return Err(StepError::Run(io::Error::from_raw_os_error(error.errno()))),
            }
            // A guest that exits again and again never sees the alarm inside KVM_RUN; the byte it sets does the same.
        }
    }

    fn rip(&self) -> u64 {
        self.vcpu.get_regs().map_or(0, |regs| regs.rip)
    }
}
