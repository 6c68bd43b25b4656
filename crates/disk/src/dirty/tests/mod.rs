//! Maps against a simple model, and their file on storage that fails.

mod crash;
mod faulty;
mod file;
mod map;
mod threads;

use super::*;
use faulty::{Faults, Faulty};

const MIB: u64 = 1 << 20;

fn identity(size: u64) -> Identity {
    Identity { disk: *b"the-disk-itself!", data_write: *b"written-by-nobod", size }
}

fn granularity(bytes: u64) -> Granularity {
    Granularity::new(bytes).unwrap()
}

/// Numbers that look random and repeat with their seed.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % end
    }
}
