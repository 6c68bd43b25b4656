//! The panic notifier: the guest's kernel says that it crashed, at I/O port 0x505.

mod acpi;
mod device;
mod state;
#[cfg(test)]
mod tests;

pub use acpi::acpi_device;
pub use device::{GuestPanic, PORT, PORTS, Pvpanic};
pub use state::PvpanicState;
