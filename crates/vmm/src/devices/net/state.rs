//! The saved state of a network device; the same for every back end, so that a VM can be moved between them.

use prost::Message;

use super::features::{GUEST_OFFLOADS, S_ANNOUNCE, S_LINK_UP};
use super::shared::Shared;
use crate::virtio::RestoreError;

const DEVICE: &str = "network device";

/// Saved state. Fields are added, never reused.
#[derive(Clone, PartialEq, Message)]
pub struct NetState {
    /// The address, six bytes: the driver may have changed it.
    #[prost(bytes = "vec", tag = "1")]
    pub mac: Vec<u8>,
    /// How many queue pairs the driver uses.
    #[prost(uint32, tag = "2")]
    pub active_pairs: u32,
    /// Which offloads the driver takes.
    #[prost(uint64, tag = "3")]
    pub offloads: u64,
    /// The status in the configuration space.
    #[prost(uint32, tag = "4")]
    pub status: u32,
    /// How the driver wants frames filtered: bit `n` is command `n` of class `VIRTIO_NET_CTRL_RX`.
    #[prost(uint64, tag = "5")]
    pub rx_mode: u64,
    /// The number of queue pairs the device has.
    #[prost(uint32, tag = "6")]
    pub max_pairs: u32,
    /// Whether `offloads` was chosen by a driver; before, it is what the features say.
    #[prost(bool, tag = "7")]
    pub configured: bool,
}

/// Takes the state of an idle device.
pub(super) fn save(shared: &Shared, configured: bool) -> Vec<u8> {
    NetState {
        mac: shared.mac().to_vec(),
        active_pairs: u32::from(shared.active_pairs()),
        offloads: shared.offloads(),
        status: u32::from(shared.status()),
        rx_mode: shared.rx_mode(),
        max_pairs: u32::from(shared.max_pairs()),
        configured,
    }
    .encode_to_vec()
}

/// Puts a saved state in place, and returns whether a driver had configured the device.
pub(super) fn restore(shared: &Shared, state: &[u8]) -> Result<bool, RestoreError> {
    let malformed = |reason: String| RestoreError::Malformed { device: DEVICE, reason };
    let state = NetState::decode(state).map_err(|error| malformed(error.to_string()))?;
    let mac = <[u8; 6]>::try_from(&state.mac[..]).map_err(|_| malformed(format!("a MAC of {} bytes", state.mac.len())))?;
    let max_pairs = shared.max_pairs();
    if state.max_pairs != u32::from(max_pairs) {
        let reason = format!("it has {} queue pairs, the configuration {max_pairs}", state.max_pairs);
        return Err(RestoreError::Mismatch { device: DEVICE, reason });
    }
    let pairs = u16::try_from(state.active_pairs).ok().filter(|pairs| (1..=max_pairs).contains(pairs));
    let pairs = pairs.ok_or_else(|| malformed(format!("{} active queue pairs", state.active_pairs)))?;
    if state.offloads & !GUEST_OFFLOADS != 0 {
        return Err(malformed(format!("unknown offloads {:#x}", state.offloads)));
    }
    let status = u16::try_from(state.status).ok().filter(|status| status & !(S_LINK_UP | S_ANNOUNCE) == 0);
    let status = status.ok_or_else(|| malformed(format!("unknown status {:#x}", state.status)))?;
    shared.set_mac(mac);
    shared.set_active_pairs(pairs);
    shared.set_offloads(state.offloads);
    shared.set_status(status);
    shared.set_rx_mode(state.rx_mode);
    Ok(state.configured)
}
