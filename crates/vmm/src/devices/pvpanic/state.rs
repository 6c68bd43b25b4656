//! The panic notifier's saved state.

/// The saved state of a panic notifier.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PvpanicState {
    /// The events that were reported already, as bits of the port.
    #[prost(uint32, tag = "1")]
    pub reported: u32,
}
