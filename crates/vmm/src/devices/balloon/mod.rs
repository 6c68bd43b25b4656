//! The virtio balloon (virtio 1.2 §5.5): memory that the guest gives back to the host.

mod config;
mod device;
pub(super) mod discard;
mod pages;
mod queue;
mod state;
mod stats;
#[cfg(test)]
mod tests;

pub use config::BalloonConfig;
pub use device::{Balloon, BalloonHandle, BalloonInfo};
pub use state::BalloonState;
pub use stats::{BalloonStats, Stat};
