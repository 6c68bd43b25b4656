//! How a request gets from its caller to its start: past the disk's gate, and through what is attached to the disk.
//!
//! ```text
//!   enter ─▶ nothing attached, nothing held ──────────────────────────────────────────────▶ begin
//!      └───▶ its turn by the limits? ─▶ held, being copied? ─▶ marks in maps ─▶ noted? ────▶ begin
//!                 │                              │                              │
//!                 └────────────────────────── parked ◀──────────────────────────┘
//!                        the seat's eventfd, or a timer in the ring, has all that is parked looked at again
//! ```
//! Other requests of the engine, and completions, go on meanwhile.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::*;
use crate::dirty::Marker;
use crate::gate::{Gate, Seat};
use crate::limits::{Admit, Limiter, Ticket};
use crate::ranges::Ranges;
use crate::tracking::Tracked;

/// One engine's side of the gate.
pub(super) struct Entrance {
    gate: Arc<Gate>,
    pub seat: Arc<Seat>,
    /// The gate's word, as it was seen last.
    word: u64,
    /// The same while requests pass without a further look; otherwise one that the gate never has.
    open_word: u64,
    is_held: bool,
    has_moved: bool,
    limiter: Option<Arc<Limiter>>,
    /// With copy-on-read: what changes and what is copied.
    ranges: Option<Arc<Ranges>>,
    markers: Vec<(Arc<Tracked>, Marker)>,
    parked: VecDeque<(u16, Wait)>,
    /// Timers that the ring has, by number: when they fire, and that as a time from when they were set.
    timers: Vec<Option<(Instant, Box<types::Timespec>)>>,
}

/// A timer that fires this much before another one makes that one unnecessary: timers are no more exact than that.
const TIMER_SLACK: Duration = Duration::from_millis(1);
/// A word that is never reached by counting.
const NEVER: u64 = u64::MAX;

/// What a parked request waits for.
enum Wait {
    /// Its turn, by this limiter, which may be the disk's no longer.
    Turn(Arc<Limiter>, Ticket),
    /// That writes are no longer held.
    Open,
    /// That a copy has ended which has a part of it.
    Copied,
    /// That it is noted in this tracker's journal, as asked for under this number.
    Noted(Arc<Tracked>, u64),
}

impl Entrance {
    pub fn new(disk: &Disk) -> Result<Entrance, EngineError> {
        let gate = disk.gate().clone();
        let seat = Seat::new().map_err(EngineError::Io)?;
        gate.join(seat.clone());
        let mut entrance = Entrance {
            gate,
            seat,
            word: NEVER,
            open_word: NEVER,
            is_held: false,
            has_moved: false,
            limiter: None,
            ranges: disk.image().and_then(|image| image.ranges.clone()),
            markers: Vec::new(),
            parked: VecDeque::new(),
            timers: Vec::new(),
        };
        entrance.look();
        Ok(entrance)
    }

    /// Learns what has changed at the gate, if anything has.
    fn look(&mut self) {
        if self.gate.word() == self.word {
            return;
        }
        let seen = self.gate.look();
        self.open_word = if seen.is_open() && self.ranges.is_none() { seen.word } else { NEVER };
        (self.word, self.is_held, self.has_moved) = (seen.word, seen.is_held, seen.attached.has_moved);
        self.limiter = seen.attached.limiter;
        let is_same = |(mine, theirs): (&(Arc<Tracked>, Marker), &Arc<Tracked>)| Arc::ptr_eq(&mine.0, theirs);
        let tracked = seen.attached.tracked;
        if self.markers.len() != tracked.len() || !self.markers.iter().zip(&tracked).all(is_same) {
            // Only while no write is under way, so each write has the same ones at its beginning and its end.
            self.markers = tracked.into_iter().map(|it| (it.clone(), it.tracker.marker())).collect();
        }
    }

    /// Whether a mirror has taken the disk's place, as far as is known.
    pub fn has_moved(&self) -> bool {
        self.has_moved
    }

    /// What a request or a copy changes may be copied, or changed, by others.
    fn end_range(&self, slot: &mut Slot) {
        if let Some(number) = slot.range.take() {
            self.range_ends(number);
        }
    }

    pub fn range_ends(&self, number: u64) {
        if self.ranges.as_ref().is_some_and(|ranges| ranges.end(number)) {
            self.gate.wake();
        }
    }

