//! Answers where ranges of the virtual disk are, and takes and gives back blocks.

use std::sync::atomic::Ordering::Acquire;

use super::entry::{Entry, State as BlockState};
use super::image::{Image, PageKey, State};
use super::layout::{MAX_FILE, UNIT};
use super::open::Access;
use super::session::Changes;
use super::space::Run;
use super::table::WORDS;
use crate::mapping::Change;
use crate::{Extent, MapError, Mapping, Place, Ticket};

/// The file grows by this much: rarely, and for many blocks.
const GROWTH: u64 = 64 << 20;

/// Part of a request in one block.
#[derive(Clone, Copy)]
struct Piece {
    block: u64,
    /// In the block.
    within: u64,
    length: u64,
    /// It is all of the block, or all that the disk has of it.
    is_whole: bool,
}

/// Appends to what a request has found, joining what touches.
struct Extents<'a> {
    list: &'a mut Vec<Extent>,
    /// Extents of earlier requests stay as they are.
    first: usize,
}

impl Extents<'_> {
    fn push(&mut self, length: u64, place: Place) {
        if let Some(last) = self.list[self.first..].last_mut() {
            let continues = match (last.place, place) {
                (Place::File(start), Place::File(next)) => start + last.length == next,
                (before, now) => before == now,
            };
            if continues {
                last.length += length;
                return;
            }
        }
        self.list.push(Extent { length, place });
    }
}

impl Image {
    fn check_range(&self, offset: u64, length: u64) -> Result<(), MapError> {
        let size = self.size.load(Acquire);
        let end = offset.saturating_add(length);
        if end > size || !(offset | length).is_multiple_of(self.geometry.sector) {
            return Err(MapError::Range { offset, end, size });
        }
        Ok(())
    }

    fn pieces(&self, offset: u64, length: u64) -> impl Iterator<Item = Piece> + use<> {
        let (block_size, size) = (self.geometry.block_size, self.size.load(Acquire));
        let end = offset + length;
        let mut at = offset;
        std::iter::from_fn(move || {
            (at < end).then(|| {
                let (block, within) = (at / block_size, at % block_size);
                let length = (block_size - within).min(end - at);
                at += length;
                let is_whole = within == 0 && (length == block_size || at == size);
                Piece { block, within, length, is_whole }
            })
        })
    }

