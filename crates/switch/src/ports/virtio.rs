//! A VM's port: its rings.

use super::vnet::{LONG, Offloads, SHORT, Vnet};
use crate::counters::DropReason;
use crate::pipeline::PortNumber;
use crate::ring::split::{Chain, Ring, RingError, Segment};

/// How frames look in a VM's rings, as agreed on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Format {
    /// Whether the header has the number of buffers.
    pub is_long: bool,
    /// Whether a frame may take several buffers.
    pub mergeable: bool,
    /// What the driver does itself.
    pub offloads: Offloads,
}

impl Format {
    /// The header's length.
    pub fn vnet_bytes(&self) -> usize {
        if self.is_long { LONG } else { SHORT }
    }
}

/// Whether frames pass a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// The front end has not said yet: what was sent before a switch came back waits.
    #[default]
    Waiting,
    /// They do.
    On,
    /// What is sent is dropped, as the standard has it, and nothing is received.
    Off,
}

/// A ring of a port.
#[derive(Debug)]
pub struct Queue {
    /// The ring.
    pub ring: Ring,
    /// Whether frames pass.
    pub mode: Mode,
    /// Why it stands still.
    pub failed: Option<RingError>,
    /// Whether what it has waits for bandwidth.
    pub held: bool,
    /// Port and queue that its last frames went to, where the next ones are likely to go.
    pub target: Option<(PortNumber, usize)>,
}

/// The rings of a VM: even numbers receive (for the VM), odd ones transmit.
#[derive(Debug, Default)]
pub struct VirtioPort {
    /// By number; those that are not served are missing.
    pub queues: Vec<Option<Queue>>,
    /// How frames look.
    pub format: Format,
    target: Target,
}

/// Room for the next frame. Used again and again.
#[derive(Debug, Default)]
struct Target {
    chain: Chain,
    segments: Vec<Segment>,
    /// Chains with their room.
    chains: Vec<(u16, usize)>,
    pieces: Vec<Segment>,
}

impl VirtioPort {
    /// The receive queue for a flow: always the same, as long as the same ones are on.
    pub fn receiver(&self, hash: u64) -> Option<usize> {
        let usable =
            |index: &usize| self.queues[*index].as_ref().is_some_and(|queue| queue.mode == Mode::On && queue.failed.is_none());
        // Most have one.
        if self.queues.len() <= 2 {
            return Some(0).filter(|index| !self.queues.is_empty() && usable(index));
        }
        let receivers = || (0..self.queues.len()).step_by(2).filter(usable);
        match receivers().count() {
            0 => None,
            1 => receivers().next(),
            count => receivers().nth((hash >> 40) as usize % count),
        }
    }

    /// Copies a frame into a receive queue. It is seen with the next `publish` of its ring.
    ///
    /// # Safety
    /// The bytes of `pieces` are still there.
    pub unsafe fn receive(&mut self, index: usize, vnet: &Vnet, pieces: &[Segment], length: usize) -> Result<(), DropReason> {
        let Some(queue) = self.queues.get_mut(index).and_then(Option::as_mut) else { return Err(DropReason::NoBuffer) };
        let needed = self.format.vnet_bytes() + length;
        if let Some((head, start)) = queue.ring.pop_buffer(needed) {
            let header = vnet.bytes(1);
            let mut at = self.format.vnet_bytes();
            // SAFETY: there is room for `needed` bytes at `start`, which are the header's and the pieces'; the latter are there by what
            // the caller promises.
            unsafe {
                Segment::of(&header[..at]).update(start);
                for piece in pieces {
                    piece.copy_to(start.add(at));
                    at += piece.len();
                }
            }
            queue.ring.complete(head, needed as u32);
            return Ok(());
        }
        let room = self.target.gather(queue, needed, self.format.mergeable);
        if room < needed {
            // Those that were taken wait for the next frame.
            queue.ring.rewind(queue.ring.position().wrapping_sub(self.target.chains.len() as u16));
            return Err(if room == 0 || self.format.mergeable { DropReason::NoBuffer } else { DropReason::NotTaken });
        }
        let header = vnet.bytes(self.target.chains.len() as u16);
        let Target { segments, chains, pieces: all, .. } = &mut self.target;
        all.clear();
        all.push(Segment::of(&header[..self.format.vnet_bytes()]));
        all.extend_from_slice(pieces);
        // SAFETY: the caller's pieces and our header are there; the segments were just taken from this ring.
        unsafe { queue.ring.copy_all(all, segments) };
        let mut left = needed;
        for (head, room) in chains.drain(..) {
            let written = left.min(room);
            queue.ring.complete(head, written as u32);
            left -= written;
        }
        Ok(())
    }
}

impl Target {
    /// Takes chains until they have room for `needed` bytes; returns how much they have.
    fn gather(&mut self, queue: &mut Queue, needed: usize, mergeable: bool) -> usize {
        self.segments.clear();
        self.chains.clear();
        let mut total = 0;
        while total < needed && (mergeable || self.chains.is_empty()) {
            match queue.ring.pop(&mut self.chain) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    queue.failed = Some(error);
                    break;
                }
            }
            let room: usize = self.chain.writable.iter().map(Segment::len).sum();
            if self.chain.is_bad || room == 0 {
                if self.chains.is_empty() {
                    // Nothing can be written there, so it goes back as it is.
                    queue.ring.complete(self.chain.head, 0);
                    continue;
                }
                queue.ring.rewind(queue.ring.position().wrapping_sub(1));
                break;
            }
            self.segments.extend_from_slice(&self.chain.writable);
            self.chains.push((self.chain.head, room));
            total += room;
        }
        total
    }
}
