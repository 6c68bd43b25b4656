//! Sector bitmaps: which sectors of a partly present block are in this file.

use super::error::Damage;
use super::image::{Image, PageKey, State};
use super::layout::PAGE;
use super::open::Access;
use super::table::{Page, WORDS};
use crate::MapError;

/// Bits in a page.
pub(super) const PAGE_BITS: u64 = PAGE as u64 * 8;
const CHUNK_PAGES: u64 = 256;

/// Sectors by number on the virtual disk, from the first to before the second. Bit and page numbers of all chunks follow each other,
/// so that a sector's number is its bit's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sectors {
    pub(super) start: u64,
    pub(super) end: u64,
}

impl Sectors {
    pub(super) fn pages(self) -> std::ops::Range<u64> {
        self.start / PAGE_BITS..self.end.div_ceil(PAGE_BITS)
    }

    /// Words with the mask of the bits that are meant.
    fn words(self) -> impl Iterator<Item = (u64, u64)> {
        (self.start / 64..self.end.div_ceil(64)).map(move |word| {
            let from = self.start.saturating_sub(word * 64);
            let to = (self.end - word * 64).min(64);
            (word, (u64::MAX << from) & (u64::MAX >> (64 - to)))
        })
    }
}

impl Image {
    pub(super) fn sectors(&self, offset: u64, length: u64) -> Sectors {
        Sectors { start: offset / self.geometry.sector, end: (offset + length) / self.geometry.sector }
    }

    pub(super) fn block_sectors(&self, block: u64) -> Sectors {
        self.sectors(block * self.geometry.block_size, self.geometry.block_size)
    }

    /// Where a page of bits is in the file.
    pub(super) fn bitmap_page_offset(&self, number: u64) -> Result<u64, MapError> {
        let index = self.geometry.bitmap_index(number / CHUNK_PAGES);
        let mut entry = self.entry_at(index)?;
        if !entry.is_present() && self.access == Access::ReadOnly {
            entry = self.bitmap_entry_again(index)?;
        }
        if !entry.is_present() {
            let offset = self.bat_offset.load(std::sync::atomic::Ordering::Acquire) + index * 8;
            return Err(Damage::new("block allocation table", offset, "a sector bitmap that is needed is missing").into());
        }
        Ok(entry.offset() + number % CHUNK_PAGES * PAGE as u64)
    }

    pub(super) fn bitmap_page(&self, number: u64) -> Result<&Page, MapError> {
        if let Some(page) = self.bitmaps.get(number) {
            return Ok(page);
        }
        let mut bytes = [0; PAGE];
        self.read(self.bitmap_page_offset(number)?, &mut bytes)?;
        Ok(self.bitmaps.install(number, Page::decode(&bytes)))
    }

    fn word(&self, word: u64) -> Result<u64, MapError> {
        Ok(self.bitmap_page(word / WORDS)?.get(word % WORDS))
    }

    /// Whether the first sector is here, and how many from it on are alike.
    pub(super) fn bit_run(&self, sectors: Sectors) -> Result<(bool, u64), MapError> {
        let mut at = sectors.start;
        let is_here = self.word(at / 64)? >> (at % 64) & 1 != 0;
        while at < sectors.end {
            let word = self.word(at / 64)?;
            // A one for each bit that differs from the first.
            let other = (if is_here { !word } else { word }) >> (at % 64);
            let run = u64::from(other.trailing_zeros()).min(64 - at % 64);
            at += run;
            if other != 0 {
                break;
            }
        }
        Ok((is_here, at.min(sectors.end) - sectors.start))
    }

    pub(super) fn are_all_here(&self, sectors: Sectors) -> Result<bool, MapError> {
        for (word, mask) in sectors.words() {
            if self.word(word)? & mask != mask {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Pages in which bits of these sectors are set.
    pub(super) fn pages_with_bits(&self, sectors: Sectors) -> Result<Vec<PageKey>, MapError> {
        let mut keys = Vec::new();
        for (word, mask) in sectors.words() {
            let key = PageKey::Bitmap(word / WORDS);
            if self.word(word)? & mask != 0 && keys.last() != Some(&key) {
                keys.push(key);
            }
        }
        Ok(keys)
    }

    /// Sets or clears bits, and marks their pages; those without a change stay as they are.
    pub(super) fn write_bits(&self, state: &mut State, sectors: Sectors, are_here: bool) -> Result<(), MapError> {
        for (word, mask) in sectors.words() {
            let page = self.bitmap_page(word / WORDS)?;
            let old = page.get(word % WORDS);
            let new = if are_here { old | mask } else { old & !mask };
            if new != old {
                page.set(word % WORDS, new);
                state.mark_dirty(PageKey::Bitmap(word / WORDS));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_cover_exactly_the_sectors() {
        for (start, end) in [(0, 1), (0, 64), (63, 65), (5, 9), (64, 200), (127, 128)] {
            let mut found = Vec::new();
            for (word, mask) in (Sectors { start, end }).words() {
                found.extend((0..64).filter(|bit| mask >> bit & 1 != 0).map(|bit| word * 64 + bit));
            }
            assert!(found.into_iter().eq(start..end), "{start}..{end}");
        }
    }
}
