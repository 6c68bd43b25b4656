//! Which regions of a disk were written: one bit for each, and memory only where there are any.

use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Granularity;

/// Words of a leaf. With 64 KiB regions a leaf stands for 2 GiB, in one page.
pub(super) const LEAF_WORDS: usize = 512;
/// Bits of a leaf.
pub(super) const LEAF_BITS: u64 = LEAF_WORDS as u64 * 64;

type Leaf = [AtomicU64; LEAF_WORDS];

/// A map of the regions of one disk. Any thread may use it; no call waits for another.
///
/// A leaf is made with the first mark in it and kept as long as the map. The table of leaves has 16 bytes for each: 512 KiB for
/// 64 TiB in regions of 64 KiB.
///
/// ```
/// use disk::dirty::{DirtyMap, Granularity};
/// let map = DirtyMap::new(64 << 40, Granularity::DEFAULT);
/// map.mark(1 << 40, 4096);
/// assert_eq!(map.iter().collect::<Vec<_>>(), [1 << 40..(1 << 40) + 65536]);
/// ```
pub struct DirtyMap {
    granularity: Granularity,
    size: u64,
    leaves: Box<[OnceLock<Box<Leaf>>]>,
}

impl DirtyMap {
    /// A clean map of a disk with `size` bytes. The last region may be a part of one.
    pub fn new(size: u64, granularity: Granularity) -> DirtyMap {
        let leaves = size.div_ceil(granularity.bytes()).div_ceil(LEAF_BITS);
        DirtyMap { granularity, size, leaves: (0..leaves).map(|_| OnceLock::new()).collect() }
    }

    /// The size of a region.
    pub fn granularity(&self) -> Granularity {
        self.granularity
    }

    /// The disk's size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Marks all regions that the range touches. What lies past the disk's end is ignored.
    pub fn mark(&self, offset: u64, length: u64) {
        for (index, mask) in self.words(&(offset..offset.saturating_add(length))) {
            // Also if the bits seem to be set: only a write orders the mark before a `take` at the same moment, which then sees
            // the data that was written before.
            self.leaf(index)[index % LEAF_WORDS].fetch_or(mask, Ordering::SeqCst);
        }
    }

    /// Marks the whole disk.
    pub fn mark_all(&self) {
        self.mark(0, self.size);
    }

    /// Whether a region that the range touches is marked.
    pub fn is_dirty(&self, range: &Range<u64>) -> bool {
        self.marked_words(range).any(|(_, word, mask)| word.load(Ordering::SeqCst) & mask != 0)
    }

    /// Moves the marks of all regions that the range touches into a map of their own, and leaves them clean here. Each mark ends up
    /// in exactly one of the two, whatever other threads mark meanwhile. What happens to the taken ones is the caller's business:
    /// [`merge`](DirtyMap::merge) puts them back.
    pub fn take(&self, range: &Range<u64>) -> DirtyMap {
        let taken = DirtyMap::new(self.size, self.granularity);
        for (index, word, mask) in self.marked_words(range) {
            if word.load(Ordering::Relaxed) & mask == 0 {
                continue;
            }
            let bits = word.fetch_and(!mask, Ordering::SeqCst) & mask;
            if bits != 0 {
                taken.leaf(index)[index % LEAF_WORDS].fetch_or(bits, Ordering::Relaxed);
            }
        }
        taken
    }

    /// Marks everything that is marked in the other map, rounded outwards if that has other regions. Its size may differ; what is
    /// past the end here is ignored.
    pub fn merge(&self, other: &DirtyMap) {
        if self.granularity != other.granularity || self.size != other.size {
            other.iter().for_each(|range| self.mark(range.start, range.end - range.start));
            return;
        }
        for (leaf, words) in other.filled_leaves() {
            for (number, bits) in words.into_iter().enumerate().filter(|(_, bits)| *bits != 0) {
                self.leaf(leaf * LEAF_WORDS)[number].fetch_or(bits, Ordering::SeqCst);
            }
        }
    }

    /// How many regions are marked.
    pub fn count(&self) -> u64 {
        let words = self.leaves.iter().filter_map(OnceLock::get).flat_map(|leaf| leaf.iter());
        words.map(|word| u64::from(word.load(Ordering::Relaxed).count_ones())).sum()
    }

    /// How many bytes of the disk lie in marked regions.
    pub fn dirty_bytes(&self) -> u64 {
        let whole = self.count() * self.granularity.bytes();
        let tail = self.size % self.granularity.bytes();
        let last_is_part = tail != 0 && self.is_dirty(&(self.size - tail..self.size));
        if last_is_part { whole - self.granularity.bytes() + tail } else { whole }
    }

