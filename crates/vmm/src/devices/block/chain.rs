//! Descriptor chains, as lists of buffers.
//!
//! `virtio-queue`'s own iterator ends a broken chain as if it were complete, and only starts at the avail ring; a block device
//! has to tell a broken chain from a short one, and to go back to a chain that it held.

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

use crate::virtio::GuestMemory;

/// A buffer in guest memory (as the guest says; nothing is checked).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Buffer {
    pub address: u64,
    pub length: u32,
}

/// Why a chain cannot be followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ChainError {
    #[error("descriptor {0} is past the end of its table")]
    Index(u16),
    #[error("a descriptor table at {0:#x} is not in guest memory")]
    Table(u64),
    #[error("an indirect table of {0} bytes")]
    IndirectLength(u32),
    #[error("an indirect descriptor in an indirect table, or one with a successor")]
    Indirect,
    #[error("a chain with a loop, or longer than any request")]
    TooLong,
}

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const DESCRIPTOR_BYTES: u32 = 16;

/// More than any driver uses; as many as the kernel takes in one vector.
const MAX_DESCRIPTORS: usize = 1024;

/// The buffers of one chain. Kept and filled again for each request.
#[derive(Default)]
pub(super) struct Chain {
    /// What the device reads, in order.
    pub readable: Vec<Buffer>,
    /// What the device writes, in order.
    pub writable: Vec<Buffer>,
    /// Whether something to read came after something to write, which drivers must not do (virtio 1.2 §2.7.4.2).
    pub disordered: bool,
}

impl Chain {
    /// Follows the chain that starts at `head`. Each descriptor is read once. Empty buffers are left out.
    pub fn follow(&mut self, memory: &GuestMemory, queue: &Queue, head: u16) -> Result<(), ChainError> {
        self.readable.clear();
        self.writable.clear();
        self.disordered = false;
        let (mut table, mut entries, mut is_indirect) = (queue.desc_table(), u32::from(queue.size()), false);
        let mut index = head;
        for _ in 0..MAX_DESCRIPTORS {
            if u32::from(index) >= entries {
                return Err(ChainError::Index(index));
            }
            let at = table.checked_add(u64::from(index) * u64::from(DESCRIPTOR_BYTES)).ok_or(ChainError::Table(table))?;
            let raw: u128 = memory.read_obj(GuestAddress(at)).map_err(|_| ChainError::Table(table))?;
            let raw = u128::from_le(raw);
            let buffer = Buffer { address: raw as u64, length: (raw >> 64) as u32 };
            let (flags, next) = ((raw >> 96) as u16, (raw >> 112) as u16);
            if flags & INDIRECT != 0 {
                if is_indirect || flags & NEXT != 0 {
                    return Err(ChainError::Indirect);
                }
                if buffer.length == 0 || !buffer.length.is_multiple_of(DESCRIPTOR_BYTES) {
                    return Err(ChainError::IndirectLength(buffer.length));
                }
                (table, entries, is_indirect, index) = (buffer.address, buffer.length / DESCRIPTOR_BYTES, true, 0);
                continue;
            }
            if flags & WRITE != 0 {
                if buffer.length > 0 {
                    self.writable.push(buffer);
                }
            } else {
                self.disordered |= !self.writable.is_empty();
                if buffer.length > 0 {
                    self.readable.push(buffer);
                }
            }
            if flags & NEXT == 0 {
                return Ok(());
            }
            index = next;
        }
        Err(ChainError::TooLong)
    }
}
