//! The saved state of a virtio device on PCI.

use prost::Message;

/// A device with its transport.
#[derive(Clone, PartialEq, Message)]
pub struct VirtioPciState {
    /// Virtio device type, to notice a device that is not the same.
    #[prost(uint32, tag = "1")]
    pub device_type: u32,
    /// Configuration space, 256 bytes.
    #[prost(bytes = "vec", tag = "2")]
    pub config: Vec<u8>,
    /// MSI-X.
    #[prost(message, optional, tag = "3")]
    pub msix: Option<MsixState>,
    /// Device status.
    #[prost(uint32, tag = "4")]
    pub status: u32,
    /// Features that the driver took.
    #[prost(fixed64, tag = "5")]
    pub driver_features: u64,
    /// Features that the device offered.
    #[prost(fixed64, tag = "6")]
    pub device_features: u64,
    /// Selector registers: device features, driver features, queue.
    #[prost(uint32, repeated, tag = "7")]
    pub selectors: Vec<u32>,
    /// Vector for configuration changes.
    #[prost(uint32, tag = "8")]
    pub config_vector: u32,
    /// Interrupt status, and configuration generation.
    #[prost(uint32, tag = "9")]
    pub interrupt_status: u32,
    /// Configuration generation.
    #[prost(uint32, tag = "10")]
    pub config_generation: u32,
    /// All queues.
    #[prost(message, repeated, tag = "11")]
    pub queues: Vec<VirtioQueueState>,
    /// What the device itself saved.
    #[prost(bytes = "vec", tag = "12")]
    pub device: Vec<u8>,
}

/// One queue.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct VirtioQueueState {
    /// Size that the driver chose.
    #[prost(uint32, tag = "1")]
    pub size: u32,
    /// Whether the driver enabled it.
    #[prost(bool, tag = "2")]
    pub enabled: bool,
    /// Address of the descriptor table.
    #[prost(fixed64, tag = "3")]
    pub descriptors: u64,
    /// Address of the available ring.
    #[prost(fixed64, tag = "4")]
    pub available: u64,
    /// Address of the used ring.
    #[prost(fixed64, tag = "5")]
    pub used: u64,
    /// Next entry to take from the available ring.
    #[prost(uint32, tag = "6")]
    pub next_available: u32,
    /// Next entry to write in the used ring.
    #[prost(uint32, tag = "7")]
    pub next_used: u32,
    /// Vector.
    #[prost(uint32, tag = "8")]
    pub vector: u32,
}

/// MSI-X of a function.
#[derive(Clone, PartialEq, Message)]
pub struct MsixState {
    /// Control register.
    #[prost(uint32, tag = "1")]
    pub control: u32,
    /// The table, four words a vector.
    #[prost(fixed32, repeated, tag = "2")]
    pub table: Vec<u32>,
    /// Vectors that were signalled while masked.
    #[prost(uint32, repeated, tag = "3")]
    pub pending: Vec<u32>,
}
