//! One virtual machine.

pub mod bus;
pub mod acpi;
pub mod boot;
pub mod config;
pub mod cpu;
pub mod devices;
pub mod interrupts;
pub mod machine;
pub mod memory;
pub mod pci;
pub mod sandbox;
pub mod state;
pub mod virtio;
