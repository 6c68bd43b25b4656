//! Where a range is.

use super::bitmaps::{all_set, is_set, run_end};
use super::error::Action;
use super::footer::{Kind, SECTOR};
use super::image::{Access, Core, State, Tables};
use crate::mapping::Change;
use crate::{Commit, Extent, MapError, Mapping, Place, Ticket};

/// New blocks that wait for a commit; a request that needs more asks for one first. One that needs more by itself gets them: callers bound
/// what they zero in a child at once (64 MiB in a VM, which is as many of the smallest blocks).
const NEW_BLOCKS: usize = 16_384;

/// A part of a request in one block.
struct Part {
    block: u32,
    /// In the block.
    start: u64,
    length: u64,
}

impl Part {
    fn sectors(&self) -> std::ops::Range<u64> {
        self.start / SECTOR..(self.start + self.length) / SECTOR
    }
}

impl Tables {
    fn parts(&self, offset: u64, length: u64) -> impl Iterator<Item = Part> + use<> {
        let (block_size, end) = (self.block_size, offset + length);
        let mut at = offset;
        std::iter::from_fn(move || {
            (at < end).then(|| {
                let start = at % block_size;
                let part = Part { block: (at / block_size) as u32, start, length: (block_size - start).min(end - at) };
                at += part.length;
                part
            })
        })
    }

    fn data(&self, place: u64, part: &Part) -> Place {
        Place::File(place + self.bitmap_size + part.start)
    }
}

/// Appends to what this request appended from `first` on.
fn push(extents: &mut Vec<Extent>, first: usize, length: u64, place: Place) {
    if extents.len() > first
        && let Some(last) = extents.last_mut()
    {
        let follows = match (last.place, place) {
            (Place::File(before), Place::File(next)) => before + last.length == next,
            (before, next) => before == next,
        };
        if follows {
            last.length += length;
            return;
        }
    }
    extents.push(Extent { length, place });
}

impl Core {
    fn range(&self, offset: u64, length: u64) -> Result<(), MapError> {
        let size = self.footer.size();
        let end = offset.saturating_add(length);
        if end > size || !offset.is_multiple_of(SECTOR) || !length.is_multiple_of(SECTOR) {
            return Err(MapError::Range { offset, end, size });
        }
        Ok(())
    }

    fn writable(&self, offset: u64, length: u64) -> Result<(), MapError> {
        if self.access == Access::ReadOnly {
            return Err(MapError::ReadOnly);
        }
        self.range(offset, length)
    }

    /// Runs `map` under a new ticket; takes everything back if it fails.
    fn with_ticket(
        &self,
        extents: &mut Vec<Extent>,
        map: impl FnOnce(&mut Vec<Extent>) -> Result<Change, MapError>,
    ) -> Result<Ticket, MapError> {
        let (epoch, before) = (self.epochs.enter(), extents.len());
        match map(extents) {
            Ok(change) => Ok(Ticket { epoch, change }),
            Err(error) => {
                extents.truncate(before);
                self.epochs.leave(epoch);
                Err(error)
            }
        }
    }

