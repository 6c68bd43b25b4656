//! What a mirror's thread does.

use std::ops::Range;
use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use libc::iovec;

use super::{HandOverError, MirrorEnd, MirrorError, Shared, Stage, State, failed};
use crate::buffer::AlignedBuffer;
use crate::dirty::{Granularity, Tracker};
use crate::engine::{Durability, Engine, Zeroing};
use crate::error::IoError;
use crate::limits::Admit;
use crate::zeros::is_zero;

/// What is read and written at once: so many pieces of this size. Runs of marked regions are cut into such pieces.
const PIECES: usize = 8;
const PIECE_BYTES: u64 = 512 << 10;
/// How often marks are looked for while nobody asks for a hand-over.
const INTERVAL: Duration = Duration::from_millis(200);
/// Copying from longer ago counts less and less for what can be expected.
const LATELY_BYTES: u64 = 64 << 20;
/// How many rounds a hand-over tries before it says that there is no end to them.
const MAX_ROUNDS: u32 = 30;
/// The name of the map; the tracker is the mirror's own.
const MAP: &str = "mirror";
const OWN: &str = "nobody else knows the tracker, so its map is there";

/// Does everything, from the first copy to the end. `ready` hears whether it could begin.
pub(super) fn run(shared: &Shared, ready: impl FnOnce(Result<(), MirrorError>) -> bool) {
    let mut copier = match Copier::new(shared) {
        Ok(copier) => copier,
        Err(error) => {
            ready(Err(error));
            return;
        }
    };
    if ready(Ok(())) {
        let end = copier.work().err();
        shared.end(end.unwrap_or(MirrorEnd::Aborted));
    }
    let tracker = copier.tracker.clone();
    drop(copier);
    // It has no file that could fail to be removed.
    let _ = shared.source.untrack(&tracker);
}

struct Copier<'a> {
    shared: &'a Shared,
    tracker: Tracker,
    source: Engine,
    target: Engine,
    buffers: Vec<AlignedBuffer>,
    speed: Speed,
}

/// How much was copied lately, and how long that took without waiting for the rate.
#[derive(Default)]
struct Speed {
    bytes: u64,
    time: Duration,
}

impl Speed {
    fn add(&mut self, bytes: u64, time: Duration) {
        if self.bytes > LATELY_BYTES {
            (self.bytes, self.time) = (self.bytes / 2, self.time / 2);
        }
        (self.bytes, self.time) = (self.bytes + bytes, self.time + time);
    }

    fn bytes_per_second(&self) -> u64 {
        (u128::from(self.bytes) * 1_000_000 / self.time.as_micros().max(1)) as u64
    }
}

