//! Why a NIC cannot be used by AF_XDP.

use std::io;

/// Why a NIC cannot be used by AF_XDP, and what would help.
#[derive(Debug, thiserror::Error)]
pub enum XdpError {
    /// What is at the other end of such an interface hands over more than frames.
    #[error(
        "its driver is {0}: what is behind it may hand over frames without their checksums and VLAN tags, which AF_XDP does not tell; \
         ask for af-xdp if they are switched off there"
    )]
    Software(String),
    /// The host would not get its own packets any more.
    #[error(
        "the host has an address on it, and would hear nothing any more: give it a NIC of its own, or ask for af-xdp if it has"
    )]
    HostAddress,
    /// It is not said whether the host has addresses on it.
    #[error("the kernel does not say whether the host has an address on it")]
    Addresses(#[source] io::Error),
    /// Frames would not fit.
    #[error(
        "its MTU of {mtu} is more than the {most} that fit: set a smaller one (ip link set ... mtu {most}), or take af-packet"
    )]
    Mtu {
        /// What it is.
        mtu: u32,
        /// What it may be.
        most: u32,
    },
    /// More queues than there may be.
    #[error(
        "it has {count} queues, of which there may be {most}: give it fewer (ethtool -L ... combined {most}), or take af-packet"
    )]
    Queues {
        /// So many.
        count: u32,
        /// Not more than so many.
        most: u32,
    },
    /// It would lose VLAN tags.
    #[error("it takes VLAN tags out of frames, and cannot be told not to (ethtool -K ... rxvlan off): take af-packet")]
    Tags,
    /// The kernel refused something on the way to a program.
    #[error("cannot {what}{hint}")]
    Program {
        /// What was tried.
        what: &'static str,
        /// What may help.
        hint: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another program is there.
    #[error("another XDP program is attached: take that one off first (ip link set ... xdp off), or end who has attached it")]
    Occupied,
    /// The driver has no XDP of its own, or not now.
    #[error(
        "its driver does not take an XDP program: it has no XDP, or not with this MTU, as many queues, or with large receive \
         offload; the kernel's log may say more"
    )]
    Native(#[source] io::Error),
    /// The kernel has no XDP for this interface.
    #[error("no XDP program can be attached, neither to its driver nor in front of it: take af-packet")]
    Generic(#[source] io::Error),
    /// The kernel refused something on the way to a socket.
    #[error("cannot {what} of queue {queue}{hint}")]
    Socket {
        /// What was tried.
        what: &'static str,
        /// For which queue.
        queue: u32,
        /// What may help.
        hint: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}
