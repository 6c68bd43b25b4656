//! The device's side of a split virtqueue, as the network and socket devices use it.
//!
//! `virtio_queue::Queue` holds the addresses and positions; what differs from its own methods is why this exists:
//!
//! - a ring that cannot be followed is an error, never an empty ring (a worker that took it for empty would spin),
//! - several used entries become visible at once (a packet in several buffers must never be seen by halves,
//!   virtio 1.2 §5.1.6.4),
//! - `VIRTQ_AVAIL_F_NO_INTERRUPT` is honoured when `VIRTIO_F_EVENT_IDX` was not agreed on.

use std::num::Wrapping;
use std::sync::atomic::{Ordering, fence};

use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Address, Bytes, GuestAddress};

use crate::virtio::{ActivateError, ActiveQueue, GuestMemory};

/// Bit number of `VIRTIO_F_EVENT_IDX`.
const EVENT_IDX: u32 = 29;
/// `VIRTQ_AVAIL_F_NO_INTERRUPT` (virtio 1.2 §2.7.6).
const NO_INTERRUPT: u16 = 1;

/// Why a ring cannot be followed any further. Only a reset by the driver helps.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// The positions or addresses in the ring make no sense.
    #[error("the ring cannot be followed")]
    Broken(#[source] virtio_queue::Error),
    /// The rings were in guest memory when the queue was set up, and no longer are.
    #[error("the ring is not in guest memory")]
    Memory(#[source] vm_memory::GuestMemoryError),
    /// An entry of the avail ring names a descriptor past the table's end.
    #[error("the avail ring names descriptor {0}, past the end of the table")]
    Head(u16),
}

/// A chain of descriptors whose buffers have not been looked at.
pub type Chain<'m> = DescriptorChain<&'m GuestMemory>;

/// One queue's rings.
pub struct Ring {
    queue: Queue,
    /// `next_used` when the driver was last told, or decided not to be.
    signalled: Wrapping<u16>,
}

impl Ring {
    /// Takes over a queue that the driver set up.
    pub fn new(active: ActiveQueue, features: u64, memory: &GuestMemory) -> Result<Ring, ActivateError> {
        let mut queue = active.queue;
        if !queue.is_valid(memory) {
            return Err(ActivateError::InvalidQueue(active.index));
        }
        queue.set_event_idx(features & (1 << EVENT_IDX) != 0);
        let signalled = Wrapping(queue.next_used());
        Ok(Ring { queue, signalled })
    }

    /// The queue with its positions, for the next activation.
    pub fn into_queue(self) -> Queue {
        self.queue
    }

    /// The number of entries.
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// Takes the next available chain.
    pub fn pop<'m>(&mut self, memory: &'m GuestMemory) -> Result<Option<Chain<'m>>, RingError> {
        let mut available = self.queue.iter(memory).map_err(RingError::Broken)?;
        if let Some(chain) = available.next() {
            let head = chain.head_index();
            return if head < self.queue.size() { Ok(Some(chain)) } else { Err(RingError::Head(head)) };
        }
        let index = self.queue.avail_idx(memory, Ordering::Acquire).map_err(RingError::Broken)?;
        if index.0 == self.queue.next_avail() {
            Ok(None)
        } else {
            // Either the driver added one just now, or the entry cannot be read; only the second is for good.
            let slot = 4 + 2 * u64::from(self.queue.next_avail() % self.queue.size());
            let address = GuestAddress(self.queue.avail_ring()).checked_add(slot).ok_or(OVERFLOW)?;
            memory.load::<u16>(address, Ordering::Relaxed).map_err(RingError::Memory)?;
            Ok(None)
        }
    }

    /// Gives the last `count` chains back to the avail ring: the next `pop` returns the first of them again.
    pub fn undo_pop(&mut self, count: u16) {
        let next = Wrapping(self.queue.next_avail()) - Wrapping(count);
        self.queue.set_next_avail(next.0);
    }

    /// Publishes one used entry.
    pub fn add_used(&mut self, memory: &GuestMemory, head: u16, length: u32) -> Result<(), RingError> {
        self.put_used(memory, 0, head, length)?;
        self.publish_used(memory, 1)
    }

    /// Writes a used entry `ahead` places past the published ones, invisible to the driver until `publish_used`.
    pub fn put_used(&mut self, memory: &GuestMemory, ahead: u16, head: u16, length: u32) -> Result<(), RingError> {
        let position = Wrapping(self.queue.next_used()) + Wrapping(ahead);
        let offset = 4 + 8 * u64::from(position.0 % self.queue.size());
        let address = GuestAddress(self.queue.used_ring()).checked_add(offset).ok_or(OVERFLOW)?;
        let mut entry = [0u8; 8];
        entry[..4].copy_from_slice(&u32::from(head).to_le_bytes());
        entry[4..].copy_from_slice(&length.to_le_bytes());
        memory.write_slice(&entry, address).map_err(RingError::Memory)
    }

    /// Makes the next `count` used entries visible.
    pub fn publish_used(&mut self, memory: &GuestMemory, count: u16) -> Result<(), RingError> {
        let next = Wrapping(self.queue.next_used()) + Wrapping(count);
        self.queue.set_next_used(next.0);
        let address = GuestAddress(self.queue.used_ring()).checked_add(2).ok_or(OVERFLOW)?;
        memory.store(next.0.to_le(), address, Ordering::Release).map_err(RingError::Memory)
    }

    /// Whether the driver wants to hear about the entries published since the last call (virtio 1.2 §2.7.7.2).
    pub fn needs_interrupt(&mut self, memory: &GuestMemory) -> Result<bool, RingError> {
        let new = Wrapping(self.queue.next_used());
        let old = std::mem::replace(&mut self.signalled, new);
        if new == old {
            return Ok(false);
        }
        // The used index must be visible before the driver's wish is read: the driver writes its wish, then reads the index.
        fence(Ordering::SeqCst);
        let avail = GuestAddress(self.queue.avail_ring());
        if self.queue.event_idx_enabled() {
            let offset = 4 + 2 * u64::from(self.queue.size());
            let event: u16 =
                memory.load(avail.checked_add(offset).ok_or(OVERFLOW)?, Ordering::Relaxed).map_err(RingError::Memory)?;
            Ok(new - Wrapping(u16::from_le(event)) - Wrapping(1) < new - old)
        } else {
            let flags: u16 = memory.load(avail, Ordering::Relaxed).map_err(RingError::Memory)?;
            Ok(u16::from_le(flags) & NO_INTERRUPT == 0)
        }
    }

    /// Asks for kicks. `true` when chains are available that came before the driver could see this: take them first.
    pub fn enable_kicks(&mut self, memory: &GuestMemory) -> Result<bool, RingError> {
        self.queue.enable_notification(memory).map_err(RingError::Broken)
    }

    /// Asks for no kicks, as far as the ring can say so.
    pub fn disable_kicks(&mut self, memory: &GuestMemory) -> Result<(), RingError> {
        self.queue.disable_notification(memory).map_err(RingError::Broken)
    }
}

const OVERFLOW: RingError = RingError::Broken(virtio_queue::Error::AddressOverflow);
