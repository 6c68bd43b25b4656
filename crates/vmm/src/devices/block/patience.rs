//! Whether it is worth to look out for the next request before going to sleep.
//!
//! Waking a sleeping thread takes 5 to 50 us, often longer than the request, and before that the driver's kick is an exit of
//! the vCPU. A guest that waits for each request asks for the next a few microseconds after the answer. So the thread looks out for
//! a moment, as long as that tends to find something; each time that it does not, it goes to sleep at once for twice as many
//! times. How long it slept would be the simpler measure, but includes the waking, so that it says "too long" exactly where
//! looking out would gain the most.

use std::hint::spin_loop;
use std::time::{Duration, Instant};

/// How long to look out: the most that QEMU allows its I/O threads by default (`poll-max-ns`).
const MOMENT: Duration = Duration::from_nanos(32_768);
/// The most times in a row to sleep at once. A guest with rare requests pays half a microsecond of a processor for each.
const MAX_SKIPS: u32 = 64;

pub(super) struct Patience {
    /// How many more times to sleep at once.
    skip: u32,
    /// How many times that was after the last vain attempt.
    skips: u32,
    enabled: bool,
}

impl Patience {
    pub fn new() -> Patience {
        // With one processor, looking out keeps the guest from getting on.
        Patience { skip: 0, skips: 0, enabled: std::thread::available_parallelism().is_ok_and(|count| count.get() > 1) }
    }

    /// Looks out for a moment, if it is worth it. Whether `ready` was seen to be true.
    pub fn look_out(&mut self, mut ready: impl FnMut() -> bool) -> bool {
        if !self.enabled {
            return false;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        let start = Instant::now();
        loop {
            // Reading the clock costs more than reading the ring.
            for _ in 0..16 {
                if ready() {
                    self.skips = 0;
                    return true;
                }
                spin_loop();
            }
            if start.elapsed() >= MOMENT {
                self.skips = (self.skips * 2).clamp(1, MAX_SKIPS);
                self.skip = self.skips;
                return false;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vain_attempts_become_rare_and_one_success_brings_them_back() {
        let mut patience = Patience { skip: 0, skips: 0, enabled: true };
        let mut attempts = 0;
        for _ in 0..1000 {
            let mut looked = false;
            patience.look_out(|| {
                looked = true;
                false
            });
            attempts += u32::from(looked);
        }
        assert!((8..=24).contains(&attempts), "{attempts} vain attempts in 1000");
        while !patience.look_out(|| true) {}
        assert!(patience.look_out(|| true));
    }

    #[test]
    fn a_single_processor_is_left_to_the_guest() {
        let mut patience = Patience { skip: 0, skips: 0, enabled: false };
        assert!(!patience.look_out(|| true));
    }
}
