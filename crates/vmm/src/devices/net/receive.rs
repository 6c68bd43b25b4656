//! Frames from the host to the guest.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::buffers::{self, Direction, IoVectors, MAX_SEGMENTS, Segment};
use super::features::{self, HEADER_BYTES, MAX_FRAME_BYTES, NUM_BUFFERS_OFFSET};
use super::ring::{Ring, RingError};
use super::shared::Shared;
use super::throttle::Throttle;
use crate::virtio::GuestMemory;

/// Frames received before other work gets its turn.
const BATCH: usize = 64;

/// How a batch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// The host's side has, or will have, more: listen to it.
    Listen,
    /// The guest must make buffers available first: listen to its kicks only.
    NoBuffers,
    /// The limit is reached, until [`Receiver::opens_at`].
    Limited,
    /// The host's side is gone for good.
    Gone,
}

/// A chain of empty buffers, taken from the ring but not used yet.
struct Waiting {
    head: u16,
    segments: usize,
    bytes: usize,
}

/// A frame that was larger than all buffers at hand. Its start is in the guest's buffers already, the rest in `overflow`.
struct Held {
    length: usize,
    in_buffers: usize,
}

/// What stopped the filling of the list of waiting chains.
#[derive(PartialEq)]
enum Filled {
    Enough,
    RingEmpty,
    /// The next chain makes no sense, and its turn comes when those before it are used.
    BadChain,
}

/// The receive queue of one pair.
pub(super) struct Receiver {
    ring: Ring,
    mergeable: bool,
    waiting: VecDeque<Waiting>,
    segments: VecDeque<Segment>,
    /// Bytes in `segments`.
    capacity: usize,
    held: Option<Held>,
    vectors: IoVectors,
    overflow: Box<[u8]>,
    kicks_enabled: bool,
    throttle: Throttle,
}

impl Receiver {
    pub fn new(ring: Ring, agreed: u64, throttle: Throttle) -> Receiver {
        Receiver {
            ring,
            mergeable: agreed & (1 << features::MRG_RXBUF) != 0,
            waiting: VecDeque::new(),
            segments: VecDeque::new(),
            capacity: 0,
            held: None,
            vectors: IoVectors::default(),
            overflow: vec![0; MAX_FRAME_BYTES].into_boxed_slice(),
            kicks_enabled: true,
            throttle,
        }
    }

    /// When the limit lets more pass, if it holds something up.
    pub fn opens_at(&self) -> Option<Instant> {
        self.throttle.opens_at()
    }

    /// Gives back chains that hold no frame yet. A frame that waited for more buffers is lost, as on a full queue.
    pub fn into_ring(mut self, shared: &Shared) -> Ring {
        if self.held.is_some() {
            shared.counters.rx_drops.fetch_add(1, Ordering::Relaxed);
        }
        // All of them came from the ring, which has at most 2^15 entries.
        self.ring.undo_pop(self.waiting.len() as u16);
        self.ring
    }

    /// Whether the driver wants an interrupt for what was received.
    pub fn needs_interrupt(&mut self, memory: &GuestMemory) -> Result<bool, RingError> {
        self.ring.needs_interrupt(memory)
    }

    /// Moves frames from `host` to the guest until either has no more, or a batch is full.
    pub fn receive(&mut self, memory: &GuestMemory, host: &impl AsFd, shared: &Shared) -> Result<Received, RingError> {
        if self.kicks_enabled {
            self.ring.disable_kicks(memory)?;
            self.kicks_enabled = false;
        }
        let mut tally = Tally::default();
        let result = self.receive_batch(memory, host, shared, &mut tally);
        shared.counters.rx_packets.fetch_add(tally.packets, Ordering::Relaxed);
        shared.counters.rx_bytes.fetch_add(tally.bytes, Ordering::Relaxed);
        shared.counters.rx_drops.fetch_add(tally.drops, Ordering::Relaxed);
        result
    }

    fn receive_batch(
        &mut self,
        memory: &GuestMemory,
        host: &impl AsFd,
        shared: &Shared,
        tally: &mut Tally,
    ) -> Result<Received, RingError> {
        let link_up = shared.is_link_up();
        for _ in 0..BATCH {
            let is_open = self.throttle.is_open();
            if !link_up {
                tally.drops += u64::from(self.held.take().is_some());
                match self.vectors.read(memory, host.as_fd(), [].iter(), &mut self.overflow) {
                    Ok(_) => tally.drops += 1,
                    Err(error) => match after_error(&error) {
                        AfterError::Retry => {}
                        AfterError::Leave(received) => return Ok(received),
                    },
                }
                continue;
            }
            if !is_open {
                return Ok(Received::Limited);
            }
            let wanted = self.held.as_ref().map_or_else(|| self.largest_frame(shared), |held| held.length);
            let filled = self.fill(memory, wanted, tally)?;
            if let Some(held) = self.held.take() {
                if self.capacity >= held.length {
                    let rest = &self.overflow[..held.length - held.in_buffers];
                    buffers::copy_into(memory, self.segments.iter(), held.in_buffers, rest);
                    self.deliver(memory, held.length, tally)?;
                } else if filled == Filled::BadChain || self.waiting.len() >= usize::from(self.ring.size()) {
                    tally.drops += 1;
                } else {
                    self.held = Some(held);
                    if !self.ask_for_kicks(memory)? {
                        return Ok(Received::NoBuffers);
                    }
                }
                continue;
            }
            if self.waiting.is_empty() {
                if filled == Filled::RingEmpty && !self.ask_for_kicks(memory)? {
                    return Ok(Received::NoBuffers);
                }
                continue;
            }
            let (segments, room) = self.frame_room();
            let target = self.segments.iter().take(segments);
            match self.vectors.read(memory, host.as_fd(), target, &mut self.overflow) {
                // Datagram sockets say so when their other end was closed, and TAPs never.
                Ok(0) => return Ok(Received::Gone),
                Ok(length) if length < HEADER_BYTES => tally.drops += 1,
                Ok(length) if length <= room => self.deliver(memory, length, tally)?,
                Ok(length) if self.mergeable => self.held = Some(Held { length, in_buffers: room }),
                Ok(_) => tally.drops += 1,
                Err(error) => match after_error(&error) {
                    AfterError::Retry => {}
                    AfterError::Leave(received) => return Ok(received),
                },
            }
        }
        Ok(Received::Listen)
    }