impl<'a> Copier<'a> {
    fn new(shared: &'a Shared) -> Result<Copier<'a>, MirrorError> {
        let source = Engine::new(&shared.source, PIECES as u16)?;
        let target = Engine::new(&shared.target, PIECES as u16)?;
        let tracker = Tracker::in_memory(shared.source.capacity());
        tracker.add(MAP, Granularity::DEFAULT).expect(OWN);
        shared.source.track(&tracker).map_err(MirrorError::Thread)?;
        let buffers = (0..PIECES).map(|_| AlignedBuffer::new(PIECE_BYTES as usize)).collect();
        Ok(Copier { shared, tracker, source, target, buffers, speed: Speed::default() })
    }

    /// Only returns at the end of the mirror.
    fn work(&mut self) -> Result<(), MirrorEnd> {
        let everything = 0..self.shared.source.capacity();
        self.copy(std::iter::once(everything), None)?;
        loop {
            let wanted = {
                let mut state = self.shared.lock();
                if matches!(state.stage, Stage::Copying) {
                    state.stage = Stage::Following;
                }
                state.remaining_bytes = self.remaining();
                self.next(state)?
            };
            match wanted {
                None => self.round(None).map(drop)?,
                Some((number, longest_pause)) => {
                    let refused = self.hand_over(number, longest_pause)?.err();
                    let mut state = self.shared.lock();
                    state.wanted = None;
                    if let Some(error) = refused {
                        state.go_on(Stage::Following)?;
                        state.refused = Some((number, error));
                    }
                    drop(state);
                    self.shared.changed.notify_all();
                }
            }
        }
    }

    /// Waits for something to do: a hand-over that is wanted, or the time of the next round. Watches over the limit of a pause.
    fn next(&self, mut state: MutexGuard<'_, State>) -> Result<Option<(u64, Duration)>, MirrorEnd> {
        let mut round_at = Instant::now() + INTERVAL;
        loop {
            let now = Instant::now();
            let wake_at = match &state.stage {
                Stage::Ended(end) => return Err(end.clone()),
                Stage::Ready { until, .. } if *until <= now => {
                    let held = std::mem::replace(&mut state.stage, Stage::Following);
                    round_at = now;
                    drop(held);
                    self.shared.changed.notify_all();
                    continue;
                }
                Stage::Ready { until, .. } => *until,
                _ if state.wanted.is_some() => return Ok(state.wanted),
                _ if round_at <= now => return Ok(None),
                _ => round_at,
            };
            let timeout = wake_at.saturating_duration_since(now);
            state = self.shared.changed.wait_timeout(state, timeout).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn remaining(&self) -> u64 {
        self.tracker.count(MAP).expect(OWN).saturating_mul(Granularity::DEFAULT.bytes())
    }

    /// Copies what was marked so far. False if `deadline` came first.
    fn round(&mut self, deadline: Option<Instant>) -> Result<bool, MirrorEnd> {
        let everything = 0..self.shared.source.capacity();
        let taken = self.tracker.take(MAP, everything).expect(OWN);
        let is_done = self.copy(taken.iter(), deadline)?;
        if is_done {
            taken.confirm();
        }
        Ok(is_done)
    }

    /// Has both sides hold the same while writes are held, if that can be had within the pause.
    fn hand_over(&mut self, number: u64, longest_pause: Duration) -> Result<Result<(), HandOverError>, MirrorEnd> {
        self.shared.lock().go_on(Stage::HandingOver)?;
        for _ in 0..MAX_ROUNDS {
            // Half of it for copying: what is written until the pause begins, the flush and the decision need time, too.
            let copied_in_pause = u128::from(self.speed.bytes_per_second()) * longest_pause.as_millis() / 2000;
            if u128::from(self.remaining()) <= copied_in_pause {
                return self.pause(number, longest_pause);
            }
            self.round(None)?;
        }
        Ok(Err(self.not_converging()))
    }

    fn not_converging(&self) -> HandOverError {
        HandOverError::NotConverging { remaining_bytes: self.remaining(), bytes_per_second: self.speed.bytes_per_second() }
    }

    fn pause(&mut self, number: u64, longest_pause: Duration) -> Result<Result<(), HandOverError>, MirrorEnd> {
        let now = Instant::now();
        let until = now.checked_add(longest_pause).unwrap_or(now + Duration::from_secs(3600));
        let gate = self.shared.source.gate().clone();
        let held = gate.hold();
        if !gate.wait_for_writes(Some(until)) {
            return Ok(Err(HandOverError::TooLate));
        }
        if !self.round(Some(until))? {
            return Ok(Err(self.not_converging()));
        }
        self.target.flush(0);
        self.drain(Side::Target, &[])?;
        if until <= Instant::now() {
            return Ok(Err(HandOverError::TooLate));
        }
        let mut state = self.shared.lock();
        state.remaining_bytes = 0;
        state.go_on(Stage::Ready { number, _held: held, until })?;
        Ok(Ok(()))
    }

    /// Copies these parts. False if `deadline` came first. Without one, the rate counts.
    fn copy(&mut self, ranges: impl Iterator<Item = Range<u64>>, deadline: Option<Instant>) -> Result<bool, MirrorEnd> {
        let cut = |range: Range<u64>| {
            let end = range.end;
            range.step_by(PIECE_BYTES as usize).map(move |start| start..(start + PIECE_BYTES).min(end))
        };
        let mut pieces = ranges.flat_map(cut);
        loop {
            let batch: Vec<Range<u64>> = pieces.by_ref().take(PIECES).collect();
            let bytes = batch.iter().map(|piece| piece.end - piece.start).sum();
            match deadline {
                _ if bytes == 0 => return Ok(true),
                Some(deadline) if deadline <= Instant::now() => return Ok(false),
                Some(_) => {}
                None => self.wait_for_rate(bytes)?,
            }
            let begin = Instant::now();
            self.copy_batch(&batch)?;
            self.speed.add(bytes, begin.elapsed());
            let mut state = self.shared.lock();
            state.copied_bytes += bytes;
            state.remaining_bytes = state.remaining_bytes.saturating_sub(bytes);
        }
    }

    /// Waits until so much may be copied, or for the end.
    fn wait_for_rate(&self, bytes: u64) -> Result<(), MirrorEnd> {
        let mut admit = self.shared.rate.admit(Instant::now(), bytes);
        loop {
            let state = self.shared.lock();
            if let Stage::Ended(end) = &state.stage {
                return Err(end.clone());
            }
            let Admit::Later(ticket) = admit else { return Ok(()) };
            admit = self.shared.rate.again(Instant::now(), ticket);
            if let Admit::Later(ticket) = &admit {
                let timeout = ticket.at().saturating_duration_since(Instant::now());
                drop(self.shared.changed.wait_timeout(state, timeout).unwrap_or_else(PoisonError::into_inner));
            }
        }
    }

    fn copy_batch(&mut self, batch: &[Range<u64>]) -> Result<(), MirrorEnd> {
        for (tag, piece) in (0..).zip(batch) {
            let segment = self.segment(tag, piece);
            // SAFETY: the buffer outlives the request, whose end is waited for; nobody else uses it.
            let result = unsafe { self.source.read(tag, piece.start, &[segment]) };
            result.map_err(|error| failed(true, &self.shared.source, piece.start, error))?;
        }
        self.drain(Side::Source, batch)?;
        for (tag, piece) in (0..).zip(batch) {
            let segment = self.segment(tag, piece);
            // SAFETY: the buffer has that many bytes, and nothing writes to it now.
            let content = unsafe { std::slice::from_raw_parts(segment.iov_base.cast::<u8>(), segment.iov_len) };
            let length = piece.end - piece.start;
            let result = if is_zero(content) {
                self.target.write_zeroes(tag, piece.start, length, Zeroing::Unmap, Durability::Volatile)
            } else {
                // SAFETY: as above.
                unsafe { self.target.write(tag, piece.start, &[segment], Durability::Volatile) }
            };
            result.map_err(|error| failed(false, &self.shared.target, piece.start, error))?;
        }
        self.drain(Side::Target, batch)
    }

    fn segment(&self, tag: u16, piece: &Range<u64>) -> iovec {
        let buffer = &self.buffers[usize::from(tag)];
        iovec { iov_base: buffer.as_ptr().cast(), iov_len: (piece.end - piece.start) as usize }
    }

    /// Waits for everything under way on one side; the first error is the mirror's.
    fn drain(&mut self, side: Side, batch: &[Range<u64>]) -> Result<(), MirrorEnd> {
        let (engine, disk) = match side {
            Side::Source => (&mut self.source, &self.shared.source),
            Side::Target => (&mut self.target, &self.shared.target),
        };
        let mut error: Option<(u64, IoError)> = None;
        engine.drain(|tag, result| {
            if let Err(cause) = result {
                error.get_or_insert((batch.get(usize::from(tag)).map_or(0, |piece| piece.start), cause));
            }
        });
        error.map_or(Ok(()), |(offset, error)| Err(failed(matches!(side, Side::Source), disk, offset, error)))
    }
}

#[derive(Clone, Copy)]
enum Side {
    Source,
    Target,
}
