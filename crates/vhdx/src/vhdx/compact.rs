//! Makes the file smaller: blocks that hold zeros leave it, and others move to the front.
//!
//! A block's copy is stable before the table names it, and the table changes through the log: a crash finds the old place or the new
//! one. What children know the image by stays, because what it holds does.

use std::io;

use super::entry::{Entry, State as BlockState};
use super::geometry::Owner;
use super::image::{Image, PageKey};
use super::layout::UNIT;
use super::session::Changes;
use super::space::Run;
use super::table::WORDS;
use crate::{MapError, Mapping};

/// A block that is in the file.
struct Placed {
    index: u64,
    entry: Entry,
    run: Run,
}

impl Image {
    /// Frees a block of which the caller has seen that all its bytes are zeros. No request is under way.
    ///
    /// # Errors
    /// See [`MapError`].
    pub fn release_zeros(&self, block: u64) -> Result<(), MapError> {
        let mut state = self.lock_idle();
        let index = self.geometry.payload_index(block);
        let entry = self.entry_at(index)?;
        if !entry.is_present() || self.is_fixed {
            return Ok(());
        }
        self.start_session(&mut state, Changes::Tables)?;
        state.make_room(&[PageKey::Bat(index / WORDS)], self.log_capacity)?;
        self.set_entry(&mut state, index, Entry::ZERO)?;
        state.space.give_back(Run { start: entry.offset() / UNIT, count: self.geometry.block_units() });
        Ok(())
    }

    /// Moves up to `most` blocks from the end of the file into free space before them; answers how many. No request is under way.
    /// `copy` gets the old offset, the new one, and a length.
    ///
    /// # Errors
    /// See [`MapError`]; blocks are where they were then, or in their new place.
    pub fn move_to_front(&self, most: usize, copy: &mut dyn FnMut(u64, u64, u64) -> io::Result<()>) -> Result<u64, MapError> {
        let mut state = self.lock_idle();
        self.start_session(&mut state, Changes::Tables)?;
        // What a crash left free is used only after it was punched.
        while !self.is_space_settled(&mut state) {
            self.commit_now(&mut state, Vec::new())?;
        }
        let last = self.last_blocks(most)?;
        let file_size = state.file_size;
        let mut moved: Vec<(Placed, Run)> = Vec::new();
        let mut keys: Vec<PageKey> = Vec::new();
        for placed in last {
            let key = PageKey::Bat(placed.index / WORDS);
            let run = state.space.find(placed.run.count);
            if run.start > placed.run.start || (!keys.contains(&key) && keys.len() == self.log_capacity) {
                continue;
            }
            if !keys.contains(&key) {
                keys.push(key);
            }
            state.space.take(run);
            let length = placed.run.length().min(file_size.saturating_sub(placed.run.offset()));
            if let Err(source) = copy(placed.run.offset(), run.offset(), length) {
                // What was written there is nobody's: the next open finds the gap.
                state.is_broken = true;
                return Err(MapError::Io { action: "moving a block", source });
            }
            moved.push((placed, run));
        }
        if moved.is_empty() {
            return Ok(0);
        }
        self.storage.flush().map_err(|source| MapError::Io { action: "moving blocks", source })?;
        for (placed, run) in &moved {
            let entry = match (self.geometry.owner(placed.index), Self::block_state(placed.entry)) {
                (Owner::Payload(_), BlockState::Partial) => Entry::partial(run.offset()),
                _ => Entry::full(run.offset()),
            };
            self.set_entry(&mut state, placed.index, entry)?;
            state.space.give_back(placed.run);
        }
        self.commit_now(&mut state, Vec::new())?;
        Ok(moved.len() as u64)
    }

    /// The blocks and bitmaps that are nearest to the file's end, the last one first.
    fn last_blocks(&self, most: usize) -> Result<Vec<Placed>, MapError> {
        let mut found = std::collections::BTreeMap::new();
        self.visit_entries(0, self.geometry.entries(self.size()), &mut |index, entry| {
            if entry.is_present() {
                found.insert(entry.offset(), (index, entry));
                if found.len() > most {
                    found.pop_first();
                }
            }
        })?;
        let placed = found.into_iter().rev().map(|(offset, (index, entry))| {
            let count = if self.geometry.owner(index) == Owner::Bitmap { 1 } else { self.geometry.block_units() };
            Placed { index, entry, run: Run { start: offset / UNIT, count } }
        });
        Ok(placed.collect())
    }
}
