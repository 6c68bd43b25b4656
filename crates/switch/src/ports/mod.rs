//! What is behind ports: VMs, the host, the wire.

pub mod fd;
pub mod nic;
pub mod packet;
pub mod segment;
mod session;
#[cfg(test)]
pub(crate) mod tests;
pub mod vhost_user;
pub mod virtio;
pub mod vnet;
