//! What only the kernel itself can tell: system calls that are there or not, and KVM's own answers.

use std::collections::BTreeMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use kvm_ioctls::Kvm;

use crate::trial::{KvmTrial, kvm_works};

/// What a system call said: a number that depends on the call, or the error number.
pub type Answer = Result<i64, i32>;

/// `KVM_CLOCK_REALTIME` in the answer to `KVM_CAP_ADJUST_CLOCK` (Linux 5.16).
pub(crate) const KVM_CLOCK_REALTIME: i32 = 1 << 2;

/// Capabilities that are asked for, under the names that the kernel's documentation uses.
const CAPABILITIES: &[(&str, u32)] = &[
    ("IRQCHIP", kvm_bindings::KVM_CAP_IRQCHIP),
    ("USER_MEMORY", kvm_bindings::KVM_CAP_USER_MEMORY),
    ("SET_TSS_ADDR", kvm_bindings::KVM_CAP_SET_TSS_ADDR),
    ("EXT_CPUID", kvm_bindings::KVM_CAP_EXT_CPUID),
    ("IRQ_ROUTING", kvm_bindings::KVM_CAP_IRQ_ROUTING),
    ("IRQFD", kvm_bindings::KVM_CAP_IRQFD),
    ("IOEVENTFD", kvm_bindings::KVM_CAP_IOEVENTFD),
    ("SIGNAL_MSI", kvm_bindings::KVM_CAP_SIGNAL_MSI),
    ("IMMEDIATE_EXIT", kvm_bindings::KVM_CAP_IMMEDIATE_EXIT),
    ("MP_STATE", kvm_bindings::KVM_CAP_MP_STATE),
    ("VCPU_EVENTS", kvm_bindings::KVM_CAP_VCPU_EVENTS),
    ("DEBUGREGS", kvm_bindings::KVM_CAP_DEBUGREGS),
    ("XSAVE", kvm_bindings::KVM_CAP_XSAVE),
    ("XCRS", kvm_bindings::KVM_CAP_XCRS),
    ("ADJUST_CLOCK", kvm_bindings::KVM_CAP_ADJUST_CLOCK),
    ("GET_TSC_KHZ", kvm_bindings::KVM_CAP_GET_TSC_KHZ),
    ("SYNC_MMU", kvm_bindings::KVM_CAP_SYNC_MMU),
    ("DIRTY_LOG_RING", kvm_bindings::KVM_CAP_DIRTY_LOG_RING),
    ("DIRTY_LOG_RING_ACQ_REL", kvm_bindings::KVM_CAP_DIRTY_LOG_RING_ACQ_REL),
    ("MANUAL_DIRTY_LOG_PROTECT2", kvm_bindings::KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2),
    ("TSC_CONTROL", kvm_bindings::KVM_CAP_TSC_CONTROL),
    ("TSC_DEADLINE_TIMER", kvm_bindings::KVM_CAP_TSC_DEADLINE_TIMER),
    ("READONLY_MEM", kvm_bindings::KVM_CAP_READONLY_MEM),
    ("X2APIC_API", kvm_bindings::KVM_CAP_X2APIC_API),
    ("SPLIT_IRQCHIP", kvm_bindings::KVM_CAP_SPLIT_IRQCHIP),
    ("NESTED_STATE", kvm_bindings::KVM_CAP_NESTED_STATE),
    ("NR_VCPUS", kvm_bindings::KVM_CAP_NR_VCPUS),
    ("MAX_VCPUS", kvm_bindings::KVM_CAP_MAX_VCPUS),
    ("NR_MEMSLOTS", kvm_bindings::KVM_CAP_NR_MEMSLOTS),
];

/// `/dev/kvm`, as this process finds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KvmDevice {
    /// There is none.
    Absent,
    /// There is one, for others.
    Denied,
    /// Opening it fails otherwise, or it is not KVM.
    Unusable(String),
    /// It is open to us.
    Open {
        /// `KVM_GET_API_VERSION`.
        api_version: i32,
        /// `KVM_CHECK_EXTENSION` by name without `KVM_CAP_`; 0 means no.
        capabilities: BTreeMap<&'static str, i32>,
    },
}

/// The kernel's answers. [`Answers::ask`] gets them from the running kernel; tests make them up.
#[derive(Clone, Debug)]
pub struct Answers {
    /// `/dev/kvm`.
    pub kvm: KvmDevice,
    /// What KVM did with a guest.
    pub trial: KvmTrial,
    /// `io_uring_setup`.
    pub io_uring: Answer,
    /// `userfaultfd` that also catches the kernel's own accesses (KVM's, vhost's).
    pub userfaultfd: Answer,
    /// `userfaultfd` for user-mode accesses only.
    pub userfaultfd_user_mode: Answer,
    /// `memfd_create` with sealing.
    pub memfd: Answer,
    /// Landlock's ABI version.
    pub landlock: Answer,
    /// Seccomp filters that can kill the process.
    pub seccomp: Answer,
    /// Open-file-description locks.
    pub ofd_locks: Answer,
}