    /// Runs `work` with a ticket taken; on an error nothing is left of it.
    fn with_ticket(
        &self,
        extents: &mut Vec<Extent>,
        work: impl FnOnce(&mut Extents<'_>) -> Result<Change, MapError>,
    ) -> Result<Ticket, MapError> {
        let epoch = self.tickets.enter();
        let first = extents.len();
        match work(&mut Extents { list: extents, first }) {
            Ok(change) => Ok(Ticket { epoch, change }),
            Err(error) => {
                extents.truncate(first);
                self.tickets.leave(epoch);
                Err(error)
            }
        }
    }

    /// Before the first change: the headers say so.
    fn begin_changes(&self) -> Result<(), MapError> {
        if self.access == Access::ReadOnly {
            return Err(MapError::ReadOnly);
        }
        if !self.started.load(Acquire) {
            self.start_session(&mut self.lock(), Changes::Data)?;
        }
        Ok(())
    }

    pub(super) fn find_read(&self, offset: u64, length: u64, extents: &mut Vec<Extent>) -> Result<Ticket, MapError> {
        self.check_range(offset, length)?;
        self.with_ticket(extents, |extents| {
            for piece in self.pieces(offset, length) {
                let entry = self.entry(piece.block)?;
                match Self::block_state(entry) {
                    BlockState::Full => self.push_data(extents, entry.offset() + piece.within, piece.length),
                    BlockState::NotPresent if self.geometry.has_parent => extents.push(piece.length, Place::Parent),
                    BlockState::NotPresent | BlockState::Zero => extents.push(piece.length, Place::Zero),
                    BlockState::Partial => self.push_partial(extents, entry, piece)?,
                }
            }
            Ok(Change::Nothing)
        })
    }

    /// What lies behind the end of a file that is read under its replayed log was never written.
    fn push_data(&self, extents: &mut Extents<'_>, place: u64, length: u64) {
        let here = self.data_end.saturating_sub(place).min(length) / self.geometry.sector * self.geometry.sector;
        if here > 0 {
            extents.push(here, Place::File(place));
        }
        if here < length {
            extents.push(length - here, Place::Zero);
        }
    }

    fn push_partial(&self, extents: &mut Extents<'_>, entry: Entry, piece: Piece) -> Result<(), MapError> {
        let sector = self.geometry.sector;
        let mut sectors = self.sectors(piece.block * self.geometry.block_size + piece.within, piece.length);
        let mut place = entry.offset() + piece.within;
        while sectors.start < sectors.end {
            let (is_here, count) = self.bit_run(sectors)?;
            if is_here {
                self.push_data(extents, place, count * sector);
            } else {
                extents.push(count * sector, Place::Parent);
            }
            sectors.start += count;
            place += count * sector;
        }
        Ok(())
    }

    pub(super) fn find_write(&self, offset: u64, length: u64, extents: &mut Vec<Extent>) -> Result<Ticket, MapError> {
        self.check_range(offset, length)?;
        self.begin_changes()?;
        self.with_ticket(extents, |extents| {
            let mut change = Change::Nothing;
            for piece in self.pieces(offset, length) {
                let mut entry = self.entry(piece.block)?;
                if !entry.is_present() {
                    entry = self.take_block(piece.block)?;
                }
                if Self::block_state(entry) == BlockState::Partial
                    && !self.are_all_here(self.sectors(piece.block * self.geometry.block_size + piece.within, piece.length))?
                {
                    change = Change::Present { offset, length };
                }
                extents.push(piece.length, Place::File(entry.offset() + piece.within));
            }
            self.hold(&change)?;
            Ok(change)
        })
    }

    pub(super) fn find_zero(&self, offset: u64, length: u64, extents: &mut Vec<Extent>) -> Result<Ticket, MapError> {
        self.check_range(offset, length)?;
        self.begin_changes()?;
        self.with_ticket(extents, |extents| {
            let mut change = Change::Nothing;
            for piece in self.pieces(offset, length) {
                let entry = self.entry(piece.block)?;
                let state = Self::block_state(entry);
                let is_parents = state == BlockState::NotPresent && self.geometry.has_parent;
                if piece.is_whole && !self.is_fixed && (entry.is_present() || is_parents) {
                    self.give_block_back(piece.block)?;
                } else if entry.is_present() {
                    if state == BlockState::Partial {
                        change = Change::Present { offset, length };
                    }
                    extents.push(piece.length, Place::File(entry.offset() + piece.within));
                } else if is_parents {
                    // New space is zeros: with its bits set, it hides the parent. If another took the block meanwhile, this may
                    // punch what it writes; requests that overlap may end in either order.
                    let entry = self.take_block(piece.block)?;
                    change = Change::Present { offset, length };
                    extents.push(piece.length, Place::File(entry.offset() + piece.within));
                }
            }
            self.hold(&change)?;
            Ok(change)
        })
    }

    /// Takes space for a block that is not in the file, unless another did it meanwhile.
    #[cold]
    fn take_block(&self, block: u64) -> Result<Entry, MapError> {
        let mut state = self.lock();
        let size = self.size.load(Acquire);
        if block >= self.geometry.blocks(size) {
            // The disk was made smaller meanwhile.
            let offset = block * self.geometry.block_size;
            return Err(MapError::Range { offset, end: offset + self.geometry.block_size, size });
        }
        let index = self.geometry.payload_index(block);
        let old = self.entry_at(index)?;
        if old.is_present() {
            return Ok(old);
        }
        self.start_session(&mut state, Changes::Data)?;
        let mut keys = vec![PageKey::Bat(index / WORDS)];
        if !self.geometry.has_parent || Self::block_state(old) != BlockState::NotPresent {
            state.make_room(&keys, self.log_capacity)?;
            let run = self.take_space(&mut state, self.geometry.block_units())?;
            let entry = Entry::full(run.offset());
            self.set_entry(&mut state, index, entry)?;
            return Ok(entry);
        }
        // Its other sectors stay the parent's. Bits of a block that was not present mean nothing: they may be set.
        let sectors = self.block_sectors(block);
        let bitmap = self.geometry.bitmap_index(self.geometry.chunk(block));
        let has_bitmap = self.entry_at(bitmap)?.is_present();
        if has_bitmap {
            keys.extend(self.pages_with_bits(sectors)?);
        } else if bitmap / WORDS != index / WORDS {
            keys.push(PageKey::Bat(bitmap / WORDS));
        }
        state.make_room(&keys, self.log_capacity)?;
        if has_bitmap {
            self.write_bits(&mut state, sectors, false)?;
        } else {
            let run = self.take_space(&mut state, 1)?;
            self.set_entry(&mut state, bitmap, Entry::full(run.offset()))?;
        }
        let run = self.take_space(&mut state, self.geometry.block_units())?;
        let entry = Entry::partial(run.offset());
        self.set_entry(&mut state, index, entry)?;
        Ok(entry)
    }

    /// A run of megabytes that reads as zeros.
    pub(super) fn take_space(&self, state: &mut State, units: u64) -> Result<Run, MapError> {
        let run = state.space.find(units);
        let end = run.offset() + run.length();
        if end > state.file_size {
            let io = |source| MapError::Io { action: "making the image's file longer", source };
            if end > MAX_FILE {
                return Err(io(std::io::ErrorKind::FileTooLarge.into()));
            }
            // Where a limit is near, what is needed now may still fit.
            let grown = end.max(state.file_size.next_multiple_of(UNIT).saturating_add(GROWTH).min(MAX_FILE));
            let size = match self.storage.set_size(grown) {
                Ok(()) => grown,
                Err(_) => self.storage.set_size(end).map(|()| end).map_err(io)?,
            };
            state.file_size = size;
        }
        state.space.take(run);
        Ok(run)
    }

    /// Makes a whole block zeros, and gives its space back.
    fn give_block_back(&self, block: u64) -> Result<(), MapError> {
        let mut state = self.lock();
        let index = self.geometry.payload_index(block);
        let old = self.entry_at(index)?;
        if Self::block_state(old) == BlockState::Zero {
            return Ok(());
        }
        self.start_session(&mut state, Changes::Data)?;
        state.make_room(&[PageKey::Bat(index / WORDS)], self.log_capacity)?;
        self.set_entry(&mut state, index, Entry::ZERO)?;
        if old.is_present() {
            state.space.give_back(Run { start: old.offset() / UNIT, count: self.geometry.block_units() });
        }
        Ok(())
    }

    /// The pages that completing a change may touch.
    fn pages_of(&self, change: &Change) -> Vec<PageKey> {
        let Change::Present { offset, length } = *change else { return Vec::new() };
        let mut keys: Vec<_> = self.sectors(offset, length).pages().map(PageKey::Bitmap).collect();
        let block_size = self.geometry.block_size;
        let page_of = |block| self.geometry.payload_index(block) / WORDS;
        keys.extend((page_of(offset / block_size)..=page_of((offset + length - 1) / block_size)).map(PageKey::Bat));
        keys
    }

    /// Keeps room in the next commits for what completing a change will touch: that must not fail.
    fn hold(&self, change: &Change) -> Result<(), MapError> {
        let keys = self.pages_of(change);
        if keys.is_empty() {
            return Ok(());
        }
        let mut state = self.lock();
        state.make_room(&keys, self.log_capacity)?;
        for key in keys {
            state.pages.entry(key).or_default().held += 1;
        }
        Ok(())
    }

    fn let_go(&self, state: &mut State, change: &Change) {
        for key in self.pages_of(change) {
            if let Some(page) = state.pages.get_mut(&key) {
                page.held -= 1;
                if page.held == 0 && !page.dirty && !page.flying {
                    state.pages.remove(&key);
                }
            }
        }
    }

    /// A ticket is back: with its data in place, or not.
    pub(super) fn take_back(&self, ticket: Ticket, is_complete: bool) {
        if let Change::Present { offset, length } = ticket.change {
            let mut state = self.lock();
            if is_complete && self.make_present(&mut state, offset, length).is_err() {
                // The pages were loaded when the range was mapped, so this is not reached; if it were, the data must not seem safe.
                state.is_broken = true;
            }
            self.let_go(&mut state, &ticket.change);
        }
        self.tickets.leave(ticket.epoch);
    }

    fn make_present(&self, state: &mut State, offset: u64, length: u64) -> Result<(), MapError> {
        for piece in self.pieces(offset, length) {
            let index = self.geometry.payload_index(piece.block);
            let entry = self.entry_at(index)?;
            if Self::block_state(entry) != BlockState::Partial {
                continue;
            }
            let start = piece.block * self.geometry.block_size;
            let mut is_full = piece.is_whole;
            if !is_full {
                self.write_bits(state, self.sectors(start + piece.within, piece.length), true)?;
                // Blocks fill from front to back, mostly: a write that reaches the end is the moment to look.
                let end = (start + self.geometry.block_size).min(self.size.load(Acquire));
                is_full = start + piece.within + piece.length == end && self.are_all_here(self.sectors(start, end - start))?;
            }
            if is_full {
                self.set_entry(state, index, Entry::full(entry.offset()))?;
            }
        }
        Ok(())
    }
}

impl Mapping for Image {
    fn size(&self) -> u64 {
        self.size.load(Acquire)
    }

