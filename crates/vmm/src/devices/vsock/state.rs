//! The saved state of the socket device. Connections are not in it: they end with the process that has their sockets.

use prost::Message;

use crate::virtio::RestoreError;

/// Saved state. Fields are added, never reused.
#[derive(Clone, PartialEq, Message)]
pub struct VsockState {
    /// The context that the guest had. It learns of another one with the reset of its connections.
    #[prost(uint64, tag = "1")]
    pub guest_cid: u64,
}

pub(super) fn restore(state: &[u8]) -> Result<VsockState, RestoreError> {
    VsockState::decode(state).map_err(|error| RestoreError::Malformed { device: "socket device", reason: error.to_string() })
}
