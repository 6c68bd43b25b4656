//! The generation ID's saved state.

/// The saved state of a generation ID.
#[derive(Clone, PartialEq, prost::Message)]
pub struct VmGenerationIdState {
    /// The 16 bytes as they are in guest memory.
    #[prost(bytes = "vec", tag = "1")]
    pub id: Vec<u8>,
    /// Where they are; the guest's ACPI tables point there.
    #[prost(uint64, tag = "2")]
    pub address: u64,
}
