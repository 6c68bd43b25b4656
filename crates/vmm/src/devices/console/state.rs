//! The console's saved state.

/// The saved state of a virtio console.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ConsoleState {
    /// Input that the driver has not taken yet.
    #[prost(bytes = "vec", tag = "1")]
    pub pending_input: Vec<u8>,
    /// The terminal's width that the driver was told.
    #[prost(uint32, tag = "2")]
    pub columns: u32,
    /// The terminal's height that the driver was told.
    #[prost(uint32, tag = "3")]
    pub rows: u32,
    /// Of a port that has a name: which control messages the driver has not taken yet, a bit each.
    #[prost(uint32, tag = "4")]
    pub pending_control: u32,
    /// Of a port that has a name: whether a program of the guest has it open.
    #[prost(bool, tag = "5")]
    pub port_is_open: bool,
}
