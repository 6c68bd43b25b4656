//! Other sizes for fixed and dynamic disks. A disk grows while it is in use: nothing that a request knows changes its place.

use std::sync::PoisonError;
use std::sync::atomic::AtomicU32;

use super::bitmaps::Bitmaps;
use super::error::{Action, ResizeError};
use super::footer::{Footer, Kind, MAX_SIZE, SECTOR};
use super::image::{Access, Core, Tables};
use super::layout::{ABSENT, table_size};
use super::parent::switch_footers;
use crate::Storage;

impl Core {
    /// See [`Image::resize`](super::Image::resize).
    pub(super) fn resize(&mut self, size: u64) -> Result<(), ResizeError> {
        if self.access == Access::ReadOnly {
            return Err(ResizeError::ReadOnly);
        }
        if size == 0 || size > MAX_SIZE || !size.is_multiple_of(SECTOR) {
            return Err(ResizeError::Size(size));
        }
        if self.footer.kind() == Kind::Differencing {
            return Err(ResizeError::Differencing);
        }
        let under_way = self.epochs.count();
        if size < self.footer.size() && under_way > 0 {
            return Err(ResizeError::Busy(under_way));
        }
        self.commit()?;
        let mut footer = self.footer.clone();
        let before = footer.size();
        footer.set_size(size);
        match &mut self.tables {
            None => resize_fixed(&*self.storage, before, &footer),
            Some(tables) if size >= before => grow(&*self.storage, tables, before, &self.footer, &footer),
            Some(tables) => cut(&*self.storage, tables, &footer),
        }?;
        self.footer = footer;
        if self.tables.is_some() {
            self.release_past_end();
            self.commit()?;
        }
        Ok(())
    }

    /// Blocks past the disk's end give their place back: those that were just cut off, or that a crash left before they were.
    pub(super) fn release_past_end(&mut self) {
        let count = |tables: &Tables| self.footer.size().div_ceil(tables.block_size) as u32;
        let Some(tables) = &self.tables else { return };
        let mut state = tables.lock();
        for block in count(tables)..tables.entries.len() as u32 {
            if let Some(place) = tables.place(block) {
                tables.set_place(&mut state, block, None);
                tables.bitmaps.full.remove(block);
                state.space.release(place, self.epochs.generation());
            }
        }
    }
}

/// The footer of a fixed disk has no copy, so the new one is stable before the old one goes.
fn resize_fixed(storage: &dyn Storage, before: u64, footer: &Footer) -> Result<(), ResizeError> {
    let size = footer.size();
    let flush = || storage.flush().during::<ResizeError>("the file cannot be flushed");
    let file_size = storage.size().during::<ResizeError>("the file's size cannot be read")?;
    if size + SECTOR > file_size {
        storage.write_at(size, footer.bytes()).during::<ResizeError>("the footer cannot be written")?;
        flush()?;
        // The old footer, and whatever was between it and the data, is part of the disk now.
        storage.punch(before, file_size - before).during::<ResizeError>("the old footer cannot be removed")?;
    } else {
        // The old footer is no larger a step away than the file's end: both describe what is there.
        if size > before {
            storage.punch(before, size - before).during::<ResizeError>("the new space cannot be made zeros")?;
        }
        storage.write_at(size, footer.bytes()).during::<ResizeError>("the footer cannot be written")?;
        flush()?;
        storage.set_size(size + SECTOR).during::<ResizeError>("the file cannot be made shorter")?;
    }
    flush()
}

/// Footers last: what they promise is there by then.
fn grow(storage: &dyn Storage, tables: &mut Tables, before: u64, old: &Footer, new: &Footer) -> Result<(), ResizeError> {
    let flush = || storage.flush().during::<ResizeError>("the file cannot be flushed");
    zero_tail(storage, tables, before)?;
    let entries = new.size().div_ceil(tables.block_size) as u32;
    let known = tables.header.entries();
    if entries > super::header::MAX_ENTRIES {
        return Err(ResizeError::Size(new.size()));
    }
    if entries > known {
        let state = tables.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        let mut header = tables.header.clone();
        tables.entries.resize_with(entries as usize, || AtomicU32::new(ABSENT));
        tables.bitmaps = Bitmaps::new(entries as usize, tables.bitmap_size as usize, tables.block_size / SECTOR);
        let mut table: Vec<u8> = Vec::new();
        for entry in &mut tables.entries {
            table.extend(entry.get_mut().to_be_bytes());
        }
        table.resize(table_size(entries) as usize, 0xff);
        if table_size(entries) > table_size(known) {
            let at = state.space.end();
            let end = at + table.len() as u64;
            table.extend(old.bytes());
            storage.write_at(at, &table).during::<ResizeError>("the new block table cannot be written")?;
            state.space.skip_to(end);
            state.footer_at = end;
            header.set_table(at, entries);
        } else {
            // The sector that both tables end in may be padded with anything.
            let at = table.len() - SECTOR as usize;
            let offset = header.table_offset() + at as u64;
            storage.write_at(offset, &table[at..]).during::<ResizeError>("the block table cannot be written")?;
            header.set_table(header.table_offset(), entries);
        }
        flush()?;
        // All that changed is in the first sector, which arrives as a whole or not at all.
        let first = &header.bytes()[..SECTOR as usize];
        tables.is_broken = true;
        storage.write_at(old.header_offset(), first).during::<ResizeError>("the header cannot be written")?;
        flush()?;
        (tables.header, tables.is_broken) = (header, false);
    } else {
        flush()?;
    }
    let end = tables.state.get_mut().unwrap_or_else(PoisonError::into_inner).footer_at;
    switch_footers(storage, new, end).during("the footers cannot be written")
}

/// Footers first: blocks past the end that a crash leaves in the table are only space.
fn cut(storage: &dyn Storage, tables: &mut Tables, new: &Footer) -> Result<(), ResizeError> {
    let end = tables.state.get_mut().unwrap_or_else(PoisonError::into_inner).footer_at;
    switch_footers(storage, new, end).during::<ResizeError>("the footers cannot be written")?;
    zero_tail(storage, tables, new.size())
}

/// Makes the last block zeros past the disk's end at `size`.
fn zero_tail(storage: &dyn Storage, tables: &Tables, size: u64) -> Result<(), ResizeError> {
    let start = size % tables.block_size;
    let last = (size / tables.block_size) as u32;
    if start != 0
        && let Some(place) = tables.place(last)
    {
        let offset = place + tables.bitmap_size + start;
        storage.punch(offset, tables.block_size - start).during::<ResizeError>("the new space cannot be made zeros")?;
    }
    Ok(())
}
