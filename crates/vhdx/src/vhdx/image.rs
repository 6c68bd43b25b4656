//! An open image: its parts, and what can be asked about it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Acquire};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::entry::{Entry, State as BlockState};
use super::geometry::{Geometry, Owner};
use super::header::Headers;
use super::layout::PAGE;
use super::locator::Parent;
use super::log::LogWriter;
use super::metadata::Item;
use super::open::Access;
use super::regions::Regions;
use super::scan::Rules;
use super::space::Space;
use super::table::{Page, Table, WORDS};
use crate::epochs::Epochs;
use crate::{Guid, MapError, Storage};

/// An open VHDX image; see [`Mapping`](crate::Mapping) for what it answers.
///
/// Dropped without [`Image::close`], it leaves its log in use, and the next open replays that: nothing that was flushed is lost.
pub struct Image {
    pub(super) storage: Arc<dyn Storage>,
    pub(super) access: Access,
    pub(super) geometry: Geometry,
    pub(super) block_size: u32,
    pub(super) logical: u32,
    pub(super) physical: u32,
    pub(super) is_fixed: bool,
    pub(super) disk_id: Guid,
    pub(super) size: AtomicU64,
    pub(super) bat_offset: AtomicU64,
    /// Where the file really ends, if it is read under a replayed log that would have made it longer.
    pub(super) data_end: u64,
    pub(super) bat: Table,
    /// Page 256 x chunk + n is the n-th of the chunk's sector bitmap.
    pub(super) bitmaps: Table,
    pub(super) tickets: Epochs,
    /// Whether the headers say that the file is being changed.
    pub(super) started: AtomicBool,
    /// Rings when a commit ends.
    pub(super) idle: Condvar,
    /// Pages that one commit can carry.
    pub(super) log_capacity: usize,
    pub(super) state: Mutex<State>,
}

/// What is changed under the lock.
pub(super) struct State {
    pub(super) headers: Headers,
    pub(super) regions: Regions,
    pub(super) items: Vec<Item>,
    pub(super) parent: Option<Parent>,
    /// There once the image was changed.
    pub(super) log: Option<LogWriter>,
    pub(super) space: Space,
    pub(super) file_size: u64,
    /// What of it survives a crash.
    pub(super) flushed_size: u64,
    /// Space that was punched since the last flush is, or may soon be, in use again.
    pub(super) has_new_holes: bool,
    /// Pages that are, or may become, part of a commit. Never more than one log entry can carry.
    pub(super) pages: BTreeMap<PageKey, PageUse>,
    /// How many of them are dirty.
    pub(super) dirty: usize,
    pub(super) flying: Option<Flying>,
    pub(super) last_id: u64,
    /// The identity that was promised for the next change of data.
    pub(super) next_data_write_guid: Option<Guid>,
    /// File and memory may differ in what cannot be written again.
    pub(super) is_broken: bool,
}

/// A page of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum PageKey {
    Bat(u64),
    Bitmap(u64),
}

/// Why a page is in [`State::pages`].
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PageUse {
    /// Changed since the last commit began.
    pub(super) dirty: bool,
    /// In the commit that is under way.
    pub(super) flying: bool,
    /// Tickets that will change it when they are completed.
    pub(super) held: u32,
}

/// The commit that is under way.
pub(super) struct Flying {
    pub(super) id: u64,
    /// Of its log entry.
    pub(super) length: u64,
    /// Of the file when it began.
    pub(super) file_size: u64,
}

impl State {
    pub(super) fn refuse_if_broken(&self) -> Result<(), MapError> {
        if self.is_broken {
            let action = "changing the image: an earlier failure left its tables unsure; open it again";
            return Err(MapError::Io { action, source: std::io::ErrorKind::Other.into() });
        }
        Ok(())
    }

    /// Refuses a change that would touch more pages than one commit can carry.
    pub(super) fn make_room(&self, keys: &[PageKey], capacity: usize) -> Result<(), MapError> {
        let new = keys.iter().filter(|key| !self.pages.contains_key(key)).count();
        if self.pages.len() + new > capacity { Err(MapError::CommitFirst) } else { Ok(()) }
    }

    pub(super) fn mark_dirty(&mut self, key: PageKey) {
        let page = self.pages.entry(key).or_default();
        self.dirty += usize::from(!page.dirty);
        page.dirty = true;
    }
}

/// What an image says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// Bytes of the virtual disk.
    pub size: u64,
    /// The unit in which space is taken.
    pub block_size: u32,
    /// 512 or 4096.
    pub logical_sector_size: u32,
    /// 512 or 4096.
    pub physical_sector_size: u32,
    /// All blocks keep their place.
    pub is_fixed: bool,
    /// The virtual disk's identity.
    pub disk_id: Guid,
    /// Changes when the file is opened and changed in any way.
    pub file_write_guid: Guid,
    /// Changes when the data is changed; children know their parent by it.
    pub data_write_guid: Guid,
    /// Where a differencing image's parent is.
    pub parent: Option<Parent>,
    /// Bytes of the log.
    pub log_size: u32,
    /// The log holds changes: the file was, or is being, changed and not closed.
    pub log_in_use: bool,
    /// Bytes of the file.
    pub file_size: u64,
}

impl std::fmt::Debug for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Image").field("disk_id", &self.disk_id).field("access", &self.access).finish_non_exhaustive()
    }
}

