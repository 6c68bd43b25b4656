//! The devices of a VM, a folder each.

pub mod block;