    /// Reads a bitmap from the file.
    fn read_bits(&self, place: u64) -> impl FnOnce(&mut [u8]) -> std::io::Result<()> + '_ {
        move |bits| self.storage.read_at(place, bits)
    }

    fn read_part(&self, tables: &Tables, part: &Part, extents: &mut Vec<Extent>, first: usize) -> Result<(), MapError> {
        let differencing = self.has_parent();
        let Some(place) = tables.place(part.block) else {
            push(extents, first, part.length, if differencing { Place::Parent } else { Place::Zero });
            return Ok(());
        };
        if !differencing || tables.bitmaps.full.contains(part.block) {
            push(extents, first, part.length, tables.data(place, part));
            return Ok(());
        }
        let cut = |bits: &[u8]| {
            let std::ops::Range { start: mut at, end } = part.sectors();
            while at < end {
                let next = run_end(bits, at, end);
                let run = Part { block: part.block, start: at * SECTOR, length: (next - at) * SECTOR };
                let place = if is_set(bits, at) { tables.data(place, &run) } else { Place::Parent };
                push(extents, first, run.length, place);
                at = next;
            }
        };
        tables.bitmaps.look(part.block, self.read_bits(place), cut).during("a sector bitmap cannot be read")
    }

    /// Gives every block of the range a place.
    fn allocate(&self, tables: &Tables, offset: u64, length: u64) -> Result<(), MapError> {
        if tables.parts(offset, length).all(|part| tables.place(part.block).is_some()) {
            return Ok(());
        }
        let mut state = tables.lock();
        let missing = |part: &Part| tables.place(part.block).is_none();
        let blocks: Vec<u32> = tables.parts(offset, length).filter(missing).map(|part| part.block).collect();
        if !state.new_blocks.is_empty() && state.new_blocks.len() + blocks.len() > NEW_BLOCKS {
            return Err(MapError::CommitFirst);
        }
        let end = state.space.end();
        let places: Vec<u64> = blocks.iter().map_while(|_| state.space.take()).collect();
        let grown = self.grow(&mut state, places.len() == blocks.len(), end);
        if let Err(error) = grown {
            state.space.untake(places, end);
            return Err(error);
        }
        for (block, place) in blocks.into_iter().zip(places) {
            state.new_blocks.insert(block);
            if self.has_parent() {
                tables.bitmaps.create(block);
            } else {
                tables.bitmaps.full.insert(block);
            }
            tables.set_place(&mut state, block, Some(place));
        }
        Ok(())
    }

    /// Makes the file long enough for all that was taken, and the footer behind it.
    fn grow(&self, state: &mut State, all_taken: bool, before: u64) -> Result<(), MapError> {
        if !all_taken {
            if state.space.is_waiting() {
                return Err(MapError::CommitFirst);
            }
            let source = std::io::ErrorKind::FileTooLarge.into();
            return Err(MapError::Io { action: "a VHD's file cannot hold blocks past 2 TiB; convert the disk to VHDX", source });
        }
        if state.space.end() > before {
            self.storage.set_size(state.space.end() + SECTOR).during::<MapError>("the file cannot be made longer")?;
        }
        Ok(())
    }

    /// Other programs may look at the bitmaps of a dynamic disk. Where a block of theirs has not all bits set, it gets them.
    fn fill_bitmap(&self, tables: &Tables, block: u32, place: u64) -> Result<(), MapError> {
        let mut bits = vec![0; tables.bitmap_size as usize];
        self.storage.read_at(place, &mut bits).during::<MapError>("a sector bitmap cannot be read")?;
        let mut state = tables.lock();
        if tables.place(block) == Some(place) {
            if !all_set(&bits, tables.block_size / SECTOR) {
                state.new_blocks.insert(block);
            }
            tables.bitmaps.full.insert(block);
        }
        Ok(())
    }

    fn write_blocks(&self, tables: &Tables, offset: u64, length: u64, extents: &mut Vec<Extent>) -> Result<Change, MapError> {
        let first = extents.len();
        loop {
            self.allocate(tables, offset, length)?;
            // Another thread may free a block between the two look-ups; then it is done again.
            let places: Vec<Option<u64>> = tables.parts(offset, length).map(|part| tables.place(part.block)).collect();
            if places.iter().any(Option::is_none) {
                continue;
            }
            for (part, place) in tables.parts(offset, length).zip(places.into_iter().flatten()) {
                if !self.has_parent() && !tables.bitmaps.full.contains(part.block) {
                    self.fill_bitmap(tables, part.block, place)?;
                }
                push(extents, first, part.length, tables.data(place, &part));
            }
            return if self.has_parent() { self.hold_bitmaps(tables, offset, length) } else { Ok(Change::Nothing) };
        }
    }

    /// What completing a write to a differencing disk will set; the bitmaps for it stay in memory until then.
    fn hold_bitmaps(&self, tables: &Tables, offset: u64, length: u64) -> Result<Change, MapError> {
        let not_full = |part: &Part| !tables.bitmaps.full.contains(part.block);
        let block_start = |part: &Part| u64::from(part.block) * tables.block_size;
        let Some(first) = tables.parts(offset, length).find(not_full) else { return Ok(Change::Nothing) };
        let start = block_start(&first) + first.start;
        let end = tables.parts(start, offset + length - start).filter(not_full).last();
        let end = end.map_or(start + first.length, |part| block_start(&part) + part.start + part.length);
        let mut held = Vec::new();
        for part in tables.parts(start, end - start) {
            let place = tables.place(part.block).unwrap_or(0);
            if let Err(error) = tables.bitmaps.hold(part.block, self.read_bits(place)) {
                held.into_iter().for_each(|block| tables.bitmaps.release(block));
                return Err(MapError::Io { action: "a sector bitmap cannot be read", source: error });
            }
            held.push(part.block);
        }
        Ok(Change::Present { offset: start, length: end - start })
    }

    fn zero_blocks(&self, tables: &Tables, offset: u64, length: u64, extents: &mut Vec<Extent>) {
        let first = extents.len();
        let size = self.footer.size();
        for part in tables.parts(offset, length) {
            let Some(place) = tables.place(part.block) else { continue };
            let block_end = (u64::from(part.block) * tables.block_size).saturating_add(tables.block_size).min(size);
            let in_block = block_end - u64::from(part.block) * tables.block_size;
            if part.start > 0 || part.length < in_block {
                push(extents, first, part.length, tables.data(place, &part));
                continue;
            }
            let mut state = tables.lock();
            if let Some(place) = tables.place(part.block) {
                tables.set_place(&mut state, part.block, None);
                tables.bitmaps.full.remove(part.block);
                state.new_blocks.remove(&part.block);
                state.space.release(place, self.epochs.generation());
            }
        }
    }
}

