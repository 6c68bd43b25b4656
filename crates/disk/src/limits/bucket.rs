//! One limit of one disk: a count of the work asked for, and one of the work allowed.

use std::time::{Duration, Instant};

use super::{NANOS, Rate, SLACK, time_to_yield, yielded};

/// Allowed work grows with time and never falls; a request at a place in the line passes once that much is allowed. What is allowed
/// runs ahead of what was asked by at most the capacity.
#[derive(Debug)]
struct Bucket {
    per_second: u64,
    capacity: u128,
    allowed: u128,
}

impl Bucket {
    fn refill(&mut self, time: Duration, asked: u128) {
        self.allowed = (self.allowed + yielded(self.per_second, time)).min(asked + self.capacity);
    }

    fn wait(&self, place: u128) -> Duration {
        time_to_yield(place.saturating_sub(self.allowed), self.per_second)
    }
}

/// A rate with its burst. The sustained bucket holds what a burst may use up; the peak bucket says how fast.
#[derive(Debug)]
pub(super) struct Dimension {
    /// All work ever asked for. It goes on when the limit changes, so that places stay comparable.
    asked: u128,
    sustained: Option<Bucket>,
    peak: Option<Bucket>,
    filled: Instant,
}

impl Dimension {
    pub fn new(rate: Option<Rate>, now: Instant) -> Dimension {
        let mut dimension = Dimension { asked: 0, sustained: None, peak: None, filled: now };
        dimension.set(rate, now);
        dimension
    }

    /// Changes the rate. Who waits keeps the place. A new limit starts with its burst saved, a changed one keeps what it had.
    pub fn set(&mut self, rate: Option<Rate>, now: Instant) {
        self.refill(now);
        let old = (self.sustained.take(), self.peak.take());
        let Some(rate) = rate else { return };
        let burst = rate.burst.filter(|burst| burst.per_second > rate.per_second && !burst.length.is_zero());
        let build = |per_second: u64, saved: u64, old: Option<Bucket>| {
            let capacity = u128::from(saved) * NANOS + yielded(per_second, SLACK);
            let full = self.asked + capacity;
            Bucket { per_second, capacity, allowed: old.map_or(full, |old| old.allowed.min(full)) }
        };
        self.sustained = Some(build(rate.per_second.get(), rate.burst_size(), old.0));
        self.peak = burst.map(|burst| build(burst.per_second.get(), 0, old.1));
    }

    /// Credits the time since the last call. A time before that (threads read their clocks in any order) credits nothing.
    pub fn refill(&mut self, now: Instant) {
        let time = now.saturating_duration_since(self.filled);
        if time.is_zero() {
            return;
        }
        self.filled = now;
        for bucket in [&mut self.sustained, &mut self.peak].into_iter().flatten() {
            bucket.refill(time, self.asked);
        }
    }

    /// Puts work at the end of the line and returns its place.
    pub fn ask(&mut self, work: u64) -> u128 {
        let place = self.asked;
        self.asked += u128::from(work) * NANOS;
        place
    }

    /// Takes back work that will not be done.
    pub fn withdraw(&mut self, work: u64) {
        self.asked = self.asked.saturating_sub(u128::from(work) * NANOS);
    }

    /// How long until work at this place may be done: zero for now.
    pub fn wait(&self, place: u128) -> Duration {
        [&self.sustained, &self.peak].into_iter().flatten().map(|bucket| bucket.wait(place)).max().unwrap_or(Duration::ZERO)
    }
}
