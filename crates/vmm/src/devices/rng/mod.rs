//! The virtio entropy device (virtio 1.2 §5.4): random bytes from the host's kernel.

mod budget;
mod device;
mod queue;
mod state;
#[cfg(test)]
mod tests;

pub use device::Rng;
pub use state::RngState;