impl Mapping for Core {
    fn size(&self) -> u64 {
        self.footer.size()
    }

    fn logical_sector_size(&self) -> u32 {
        SECTOR as u32
    }

    fn physical_sector_size(&self) -> u32 {
        SECTOR as u32
    }

    fn block_size(&self) -> u32 {
        self.tables.as_ref().map_or(SECTOR as u32, |tables| tables.block_size as u32)
    }

    fn has_parent(&self) -> bool {
        self.footer.kind() == Kind::Differencing
    }

    fn map_read(&self, offset: u64, length: u64, extents: &mut Vec<Extent>) -> Result<Ticket, MapError> {
        self.range(offset, length)?;
        self.with_ticket(extents, |extents| {
            let first = extents.len();
            match &self.tables {
                None if length > 0 => extents.push(Extent { length, place: Place::File(offset) }),
                None => {}
                Some(tables) => {
                    for part in tables.parts(offset, length) {
                        self.read_part(tables, &part, extents, first)?;
                    }
                }
            }
            Ok(Change::Nothing)
        })
    }

    fn map_write(&self, offset: u64, length: u64, extents: &mut Vec<Extent>) -> Result<Ticket, MapError> {
        self.writable(offset, length)?;
        self.with_ticket(extents, |extents| match &self.tables {
            Some(tables) => self.write_blocks(tables, offset, length, extents),
            None => {
                if length > 0 {
                    extents.push(Extent { length, place: Place::File(offset) });
                }
                Ok(Change::Nothing)
            }
        })
    }

    fn map_zero(&self, offset: u64, length: u64, extents: &mut Vec<Extent>) -> Result<Ticket, MapError> {
        match &self.tables {
            Some(tables) if !self.has_parent() => {
                self.writable(offset, length)?;
                self.with_ticket(extents, |extents| {
                    self.zero_blocks(tables, offset, length, extents);
                    Ok(Change::Nothing)
                })
            }
            // Zeros of a differencing disk hide the parent's data, so they are written; those of a fixed disk are holes in its file.
            _ => self.map_write(offset, length, extents),
        }
    }

    fn map_discard(&self, offset: u64, length: u64, extents: &mut Vec<Extent>) -> Result<Ticket, MapError> {
        match &self.tables {
            Some(tables) if self.has_parent() => {
                self.writable(offset, length)?;
                self.with_ticket(extents, |extents| {
                    let first = extents.len();
                    for part in tables.parts(offset, length) {
                        self.read_part(tables, &part, extents, first)?;
                    }
                    // What the parent has takes no space here, and would if it was hidden.
                    let mut index = 0;
                    extents.retain(|extent| {
                        index += 1;
                        index <= first || matches!(extent.place, Place::File(_))
                    });
                    Ok(Change::Nothing)
                })
            }
            _ => self.map_zero(offset, length, extents),
        }
    }

    fn complete(&self, ticket: Ticket) {
        if let (Change::Present { offset, length }, Some(tables)) = (&ticket.change, &self.tables) {
            for part in tables.parts(*offset, *length) {
                tables.bitmaps.set(part.block, part.sectors());
            }
        }
        self.epochs.leave(ticket.epoch);
    }

    fn finish(&self, ticket: Ticket) {
        if let (Change::Present { offset, length }, Some(tables)) = (&ticket.change, &self.tables) {
            for part in tables.parts(*offset, *length) {
                tables.bitmaps.release(part.block);
            }
        }
        self.epochs.leave(ticket.epoch);
    }

    fn is_clean(&self) -> bool {
        self.tables.as_ref().is_none_or(|tables| {
            let state = tables.lock();
            // A commit under way may fail, and then the next one has its work to do.
            let written = state.dirty_sectors.is_empty() && state.new_blocks.is_empty() && state.commit.is_none();
            let written = written && state.suspect_blocks.is_empty();
            written && state.footer_at == state.space.end() && !state.space.is_waiting() && tables.bitmaps.is_clean()
        })
    }

    fn begin_commit(&self) -> Result<Option<Commit>, MapError> {
        if self.tables.as_ref().is_some_and(|tables| tables.is_broken) {
            let action = "changing the image: an earlier failure left its tables unsure; open it again";
            return Err(MapError::Io { action, source: std::io::ErrorKind::Other.into() });
        }
        Ok(self.next_commit())
    }

    fn end_commit(&self, commit: Commit, result: Result<(), std::io::ErrorKind>) {
        self.commit_ended(commit.id, result.is_ok());
    }
}
