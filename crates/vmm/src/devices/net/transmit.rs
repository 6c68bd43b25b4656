//! Frames from the guest to the host.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::buffers::{self, Direction, IoVectors, Segment};
use super::features::{HEADER_BYTES, MAX_FRAME_BYTES};
use super::ring::{Ring, RingError};
use super::shared::Shared;
use super::throttle::Throttle;
use crate::virtio::GuestMemory;

/// Frames sent before other work gets its turn.
const BATCH: usize = 64;

/// How a batch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// All that was available; a kick tells of more.
    All,
    /// There may be more.
    Batch,
    /// The host's side is full.
    Full,
    /// The limit is reached, until [`Transmitter::opens_at`].
    Limited,
    /// The host's side is gone for good.
    Gone,
}

/// The transmit queue of one pair.
pub(super) struct Transmitter {
    ring: Ring,
    segments: VecDeque<Segment>,
    vectors: IoVectors,
    throttle: Throttle,
}

impl Transmitter {
    pub fn new(ring: Ring, throttle: Throttle) -> Transmitter {
        Transmitter { ring, segments: VecDeque::new(), vectors: IoVectors::default(), throttle }
    }

    /// When the limit lets more pass, if it holds something up.
    pub fn opens_at(&self) -> Option<Instant> {
        self.throttle.opens_at()
    }

    pub fn into_ring(self) -> Ring {
        self.ring
    }

    /// Whether the driver wants an interrupt for what was sent.
    pub fn needs_interrupt(&mut self, memory: &GuestMemory) -> Result<bool, RingError> {
        self.ring.needs_interrupt(memory)
    }

    /// Sends what is available, to nowhere if there is no `host`.
    pub fn send(&mut self, memory: &GuestMemory, host: Option<&impl AsFd>, shared: &Shared) -> Result<Sent, RingError> {
        let host = host.filter(|_| shared.is_link_up());
        let (mut packets, mut bytes, mut drops) = (0, 0, 0);
        let mut sent = Sent::Batch;
        self.ring.disable_kicks(memory)?;
        for _ in 0..BATCH {
            if !self.throttle.is_open() {
                sent = Sent::Limited;
                break;
            }
            let Some(chain) = self.ring.pop(memory)? else {
                if self.ring.enable_kicks(memory)? {
                    continue;
                }
                sent = Sent::All;
                break;
            };
            let head = chain.head_index();
            self.segments.clear();
            let collected = buffers::collect(chain, memory, Direction::DeviceReads, &mut self.segments);
            let length = collected.map_or(0, |(_, bytes)| bytes);
            match host.filter(|_| (HEADER_BYTES + 14..=MAX_FRAME_BYTES).contains(&length)) {
                None => drops += 1,
                Some(host) => match self.vectors.write(memory, host.as_fd(), self.segments.iter()) {
                    Ok(_) => {
                        packets += 1;
                        bytes += (length - HEADER_BYTES) as u64;
                        self.throttle.passed((length - HEADER_BYTES) as u64);
                    }
                    Err(error) => match error.kind() {
                        io::ErrorKind::WouldBlock => {
                            self.ring.undo_pop(1);
                            sent = Sent::Full;
                            break;
                        }
                        io::ErrorKind::Interrupted => {
                            self.ring.undo_pop(1);
                            continue;
                        }
                        _ => {
                            drops += 1;
                            if matches!(error.raw_os_error(), Some(libc::EBADFD | libc::EPIPE | libc::ECONNRESET)) {
                                sent = Sent::Gone;
                            }
                        }
                    },
                },
            }
            self.ring.add_used(memory, head, 0)?;
            if sent == Sent::Gone {
                break;
            }
        }
        shared.counters.tx_packets.fetch_add(packets, Ordering::Relaxed);
        shared.counters.tx_bytes.fetch_add(bytes, Ordering::Relaxed);
        shared.counters.tx_drops.fetch_add(drops, Ordering::Relaxed);
        Ok(sent)
    }
}
