//! Makes the virtual disk larger or smaller, while it is in use.
//!
//! What the new size makes reachable is prepared in place, where nothing reaches it yet; then one log entry changes the size, the
//! page of the BAT in which old and new meet, and the region table if the BAT moved: a crash finds the old disk or the new one.

use std::sync::atomic::Ordering::{Acquire, Release};

use super::create::bat_length;
use super::entry::Entry;
use super::error::{ChangeError, Damage};
use super::geometry::Owner;
use super::image::{Image, State};
use super::layout::{BAT, DISK_SIZE, MAX_DISK, PAGE, UNIT};
use super::log::Page;
use super::metadata::find;
use super::patch::Patch;
use super::session::Changes;
use super::space::Run;
use super::table::WORDS;
use crate::MapError;

/// What to do with blocks behind the new end of a disk that becomes smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BeyondEnd {
    /// Leave the disk as it is if there is one.
    Refuse,
    /// They are lost.
    Discard,
}

const PAGE_U64: u64 = PAGE as u64;

fn io(action: &'static str) -> impl Fn(std::io::Error) -> MapError {
    move |source| MapError::Io { action, source }
}

impl Image {
    /// Gives the virtual disk another size, in bytes: whole sectors, up to 64 TiB. Durable when it returns. New space reads as zeros
    /// (in a differencing image: as the parent, where that is longer).
    ///
    /// # Errors
    /// See [`ChangeError`]. If writing failed in the midst of it, the image must be opened again: it has the old size then, or the new.
    pub fn resize(&self, size: u64, beyond_end: BeyondEnd) -> Result<(), ChangeError> {
        if size == 0 || size > MAX_DISK || !size.is_multiple_of(self.geometry.sector) {
            let problem = format!("whole sectors of {} bytes up to 64 TiB are possible", self.geometry.sector);
            return Err(ChangeError::Size { size, problem });
        }
        let mut state = self.lock_idle();
        let old = self.size.load(Acquire);
        if size == old {
            return Ok(());
        }
        let mut lost = Vec::new();
        if size < old {
            lost = self.blocks_behind(size, old, beyond_end)?;
        }
        self.start_session(&mut state, Changes::Data)?;
        if state.dirty > 0 {
            self.commit_now(&mut state, Vec::new())?;
        }
        if size > old {
            self.grow(&mut state, old, size)?
        } else {
            self.shrink(&mut state, size, lost)?
        }
        Ok(())
    }

    /// The runs of all blocks and bitmaps that a smaller disk does not have.
    fn blocks_behind(&self, size: u64, old: u64, beyond_end: BeyondEnd) -> Result<Vec<Run>, ChangeError> {
        let (first, end) = (self.geometry.blocks(size), self.geometry.entries(old));
        let mut lost = Vec::new();
        let mut data = None;
        self.visit_entries(self.geometry.payload_index(first).min(end), end, &mut |index, entry| {
            let (count, is_behind) = match self.geometry.owner(index) {
                Owner::Payload(_) => (self.geometry.block_units(), true),
                Owner::Bitmap => (1, index >= self.geometry.entries(size)),
            };
            if entry.is_present() && is_behind {
                lost.push(Run { start: entry.offset() / UNIT, count });
                if let Owner::Payload(block) = self.geometry.owner(index) {
                    data.get_or_insert(block * self.geometry.block_size);
                }
            }
        })?;
        match (data, beyond_end) {
            // Whether a block of a fixed image was ever used cannot be seen.
            (Some(offset), BeyondEnd::Refuse) => Err(ChangeError::DataBeyondEnd { offset, size }),
            _ => Ok(lost),
        }
    }

    fn shrink(&self, state: &mut State, size: u64, lost: Vec<Run>) -> Result<(), MapError> {
        let entries = self.geometry.entries(size);
        let first = self.geometry.payload_index(self.geometry.blocks(size));
        let mut patch = Patch::new(self);
        self.put_size(state, &mut patch, size)?;
        let mut pages = patch.into_pages();
        // The entry of the first lost block may stand before a bitmap's entry that stays.
        let behind = |index: u64| index >= entries || (index >= first && self.geometry.owner(index) != Owner::Bitmap);
        let old_entries = self.geometry.entries(self.size.load(Acquire));
        let last = (entries / WORDS).min((old_entries - 1) / WORDS);
        for number in first / WORDS..=last.max(first / WORDS) {
            if number * WORDS >= old_entries {
                break;
            }
            let page = self.bat_page(number)?;
            let mut data = page.encode();
            let slots = (0..WORDS).filter(|slot| behind(number * WORDS + slot));
            slots.for_each(|slot| data[slot as usize * 8..][..8].fill(0));
            pages.push(Page { offset: self.bat_offset.load(Acquire) + number * PAGE_U64, data });
        }
        if pages.len() > self.log_capacity {
            return Err(MapError::CommitFirst);
        }
        self.commit_pages(state, pages)?;
        self.size.store(size, Release);
        for (number, page) in self.bat.loaded_from(first / WORDS) {
            (0..WORDS).filter(|slot| behind(number * WORDS + slot)).for_each(|slot| page.set(slot, 0));
        }
        let chunks = self.geometry.chunk(self.geometry.blocks(size) - 1) + 1;
        for (_, page) in self.bitmaps.loaded_from(chunks * 256) {
            (0..WORDS).for_each(|word| page.set(word, 0));
        }
        lost.into_iter().for_each(|run| state.space.give_back_logged(run));
        Ok(())
    }

