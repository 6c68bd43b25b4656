//! The devices of a VM, a folder each.

pub mod console;
pub mod serial;
