//! Makes the file smaller: blocks move to the front, and it is cut off behind the last.
//!
//! ```text
//!   copies of blocks in free places ─ FLUSH ─ table sectors ─ FLUSH ─ punch the old places     again, until none can move
//!   footer behind the last block ─ FLUSH ─ cut the file ─ FLUSH
//! ```
//! A block's copy is stable before the table names it; a crash finds each sector of the table with the old places or the new ones, and
//! both hold the same.

use std::io;
use std::sync::PoisonError;

use super::bytes::round_up;
use super::error::Action;
use super::footer::SECTOR;
use super::image::{Access, Core};
use super::layout::own_ranges;
use crate::{MapError, Mapping};

impl Core {
    /// See [`Image::move_to_front`](super::Image::move_to_front).
    pub(super) fn move_to_front(
        &mut self,
        most: usize,
        copy: &mut dyn FnMut(u64, u64, u64) -> io::Result<()>,
    ) -> Result<u64, MapError> {
        if self.access == Access::ReadOnly {
            return Err(MapError::ReadOnly);
        }
        if self.epochs.count() > 0 {
            return Err(MapError::Io {
                action: "requests to the disk are under way",
                source: io::ErrorKind::ResourceBusy.into(),
            });
        }
        // What was freed, or was found free, is used only after it was punched.
        while !self.is_clean() {
            self.commit()?;
        }
        let Some(tables) = &self.tables else { return Ok(0) };
        let mut blocks: Vec<(u64, u32)> =
            (0..tables.entries.len() as u32).filter_map(|block| Some((tables.place(block)?, block))).collect();
        blocks.sort_unstable();
        let slot = tables.bitmap_size + tables.block_size;
        let mut state = tables.lock();
        let mut moved = Vec::new();
        for (from, block) in blocks.into_iter().rev().take(most) {
            let Some(to) = state.space.take_before(from) else { break };
            if let Err(source) = copy(from, to, slot) {
                // It holds no zeros any more, and no table ever named it.
                moved.push((block, from, to));
                moved.into_iter().for_each(|(_, _, to)| state.space.release(to, self.epochs.generation()));
                return Err(MapError::Io { action: "moving a block", source });
            }
            moved.push((block, from, to));
        }
        if moved.is_empty() {
            drop(state);
            self.cut_end()?;
            return Ok(0);
        }
        // The commit flushes the copies before it writes the table.
        for (block, from, to) in &moved {
            tables.set_place(&mut state, *block, Some(*to));
            state.space.release(*from, self.epochs.generation());
        }
        drop(state);
        self.commit()?;
        Ok(moved.len() as u64)
    }

    /// Puts the footer right behind all that is in the file. Nothing waits for a commit.
    fn cut_end(&mut self) -> Result<(), MapError> {
        let Some(tables) = &mut self.tables else { return Ok(()) };
        let slot = tables.bitmap_size + tables.block_size;
        let own = own_ranges(&self.footer, &tables.header).into_iter().map(|range| range.1);
        let blocks = (0..tables.entries.len() as u32).filter_map(|block| Some(tables.place(block)? + slot));
        let end = round_up(own.chain(blocks).max().unwrap_or(0), SECTOR);
        let state = tables.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        if end >= state.footer_at {
            return Ok(());
        }
        // Until the file is cut, the old footer is the last one, and says the same.
        self.storage.write_at(end, self.footer.bytes()).during::<MapError>("the footer cannot be written")?;
        self.storage.flush().during::<MapError>("the file cannot be flushed")?;
        self.storage.set_size(end + SECTOR).during::<MapError>("the file cannot be made shorter")?;
        self.storage.flush().during::<MapError>("the file cannot be flushed")?;
        state.space.cut(end);
        state.footer_at = end;
        Ok(())
    }
}
