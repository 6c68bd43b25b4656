//! Tells when all tickets that may know a place in the file have come back.
//!
//! A ticket counts in one of two counters, the one of its epoch. Time moves to the next epoch only when the other counter is zero. A
//! place that was taken out of the table in generation `g` is known to no ticket from generation `g + 2` on: both counters were zero once
//! after it was taken out, and who comes later looks it up in vain.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

#[derive(Default)]
pub(crate) struct Epochs {
    generation: AtomicU64,
    in_flight: [AtomicU64; 2],
}

impl Epochs {
    /// Counts a new ticket. The look-up comes after this.
    pub fn enter(&self) -> u8 {
        let epoch = (self.generation.load(SeqCst) % 2) as u8;
        self.in_flight[usize::from(epoch)].fetch_add(1, SeqCst);
        epoch
    }

    /// A ticket is back.
    pub fn leave(&self, epoch: u8) {
        self.in_flight[usize::from(epoch % 2)].fetch_sub(1, SeqCst);
    }

    pub fn generation(&self) -> u64 {
        self.generation.load(SeqCst)
    }

    /// Moves on as far as it can. One caller at a time.
    pub fn advance(&self) -> u64 {
        for _ in 0..2 {
            let now = self.generation.load(SeqCst);
            if self.in_flight[((now + 1) % 2) as usize].load(SeqCst) != 0 {
                break;
            }
            self.generation.store(now + 1, SeqCst);
        }
        self.generation()
    }

    /// How many tickets are out.
    pub fn in_flight(&self) -> u64 {
        self.in_flight.iter().map(|count| count.load(SeqCst)).sum()
    }
}