impl Answers {
    /// Asks the running kernel. Includes the KVM trial, so it takes up to [`crate::trial::TIME_LIMIT`].
    pub fn ask() -> Self {
        Self {
            kvm: kvm_device(),
            trial: kvm_works(),
            io_uring: io_uring(),
            userfaultfd: userfaultfd(libc::O_CLOEXEC),
            userfaultfd_user_mode: userfaultfd(libc::O_CLOEXEC | UFFD_USER_MODE_ONLY),
            memfd: memfd().map(|_| 0),
            landlock: landlock(),
            seccomp: seccomp(),
            ofd_locks: ofd_locks(),
        }
    }
}

fn kvm_device() -> KvmDevice {
    let kvm = match Kvm::new() {
        Ok(kvm) => kvm,
        Err(error) => {
            return match error.errno() {
                libc::ENOENT => KvmDevice::Absent,
                libc::EACCES | libc::EPERM => KvmDevice::Denied,
                other => KvmDevice::Unusable(io::Error::from_raw_os_error(other).to_string()),
            };
        }
    };
    let api_version = kvm.get_api_version();
    if api_version < 0 {
        return KvmDevice::Unusable("it does not answer as KVM".into());
    }
    let capabilities = CAPABILITIES.iter().map(|(name, cap)| (*name, kvm.check_extension_raw((*cap).into()))).collect();
    KvmDevice::Open { api_version, capabilities }
}

/// `UFFD_USER_MODE_ONLY`.
const UFFD_USER_MODE_ONLY: libc::c_int = 1;

/// The result of a system call: non-negative, or `errno`.
fn answer(result: libc::c_long) -> Answer {
    if result < 0 { Err(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL)) } else { Ok(result) }
}

/// Takes over a descriptor that a system call returned, so that it is closed again.
fn descriptor(result: libc::c_long) -> Result<OwnedFd, i32> {
    let fd = RawFd::try_from(answer(result)?).map_err(|_| libc::EBADF)?;
    // SAFETY: the caller passes the result of a system call that returns a new descriptor on success, and this is success;
    // nobody else knows the descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn io_uring() -> Answer {
    // struct io_uring_params is 120 bytes; all zero asks for the defaults.
    let mut params = [0u32; 30];
    // SAFETY: io_uring_setup reads and writes exactly that structure, which lives through the call; u32 aligns it.
    let result = unsafe { libc::syscall(libc::SYS_io_uring_setup, 4 as libc::c_long, params.as_mut_ptr()) };
    descriptor(result).map(|_| 0)
}

fn userfaultfd(flags: libc::c_int) -> Answer {
    // SAFETY: takes one integer and returns a descriptor.
    let result = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::c_long::from(flags)) };
    match descriptor(result) {
        Err(libc::EPERM) if flags & UFFD_USER_MODE_ONLY == 0 => userfaultfd_device(),
        other => other.map(|_| 0),
    }
}

/// The other way to a full userfaultfd: `/dev/userfaultfd` (Linux 6.1), which goes by the file's permissions.
fn userfaultfd_device() -> Answer {
    std::fs::OpenOptions::new().read(true).write(true).open("/dev/userfaultfd").map(|_| 0).map_err(|_| libc::EPERM)
}

fn memfd() -> Result<OwnedFd, i32> {
    // SAFETY: the name is nul-terminated; the call returns a new descriptor.
    let result = unsafe { libc::memfd_create(c"maru-check".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
    descriptor(result.into())
}

fn landlock() -> Answer {
    const VERSION: libc::c_long = 1;
    // SAFETY: with this flag the call takes no attributes (null, 0) and only returns a number.
    answer(unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<libc::c_void>(), 0 as libc::c_long, VERSION)
    })
}

fn seccomp() -> Answer {
    let action = libc::SECCOMP_RET_KILL_PROCESS;
    // SAFETY: SECCOMP_GET_ACTION_AVAIL reads one u32 through the pointer and changes nothing.
    answer(unsafe {
        libc::syscall(libc::SYS_seccomp, libc::c_long::from(libc::SECCOMP_GET_ACTION_AVAIL), 0 as libc::c_long, &raw const action)
    })
}

fn ofd_locks() -> Answer {
    use std::os::fd::AsRawFd;
    let file = memfd()?;
    // SAFETY: all-zero is a valid struct flock, and one that F_OFD_GETLK accepts once its type is set (l_pid must be 0).
    let mut lock: libc::flock = unsafe { MaybeUninit::zeroed().assume_init() };
    lock.l_type = libc::F_WRLCK as libc::c_short;
    // SAFETY: the descriptor is open and the lock description lives through the call.
    answer(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) }.into())
}
