//! The real-time clock with its CMOS memory: an MC146818 at I/O ports 0x70 and 0x71.

mod acpi;
mod calendar;
mod device;
mod state;
#[cfg(test)]
mod tests;

pub use acpi::acpi_device;
pub use device::{PORT, PORTS, Rtc};
pub use state::RtcState;
