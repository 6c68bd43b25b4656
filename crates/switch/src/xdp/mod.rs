//! NICs by AF_XDP: frames come and go through rings in shared memory, past the host's own network stack.
//!
//! ```text
//!            ┌─ program: socket of this queue? ─▶ rx ring ─▶ read      frames are in the memory (umem) of their queue,
//!  NIC queue ┤                                    fill ring ◀ frame    of which one part is for what comes in
//!            └─ completion ring ◀ sent ◀ tx ring ◀ write               and the other for what goes out
//! ```
//!
//! # Life cycle
//! [`port::XdpPort::open`] loads a program of six instructions and attaches it by a link, which vanishes with the port, also when the process is
//! killed; then each queue of the NIC gets a socket. Who opens needs `CAP_BPF`, `CAP_NET_ADMIN` and `CAP_NET_RAW`; who reads and writes
//! needs nothing but the port. A NIC whose number of queues changes, or whose MTU outgrows the frames, is opened anew.
//!
//! # I/O
//! The driver's own XDP, if it has that, or the kernel's for all drivers; without copies, if the driver can. There is no word for work that is
//! left to do: what goes out is cut and gets its checksums here, and VLAN tags must stay in what comes in, so the NIC is told to leave
//! them there. The kernel is woken by a system call only when it asks for that.
//!
//! # Errors
//! An [`XdpError`] says why a NIC cannot be used in this way. Later, what the kernel has no room for is counted as lost, and what cannot
//! be sent is dropped with its reason. The rings' other side is the kernel, which is trusted.

mod error;
pub mod port;
mod program;
mod queue;
mod ring;
mod umem;

pub use error::XdpError;
pub use program::COMMANDS;
