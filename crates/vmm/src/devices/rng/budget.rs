//! How many random bytes a guest may take in how much time.

use std::time::Instant;

/// Enough for any key, and a guest that reads in a loop keeps at most a few percent of a host CPU busy.
pub(super) const BYTES_PER_SECOND: u64 = 16 << 20;

/// What a guest may take at once after a pause.
pub(super) const BURST_BYTES: u64 = 1 << 20;

/// A bucket that fills with time.
pub(super) struct Budget {
    bytes: u64,
    filled: Instant,
}

impl Budget {
    /// A full bucket.
    pub fn new(now: Instant) -> Budget {
        Budget { bytes: BURST_BYTES, filled: now }
    }

    /// Adds what has come in since the last call.
    pub fn fill(&mut self, now: Instant) {
        let micros = now.saturating_duration_since(self.filled).as_micros().min(1_000_000) as u64;
        let gained = micros * BYTES_PER_SECOND / 1_000_000;
        // Otherwise time too short for a byte would be lost at each call.
        if gained > 0 {
            self.bytes = (self.bytes + gained).min(BURST_BYTES);
            self.filled = now;
        }
    }

    /// What may be taken now.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes bytes, at most to the bottom.
    pub fn take(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}
