//! Which pages are in the balloon.

use std::collections::BTreeMap;

/// The balloon's unit, whatever the guest's and the host's page sizes are (§5.5.6).
pub(super) const BALLOON_PAGE: u64 = 4096;

const PAGES_PER_CHUNK: u64 = 512;

/// A set of page numbers, in chunks of 2 MiB. Its size follows what is in the balloon: 2 MiB of guest memory cost about
/// a hundred bytes.
#[derive(Default)]
pub(super) struct Pages {
    chunks: BTreeMap<u64, [u64; 8]>,
}

impl Pages {
    /// Adds a page; returns whether it is new.
    pub fn insert(&mut self, page: u64) -> bool {
        let (word, bit) = position(page);
        let chunk = self.chunks.entry(page / PAGES_PER_CHUNK).or_default();
        let new = chunk[word] & bit == 0;
        chunk[word] |= bit;
        new
    }

    /// Takes a page out; returns whether it was in.
    pub fn remove(&mut self, page: u64) -> bool {
        let (word, bit) = position(page);
        let Some(chunk) = self.chunks.get_mut(&(page / PAGES_PER_CHUNK)) else { return false };
        let found = chunk[word] & bit != 0;
        chunk[word] &= !bit;
        if *chunk == [0; 8] {
            self.chunks.remove(&(page / PAGES_PER_CHUNK));
        }
        found
    }

    /// Whether all of the host page of `page_size` bytes around `page` is in the balloon.
    pub fn contains_host_page(&self, page: u64, page_size: u64) -> bool {
        let pages = page_size / BALLOON_PAGE;
        let first = page / pages * pages;
        if pages < PAGES_PER_CHUNK {
            return (first..first + pages).all(|page| self.contains(page));
        }
        // The chunk of the page first: mostly it is the one that is not full.
        let full = |chunk: u64| self.chunks.get(&chunk) == Some(&[u64::MAX; 8]);
        full(page / PAGES_PER_CHUNK) && (first / PAGES_PER_CHUNK..(first + pages) / PAGES_PER_CHUNK).all(full)
    }

    fn contains(&self, page: u64) -> bool {
        let (word, bit) = position(page);
        self.chunks.get(&(page / PAGES_PER_CHUNK)).is_some_and(|chunk| chunk[word] & bit != 0)
    }

    /// Takes all pages out.
    pub fn clear(&mut self) {
        self.chunks.clear();
    }
}

fn position(page: u64) -> (usize, u64) {
    ((page % PAGES_PER_CHUNK / 64) as usize, 1 << (page % 64))
}
