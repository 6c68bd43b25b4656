//! One virtual machine.

pub mod acpi;
pub mod boot;
pub mod bus;
pub mod config;
pub mod control;
pub mod cpu;
pub mod devices;
pub mod interrupts;
pub mod launch;
pub mod lease;
pub mod machine;
pub mod memory;
pub mod monitor;
pub mod pci;
pub mod sandbox;
pub mod state;
pub mod tap;
pub mod virtio;

/// An error with its causes, in one line. A cause that the text in front of it ends with already is not repeated.
pub fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
