//! The VM generation ID: 16 bytes in guest memory that change when the VM's time line forks.
//!
//! They are random at the first start, stay the same through resets and moves, and become new when the VM starts from a saved
//! state or checkpoint that may start more than once: the guest then knows to throw away what must be unique, above all its random seed
//! (Microsoft, *Virtual Machine Generation ID*). Telling the guest, a `Notify` on the ACPI device, is up to the VM.

mod acpi;
mod device;
mod state;
#[cfg(test)]
mod tests;

pub use acpi::{DEVICE_PATH, acpi_device};
pub use device::{VmGenerationId, VmGenerationIdError};
pub use state::VmGenerationIdState;
