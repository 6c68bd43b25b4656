//! Which system calls each kind of thread may make.
//!
//! A thread may start others only if it may do all that they do: [`ThreadKind::Control`] has the calls of all, and [`ThreadKind::Clients`]
//! those of clients' threads. No thread may run a program, map memory that is executable, signal or look into another process.

use confine::threads::{base, starter, worker};
use confine::{Check, Policy};

use super::ThreadKind;
use crate::links::SIOCETHTOOL;

/// The C library's own signal, for changing the user of all threads: with the first thread that is started, it takes care of it.
const SIGSETXID: u32 = 33;

/// The list for a kind of threads.
pub(super) fn policy(kind: ThreadKind) -> Policy {
    let policy = base(Policy::default());
    match kind {
        ThreadKind::Worker => frames(policy),
        ThreadKind::FrontDoor => front_door(policy),
        ThreadKind::Client => client(policy),
        ThreadKind::Clients => starter(client(policy)).allow(&[libc::SYS_accept4]),
        ThreadKind::Links => nics(policy),
        ThreadKind::Control => control(starter(nics(client(front_door(frames(policy)))))),
    }
}

/// Descriptors of TAPs and NICs, which others have made, and the losses of the latter. Those of AF_XDP are told to look by sending or
/// receiving nothing.
fn frames(policy: Policy) -> Policy {
    worker(policy)
        .allow(&[libc::SYS_readv, libc::SYS_writev, libc::SYS_recvmsg])
        .allow_if(libc::SYS_getsockopt, &[Check::Is(1, libc::SOL_PACKET as u32), Check::Is(2, libc::PACKET_STATISTICS as u32)])
        .allow_if(libc::SYS_getsockopt, &[Check::Is(1, libc::SOL_XDP as u32), Check::Is(2, libc::XDP_STATISTICS as u32)])
        .allow_if(libc::SYS_sendto, &[Check::IsLong(2, 0)])
        .allow_if(libc::SYS_recvfrom, &[Check::IsLong(2, 0)])
}

/// Messages of a front end, with what they bring.
fn front_door(policy: Policy) -> Policy {
    policy.allow(&[libc::SYS_accept4, libc::SYS_recvmsg, libc::SYS_sendmsg, libc::SYS_recvfrom, libc::SYS_sendto])
}

/// Requests and answers, of which long ones go in memory files.
fn client(policy: Policy) -> Policy {
    policy.allow(&[libc::SYS_recvmsg, libc::SYS_sendmsg, libc::SYS_memfd_create, libc::SYS_pread64]).allow_values(
        libc::SYS_fcntl,
        1,
        &[libc::F_ADD_SEALS as u32, libc::F_GET_SEALS as u32],
    )
}

/// Asking the kernel for its interfaces, asking NICs, and opening them.
fn nics(policy: Policy) -> Policy {
    let protocols = [
        (libc::AF_NETLINK, libc::SOCK_RAW),
        (libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_NONBLOCK),
        (libc::AF_XDP, libc::SOCK_RAW),
        (libc::AF_INET, libc::SOCK_DGRAM),
    ];
    let policy = protocols.into_iter().fold(policy, |policy, (family, kind)| {
        let checks = [Check::Is(0, family as u32), Check::Is(1, (kind | libc::SOCK_CLOEXEC) as u32)];
        policy.allow_if(libc::SYS_socket, &checks)
    });
    let sizes = [libc::SO_RCVBUF, libc::SO_RCVBUFFORCE];
    let policy = sizes.into_iter().fold(policy, |policy, size| {
        policy.allow_if(libc::SYS_setsockopt, &[Check::Is(1, libc::SOL_SOCKET as u32), Check::Is(2, size as u32)])
    });
    policy
        .allow(&[libc::SYS_bind, libc::SYS_sendto, libc::SYS_recvfrom])
        .allow_if(libc::SYS_setsockopt, &[Check::Is(1, libc::SOL_PACKET as u32)])
        .allow_if(libc::SYS_setsockopt, &[Check::Is(1, libc::SOL_XDP as u32)])
        .allow_if(libc::SYS_getsockopt, &[Check::Is(1, libc::SOL_XDP as u32)])
        .allow_values(libc::SYS_bpf, 0, &crate::xdp::COMMANDS)
        .allow_values(libc::SYS_ioctl, 1, &[SIOCETHTOOL as u32])
}

/// What requests ask for: sockets of ports, TAPs, the state file. Which files is Landlock's to say.
fn control(policy: Policy) -> Policy {
    let unix = [Check::Is(0, libc::AF_UNIX as u32), Check::Is(1, (libc::SOCK_STREAM | libc::SOCK_CLOEXEC) as u32)];
    policy
        .allow_if(libc::SYS_socket, &unix)
        .allow_if(libc::SYS_rt_sigaction, &[Check::Is(0, SIGSETXID)])
        .allow(&[
            libc::SYS_connect,
            libc::SYS_listen,
            libc::SYS_shutdown,
            libc::SYS_chmod,
            libc::SYS_unlink,
            libc::SYS_openat,
            libc::SYS_rename,
            libc::SYS_fsync,
        ])
        .allow_values(
            libc::SYS_ioctl,
            1,
            &[libc::TUNSETIFF as u32, libc::TUNSETVNETHDRSZ as u32, libc::TUNSETOFFLOAD as u32, libc::TUNSETPERSIST as u32],
        )
}
