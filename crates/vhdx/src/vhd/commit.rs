//! What a commit writes, and in which order.
//!
//! ```text
//!   bitmaps to start from, the footer at the new end ─ FLUSH ─ table sectors, bitmaps ─ FLUSH ─ durable ─ punch what was freed
//! ```
//!
//! VHD has no log. The order alone keeps the file good, whatever part of the writes between two flushes a crash loses:
//!
//! - Before the first flush nothing is written that the file's table or its bitmaps name. The footer that this may overwrite has its copy
//!   at offset 0.
//! - What the table and the bitmaps name after it was stable before: a block's data, its bitmap, and the file's size. Each sector is good
//!   with or without each other, so it does not matter which of them arrive. A bitmap of a new block that does not arrive is the one to
//!   start from: all ones in a dynamic disk; none in a differencing one, which then reads the parent, as it did before.
//! - A commit may fail when it is durable already, and then bitmaps that it wrote for new blocks are in use. The next commit does not
//!   write the one to start from again; it writes theirs, flushes, and then the table.
//! - A place that was freed is punched and used again only after a table that does not name it is stable.

use std::collections::VecDeque;
use std::mem;

use super::footer::SECTOR;
use super::image::{Access, Core, InCommit, State, Tables};
use crate::{Commit, MapError, Mapping, Step};

/// The longest single write of table sectors, in sectors.
const RUN: usize = 2048;

impl Core {
    pub(super) fn next_commit(&self) -> Option<Commit> {
        let plain = |steps: &[Step], id| Some(Commit { steps: steps.iter().cloned().collect(), id });
        if self.access == Access::ReadOnly {
            return plain(&[Step::Durable], 0);
        }
        let Some(tables) = &self.tables else {
            return plain(&[Step::Flush, Step::Durable], 0);
        };
        let mut state = tables.lock();
        if state.commit.is_some() {
            return None;
        }
        state.commits += 1;
        let mut steps = VecDeque::new();
        let carried = InCommit {
            id: state.commits,
            dirty_sectors: mem::take(&mut state.dirty_sectors),
            new_blocks: mem::take(&mut state.new_blocks),
            suspect_blocks: mem::take(&mut state.suspect_blocks),
            bitmaps: Vec::new(),
            footer_at: state.space.end(),
        };
        self.first_phase(tables, &state, &carried, &mut steps);
        steps.push_back(Step::Flush);
        let before = steps.len();
        let bitmaps = tables.bitmaps.begin_commit();
        let carried = InCommit { bitmaps: bitmaps.iter().map(|(block, _)| *block).collect(), ..carried };
        for (block, data) in bitmaps {
            if let Some(offset) = tables.place(block) {
                steps.push_back(Step::Write { offset, data });
            }
        }
        if !carried.suspect_blocks.is_empty() {
            steps.push_back(Step::Flush);
        }
        write_sectors(tables, &carried, &mut steps);
        if steps.len() > before {
            steps.push_back(Step::Flush);
        }
        steps.push_back(Step::Durable);
        // As far as it can: two steps bring back what nobody knows.
        let _ = self.epochs.advance() && self.epochs.advance();
        for range in state.space.begin_commit(self.epochs.generation()) {
            steps.push_back(Step::Punch { offset: range.start, length: range.end - range.start });
        }
        let id = carried.id;
        state.commit = Some(carried);
        Some(Commit { steps, id })
    }

    fn first_phase(&self, tables: &Tables, state: &State, carried: &InCommit, steps: &mut VecDeque<Step>) {
        let value = if self.has_parent() { 0 } else { 0xff };
        for block in &carried.new_blocks {
            if let Some(offset) = tables.place(*block) {
                steps.push_back(Step::Write { offset, data: vec![value; tables.bitmap_size as usize] });
            }
        }
        if state.footer_at != carried.footer_at {
            steps.push_back(Step::Write { offset: carried.footer_at, data: self.footer.bytes().to_vec() });
        }
    }

    pub(super) fn commit_ended(&self, id: u64, durable: bool) {
        let Some(tables) = &self.tables else { return };
        let mut state = tables.lock();
        let Some(carried) = state.commit.take_if(|carried| carried.id == id) else { return };
        if durable {
            state.footer_at = carried.footer_at;
        } else {
            state.dirty_sectors.extend(carried.dirty_sectors);
            if self.has_parent() {
                state.suspect_blocks.extend(carried.new_blocks);
                state.suspect_blocks.extend(carried.suspect_blocks);
            } else {
                state.new_blocks.extend(carried.new_blocks);
            }
        }
        tables.bitmaps.end_commit(&carried.bitmaps, durable);
        state.space.end_commit(durable, self.epochs.generation());
    }

    /// A commit whose steps are done here. No other is under way.
    pub(super) fn commit(&self) -> Result<(), MapError> {
        let Some(mut commit) = self.begin_commit()? else {
            let source = std::io::ErrorKind::ResourceBusy.into();
            return Err(MapError::Io { action: "another commit is under way", source });
        };
        let done = commit.steps.drain(..).try_for_each(|step| match step {
            Step::Write { offset, data } => self.storage.write_at(offset, &data),
            Step::Flush => self.storage.flush(),
            Step::Durable => Ok(()),
            Step::Punch { offset, length } => self.storage.punch(offset, length),
        });
        self.end_commit(commit, done.as_ref().copied().map_err(std::io::Error::kind));
        done.map_err(|source| MapError::Io { action: "the tables cannot be written", source })
    }
}

/// The changed sectors of the table, neighbours together.
fn write_sectors(tables: &Tables, carried: &InCommit, steps: &mut VecDeque<Step>) {
    let mut sectors = carried.dirty_sectors.iter().copied().peekable();
    while let Some(first) = sectors.next() {
        let mut data: Vec<u8> = tables.sector(first).flatten().collect();
        let mut last = first;
        while let Some(next) = sectors.next_if(|next| *next == last + 1 && ((next - first) as usize) < RUN) {
            data.extend(tables.sector(next).flatten());
            last = next;
        }
        steps.push_back(Step::Write { offset: tables.header.table_offset() + u64::from(first) * SECTOR, data });
    }
}