    /// A write ends, well or not, or does not begin after all.
    fn write_ends(&mut self, offset: u64, length: u64) {
        self.markers.iter_mut().for_each(|(_, marker)| marker.write_ended(offset, length));
        self.seat.writes_end(&self.gate, 1);
    }

    /// Whether it is a request's turn; otherwise what it waits for. One that passed waits for something else, or for nothing yet.
    fn take_turn(&mut self, bytes: u64, wait: Option<Wait>) -> Option<Wait> {
        let (limiter, admit) = match (wait, &self.limiter) {
            (Some(Wait::Turn(limiter, ticket)), _) => {
                let admit = limiter.again(Instant::now(), ticket);
                (limiter, admit)
            }
            (None, Some(limiter)) => (limiter.clone(), limiter.admit(Instant::now(), bytes)),
            (wait, _) => return wait,
        };
        match admit {
            Admit::Now => None,
            Admit::Later(ticket) => Some(Wait::Turn(limiter, ticket)),
        }
    }

    /// Whether a write is noted wherever it has to be; otherwise what it waits for.
    fn note(&mut self, offset: u64, length: u64, wait: Option<Wait>) -> Result<Option<Wait>, IoError> {
        for (tracked, marker) in &mut self.markers {
            if !marker.wants_note(offset, length) {
                continue;
            }
            let Some(noter) = &tracked.noter else { continue };
            return match wait {
                Some(Wait::Noted(same, number)) if Arc::ptr_eq(&same, tracked) => match noter.outcome(number) {
                    Some(Err(error)) => Err(error),
                    // A checkpoint has emptied the journal since.
                    Some(Ok(())) => Ok(Some(Wait::Noted(same, noter.ask()))),
                    None => Ok(Some(Wait::Noted(same, number))),
                },
                _ => Ok(Some(Wait::Noted(tracked.clone(), noter.ask()))),
            };
        }
        Ok(None)
    }
}

impl Drop for Entrance {
    fn drop(&mut self) {
        self.gate.leave(&self.seat);
    }
}

impl Engine {
    /// Has a request begin that its slot was prepared for, now or later. One that is refused is not under way.
    pub(super) fn enter(&mut self, tag: u16) -> Result<(), IoError> {
        let slot = &mut self.slots[usize::from(tag)];
        (slot.disk_offset, slot.length) = (slot.offset, slot.left);
        if slot.phase.is_change() {
            slot.is_counted = true;
            self.entrance.seat.write_begins();
        }
        let is_open = self.entrance.gate.word() == self.entrance.open_word;
        let result = if is_open { self.begin(tag) } else { self.pass_or_park(tag) };
        if result.is_err() {
            self.end(tag, result);
            self.in_flight -= 1;
        }
        result
    }

    #[inline(never)]
    fn pass_or_park(&mut self, tag: u16) -> Result<(), IoError> {
        let Some(wait) = self.pass(tag, None)? else { return Ok(()) };
        // What it waits for may have come about before anybody knew that this engine waits.
        self.entrance.seat.waits();
        let Some(wait) = self.pass(tag, Some(wait))? else { return Ok(()) };
        self.entrance.parked.push_back((tag, wait));
        self.set_timer();
        Ok(())
    }

    /// Begins a request, or says what it has to wait for.
    fn pass(&mut self, tag: u16, wait: Option<Wait>) -> Result<Option<Wait>, IoError> {
        let slot = &mut self.slots[usize::from(tag)];
        let entrance = &mut self.entrance;
        entrance.look();
        let bytes = if matches!(slot.phase, Phase::Read | Phase::Write) { slot.length } else { 0 };
        let wait = entrance.take_turn(bytes, wait);
        if matches!(wait, Some(Wait::Turn(..))) {
            if std::mem::take(&mut slot.is_counted) {
                entrance.seat.writes_end(&entrance.gate, 1);
            }
            return Ok(wait);
        }
        if !slot.phase.is_change() {
            self.begin(tag)?;
            return Ok(None);
        }
        if !slot.is_counted {
            slot.is_counted = true;
            entrance.seat.write_begins();
        }
        entrance.look();
        if entrance.has_moved {
            return Err(IoError::Moved);
        }
        // One that is being noted passed before: whoever holds writes waits for its end.
        if entrance.is_held && !matches!(wait, Some(Wait::Noted(..))) {
            slot.is_counted = false;
            entrance.seat.writes_end(&entrance.gate, 1);
            return Ok(Some(Wait::Open));
        }
        if let (Some(ranges), None) = (&entrance.ranges, slot.range) {
            slot.range = ranges.begin_change(slot.disk_offset..slot.disk_offset + slot.length);
            if slot.range.is_none() {
                slot.is_counted = false;
                entrance.seat.writes_end(&entrance.gate, 1);
                return Ok(Some(Wait::Copied));
            }
        }
        let wait = entrance.note(slot.disk_offset, slot.length, wait)?;
        if wait.is_none() {
            self.begin(tag)?;
        }
        Ok(wait)
    }

