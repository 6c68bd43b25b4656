//! Network devices (virtio 1.2 §5.1).
//!
//! [`Net`] serves its queues itself and passes frames to and from a TAP. [`vhost_user::VhostUserNet`] hands its queues to a
//! switch in another process.
//!
//! ```text
//!                 ┌ pair worker 0: receive, transmit ─ TAP queue 0
//!  guest memory ──┼ pair worker n: receive, transmit ─ TAP queue n
//!                 └ control worker (address, pairs, offloads) ──▶ Shared ──▶ wakes the pair workers
//! ```
//!
//! Frames go between the TAP and guest memory in one `readv` or `writev`; nothing is copied in this process, except the tail of
//! a frame that did not fit into the buffers at hand.
//!
//! # Errors
//! A buffer that makes no sense is dropped and counted. A ring that cannot be followed fails the device. A TAP that was
//! deleted under a device takes its link down.

pub(crate) mod buffers;
mod control;
mod device;
mod features;
mod queue;
mod receive;
pub(crate) mod ring;
mod shared;
mod state;
mod tap;
#[cfg(test)]
pub(crate) mod tests;
mod throttle;
mod transmit;
pub(crate) mod unix;
pub mod vhost_user;

pub use device::{MAX_QUEUE_PAIRS, Net, NetConfig, NetError, NetHandle, TapBackend};
pub use shared::Counters;
pub use state::NetState;
pub use tap::TapError;
