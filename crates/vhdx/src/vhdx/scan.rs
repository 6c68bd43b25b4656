//! Goes through a whole BAT once, without keeping it.

use super::entry::{Entry, State};
use super::error::{Damage, OpenError, reading};
use super::geometry::{Geometry, Owner};
use super::layout::{UNIT, read_vec};
use super::regions::Region;
use super::space::{Run, Space};
use crate::Storage;

const NAME: &str = "block allocation table";

/// What an entry has to fit to.
#[derive(Clone, Copy)]
pub(crate) struct Rules {
    pub(crate) geometry: Geometry,
    /// Of the virtual disk.
    pub(crate) size: u64,
    /// Of the file.
    pub(crate) file_size: u64,
    pub(crate) bat_offset: u64,
}

impl Rules {
    fn damage(&self, index: u64, problem: String) -> Damage {
        Damage::new(NAME, self.bat_offset + index * 8, problem)
    }

    /// Refuses an entry that the format does not allow.
    pub(crate) fn check(&self, index: u64, entry: Entry) -> Result<(), Damage> {
        let state = entry.state().ok_or_else(|| self.damage(index, format!("block state {} is reserved", entry.0 & 7)))?;
        if entry.has_reserved_bits() {
            return Err(self.damage(index, format!("entry {:#x} has reserved bits set", entry.0)));
        }
        // The last block may end with the disk: some programs do not round the file up.
        let (what, length) = match self.geometry.owner(index) {
            Owner::Payload(block) => {
                let rest = self.size.saturating_sub(block.saturating_mul(self.geometry.block_size));
                (format!("block {block}"), rest.min(self.geometry.block_size))
            }
            Owner::Bitmap if matches!(state, State::NotPresent | State::Full) => ("a sector bitmap".to_owned(), UNIT),
            Owner::Bitmap => return Err(self.damage(index, format!("a sector bitmap in state {} is not possible", entry.0 & 7))),
        };
        let is_bitmap = self.geometry.owner(index) == Owner::Bitmap;
        if !self.geometry.has_parent && (state == State::Partial || (is_bitmap && state == State::Full)) {
            return Err(self.damage(index, format!("{what} is partly in a parent, and the image has none")));
        }
        if entry.is_present() && length == 0 {
            return Err(self.damage(index, format!("{what} lies beyond the disk's end")));
        }
        let place = entry.offset();
        if entry.is_present() && (place < UNIT || place.checked_add(length).is_none_or(|end| end > self.file_size)) {
            return Err(
                self.damage(index, format!("{what} at offset {place} is not inside the file of {} bytes", self.file_size))
            );
        }
        Ok(())
    }

    /// Calls `visit` for each entry that is not zero, in order.
    pub(crate) fn scan(
        &self,
        storage: &dyn Storage,
        visit: &mut dyn FnMut(u64, Entry) -> Result<(), OpenError>,
    ) -> Result<(), OpenError> {
        let end = self.bat_offset + self.geometry.entries(self.size) * 8;
        let mut at = self.bat_offset;
        while at < end {
            let Some(data) = storage.next_data(at).map_err(reading(NAME, at))? else { break };
            at = at.max(data / 8 * 8);
            if at >= end {
                break;
            }
            let bytes = read_vec(storage, at, (end - at).min(UNIT) as usize).map_err(reading(NAME, at))?;
            for (number, bytes) in bytes.as_chunks::<8>().0.iter().enumerate() {
                let entry = Entry(u64::from_le_bytes(*bytes));
                if entry.0 != 0 {
                    visit((at - self.bat_offset) / 8 + number as u64, entry)?;
                }
            }
            at += bytes.len() as u64;
        }
        Ok(())
    }

    /// The run that a present block takes.
    pub(crate) fn run(&self, index: u64, entry: Entry) -> Run {
        let count = if self.geometry.owner(index) == Owner::Bitmap { 1 } else { self.geometry.block_units() };
        Run { start: entry.offset() / UNIT, count }
    }

    /// Checks all entries and takes their space; gives every problem to `report`, which ends the scan by an error. Answers how many
    /// payload blocks are in the file.
    pub(crate) fn take_all(
        &self,
        storage: &dyn Storage,
        space: &mut Space,
        report: &mut dyn FnMut(Damage) -> Result<(), OpenError>,
    ) -> Result<u64, OpenError> {
        let mut blocks = 0;
        // The last chunk with a partial block, and where that stands: its bitmap's entry comes behind it.
        let mut partial: Option<(u64, u64)> = None;
        let missing = |index| self.damage(index, "a block is partly in the parent, and its sector bitmap is missing".to_owned());
        self.scan(storage, &mut |index, entry| {
            if let Some((chunk, at)) = partial
                && index >= self.geometry.bitmap_index(chunk)
            {
                partial = None;
                if index > self.geometry.bitmap_index(chunk) || !entry.is_present() {
                    report(missing(at))?;
                }
            }
            if let Err(damage) = self.check(index, entry) {
                return report(damage);
            }
            if entry.is_present() && !space.take(self.run(index, entry)) {
                let problem = format!("offset {} of the file is used twice, or lies beyond 128 TiB", entry.offset());
                report(self.damage(index, problem))?;
            }
            if let Owner::Payload(block) = self.geometry.owner(index) {
                blocks += u64::from(entry.is_present());
                if entry.state() == Some(State::Partial) {
                    partial = Some((self.geometry.chunk(block), index));
                }
            }
            Ok(())
        })?;
        partial.map_or(Ok(()), |(_, at)| report(missing(at)))?;
        Ok(blocks)
    }
}

/// Takes what is no block: headers, log and regions.
pub(crate) fn take_structures(space: &mut Space, log: (u64, u64), regions: &[Region]) -> Result<(), Damage> {
    space.take(Run { start: 0, count: 1 });
    space.take(Run { start: log.0 / UNIT, count: log.1 / UNIT });
    for region in regions {
        if !space.take(Run { start: region.offset / UNIT, count: u64::from(region.length) / UNIT }) {
            let problem = format!("a region at offset {} overlaps another, or lies beyond 128 TiB", region.offset);
            return Err(Damage::new("region table", super::layout::REGION_TABLES[0], problem));
        }
    }
    Ok(())
}
