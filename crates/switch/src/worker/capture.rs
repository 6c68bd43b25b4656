//! Copies of a port's frames.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::acl::Direction;
use crate::ring::split::Segment;

/// Bytes that may wait for the client.
const MOST: usize = 8 << 20;
/// What a frame takes beside its bytes.
const OVERHEAD: usize = 128;

/// How much waits, and what there was no room for.
#[derive(Debug, Default)]
pub struct Room {
    waiting: AtomicUsize,
    missed: AtomicU64,
}

impl Room {
    fn enter(&self, bytes: usize) -> bool {
        // The worker alone adds, so that what is there can only have become less since.
        let fits = self.waiting.load(Ordering::Relaxed) + bytes + OVERHEAD <= MOST;
        if fits {
            self.waiting.fetch_add(bytes + OVERHEAD, Ordering::Relaxed);
        } else {
            self.missed.fetch_add(1, Ordering::Relaxed);
        }
        fits
    }

    /// A frame of so many bytes no longer waits.
    pub fn leave(&self, bytes: usize) {
        self.waiting.fetch_sub(bytes + OVERHEAD, Ordering::Relaxed);
    }

    /// Frames that there was no room for.
    pub fn missed(&self) -> u64 {
        self.missed.load(Ordering::Relaxed)
    }
}

/// A copy of a frame.
#[derive(Debug)]
pub struct Captured {
    /// Nanoseconds since 1970, UTC.
    pub at: u64,
    /// Seen from the VM.
    pub direction: Direction,
    /// Of all of the frame.
    pub length: usize,
    /// Its beginning.
    pub bytes: Vec<u8>,
}

/// Copies frames for somebody.
#[derive(Debug)]
pub struct Capture {
    direction: Option<Direction>,
    snap_bytes: usize,
    /// How many more.
    pub left: u64,
    sender: Sender<Captured>,
    room: Arc<Room>,
}

impl Capture {
    /// Copies the beginnings of `count` frames.
    pub fn new(
        direction: Option<Direction>,
        snap_bytes: usize,
        count: u64,
        sender: Sender<Captured>,
        room: Arc<Room>,
    ) -> Capture {
        Capture { direction, snap_bytes, left: count, sender, room }
    }

    /// Takes a frame.
    ///
    /// # Safety
    /// The bytes of `pieces` are still there.
    pub(super) unsafe fn take(&mut self, direction: Direction, pieces: &[Segment], length: usize) {
        let is_meant = self.left > 0 && self.direction.is_none_or(|wanted| wanted == direction);
        let most = length.min(self.snap_bytes);
        if !is_meant || !self.room.enter(most) {
            return;
        }
        let mut bytes = vec![0; most];
        let mut done = 0;
        for piece in pieces {
            // SAFETY: by what the caller promises.
            done += unsafe { piece.read(&mut bytes[done..]) };
        }
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.left -= 1;
        // Whoever has gone gets nothing, and is about to end this.
        let _ = self.sender.send(Captured { at: since.as_nanos() as u64, direction, length, bytes });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn a_client_that_does_not_read_costs_a_bounded_amount_of_memory() {
        let (sender, frames) = channel();
        let room = Arc::new(Room::default());
        let mut capture = Capture::new(None, 100_000, u64::MAX, sender, room.clone());
        let bytes = [7; 60_000];
        let take = |capture: &mut Capture| {
            // SAFETY: the bytes live.
            unsafe { capture.take(Direction::Inbound, &[Segment::of(&bytes[..10]), Segment::of(&bytes[10..])], bytes.len()) }
        };
        (0..1000).for_each(|_| take(&mut capture));
        let held = frames.try_iter().inspect(|frame| assert_eq!(frame.bytes, bytes)).count();
        assert_eq!(held, MOST / (60_000 + OVERHEAD));
        assert_eq!(room.missed(), 1000 - held as u64);
        (0..held).for_each(|_| room.leave(60_000));
        take(&mut capture);
        assert_eq!(frames.try_iter().count(), 1, "there is room again");
    }
}