    /// The marked parts of the disk in order, neighbours joined, cut at the disk's end. Marks made meanwhile may be missed.
    pub fn iter(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        let mut runs = self.runs().peekable();
        std::iter::from_fn(move || {
            let mut run = runs.next()?;
            while let Some(next) = runs.next_if(|next| next.start == run.end) {
                run.end = next.end;
            }
            let bytes = self.granularity.bytes();
            Some(run.start * bytes..(run.end * bytes).min(self.size))
        })
    }

    /// Memory for bits, in bytes: it grows with what was marked.
    pub fn memory_bytes(&self) -> usize {
        let leaves = self.leaves.iter().filter(|leaf| leaf.get().is_some()).count();
        leaves * size_of::<Leaf>() + size_of_val(&*self.leaves)
    }

    /// The leaves that have marks, with their numbers: what is saved.
    pub(super) fn filled_leaves(&self) -> impl Iterator<Item = (usize, [u64; LEAF_WORDS])> + '_ {
        self.leaves.iter().enumerate().filter_map(|(number, leaf)| {
            let leaf = leaf.get()?;
            let words = std::array::from_fn(|index| leaf[index].load(Ordering::SeqCst));
            (words != [0; LEAF_WORDS]).then_some((number, words))
        })
    }

    /// Adds the bits of a saved leaf. `false` if the disk has no such leaf; bits past its end are dropped.
    pub(super) fn fill_leaf(&self, number: usize, words: &[u64; LEAF_WORDS]) -> bool {
        if number >= self.leaves.len() {
            return false;
        }
        let bytes = self.granularity.bytes();
        let start = number as u64 * LEAF_BITS * bytes;
        for (index, mask) in self.words(&(start..start.saturating_add(LEAF_BITS * bytes))) {
            self.leaf(index)[index % LEAF_WORDS].fetch_or(words[index % LEAF_WORDS] & mask, Ordering::SeqCst);
        }
        true
    }

    /// Runs of marked regions inside one word each.
    fn runs(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        let leaves = self.leaves.iter().enumerate().filter_map(|(number, leaf)| Some((number as u64, leaf.get()?)));
        leaves.flat_map(|(number, leaf)| {
            leaf.iter().enumerate().flat_map(move |(index, word)| {
                let start = number * LEAF_BITS + index as u64 * 64;
                let mut bits = word.load(Ordering::SeqCst);
                std::iter::from_fn(move || {
                    if bits == 0 {
                        return None;
                    }
                    let first = bits.trailing_zeros();
                    let length = (!(bits >> first)).trailing_zeros().min(64 - first);
                    bits &= !(ones(length) << first);
                    let first = start + u64::from(first);
                    Some(first..first + u64::from(length))
                })
            })
        })
    }

    /// The words that hold a range's bits, with the bits in each.
    fn words(&self, range: &Range<u64>) -> impl Iterator<Item = (usize, u64)> + use<> {
        let bytes = self.granularity.bytes();
        let end_byte = range.end.min(self.size);
        let end = end_byte.div_ceil(bytes);
        let mut bit = if range.start < end_byte { range.start / bytes } else { end };
        std::iter::from_fn(move || {
            if bit >= end {
                return None;
            }
            let (index, first) = (bit / 64, (bit % 64) as u32);
            let length = (end - bit).min(64 - u64::from(first)) as u32;
            bit += u64::from(length);
            Some((index as usize, ones(length) << first))
        })
    }

    /// The same for the leaves that exist: a clean part costs no time either.
    fn marked_words(&self, range: &Range<u64>) -> impl Iterator<Item = (usize, &AtomicU64, u64)> {
        let leaf_bytes = LEAF_BITS * self.granularity.bytes();
        let (start, end) = (range.start.min(self.size), range.end.min(self.size));
        let numbers = (start / leaf_bytes) as usize..end.div_ceil(leaf_bytes) as usize;
        numbers.filter_map(|number| Some((number, self.leaves.get(number)?.get()?))).flat_map(move |(number, leaf)| {
            let first = number as u64 * leaf_bytes;
            let part = start.max(first)..end.min(first.saturating_add(leaf_bytes));
            self.words(&part).map(|(index, mask)| (index, &leaf[index % LEAF_WORDS], mask))
        })
    }

    fn leaf(&self, index: usize) -> &Leaf {
        self.leaves[index / LEAF_WORDS].get_or_init(|| Box::new([const { AtomicU64::new(0) }; LEAF_WORDS]))
    }
}

impl std::fmt::Debug for DirtyMap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let bytes = self.granularity.bytes();
        f.debug_struct("DirtyMap").field("size", &self.size).field("granularity", &bytes).field("count", &self.count()).finish()
    }
}

fn ones(count: u32) -> u64 {
    if count >= 64 { u64::MAX } else { (1 << count) - 1 }
}