impl Image {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the image says about itself.
    #[must_use]
    pub fn info(&self) -> Info {
        let state = self.lock();
        let header = &state.headers.current;
        Info {
            size: self.size.load(Acquire),
            block_size: self.block_size,
            logical_sector_size: self.logical,
            physical_sector_size: self.physical,
            is_fixed: self.is_fixed,
            disk_id: self.disk_id,
            file_write_guid: header.file_write_guid,
            data_write_guid: header.data_write_guid,
            parent: state.parent.clone(),
            log_size: header.log_length,
            log_in_use: !header.log_guid.is_zero(),
            file_size: state.file_size,
        }
    }

    /// How many payload blocks are in the file. Looks at the whole table.
    ///
    /// # Errors
    /// See [`MapError`].
    pub fn allocated_blocks(&self) -> Result<u64, MapError> {
        let epoch = self.tickets.enter();
        let mut count = 0;
        let entries = self.geometry.entries(self.size.load(Acquire));
        let result = self.visit_entries(0, entries, &mut |index, entry| {
            count += u64::from(entry.is_present() && self.geometry.owner(index) != Owner::Bitmap);
        });
        self.tickets.leave(epoch);
        result.map(|()| count)
    }

    /// Whether the table says nothing of any block: all of a differencing image is its parent's. Looks at the whole table.
    ///
    /// # Errors
    /// See [`MapError`].
    pub fn is_empty(&self) -> Result<bool, MapError> {
        let epoch = self.tickets.enter();
        let mut is_empty = true;
        let entries = self.geometry.entries(self.size.load(Acquire));
        let result = self.visit_entries(0, entries, &mut |index, entry| {
            let is_block = self.geometry.owner(index) != Owner::Bitmap;
            is_empty &= !is_block || matches!(Self::block_state(entry), BlockState::NotPresent);
        });
        self.tickets.leave(epoch);
        result.map(|()| is_empty)
    }

    /// Calls `visit` for the entries from `first` to before `end`, without keeping pages that are not in memory; holes are passed over.
    pub(super) fn visit_entries(&self, first: u64, end: u64, visit: &mut dyn FnMut(u64, Entry)) -> Result<(), MapError> {
        let offset = self.bat_offset.load(Acquire);
        let mut data = offset;
        let mut number = first / WORDS;
        while number * WORDS < end {
            let at = offset + number * PAGE as u64;
            let loaded;
            let page = match self.bat.get(number) {
                Some(page) => page,
                None => {
                    if data < at + PAGE as u64 {
                        let next = self.storage.next_data(at.max(data));
                        data = next
                            .map_err(|source| MapError::Io { action: "reading the image's tables", source })?
                            .unwrap_or(u64::MAX);
                    }
                    if data >= at + PAGE as u64 {
                        number += 1;
                        continue;
                    }
                    data = at;
                    let mut bytes = [0; PAGE];
                    self.read(at, &mut bytes)?;
                    loaded = Page::decode(&bytes);
                    &*loaded
                }
            };
            for index in (number * WORDS).max(first)..((number + 1) * WORDS).min(end) {
                visit(index, Entry(page.get(index % WORDS)));
            }
            number += 1;
        }
        Ok(())
    }

    pub(super) fn rules(&self) -> Rules {
        let file_size = self.storage.size().unwrap_or(0);
        Rules { geometry: self.geometry, size: self.size.load(Acquire), file_size, bat_offset: self.bat_offset.load(Acquire) }
    }

    /// A page of the BAT; read from the file and checked when it is first asked for.
    pub(super) fn bat_page(&self, number: u64) -> Result<&Page, MapError> {
        match self.bat.get(number) {
            Some(page) => Ok(page),
            None => self.load_bat_page(number),
        }
    }

    #[cold]
    fn load_bat_page(&self, number: u64) -> Result<&Page, MapError> {
        let mut bytes = [0; PAGE];
        self.read(self.bat_offset.load(Acquire) + number * PAGE as u64, &mut bytes)?;
        let page = Page::decode(&bytes);
        // Afterwards: who else writes the file makes it longer before an entry leads there.
        let rules = self.rules();
        let entries = self.geometry.entries(rules.size);
        for slot in 0..WORDS {
            match number * WORDS + slot {
                index if index >= entries => page.set(slot, 0),
                index => rules.check(index, Entry(page.get(slot)))?,
            }
        }
        Ok(self.bat.install(number, page))
    }

    pub(super) fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), MapError> {
        self.storage.read_at(offset, bytes).map_err(|source| MapError::Io { action: "reading the image's tables", source })
    }

    /// The BAT's entry at an index.
    pub(super) fn entry_at(&self, index: u64) -> Result<Entry, MapError> {
        Ok(Entry(self.bat_page(index / WORDS)?.get(index % WORDS)))
    }

    /// A payload block's entry.
    pub(super) fn entry(&self, block: u64) -> Result<Entry, MapError> {
        self.entry_at(self.geometry.payload_index(block))
    }

    /// Changes an entry of a page that is loaded, and marks it.
    pub(super) fn set_entry(&self, state: &mut State, index: u64, entry: Entry) -> Result<(), MapError> {
        self.bat_page(index / WORDS)?.set(index % WORDS, entry.0);
        state.mark_dirty(PageKey::Bat(index / WORDS));
        Ok(())
    }

    /// What a block is. Entries were checked when their page was loaded.
    pub(super) fn block_state(entry: Entry) -> BlockState {
        entry.state().unwrap_or(BlockState::Zero)
    }
}
