//! The saved state of a block device.

use disk::Disk;
use prost::Message;

use crate::virtio::RestoreError;

/// What a block device saves. Queues and features are the transport's.
#[derive(Clone, PartialEq, Message)]
pub struct BlockState {
    /// The disk's size, which the driver knows.
    #[prost(uint64, tag = "1")]
    pub capacity_bytes: u64,
    /// Its sector size, which the driver knows.
    #[prost(uint32, tag = "2")]
    pub sector_bytes: u32,
    /// Whether the driver has the write cache on.
    #[prost(bool, tag = "3")]
    pub writeback: bool,
    /// Requests taken from the rings and not answered.
    #[prost(message, repeated, tag = "4")]
    pub held: Vec<HeldRequests>,
}

/// The requests of one queue that wait to be tried again.
#[derive(Clone, PartialEq, Message)]
pub struct HeldRequests {
    /// The queue.
    #[prost(uint32, tag = "1")]
    pub queue: u32,
    /// The heads of their chains, in the order in which they were held.
    #[prost(uint32, repeated, tag = "2")]
    pub heads: Vec<u32>,
}

const DEVICE: &str = "block device";

impl BlockState {
    /// Reads what `encode_to_vec` wrote, and checks it against the device that it is for.
    pub(super) fn decode_for(bytes: &[u8], disk: &Disk, queues: u16) -> Result<BlockState, RestoreError> {
        let state =
            BlockState::decode(bytes).map_err(|error| RestoreError::Malformed { device: DEVICE, reason: error.to_string() })?;
        let mismatch = |reason| Err(RestoreError::Mismatch { device: DEVICE, reason });
        if state.capacity_bytes != disk.capacity() {
            return mismatch(format!("the disk had {} bytes and has {}", state.capacity_bytes, disk.capacity()));
        }
        if state.sector_bytes != disk.sector_size().bytes() {
            let now = disk.sector_size().bytes();
            return mismatch(format!("the disk had sectors of {} bytes and has {now}", state.sector_bytes));
        }
        for held in &state.held {
            if held.queue >= u32::from(queues) {
                return mismatch(format!("requests of queue {} wait, and there are {queues} queues", held.queue));
            }
            if held.heads.iter().any(|head| *head > u32::from(u16::MAX)) {
                let reason = format!("queue {} holds a request with an impossible number", held.queue);
                return Err(RestoreError::Malformed { device: DEVICE, reason });
            }
        }
        Ok(state)
    }
}
