//! The virtio console (virtio 1.2 §5.3) with one port, which may be one for a program of the guest, and the host's side of every console.

mod control;
mod device;
pub mod host;
#[cfg(test)]
mod host_tests;
#[cfg(test)]
mod port_tests;
mod queue;
mod state;
#[cfg(test)]
mod tests;

pub use control::OpenListener;
pub use device::{Console, ConsoleHandle};
pub use state::ConsoleState;
