//! Which system calls each kind of thread may make.
//!
//! A thread may start others only if it may do all that they do. So [`ThreadKind::Spawner`] has the calls of all devices' threads, and
//! [`ThreadKind::Control`] those of vCPUs and of console threads. No thread may run a program, map memory that is executable,
//! signal or look into another process, or open a file or a socket other than a Unix one.

use super::ThreadKind;
use super::ioctls;
use super::policy::{Check, Policy};

/// The flags with which the C library starts a thread, and only a thread.
const THREAD: u64 = (libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM
    | libc::CLONE_SETTLS
    | libc::CLONE_PARENT_SETTID
    | libc::CLONE_CHILD_CLEARTID) as u64;

const PR_SET_VMA: u32 = 0x5356_4d41;

/// `MADV_GUARD_INSTALL` and `MADV_GUARD_REMOVE`, with which newer C libraries guard stacks.
const MADV_GUARD: [u32; 2] = [102, 103];

/// `FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE`.
const PUNCH_HOLE: u32 = 3;

/// The C library and Rust's make these by themselves on occasion, and go on without: `malloc` looks into `/proc` before it gives memory
/// back, a panic looks for its source files, a disk that is locked has its holder looked for. They fail.
const REFUSED: [libc::c_long; 11] = [
    libc::SYS_open,
    libc::SYS_openat,
    libc::SYS_access,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_readlink,
    libc::SYS_readlinkat,
    libc::SYS_getcwd,
    libc::SYS_unlink,
];

/// The list for a kind of threads.
pub(super) fn policy(kind: ThreadKind) -> Policy {
    let policy = base(Policy::default());
    match kind {
        ThreadKind::Vcpu => vcpu(policy),
        ThreadKind::Block => block(policy),
        ThreadKind::Tap => tap(worker(policy)),
        ThreadKind::VhostUser => vhost_user(worker(policy)),
        ThreadKind::Vsock => vsock(worker(policy)),
        ThreadKind::Misc => misc(worker(policy)),
        ThreadKind::Spawner => spawner(starter(misc(vsock(vhost_user(tap(worker(block(policy)))))))),
        ThreadKind::Control => control(starter(misc(worker(vcpu(policy))))),
    }
}

/// What every thread needs for being one: memory, locks, its stack, its end.
fn base(policy: Policy) -> Policy {
    let own_pid = std::process::id();
    policy
        .allow(&[
            libc::SYS_read,
            libc::SYS_write,
            libc::SYS_close,
            libc::SYS_futex,
            libc::SYS_poll,
            libc::SYS_ppoll,
            libc::SYS_munmap,
            libc::SYS_mremap,
            libc::SYS_brk,
            libc::SYS_rt_sigreturn,
            libc::SYS_rt_sigprocmask,
            libc::SYS_restart_syscall,
            libc::SYS_sigaltstack,
            libc::SYS_sched_yield,
            libc::SYS_sched_getaffinity,
            libc::SYS_getpid,
            libc::SYS_gettid,
            libc::SYS_clock_gettime,
            libc::SYS_clock_nanosleep,
            libc::SYS_nanosleep,
            libc::SYS_getrandom,
            libc::SYS_set_robust_list,
            libc::SYS_rseq,
            libc::SYS_exit,
            libc::SYS_exit_group,
        ])
        .refuse(&REFUSED, libc::EACCES)
        // The attributes of an open descriptor may be asked for.
        .refuse(&[libc::SYS_statx, libc::SYS_newfstatat], libc::EACCES)
        .allow_if(libc::SYS_statx, &[Check::With(2, libc::AT_EMPTY_PATH as u32)])
        .allow_if(libc::SYS_newfstatat, &[Check::With(3, libc::AT_EMPTY_PATH as u32)])
        .allow_if(libc::SYS_mmap, &[Check::Without(2, libc::PROT_EXEC as u32)])
        .allow_if(libc::SYS_mprotect, &[Check::Without(2, libc::PROT_EXEC as u32)])
        .allow_values(libc::SYS_madvise, 2, &[libc::MADV_DONTNEED as u32, libc::MADV_FREE as u32])
        .allow_values(libc::SYS_madvise, 2, &MADV_GUARD)
        .allow_values(libc::SYS_prctl, 0, &[libc::PR_SET_NAME as u32, libc::PR_GET_NAME as u32, PR_SET_VMA])
        .allow_values(libc::SYS_fcntl, 1, &[libc::F_GETFD as u32, libc::F_DUPFD_CLOEXEC as u32, libc::F_GETFL as u32])
        // To itself, in `abort`.
        .allow_if(libc::SYS_tgkill, &[Check::Is(0, own_pid), Check::Is(2, libc::SIGABRT as u32)])
}

fn vcpu(policy: Policy) -> Policy {
    policy.allow_values(libc::SYS_ioctl, 1, &ioctls::VCPU)
}

/// Sleeping in `epoll`, and timers.
fn worker(policy: Policy) -> Policy {
    policy.allow(&[libc::SYS_epoll_wait, libc::SYS_epoll_pwait, libc::SYS_epoll_ctl])
}

