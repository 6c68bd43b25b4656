//! One virtual machine.

pub mod bus;
pub mod devices;
pub mod sandbox;
pub mod virtio;
