//! What threads of any program need.

use crate::{Check, Policy};

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

/// The C library and Rust's make these by themselves on occasion, and go on without: `malloc` looks into `/proc` before it gives memory
/// back, a panic looks for its source files, who holds a lock on a file is looked for. They fail.
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

/// What every thread needs for being one: memory, locks, its stack, its end.
pub fn base(policy: Policy) -> Policy {
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

/// Sleeping in `epoll`.
pub fn worker(policy: Policy) -> Policy {
    policy.allow(&[libc::SYS_epoll_wait, libc::SYS_epoll_pwait, libc::SYS_epoll_ctl])
}

/// Starting threads that confine themselves further, and what they are given. Who starts them must be allowed all that they do.
pub fn starter(policy: Policy) -> Policy {
    policy
        .allow(&[
            libc::SYS_eventfd2,
            libc::SYS_epoll_create1,
            libc::SYS_timerfd_create,
            libc::SYS_geteuid,
            libc::SYS_capget,
            libc::SYS_capset,
            libc::SYS_landlock_restrict_self,
        ])
        // It takes its flags from memory, where a filter cannot see them. The C library then uses the other.
        .refuse(&[libc::SYS_clone3], libc::ENOSYS)
        .allow_if(libc::SYS_clone, &[Check::IsLong(0, THREAD)])
        .allow_if(libc::SYS_seccomp, &[Check::Is(0, libc::SECCOMP_SET_MODE_FILTER), Check::IsLong(1, 0)])
        .allow_values(libc::SYS_prctl, 0, &[libc::PR_SET_NO_NEW_PRIVS as u32, libc::PR_GET_SECCOMP as u32])
}