/// The ring is made before; what it may do is not seen here, which is why Landlock has to be there, too. The tables of an image are
/// read when they are first needed and, on its first change, written without the ring.
fn block(policy: Policy) -> Policy {
    policy
        .allow(&[
            libc::SYS_io_uring_enter,
            libc::SYS_pread64,
            libc::SYS_pwrite64,
            libc::SYS_fdatasync,
            libc::SYS_ftruncate,
            libc::SYS_lseek,
        ])
        .allow_if(libc::SYS_fallocate, &[Check::Is(1, PUNCH_HOLE)])
        .allow_values(libc::SYS_ioctl, 1, &ioctls::DISCARD)
}

fn tap(policy: Policy) -> Policy {
    policy.allow(&[libc::SYS_readv, libc::SYS_writev]).allow_values(libc::SYS_ioctl, 1, &ioctls::TAP)
}

/// Connections to Unix sockets. Which ones is up to the user and the mount namespace.
fn unix_client(policy: Policy) -> Policy {
    policy
        .allow(&[
            libc::SYS_connect,
            libc::SYS_sendmsg,
            libc::SYS_sendto,
            libc::SYS_recvmsg,
            libc::SYS_recvfrom,
            libc::SYS_shutdown,
            libc::SYS_getsockopt,
        ])
        .allow_if(libc::SYS_socket, &[Check::Is(0, libc::AF_UNIX as u32)])
        .allow_values(
            libc::SYS_setsockopt,
            2,
            &[libc::SO_RCVTIMEO as u32, libc::SO_SNDTIMEO as u32, libc::SO_SNDBUF as u32, libc::SO_RCVBUF as u32],
        )
        .allow_values(libc::SYS_ioctl, 1, &ioctls::SOCKET)
        .allow_values(libc::SYS_fcntl, 1, &[libc::F_SETFL as u32])
}

fn vhost_user(policy: Policy) -> Policy {
    unix_client(policy).allow(&[libc::SYS_timerfd_settime, libc::SYS_timerfd_gettime])
}

fn vsock(policy: Policy) -> Policy {
    unix_client(policy).allow(&[
        libc::SYS_accept4,
        libc::SYS_readv,
        libc::SYS_writev,
        libc::SYS_timerfd_settime,
        libc::SYS_timerfd_gettime,
    ])
}

/// Random numbers, and giving memory back.
fn misc(policy: Policy) -> Policy {
    policy
        .allow(&[libc::SYS_timerfd_settime, libc::SYS_timerfd_gettime])
        .allow_if(libc::SYS_fallocate, &[Check::Is(1, PUNCH_HOLE)])
        .allow_values(libc::SYS_madvise, 2, &[libc::MADV_REMOVE as u32])
}

/// Starting threads that confine themselves further, and what they are given.
fn starter(policy: Policy) -> Policy {
    policy
        .allow(&[
            libc::SYS_eventfd2,
            libc::SYS_epoll_create1,
            libc::SYS_timerfd_create,
            libc::SYS_geteuid,
            libc::SYS_capset,
            libc::SYS_landlock_restrict_self,
        ])
        // It takes its flags from memory, where a filter cannot see them. The C library then uses the other.
        .refuse(&[libc::SYS_clone3], libc::ENOSYS)
        .allow_if(libc::SYS_clone, &[Check::IsLong(0, THREAD)])
        .allow_if(libc::SYS_seccomp, &[Check::Is(0, libc::SECCOMP_SET_MODE_FILTER), Check::IsLong(1, 0)])
        .allow_values(libc::SYS_prctl, 0, &[libc::PR_SET_NO_NEW_PRIVS as u32, libc::PR_GET_SECCOMP as u32])
}

fn spawner(policy: Policy) -> Policy {
    policy
        .allow(&[libc::SYS_io_uring_setup, libc::SYS_io_uring_register])
        // Rings are not for children.
        .allow_values(libc::SYS_madvise, 2, &[libc::MADV_DONTFORK as u32])
}

/// The control socket, saving, devices and vCPUs added while the VM runs, and stopping vCPUs with signals.
fn control(policy: Policy) -> Policy {
    let own_pid = std::process::id();
    let kick = libc::SIGRTMIN() as u32;
    unix_client(policy)
        .allow(&[
            libc::SYS_accept4,
            libc::SYS_readv,
            libc::SYS_writev,
            libc::SYS_pread64,
            libc::SYS_pwrite64,
            libc::SYS_lseek,
            libc::SYS_fstat,
            libc::SYS_ftruncate,
            libc::SYS_fsync,
            libc::SYS_fdatasync,
            libc::SYS_memfd_create,
        ])
        .allow_values(libc::SYS_fcntl, 1, &[libc::F_SETFD as u32, libc::F_OFD_SETLK as u32, libc::F_ADD_SEALS as u32])
        .allow_values(libc::SYS_ioctl, 1, &ioctls::MACHINE)
        .allow_values(libc::SYS_ioctl, 1, &ioctls::TAP)
        .allow_values(libc::SYS_ioctl, 1, &ioctls::NEW_TAP)
        .allow_values(libc::SYS_ioctl, 1, &ioctls::DISK_SIZE)
        .allow_if(libc::SYS_tgkill, &[Check::Is(0, own_pid), Check::Is(2, kick)])
        .allow_if(libc::SYS_rt_sigaction, &[Check::Is(0, kick)])
}
