//! The serial port: a 16550A at I/O port 0x3f8, interrupt 4.

mod acpi;
mod device;
mod state;
#[cfg(test)]
mod tests;

pub use acpi::acpi_device;
pub use device::{IRQ, PORT, PORTS, Serial};
pub use state::SerialState;
