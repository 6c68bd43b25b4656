//! Pages of a table in memory: loaded when first looked at, never dropped, read without a lock.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Acquire, Ordering::Release};

use super::layout::PAGE;

/// Words in a page.
pub(crate) const WORDS: u64 = PAGE as u64 / 8;
const GROUP: u64 = 256;

/// One page: 512 BAT entries, or the bits of 32768 sectors. Changed only under the image's lock.
pub(crate) struct Page([AtomicU64; WORDS as usize]);

impl Page {
    pub(crate) fn zeros() -> Box<Self> {
        Box::new(Self([const { AtomicU64::new(0) }; WORDS as usize]))
    }

    pub(crate) fn decode(bytes: &[u8]) -> Box<Self> {
        let page = Self::zeros();
        for (word, bytes) in page.0.iter().zip(bytes.as_chunks::<8>().0) {
            word.store(u64::from_le_bytes(*bytes), Release);
        }
        page
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        self.0.iter().flat_map(|word| word.load(Acquire).to_le_bytes()).collect()
    }

    pub(crate) fn get(&self, word: u64) -> u64 {
        self.0[word as usize].load(Acquire)
    }

    pub(crate) fn set(&self, word: u64, value: u64) {
        self.0[word as usize].store(value, Release);
    }
}

type Group = Box<[OnceLock<Box<Page>>]>;

/// Pages by number, up to a number that is fixed at the start: slots for pages that were never looked at cost next to nothing.
pub(crate) struct Table {
    groups: Box<[OnceLock<Group>]>,
}

impl Table {
    pub(crate) fn new(pages: u64) -> Self {
        Self { groups: (0..pages.div_ceil(GROUP)).map(|_| OnceLock::new()).collect() }
    }

    pub(crate) fn get(&self, page: u64) -> Option<&Page> {
        self.groups.get((page / GROUP) as usize)?.get()?[(page % GROUP) as usize].get().map(Box::as_ref)
    }

    /// Puts a page in, unless one is there; answers the one that is there then.
    pub(crate) fn install(&self, page: u64, content: Box<Page>) -> &Page {
        let group = self.groups[(page / GROUP) as usize].get_or_init(|| (0..GROUP).map(|_| OnceLock::new()).collect());
        group[(page % GROUP) as usize].get_or_init(|| content)
    }

    /// The pages in memory from `first` on.
    pub(crate) fn loaded_from(&self, first: u64) -> impl Iterator<Item = (u64, &Page)> {
        let groups = self.groups.iter().enumerate().skip((first / GROUP) as usize);
        groups
            .filter_map(|(group, pages)| Some((group as u64 * GROUP, pages.get()?)))
            .flat_map(|(start, pages)| pages.iter().enumerate().map(move |(index, page)| (start + index as u64, page)))
            .filter_map(move |(index, page)| Some((index, page.get().filter(|_| index >= first)?.as_ref())))
    }
}
