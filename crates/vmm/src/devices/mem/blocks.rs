//! Which blocks are plugged.

use std::ops::Range;

/// A state of consecutive blocks (§5.15.6.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum BlocksState {
    Plugged = 0,
    Unplugged = 1,
    Mixed = 2,
}

/// A bit per block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Blocks {
    words: Vec<u64>,
    count: u64,
    plugged: u64,
}

impl Blocks {
    /// Blocks that are all unplugged.
    pub fn new(count: u64) -> Blocks {
        Blocks { words: vec![0; count.div_ceil(64) as usize], count, plugged: 0 }
    }

    /// How many blocks are plugged.
    pub fn plugged(&self) -> u64 {
        self.plugged
    }

    /// The state of a range within the region that is not empty.
    pub fn state(&self, range: Range<u64>) -> BlocksState {
        let first = self.is_plugged(range.start);
        match range.clone().all(|block| self.is_plugged(block) == first) {
            true if first => BlocksState::Plugged,
            true => BlocksState::Unplugged,
            false => BlocksState::Mixed,
        }
    }

    /// Plugs or unplugs a range within the region.
    pub fn set(&mut self, range: Range<u64>, plugged: bool) {
        for block in range {
            if self.is_plugged(block) != plugged {
                self.words[(block / 64) as usize] ^= 1 << (block % 64);
                self.plugged = if plugged { self.plugged + 1 } else { self.plugged - 1 };
            }
        }
    }

    /// The plugged blocks as ranges, in ascending order, neighbours joined.
    pub fn plugged_ranges(&self) -> Vec<Range<u64>> {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for block in (0..self.count).filter(|block| self.is_plugged(*block)) {
            match ranges.last_mut() {
                Some(last) if last.end == block => last.end += 1,
                _ => ranges.push(block..block + 1),
            }
        }
        ranges
    }

    /// One bit per block, as in the saved state.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = self.words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.truncate(self.count.div_ceil(8) as usize);
        bytes
    }

    /// The reverse of `to_bytes`; `None` if the bytes are not those of `count` blocks.
    pub fn from_bytes(count: u64, bytes: &[u8]) -> Option<Blocks> {
        let mut blocks = Blocks::new(count);
        if bytes.len() as u64 != count.div_ceil(8) {
            return None;
        }
        for (word, part) in blocks.words.iter_mut().zip(bytes.chunks(8)) {
            let mut padded = [0; 8];
            padded[..part.len()].copy_from_slice(part);
            *word = u64::from_le_bytes(padded);
        }
        let beyond = !count.is_multiple_of(64) && blocks.words.last().is_some_and(|word| word >> (count % 64) != 0);
        blocks.plugged = blocks.words.iter().map(|word| u64::from(word.count_ones())).sum();
        (!beyond).then_some(blocks)
    }

    fn is_plugged(&self, block: u64) -> bool {
        self.words[(block / 64) as usize] & 1 << (block % 64) != 0
    }
}
