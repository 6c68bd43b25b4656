//! Which places in the file may be given to a block.
//!
//! ```text
//!   taken ──freed──▶ waiting ──a commit wrote the table, all tickets are back──▶ punching ──▶ free ──▶ taken
//! ```

use std::collections::BTreeMap;
use std::mem;
use std::ops::Range;

use super::bytes::round_up;
use super::footer::SECTOR;

/// Blocks begin at sectors that a table entry can name.
const ADDRESSABLE: u64 = u32::MAX as u64 * SECTOR;

/// The shape of a block in the file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// Size of the bitmap that comes before the data.
    pub bitmap: u64,
    /// Size of the data.
    pub block: u64,
    /// What the data is aligned to: 4096 where the file stays addressable with that, otherwise 512.
    pub alignment: u64,
}

impl Shape {
    pub fn slot(&self) -> u64 {
        self.bitmap + self.block
    }

    /// The first place for a block from `start` on.
    fn place(&self, start: u64) -> u64 {
        round_up(start + self.bitmap, self.alignment) - self.bitmap
    }
}

struct Waiting {
    range: Range<u64>,
    generation: u64,
}

/// The space of one file.
pub(crate) struct Space {
    shape: Shape,
    /// The end of all that was taken: where the footer goes.
    end: u64,
    /// Reads as zeros and belongs to nobody, by first offset.
    free: BTreeMap<u64, u64>,
    /// Still in the file's table.
    fresh: Vec<Waiting>,
    /// Out of the table with the commit under way.
    in_commit: Vec<Waiting>,
    /// Out of the file's table for good.
    durable: Vec<Waiting>,
    /// Being made zeros in the commit under way.
    punching: Vec<Range<u64>>,
}

impl Space {
    /// `gaps` may hold anything; they are made zeros before they are used.
    pub fn new(shape: Shape, end: u64, gaps: Vec<Range<u64>>) -> Space {
        let durable = gaps
            .into_iter()
            .filter(|gap| gap.end - gap.start >= shape.slot())
            .map(|range| Waiting { range, generation: 0 })
            .collect();
        Space { shape, end, free: BTreeMap::new(), fresh: Vec::new(), in_commit: Vec::new(), durable, punching: Vec::new() }
    }

    pub fn end(&self) -> u64 {
        self.end
    }

    /// Something else than a block was put at the end, up to here.
    pub fn skip_to(&mut self, end: u64) {
        self.end = self.end.max(end);
    }

    /// A place for one block; `None` if the table could not name it.
    pub fn take(&mut self) -> Option<u64> {
        let slot = self.shape.slot();
        if let Some((start, end)) = self.free.iter().next().map(|(start, end)| (*start, *end)) {
            let mut at = self.shape.place(start);
            if at + slot > end {
                at = start;
            }
            self.free.remove(&start);
            for (from, to) in [(start, at), (at + slot, end)] {
                // What is too small for a block is left alone.
                if to - from >= slot {
                    self.free.insert(from, to);
                }
            }
            return Some(at);
        }
        let at = self.shape.place(self.end);
        if at >= ADDRESSABLE {
            return None;
        }
        self.end = at + slot;
        Some(at)
    }

    /// A place for one block in space before this place.
    pub fn take_before(&mut self, limit: u64) -> Option<u64> {
        if self.free.keys().next().is_some_and(|start| *start < limit) { self.take() } else { None }
    }

    /// Nothing is taken from here on, and the file ends.
    pub fn cut(&mut self, end: u64) {
        self.free.split_off(&end);
        self.end = end;
    }

    /// Gives back what [`Space::take`] gave and nobody has seen; `end` is the end before.
    pub fn untake(&mut self, places: Vec<u64>, end: u64) {
        self.end = end;
        for at in places.into_iter().filter(|at| *at < end) {
            self.free.insert(at, at + self.shape.slot());
        }
    }

    /// A block's place was taken out of the table in memory.
    pub fn release(&mut self, at: u64, generation: u64) {
        self.fresh.push(Waiting { range: at..at + self.shape.slot(), generation });
    }

    /// Whether a commit would bring something back.
    pub fn is_waiting(&self) -> bool {
        !self.fresh.is_empty() || !self.durable.is_empty()
    }

    /// A commit begins that writes the table as it is now. What may be punched once the table is stable is answered.
    pub fn begin_commit(&mut self, generation: u64) -> &[Range<u64>] {
        let known_to_none = |waiting: &Waiting| waiting.generation + 2 <= generation;
        for waiting in mem::take(&mut self.fresh).into_iter().chain(mem::take(&mut self.durable)) {
            if known_to_none(&waiting) {
                self.punching.push(waiting.range);
            } else {
                self.in_commit.push(waiting);
            }
        }
        &self.punching
    }

    /// The commit has ended.
    pub fn end_commit(&mut self, durable: bool, generation: u64) {
        if durable {
            self.durable.append(&mut self.in_commit);
            for range in mem::take(&mut self.punching) {
                self.free.insert(range.start, range.end);
            }
        } else {
            self.fresh.append(&mut self.in_commit);
            let again = mem::take(&mut self.punching).into_iter();
            self.fresh.extend(again.map(|range| Waiting { range, generation: generation.saturating_sub(2) }));
        }
    }
}
