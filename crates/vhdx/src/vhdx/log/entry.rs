//! One entry of the log: made of whole pages, in memory.

use crate::Guid;
use crate::vhdx::layout::{PAGE, checksum, put, put_checksum, u32_at};

/// Descriptors in the first sector, and in each one behind it.
const FIRST: usize = 126;
const NEXT: usize = 128;

/// A page with its place in the file.
pub(crate) struct Page {
    pub(crate) offset: u64,
    pub(crate) data: Vec<u8>,
}

pub(super) fn descriptor_sectors(count: usize) -> usize {
    1 + count.saturating_sub(FIRST).div_ceil(NEXT)
}

/// Where a descriptor stands in the entry.
pub(super) fn descriptor_at(index: usize) -> usize {
    64 + index * 32
}

/// What has to be replayed if an entry is the last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tail {
    /// The entry alone: what the one before it changed is stable in its place.
    Itself,
    /// The one before it as well.
    Previous,
}

/// Sizes of the file that an entry names.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FileSizes {
    /// Stable when the entry is written.
    pub(crate) flushed: u64,
    /// What replaying has to make it.
    pub(crate) last: u64,
}

/// Writes the entries of one use of the log.
#[derive(Debug)]
pub(crate) struct LogWriter {
    guid: Guid,
    offset: u64,
    length: u64,
    /// In the ring: where the next entry goes.
    position: u64,
    /// Where the entry before that is.
    previous: u64,
    sequence: u64,
}

impl LogWriter {
    pub(crate) fn new(guid: Guid, offset: u64, length: u64) -> Self {
        Self { guid, offset, length, position: 0, previous: 0, sequence: 1 }
    }

    /// Pages that one entry can carry in a log of this length.
    pub(crate) fn capacity(length: u64) -> usize {
        let sectors = (length / 3 / PAGE as u64) as usize;
        let mut pages = sectors - 1;
        while descriptor_sectors(pages) + pages > sectors {
            pages -= 1;
        }
        pages
    }

    /// The next entry. It counts only after [`Self::advance`]: until then the same place and number are used again.
    pub(crate) fn encode(&self, pages: &[Page], tail: Tail, sizes: FileSizes) -> Vec<u8> {
        let tail = if tail == Tail::Itself { self.position } else { self.previous };
        let head = descriptor_sectors(pages.len()) * PAGE;
        let mut bytes = vec![0; head + pages.len() * PAGE];
        let length = bytes.len() as u32;
        let sequence = self.sequence.to_le_bytes();
        put(&mut bytes, 0, b"loge");
        put(&mut bytes, 8, &length.to_le_bytes());
        put(&mut bytes, 12, &(tail as u32).to_le_bytes());
        put(&mut bytes, 16, &sequence);
        put(&mut bytes, 24, &(pages.len() as u32).to_le_bytes());
        put(&mut bytes, 32, &self.guid.to_bytes());
        put(&mut bytes, 48, &sizes.flushed.to_le_bytes());
        put(&mut bytes, 56, &sizes.last.to_le_bytes());
        for (index, page) in pages.iter().enumerate() {
            let at = descriptor_at(index);
            put(&mut bytes, at, b"desc");
            put(&mut bytes, at + 4, &page.data[PAGE - 4..]);
            put(&mut bytes, at + 8, &page.data[..8]);
            put(&mut bytes, at + 16, &page.offset.to_le_bytes());
            put(&mut bytes, at + 24, &sequence);
            let at = head + index * PAGE;
            put(&mut bytes, at, b"data");
            put(&mut bytes, at + 4, &sequence[4..]);
            put(&mut bytes, at + 8, &page.data[8..PAGE - 4]);
            put(&mut bytes, at + PAGE - 4, &sequence[..4]);
        }
        put_checksum(&mut bytes);
        debug_assert_eq!(checksum(&bytes), u32_at(&bytes, 4));
        bytes
    }

    /// Where the parts of an entry go: it may run over the end of the ring.
    pub(crate) fn place(&self, mut bytes: Vec<u8>) -> Vec<(u64, Vec<u8>)> {
        let room = (self.length - self.position) as usize;
        let rest = if bytes.len() > room { bytes.split_off(room) } else { Vec::new() };
        let mut parts = vec![(self.offset + self.position, bytes)];
        if !rest.is_empty() {
            parts.push((self.offset, rest));
        }
        parts
    }

    /// The entry of this length is in the log for good.
    pub(crate) fn advance(&mut self, length: u64) {
        self.previous = self.position;
        self.position = (self.position + length) % self.length;
        self.sequence += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_entries_fit_into_the_ring() {
        assert_eq!(LogWriter::capacity(1 << 20), 84);
        for megabytes in [1, 2, 8, 64] {
            let pages = LogWriter::capacity(megabytes << 20);
            assert!((descriptor_sectors(pages) + pages) as u64 * 3 * 4096 <= megabytes << 20);
            assert!((descriptor_sectors(pages + 1) + pages + 1) as u64 * 3 * 4096 > megabytes << 20);
        }
    }
}
