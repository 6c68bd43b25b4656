//! The memory device's saved state.

use super::blocks::Blocks;
use super::config::MemConfig;
use crate::virtio::RestoreError;

/// The saved state of a memory device.
#[derive(Clone, PartialEq, prost::Message)]
pub struct MemState {
    /// Guest address of the region.
    #[prost(uint64, tag = "1")]
    pub address: u64,
    /// Size of the region in bytes.
    #[prost(uint64, tag = "2")]
    pub region_size: u64,
    /// Size of a block in bytes.
    #[prost(uint64, tag = "3")]
    pub block_size: u64,
    /// What the guest is asked to plug, in bytes.
    #[prost(uint64, tag = "4")]
    pub requested_size: u64,
    /// One bit per block, the first in the lowest bit of the first byte: whether it is plugged.
    #[prost(bytes = "vec", tag = "5")]
    pub plugged: Vec<u8>,
}

impl MemState {
    pub(super) fn new(config: &MemConfig, requested_size: u64, blocks: &Blocks) -> MemState {
        MemState {
            address: config.address,
            region_size: config.region_size,
            block_size: config.block_size,
            requested_size,
            plugged: blocks.to_bytes(),
        }
    }

    /// The plugged blocks, if this state is one of a device with this configuration.
    pub(super) fn blocks(&self, config: &MemConfig) -> Result<Blocks, RestoreError> {
        let device = "memory device";
        let same = |what: &str, saved: u64, configured: u64| {
            let reason = format!("{what} is {saved:#x}, not {configured:#x}");
            if saved == configured { Ok(()) } else { Err(RestoreError::Mismatch { device, reason }) }
        };
        same("the address", self.address, config.address)?;
        same("the region's size", self.region_size, config.region_size)?;
        same("the block size", self.block_size, config.block_size)?;
        let wanted = MemConfig { requested_size: self.requested_size, ..*config };
        if wanted.check().is_err() {
            return Err(RestoreError::Malformed { device, reason: "the requested size is impossible".into() });
        }
        Blocks::from_bytes(config.region_size / config.block_size, &self.plugged)
            .ok_or_else(|| RestoreError::Malformed { device, reason: "the plugged blocks do not fit the region".into() })
    }
}
