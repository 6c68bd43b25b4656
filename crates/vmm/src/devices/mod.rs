//! The devices of a VM, a folder each.

pub mod net;
pub mod vsock;