    /// The largest frame to expect. A larger one costs a copy, not more.
    fn largest_frame(&self, shared: &Shared) -> usize {
        if !self.mergeable {
            1
        } else if shared.offloads() & features::GUEST_LARGE != 0 {
            MAX_FRAME_BYTES
        } else {
            HEADER_BYTES + 14 + 8 + usize::from(shared.mtu().unwrap_or(1500))
        }
    }

    /// Takes chains from the ring until they have room for `wanted` bytes.
    fn fill(&mut self, memory: &GuestMemory, wanted: usize, tally: &mut Tally) -> Result<Filled, RingError> {
        // A driver that adds bad chains as fast as they are dropped must not keep us here.
        for _ in 0..self.ring.size() {
            if self.capacity >= wanted {
                return Ok(Filled::Enough);
            }
            let Some(chain) = self.ring.pop(memory)? else { return Ok(Filled::RingEmpty) };
            let head = chain.head_index();
            // Without merging, a buffer that cannot take the smallest frame would stay at the front for ever.
            let smallest = if self.mergeable { 1 } else { HEADER_BYTES + 14 };
            match buffers::collect(chain, memory, Direction::DeviceWrites, &mut self.segments) {
                Ok((segments, bytes)) if bytes >= smallest => {
                    self.waiting.push_back(Waiting { head, segments, bytes });
                    self.capacity += bytes;
                }
                bad => {
                    if let Ok((segments, _)) = bad {
                        self.segments.truncate(self.segments.len() - segments);
                    }
                    if !self.waiting.is_empty() {
                        // Used entries for chains in the middle could not be told from the others when giving back.
                        self.ring.undo_pop(1);
                        return Ok(Filled::BadChain);
                    }
                    tally.drops += 1;
                    self.ring.add_used(memory, head, 0)?;
                }
            }
        }
        Ok(if self.capacity >= wanted { Filled::Enough } else { Filled::BadChain })
    }

    /// How many segments the next frame may use, and their bytes.
    fn frame_room(&self) -> (usize, usize) {
        let chains = if self.mergeable { self.waiting.len() } else { 1 };
        let mut room = (0, 0);
        for chain in self.waiting.iter().take(chains) {
            // One chain alone never has more.
            if room.0 + chain.segments > MAX_SEGMENTS {
                break;
            }
            room = (room.0 + chain.segments, room.1 + chain.bytes);
        }
        room
    }

    /// Hands the first `length` bytes of the waiting chains to the driver.
    fn deliver(&mut self, memory: &GuestMemory, length: usize, tally: &mut Tally) -> Result<(), RingError> {
        let mut left = length;
        let mut chains = 0u16;
        let mut segments = 0;
        while left > 0 {
            let Some(chain) = self.waiting.pop_front() else { break };
            let part = left.min(chain.bytes);
            left -= part;
            segments += chain.segments;
            self.capacity -= chain.bytes;
            // A frame is at most 65569 bytes.
            self.ring.put_used(memory, chains, chain.head, part as u32)?;
            chains += 1;
        }
        buffers::copy_into(memory, self.segments.iter(), NUM_BUFFERS_OFFSET, &chains.to_le_bytes());
        self.segments.drain(..segments);
        self.ring.publish_used(memory, chains)?;
        tally.packets += 1;
        tally.bytes += (length - HEADER_BYTES) as u64;
        self.throttle.passed((length - HEADER_BYTES) as u64);
        Ok(())
    }

    fn ask_for_kicks(&mut self, memory: &GuestMemory) -> Result<bool, RingError> {
        self.kicks_enabled = true;
        self.ring.enable_kicks(memory)
    }
}

#[derive(Default)]
struct Tally {
    packets: u64,
    bytes: u64,
    drops: u64,
}

enum AfterError {
    Retry,
    Leave(Received),
}

fn after_error(error: &io::Error) -> AfterError {
    match error.kind() {
        io::ErrorKind::WouldBlock => AfterError::Leave(Received::Listen),
        io::ErrorKind::Interrupted => AfterError::Retry,
        // EBADFD: the interface was deleted. Nothing else is known to happen, and nothing else would get better.
        _ => AfterError::Leave(Received::Gone),
    }
}
