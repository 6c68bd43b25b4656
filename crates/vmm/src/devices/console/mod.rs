//! The virtio console (virtio 1.2 §5.3) with one port, and the host's side of every console.

mod device;
pub mod host;
#[cfg(test)]
mod host_tests;
mod queue;
mod state;
#[cfg(test)]
mod tests;

pub use device::{Console, ConsoleHandle};
pub use state::ConsoleState;
