//! Memory that is rewritten and verified all the time.

use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use super::{Progress, Random};

const PAGE_WORDS: usize = 512;
/// Pages between two pauses.
const BATCH: usize = 64;

fn pattern(page: usize, round: u64) -> Random {
    Random((page as u64) << 32 ^ round)
}

/// Works for ever.
pub fn run(mib: usize, progress: &Progress, pace: Duration) {
    let mut memory = vec![0u64; mib << 17];
    for round in 0u64.. {
        for (n, page) in memory.chunks_exact_mut(PAGE_WORDS).enumerate() {
            let (mut old, mut new) = (pattern(n, round.wrapping_sub(1)), pattern(n, round));
            for (at, word) in page.iter_mut().enumerate() {
                // SAFETY: `word` is a valid reference; volatile, so that the memory itself is read.
                let found = unsafe { std::ptr::from_ref(word).read_volatile() };
                let expected = if round == 0 { 0 } else { old.next() };
                if found != expected {
                    return progress
                        .fail(format!("memory page {n} word {at} in round {round}: {found:#018x} instead of {expected:#018x}"));
                }
                *word = new.next();
            }
            progress.memory.fetch_add(1, Ordering::SeqCst);
            if n % BATCH == 0 {
                thread::sleep(pace);
            }
        }
    }
}
