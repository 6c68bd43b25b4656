//! An image that is written while others, who opened it before, go on reading it.
//!
//! That is right for readers who can only see what the writer does not change: those who read a parent through the child that is
//! being merged into it. They keep the pages of tables that they have looked at, and read others when they first need them, so they see
//! some as they were and some as they are now. An entry of a block of which they see something may change in one way only:
//!
//! | was | is | seen by entry and bitmap | |
//! |---|---|---|---|
//! | in no file (zeros) | full | any | what they see of it is zeros in the new block, too |
//! | partial | partial, full | any | the block stays in its place; bits of what they see stay, and if it is full now they were set |
//! | the parent's | partial | old entry | the parent's, as it is |
//! | | | new entry, new bitmap | bits of what they see are not set: the parent's |
//! | | | new entry, old bitmap | right only if the bits were not set before they meant something: [`Image::obstacle_to_readers`] |
//! | | | new entry, old entry of the bitmap | there is none in it; it is read again |
//!
//! Blocks that are freed or moved are ones of which they see nothing. They look for tables where these were when they opened the image, so
//! the BAT must not move. What the log holds is in its place, too, when a commit has ended; readers do not look at it again.

use super::bits::Sectors;
use super::entry::{Entry, State as BlockState};
use super::geometry::Owner;
use super::image::Image;
use super::layout::BAT;
use crate::MapError;

impl Image {
    /// Why this image cannot be written, and made as large as `size`, while others read it who can see nothing of what is changed; `None` if
    /// it can. Looks at all bitmaps.
    ///
    /// # Errors
    /// See [`MapError`].
    pub fn obstacle_to_readers(&self, size: u64) -> Result<Option<&'static str>, MapError> {
        let bat = self.lock().regions.list.iter().find(|region| region.id == BAT).map_or(0, |region| region.length);
        if self.geometry.entries(size) * 8 > bat.into() {
            return Ok(Some("its block allocation table has to move to become larger"));
        }
        Ok(self.has_stale_bits()?.then_some("its bitmaps say something of blocks that are not there"))
    }

    /// Whether bits are set that mean nothing now, and would as soon as their block is partly there.
    fn has_stale_bits(&self) -> Result<bool, MapError> {
        if !self.geometry.has_parent {
            return Ok(false);
        }
        let blocks = self.geometry.blocks(self.size.load(std::sync::atomic::Ordering::Acquire));
        for block in 0..blocks {
            let is_absent = Self::block_state(self.entry(block)?) == BlockState::NotPresent;
            let bitmap = self.entry_at(self.geometry.bitmap_index(self.geometry.chunk(block)))?;
            let Sectors { start, end } = self.block_sectors(block);
            if is_absent && bitmap.is_present() && self.bit_run(Sectors { start, end })? != (false, end - start) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The entry of a bitmap that a block needs, where the one that was read before says that there is none.
    pub(super) fn bitmap_entry_again(&self, index: u64) -> Result<Entry, MapError> {
        debug_assert_eq!(self.geometry.owner(index), Owner::Bitmap);
        let mut bytes = [0; 8];
        self.read(self.bat_offset.load(std::sync::atomic::Ordering::Acquire) + index * 8, &mut bytes)?;
        let entry = Entry(u64::from_le_bytes(bytes));
        self.rules().check(index, entry)?;
        Ok(entry)
    }
}
