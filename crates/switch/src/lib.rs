//! The virtual switch of a host.
//!
//! One process per host connects the ports of its VMs (vhost-user), the host itself (a TAP) and the wire (NICs, by AF_PACKET or AF_XDP).
//!
//! ```text
//!  frame    what a frame says about itself, without believing it
//!  policy, vlan, acl   what a port may do
//!  tables   stations, connections, flows
//!  pipeline the core: frame in, action list, copies out; no I/O, no clock, no lock
//!  ring     virtqueues in memory that others write to
//!  ports    VMs (vhost-user), the host (TAP), the wire (AF_PACKET, AF_XDP)
//!  xdp      NICs by AF_XDP: rings that are shared with the kernel
//!  team     NICs that are one uplink; LACP
//!  links    what the kernel says of NICs
//!  worker   the threads that own cores and ports: a switch has one of them
//!  host     the ports by name, with what is behind them, and the file that keeps them
//!  switches the switches by name
//!  explain  what is done to a frame, in words
//!  hex      frames as text
//!  pcapng   frames in files
//!  control  the control socket: requests, replies, client
//!  identity, sandbox   what the switch denies itself
//! ```
//!
//! # Life cycle
//! Ports come and go while frames flow; a change of configuration takes effect with the next frame.
//!
//! # Errors
//! A configuration that makes no sense is refused as a whole. A frame that makes no sense is dropped and counted at its port under a
//! [`counters::DropReason`]; no frame can make the switch panic, wait or grow without bounds.

pub mod acl;
pub mod control;
pub mod counters;
pub mod explain;
pub mod frame;
#[cfg(any(test, feature = "testing"))]
pub mod fuzz;
pub mod hex;
pub mod host;
pub mod identity;
pub mod links;
pub mod mac;
pub mod pcapng;
pub mod pipeline;
pub mod policy;
pub mod ports;
pub mod ring;
pub mod sandbox;
pub mod switches;
pub mod tables;
pub mod team;
pub mod vlan;
pub mod worker;
pub mod xdp;

/// An error with its causes, in one line.
pub fn error_chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
