//! Which system calls each kind of thread may make.
//!
//! A thread may start others only if it may do all that they do. So [`ThreadKind::Spawner`] has the calls of all devices' threads, and
//! [`ThreadKind::Control`] those of vCPUs and of console threads. No thread may run a program, map memory that is executable,
//! signal or look into another process, or open a file or a socket other than a Unix one.

use confine::threads::{base, starter, worker};
use confine::{Check, Policy};

use super::ThreadKind;
use super::ioctls;

/// `FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE`.
const PUNCH_HOLE: u32 = 3;

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

fn vcpu(policy: Policy) -> Policy {
    policy.allow_values(libc::SYS_ioctl, 1, &ioctls::VCPU)
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