    fn logical_sector_size(&self) -> u32 {
        self.logical
    }

    fn physical_sector_size(&self) -> u32 {
        self.physical
    }

    fn block_size(&self) -> u32 {
        self.block_size
    }

    fn has_parent(&self) -> bool {
        self.geometry.has_parent
    }

    fn map_read(&self, offset: u64, length: u64, extents: &mut Vec<Extent>) -> Result<Ticket, MapError> {
        self.find_read(offset, length, extents)
    }

    fn map_write(&self, offset: u64, length: u64, extents: &mut Vec<Extent>) -> Result<Ticket, MapError> {
        self.find_write(offset, length, extents)
    }

    fn map_zero(&self, offset: u64, length: u64, extents: &mut Vec<Extent>) -> Result<Ticket, MapError> {
        self.find_zero(offset, length, extents)
    }

    fn complete(&self, ticket: Ticket) {
        self.take_back(ticket, true);
    }

    fn finish(&self, ticket: Ticket) {
        self.take_back(ticket, false);
    }

    fn is_clean(&self) -> bool {
        self.is_settled()
    }

    fn begin_commit(&self) -> Result<Option<crate::Commit>, MapError> {
        self.start_commit()
    }

    fn end_commit(&self, commit: crate::Commit, result: Result<(), std::io::ErrorKind>) {
        self.finish_commit(commit, result);
    }
}
