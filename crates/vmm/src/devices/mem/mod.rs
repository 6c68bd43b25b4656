//! The virtio memory device (virtio 1.2 §5.15): memory that is added to and taken from a running VM in blocks.
//!
//! The device manages a region of guest addresses behind which there always is memory, sparse: a block that is not plugged costs
//! the host nothing as long as the guest does not touch it, which the driver promises (`VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE`).
//! The VM's memory limit on the host bounds what a guest gets that breaks the promise.

mod blocks;
mod config;
mod device;
mod queue;
mod state;
#[cfg(test)]
mod tests;

pub use config::{MemConfig, MemConfigError};
pub use device::{Mem, MemHandle, RequestedSizeError};
pub use state::MemState;
