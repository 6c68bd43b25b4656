//! PCI: one bus behind a host bridge, its configuration space through ECAM and the ports 0xcf8/0xcfc, MSI-X, and
//! the virtio transport.

mod config;
mod msix;
mod root;
pub mod state;
pub mod virtio;

pub use root::{ConfigPorts, PciRoot, SLOTS, SlotError};

/// A device in a slot: its configuration space. Functions other than 0 are not used, so that each can be added and removed alone.
pub trait PciDevice: Send {
    /// Reads the 32-bit register at `offset` (a multiple of 4, below 256).
    fn read_config(&mut self, offset: u16) -> u32;
    /// Writes `data` (1, 2 or 4 bytes that do not cross a register) at `offset`.
    fn write_config(&mut self, offset: u16, data: &[u8]);
    /// The bus calls this when the device leaves its slot.
    fn unplug(&mut self) {}
}
