//! The devices of a VM, a folder each.

#[cfg(test)]
mod hostile;
mod ring;

pub mod balloon;
pub mod block;
pub mod console;
pub mod mem;
pub mod net;
pub mod pvpanic;
pub mod rng;
pub mod rtc;
pub mod serial;
pub mod vmgenid;
pub mod vsock;