    /// There may be news for parked requests.
    pub(super) fn look_at_parked(&mut self) {
        if self.entrance.parked.is_empty() {
            return;
        }
        self.entrance.seat.waits();
        for _ in 0..self.entrance.parked.len() {
            let Some((tag, wait)) = self.entrance.parked.pop_front() else { return };
            match self.pass(tag, Some(wait)) {
                Ok(None) => {}
                Ok(Some(wait)) => self.entrance.parked.push_back((tag, wait)),
                Err(error) => {
                    let event = self.end(tag, Err(error));
                    self.ended.push_back(event);
                }
            }
        }
        self.set_timer();
    }

    /// Has the ring wake this engine when the next parked request's turn may have come.
    fn set_timer(&mut self) {
        let Entrance { parked, timers, .. } = &mut self.entrance;
        let turns = parked.iter().filter_map(|(_, wait)| if let Wait::Turn(_, ticket) = wait { Some(ticket.at()) } else { None });
        let Some(at) = turns.min() else { return };
        if timers.iter().flatten().any(|(other, _)| *other <= at + TIMER_SLACK) {
            return;
        }
        let left = at.saturating_duration_since(Instant::now());
        let time = Box::new(types::Timespec::from(left));
        let entry = opcode::Timeout::new(&raw const *time).build();
        let number = timers.iter().position(Option::is_none).unwrap_or(timers.len());
        timers.resize_with(timers.len().max(number + 1), || None);
        timers[number] = Some((at, time));
        // SAFETY: the entry points to the time, which stays where it is until the timer has fired, or the ring is gone.
        unsafe { self.ring.push(&entry.user_data(TIMER | number as u64)) };
    }

    /// A timer has fired.
    pub(super) fn timer_fired(&mut self, number: usize) {
        if let Some(timer) = self.entrance.timers.get_mut(number) {
            *timer = None;
        }
        self.look_at_parked();
    }

    fn begin(&mut self, tag: u16) -> Result<(), IoError> {
        let slot = &mut self.slots[usize::from(tag)];
        if self.image.is_some() {
            if slot.phase != Phase::Sync {
                return self.start_image(tag);
            }
            self.flush_image(tag);
            return Ok(());
        }
        if matches!(slot.phase, Phase::Read | Phase::Write) {
            slot.choose_route(self.files[0]);
        }
        self.issue(u32::from(tag));
        Ok(())
    }

    /// Makes a request's slot free. It stays in flight until the event was handed out.
    pub(super) fn end(&mut self, tag: u16, result: Result<(), IoError>) -> Event {
        let slot = &mut self.slots[usize::from(tag)];
        if std::mem::take(&mut slot.is_counted) {
            self.entrance.write_ends(slot.disk_offset, slot.length);
        }
        self.entrance.end_range(slot);
        slot.clear();
        Event::Done { tag, result }
    }

    /// Takes all that is parked back, with its places in lines.
    pub(super) fn take_parked(&mut self) -> Vec<u16> {
        let parked = self.entrance.parked.drain(..);
        let take_back = |(tag, wait)| {
            if let Wait::Turn(limiter, ticket) = wait {
                limiter.withdraw(ticket);
            }
            tag
        };
        parked.map(take_back).collect()
    }

    /// Nothing of this engine is under way any more, and nothing begins.
    pub(super) fn close_entrance(&mut self) {
        self.take_parked();
        for slot in &mut self.slots {
            if slot.is_counted {
                self.entrance.write_ends(slot.disk_offset, slot.length);
            }
            self.entrance.end_range(slot);
        }
    }
}
