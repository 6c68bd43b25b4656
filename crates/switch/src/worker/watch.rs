//! Who looks at the frames of a port while they pass.
//!
//! Whoever looks must not be waited for: what does not fit is counted as missed, and tracing has a budget of time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;

use super::capture::Capture;
use crate::acl::Direction;
use crate::explain::FrameFilter;
use crate::frame::Frame;
use crate::pipeline::{PortNumber, Switch, TagEdit, Taken, Trace};
use crate::ports::packet::Packet;
use crate::ring::split::Segment;

/// Traces that may follow each other at once; then there is one in each millisecond. A trace takes some microseconds.
const BURST: u64 = 32;

/// All who look.
#[derive(Debug, Default)]
pub struct Watches {
    list: Vec<Watch>,
    next: u64,
}

#[derive(Debug)]
struct Watch {
    id: u64,
    port: PortNumber,
    watcher: Watcher,
}

/// Who looks.
#[derive(Debug)]
pub enum Watcher {
    /// Somebody who wants to know why.
    Tracer(Tracer),
    /// Somebody who wants copies.
    Capture(Capture),
}

impl Watcher {
    fn is_done(&self) -> bool {
        match self {
            Watcher::Tracer(tracer) => tracer.left == 0,
            Watcher::Capture(capture) => capture.left == 0,
        }
    }
}

/// Traces the next frames that come from a port.
#[derive(Debug)]
pub struct Tracer {
    /// Which frames.
    pub filter: FrameFilter,
    /// How many more.
    pub left: u64,
    /// Where they go.
    pub sender: SyncSender<Trace>,
    /// Frames that were meant, and for which there was no time or room.
    pub missed: Arc<AtomicU64>,
    budget: u64,
    filled: u64,
    /// The frame at hand.
    at_hand: Option<Trace>,
}

impl Tracer {
    /// Traces `count` frames.
    pub fn new(filter: FrameFilter, count: u64, sender: SyncSender<Trace>, missed: Arc<AtomicU64>) -> Tracer {
        Tracer { filter, left: count, sender, missed, budget: BURST, filled: 0, at_hand: None }
    }

    fn look(&mut self, switch: &Switch, port: PortNumber, packet: &Packet, now: u64) {
        let is_meant = match Frame::parse(packet.head(), packet.length) {
            Ok(frame) => self.filter.matches(&frame),
            Err(_) => self.filter == FrameFilter::default(),
        };
        if !is_meant || self.left == 0 {
            return;
        }
        self.budget = self.budget.saturating_add(now - self.filled.min(now)).min(BURST);
        self.filled = now;
        if self.budget > 0 {
            self.budget -= 1;
            self.at_hand = switch.trace(port, packet.head(), packet.length, now).ok();
        } else {
            self.missed.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn looked(&mut self, taken: Taken) {
        // One that waits for bandwidth comes again.
        let trace = self.at_hand.take().filter(|_| taken != Taken::Held);
        match trace.map(|trace| self.sender.try_send(trace)) {
            Some(Ok(())) => self.left -= 1,
            Some(Err(_)) => _ = self.missed.fetch_add(1, Ordering::Relaxed),
            None => {}
        }
    }
}

impl Watches {
    /// Whether nobody looks.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Begins; the number ends it.
    pub fn add(&mut self, port: PortNumber, watcher: Watcher) -> u64 {
        self.next += 1;
        self.list.push(Watch { id: self.next, port, watcher });
        self.next
    }

    /// Ends one, if it has not ended by itself.
    pub fn remove(&mut self, id: u64) {
        self.list.retain(|watch| watch.id != id);
    }

    /// Ends all of a port.
    pub fn forget_port(&mut self, port: PortNumber) {
        self.list.retain(|watch| watch.port != port);
    }

    /// A frame came from a port, and is about to be given to the switch.
    #[cold]
    pub(super) fn look(&mut self, switch: &Switch, port: PortNumber, packet: &Packet, now: u64) {
        for watch in self.list.iter_mut().filter(|watch| watch.port == port) {
            if let Watcher::Tracer(tracer) = &mut watch.watcher {
                tracer.look(switch, port, packet, now);
            }
        }
    }

    /// It was.
    ///
    /// # Safety
    /// The packet's bytes are still there.
    #[cold]
    pub(super) unsafe fn looked(&mut self, port: PortNumber, packet: &Packet, taken: Taken) {
        for watch in self.list.iter_mut().filter(|watch| watch.port == port) {
            match &mut watch.watcher {
                Watcher::Tracer(tracer) => tracer.looked(taken),
                Watcher::Capture(capture) if taken != Taken::Held => {
                    let (mut tag, mut pieces) = ([0; 4], Vec::new());
                    let length = packet.pieces(TagEdit::Keep, &mut tag, &mut pieces);
                    // SAFETY: by what the caller promises.
                    unsafe { capture.take(Direction::Outbound, &pieces, length) };
                }
                Watcher::Capture(_) => {}
            }
        }
        self.list.retain(|watch| !watch.watcher.is_done());
    }

    /// A frame was delivered to a port.
    ///
    /// # Safety
    /// The bytes of `pieces` are still there.
    #[cold]
    pub(super) unsafe fn delivered(&mut self, port: PortNumber, pieces: &[Segment], length: usize) {
        for watch in self.list.iter_mut().filter(|watch| watch.port == port) {
            if let Watcher::Capture(capture) = &mut watch.watcher {
                // SAFETY: by what the caller promises.
                unsafe { capture.take(Direction::Inbound, pieces, length) };
            }
        }
        self.list.retain(|watch| !watch.watcher.is_done());
    }
}
