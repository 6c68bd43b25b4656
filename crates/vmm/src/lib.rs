//! One virtual machine.

pub mod bus;
pub mod cpu;
pub mod devices;
pub mod memory;
pub mod sandbox;
pub mod virtio;
