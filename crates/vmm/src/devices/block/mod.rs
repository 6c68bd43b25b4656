//! The virtio block device (virtio 1.2 §5.2): a [`disk::Disk`] as a guest sees it.
//!
//! ```text
//!   vCPU: kick ──▶ eventfd ─┐                         ┌─▶ used ring, one interrupt for all that completed
//!                           ▼                         │
//!            a thread per queue, asleep in its io_uring: one system call submits all and waits for kicks,
//!            completions and the stop event alike
//! ```
//!
//! # I/O model
//! Each queue has a thread of its own that runs from `activate` to `quiesce`, with an io_uring of its own. It does not
//! use [`crate::virtio::worker`]: sleeping in the ring instead of in `epoll` saves two of four system calls for each request
//! of a guest that waits for every one.
//!
//! # Errors
//! A request that asks for something impossible is answered with an error status. A ring or a chain that cannot be followed to
//! a status byte fails the device. An error of the storage is reported to the guest or, where the [`ErrorPolicy`] says so, the
//! request is held and the monitor told: it is tried again by the next `activate`, so that a full disk stops a VM instead of
//! breaking its file systems.

mod chain;
mod config;
mod counters;
mod device;
mod patience;
mod queue;
mod request;
mod state;
mod thread;

#[cfg(test)]
mod tests;

pub use counters::{CounterValues, Counters};
pub use device::{Block, BlockConfig, BlockError, ErrorPolicy, IoFailure, Listener};
pub use state::{BlockState, HeldRequests};
