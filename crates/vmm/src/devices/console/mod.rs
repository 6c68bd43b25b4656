//! The virtio console (virtio 1.2 §5.3), and the host's side of every console.

pub mod host;
#[cfg(test)]
mod host_tests;