    fn grow(&self, state: &mut State, old: u64, size: u64) -> Result<(), MapError> {
        let (old_entries, entries) = (self.geometry.entries(old), self.geometry.entries(size));
        self.zero_tail(old)?;
        let mut patch = Patch::new(self);
        self.put_size(state, &mut patch, size)?;

        let mut regions = state.regions.clone();
        let missing = || MapError::from(Damage::new("region table", 0, "the BAT's region is missing"));
        let bat = regions.list.iter_mut().find(|region| region.id == BAT).ok_or_else(missing)?;
        let old_bat = Run { start: bat.offset / UNIT, count: u64::from(bat.length) / UNIT };
        let moves = entries * 8 > u64::from(bat.length);
        if moves {
            let length = bat_length(entries);
            let run = self.take_space(state, length / UNIT)?;
            self.copy_bat(run.offset(), old_entries)?;
            (bat.offset, bat.length) = (run.offset(), length as u32);
        }
        let offset = bat.offset;
        // Behind the old table there may be anything; nothing reaches it yet. What is behind the page where both meet is written in
        // place, that page is logged.
        let border = (old_entries - 1) / WORDS;
        let (from, to) = ((border + 1) * PAGE_U64, (entries * 8).next_multiple_of(PAGE_U64));
        if from < to {
            self.storage.punch(offset + from, to - from).map_err(io("clearing the image's new table"))?;
        }
        let mut data = self.bat_page(border)?.encode();
        if self.is_fixed {
            self.fill_fixed(state, old, size, offset, border, &mut data)?;
        }
        let mut pages = vec![Page { offset: offset + border * PAGE_U64, data: data.clone() }];
        if moves {
            patch.put_regions(&state.regions, &regions)?;
        }
        pages.extend(patch.into_pages());
        self.commit_pages(state, pages)?;

        let page = self.bat_page(border)?;
        for (slot, bytes) in data.as_chunks::<8>().0.iter().enumerate() {
            page.set(slot as u64, u64::from_le_bytes(*bytes));
        }
        state.regions = regions;
        self.bat_offset.store(offset, Release);
        self.size.store(size, Release);
        if moves {
            state.space.give_back_logged(old_bat);
        }
        Ok(())
    }

    /// What the last block holds behind the disk's end may be old data, from before it was made smaller.
    fn zero_tail(&self, old: u64) -> Result<(), MapError> {
        let within = old % self.geometry.block_size;
        let entry = self.entry(self.geometry.blocks(old) - 1)?;
        if within > 0 && entry.is_present() {
            let rest = self.geometry.block_size - within;
            self.storage.punch(entry.offset() + within, rest).map_err(io("clearing what was behind the disk's end"))?;
        }
        Ok(())
    }

    /// Copies the table to where it is going to be.
    fn copy_bat(&self, offset: u64, entries: u64) -> Result<(), MapError> {
        let mut page = vec![0; PAGE];
        let mut number = 0;
        let mut result = Ok(());
        let mut flush = |number: u64, page: &mut Vec<u8>| {
            if result.is_ok() && page.iter().any(|byte| *byte != 0) {
                result = self.storage.write_at(offset + number * PAGE_U64, page);
                page.fill(0);
            }
        };
        self.visit_entries(0, entries, &mut |index, entry| {
            if index / WORDS != number {
                flush(number, &mut page);
                number = index / WORDS;
            }
            page[(index % WORDS) as usize * 8..][..8].copy_from_slice(&entry.0.to_le_bytes());
        })?;
        flush(number, &mut page);
        result.map_err(io("moving the image's table"))
    }

    /// Gives the new blocks of a fixed image their place: in the page where old and new meet, and in place behind it.
    fn fill_fixed(
        &self,
        state: &mut State,
        old: u64,
        size: u64,
        bat_offset: u64,
        border: u64,
        data: &mut [u8],
    ) -> Result<(), MapError> {
        let (first, end) = (self.geometry.blocks(old), self.geometry.blocks(size));
        if first == end {
            return Ok(());
        }
        let run = self.take_space(state, (end - first) * self.geometry.block_units())?;
        self.storage.allocate(run.offset(), run.length()).map_err(io("taking the space of the disk"))?;
        let mut page = vec![0; PAGE];
        let mut number = border;
        let write = |number: u64, page: &[u8]| {
            self.storage.write_at(bat_offset + number * PAGE_U64, page).map_err(io("writing the image's new table"))
        };
        for block in first..end {
            let index = self.geometry.payload_index(block);
            if index / WORDS != number {
                if number > border {
                    write(number, &page)?;
                }
                page.fill(0);
                number = index / WORDS;
            }
            let target = if number == border { &mut *data } else { &mut page[..] };
            let entry = Entry::full(run.offset() + (block - first) * self.geometry.block_size);
            target[(index % WORDS) as usize * 8..][..8].copy_from_slice(&entry.0.to_le_bytes());
        }
        if number > border { write(number, &page) } else { Ok(()) }
    }

    fn put_size(&self, state: &State, patch: &mut Patch<'_>, size: u64) -> Result<(), MapError> {
        let region = state.regions.metadata()?;
        let missing = || MapError::from(Damage::new("metadata table", region.offset, "the disk size item is missing"));
        let item = find(&state.items, DISK_SIZE).ok_or_else(missing)?;
        patch.put(region.offset + u64::from(item.offset), &size.to_le_bytes())
    }
}
