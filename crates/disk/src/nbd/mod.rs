//! A disk as a block device of this machine, `/dev/nbdN`.
//!
//! ```text
//!  file system ──▶ /dev/nbd0 (nbd.ko) ──socket pair──▶ the server: one thread, one Engine ──▶ the disk's files
//!                       ▲
//!                       └── Attachment::run: a thread that is in the kernel for as long as the device is there
//! ```
//!
//! The kernel sends the requests of the *transmission phase* of the network block device protocol
//! (<https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>); there is no network, and no negotiation. ublk would do the
//! same with fewer copies, but Debian 12's kernel does not have it; nbd is in every distribution's.
//!
//! # End of life
//! A device that was set up with `ioctl` belongs to the thread that is in `NBD_DO_IT`. However its process ends, the kernel fails what
//! is under way, and the device is free again as soon as nobody has it open. (Devices that are set up with netlink outlive their
//! server, and have to be cleared by hand.)
//!
//! # Durability
//! As with any disk: what a user of the device has flushed is durable. [`detach`] flushes first.

mod device;
mod error;
mod protocol;
mod server;
#[cfg(test)]
mod tests;

pub use device::{Attachment, detach};
pub use error::{AttachError, DetachError, ServeError};
