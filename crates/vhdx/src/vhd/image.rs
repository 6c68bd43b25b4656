//! An open image: its tables in memory, and what is not yet in the file.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::bitmaps::Bitmaps;
use super::error::{Action, OpenError, ParentError, ResizeError};
use super::footer::{Footer, Kind, SECTOR, Timestamp, UniqueId};
use super::header::Header;
use super::layout::{ABSENT, Blocks, Footers, Layout, bitmap_size, slot_size, table_size};
use super::parent::{ParentName, read_parent};
use super::space::{Shape, Space};
use crate::epochs::Epochs;
use crate::{Commit, Extent, MapError, Mapping, Storage, Ticket};

/// What an image is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Nothing is written to its file.
    ReadOnly,
    /// What a crash left behind is put in order at once; otherwise the file changes only with requests and commits.
    ReadWrite,
}

/// How the two footers of an image were found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FooterState {
    /// All that there must be is there, and the same.
    Good,
    /// The last one is damaged or missing; its copy at the beginning is good.
    EndDamaged,
    /// The copy at the beginning is damaged or differs; the one at the end is good.
    CopyDamaged,
    /// The last one has 511 bytes, as old versions of Virtual PC wrote it.
    Short,
}

/// What an image says about itself.
#[derive(Clone, Debug)]
pub struct Info {
    /// How it takes space.
    pub kind: Kind,
    /// The virtual disk's size in bytes.
    pub size: u64,
    /// What tells it from other disks.
    pub id: UniqueId,
    /// When it was made.
    pub created: Timestamp,
    /// Four letters that the program that made it chose for itself.
    pub creator: String,
    /// The state of its footers as they were when it was opened.
    pub footers: FooterState,
    /// In bytes; `None` for fixed disks.
    pub block_size: Option<u32>,
    /// How many blocks are in the file; `None` for fixed disks.
    pub allocated_blocks: Option<u64>,
    /// Whom a differencing disk reads what it does not have from.
    pub parent: Option<ParentName>,
}

/// An open VHD; see [`Mapping`] for what it answers.
pub struct Image {
    /// Written only when the disk gets another size or parent.
    core: RwLock<Core>,
    /// Whether a commit is under way, or something that none may disturb.
    is_busy: Mutex<bool>,
    /// Rings when that ends.
    idle: Condvar,
}

/// An image as it is between two changes of its size or parent.
pub(super) struct Core {
    pub(super) storage: Arc<dyn Storage>,
    pub(super) access: Access,
    pub(super) footers: FooterState,
    pub(super) footer: Footer,
    pub(super) parent: Option<ParentName>,
    pub(super) epochs: Epochs,
    /// Of dynamic and differencing disks.
    pub(super) tables: Option<Tables>,
}

/// The tables of a dynamic or differencing disk.
pub(super) struct Tables {
    pub header: Header,
    pub block_size: u64,
    pub bitmap_size: u64,
    /// Where each block's bitmap is, in sectors of the file. Read without a lock, changed under `state`.
    pub entries: Vec<AtomicU32>,
    pub bitmaps: Bitmaps,
    /// The header in the file may be another than the one here.
    pub is_broken: bool,
    pub state: Mutex<State>,
}

/// What changes under one lock, never held during I/O on data.
pub(super) struct State {
    pub space: Space,
    /// Where the last footer is in the file.
    pub footer_at: u64,
    /// Sectors of the table that are not in the file as they are in memory.
    pub dirty_sectors: BTreeSet<u32>,
    /// Blocks whose bitmap in the file is not yet one to start from.
    pub new_blocks: BTreeSet<u32>,
    /// New blocks of a differencing disk whose commit failed, perhaps only after it was durable: their bitmaps may be in use.
    pub suspect_blocks: BTreeSet<u32>,
    pub commit: Option<InCommit>,
    pub commits: u64,
}

/// What the commit under way carries, to be done again if it fails.
pub(super) struct InCommit {
    pub id: u64,
    pub dirty_sectors: BTreeSet<u32>,
    pub new_blocks: BTreeSet<u32>,
    pub suspect_blocks: BTreeSet<u32>,
    pub bitmaps: Vec<u32>,
    pub footer_at: u64,
}

impl Tables {
    /// Where a block's bitmap is; its data is right behind.
    pub fn place(&self, block: u32) -> Option<u64> {
        let entry = self.entries[block as usize].load(Ordering::SeqCst);
        (entry != ABSENT).then_some(u64::from(entry) * SECTOR)
    }

    pub fn set_place(&self, state: &mut State, block: u32, place: Option<u64>) {
        let entry = place.map_or(ABSENT, |place| (place / SECTOR) as u32);
        self.entries[block as usize].store(entry, Ordering::SeqCst);
        state.dirty_sectors.insert(block / 128);
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A sector of the table as it is in memory.
    pub fn sector(&self, sector: u32) -> impl Iterator<Item = [u8; 4]> {
        let first = sector as usize * 128;
        (first..first + 128)
            .map(|index| self.entries.get(index).map_or(ABSENT, |entry| entry.load(Ordering::SeqCst)).to_be_bytes())
    }
}

/// No commit is under way, and none begins, as long as this exists.
struct Quiet<'a>(&'a Image);

impl Drop for Quiet<'_> {
    fn drop(&mut self) {
        self.0.end_busy();
    }
}

impl Image {
    /// Opens an image. With [`Access::ReadWrite`] a footer that is missing at the end, or wrong at the beginning, is written again from
    /// the other: after a crash this is how a good image looks.
    ///
    /// # Errors
    /// The first thing in the file that is not as it must be. Nothing is written then.
    pub fn open(storage: Arc<dyn Storage>, access: Access) -> Result<Image, OpenError> {
        let core = Core::open(storage, access)?;
        Ok(Image { core: RwLock::new(core), is_busy: Mutex::new(false), idle: Condvar::new() })
    }

    fn read(&self) -> RwLockReadGuard<'_, Core> {
        self.core.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Core> {
        self.core.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn busy(&self) -> MutexGuard<'_, bool> {
        self.is_busy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end_busy(&self) {
        *self.busy() = false;
        self.idle.notify_all();
    }

    /// Waits until no commit is under way.
    fn quiet(&self) -> Quiet<'_> {
        let mut busy = self.idle.wait_while(self.busy(), |busy| *busy).unwrap_or_else(PoisonError::into_inner);
        *busy = true;
        Quiet(self)
    }

    /// What the image says about itself.
    #[must_use]
    pub fn info(&self) -> Info {
        self.read().info()
    }

    /// Makes durable what is complete, on this thread; waits for a commit that is under way elsewhere.
    ///
    /// # Errors
    /// If a step failed. What the commit carried is part of the next one.
    pub fn commit(&self) -> Result<(), MapError> {
        let _quiet = self.quiet();
        self.read().commit()
    }

    /// Writes everything, and gives back what was freed. All tickets must be back: what they complete later is not in the file, and what
    /// they know is not given back.
    ///
    /// # Errors
    /// If something could not be written; nothing that was flushed is lost.
    pub fn close(&self) -> Result<(), MapError> {
        let _quiet = self.quiet();
        let core = self.read();
        // A commit takes what was freed out of the table, the next one punches it.
        while core.access == Access::ReadWrite && !core.is_clean() {
            core.commit()?;
            if core.epochs.count() > 0 {
                break;
            }
        }
        Ok(())
    }

    /// Gives the disk another size in bytes; what is new reads as zeros, what is past a smaller size is lost. Durable when it returns. A
    /// crash leaves the old or the new size. Waits for a commit that is under way; a disk that grows may be in use meanwhile.
    ///
    /// # Errors
    /// See [`ResizeError`]. After [`ResizeError::Io`] the image has to be opened again.
    pub fn resize(&self, size: u64) -> Result<(), ResizeError> {
        let _quiet = self.quiet();
        self.write().resize(size)
    }

    /// Names another parent, for one that was moved, or that has another id but is known to hold the same data. Durable when it returns;
    /// a crash leaves the old or the new parent. Waits for a commit that is under way.
    ///
    /// # Errors
    /// See [`ParentError`]. What could not be written is the old parent still, or the new one.
    pub fn set_parent(&self, parent: ParentName) -> Result<(), ParentError> {
        let _quiet = self.quiet();
        self.write().set_parent(parent)
    }

    /// Moves up to `most` blocks from the end of the file into free space before them; answers how many. When there is none left to
    /// move, the file is cut off behind the last. No request is under way. `copy` gets the old offset, the new one, and a length.
    ///
    /// # Errors
    /// See [`MapError`]; blocks are where they were then, or in their new place.
    pub fn move_to_front(
        &self,
        most: usize,
        copy: &mut dyn FnMut(u64, u64, u64) -> std::io::Result<()>,
    ) -> Result<u64, MapError> {
        let _quiet = self.quiet();
        self.write().move_to_front(most, copy)
    }
}

impl Core {
    fn open(storage: Arc<dyn Storage>, access: Access) -> Result<Core, OpenError> {
        let Layout { footers, footer, blocks } = Layout::read(&*storage)?;
        let state = footer_state(&footers, &footer);
        if access == Access::ReadWrite {
            if footers.short && footers.end_is_good() {
                return Err(OpenError::ShortFooter(footers.end_offset));
            }
            if let Some(blocks) = &blocks
                && state != FooterState::Good
            {
                heal(&*storage, &footers, &footer, blocks)?;
            }
        }
        let parent = match &blocks {
            Some(blocks) if footer.kind() == Kind::Differencing => Some(read_parent(&*storage, &blocks.header)?),
            _ => None,
        };
        let footer_at = if footers.end_is_good() {
            footers.end_offset
        } else {
            blocks.as_ref().map_or(footers.end_offset, |blocks| blocks.end)
        };
        let tables = blocks.map(|blocks| tables(&footer, blocks, footer_at));
        let mut core = Core { storage, access, footers: state, footer, parent, epochs: Epochs::default(), tables };
        if access == Access::ReadWrite {
            core.release_past_end();
        }
        Ok(core)
    }

    fn info(&self) -> Info {
        let allocated =
            |tables: &Tables| tables.entries.iter().filter(|entry| entry.load(Ordering::Relaxed) != ABSENT).count() as u64;
        Info {
            kind: self.footer.kind(),
            size: self.footer.size(),
            id: self.footer.id(),
            created: self.footer.created(),
            creator: self.footer.creator(),
            footers: self.footers,
            block_size: self.tables.as_ref().map(|tables| tables.block_size as u32),
            allocated_blocks: self.tables.as_ref().map(allocated),
            parent: self.parent.clone(),
        }
    }
}

impl std::fmt::Debug for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Image").field("info", &self.info()).finish_non_exhaustive()
    }
}

impl Mapping for Image {
    fn size(&self) -> u64 {
        self.read().size()
    }

    fn logical_sector_size(&self) -> u32 {
        self.read().logical_sector_size()
    }

    fn physical_sector_size(&self) -> u32 {
        self.read().physical_sector_size()
    }

    fn block_size(&self) -> u32 {
        self.read().block_size()
    }

    fn has_parent(&self) -> bool {
        self.read().has_parent()
    }

    fn map_read(&self, offset: u64, length: u64, extents: &mut Vec<Extent>) -> Result<Ticket, MapError> {
        self.read().map_read(offset, length, extents)
    }

    fn map_write(&self, offset: u64, length: u64, extents: &mut Vec<Extent>) -> Result<Ticket, MapError> {
        self.read().map_write(offset, length, extents)
    }

    fn map_zero(&self, offset: u64, length: u64, extents: &mut Vec<Extent>) -> Result<Ticket, MapError> {
        self.read().map_zero(offset, length, extents)
    }

    fn map_discard(&self, offset: u64, length: u64, extents: &mut Vec<Extent>) -> Result<Ticket, MapError> {
        self.read().map_discard(offset, length, extents)
    }

    fn complete(&self, ticket: Ticket) {
        self.read().complete(ticket);
    }

    fn finish(&self, ticket: Ticket) {
        self.read().finish(ticket);
    }

    fn is_clean(&self) -> bool {
        self.read().is_clean()
    }

    fn begin_commit(&self) -> Result<Option<Commit>, MapError> {
        let mut busy = self.busy();
        if *busy {
            return Ok(None);
        }
        let commit = self.read().begin_commit()?;
        *busy = commit.is_some();
        Ok(commit)
    }

    fn end_commit(&self, commit: Commit, result: Result<(), std::io::ErrorKind>) {
        self.read().end_commit(commit, result);
        self.end_busy();
    }
}

pub(super) fn footer_state(footers: &Footers, footer: &Footer) -> FooterState {
    if !footers.end_is_good() {
        FooterState::EndDamaged
    } else if footers.short {
        FooterState::Short
    } else if footer.kind() != Kind::Fixed && footers.copy.as_ref() != Ok(footer) {
        FooterState::CopyDamaged
    } else {
        FooterState::Good
    }
}

/// Brings both footers in order. What lies past the last block without a footer behind it is what a crash left of blocks that were never
/// promised to anybody; it is cut off, since new blocks must be zeros.
pub(super) fn heal(storage: &dyn Storage, footers: &Footers, footer: &Footer, blocks: &Blocks) -> Result<(), OpenError> {
    if footers.end_is_good() {
        storage.write_at(0, footer.bytes()).during::<OpenError>("the footer's copy cannot be written")?;
    } else {
        storage.set_size(blocks.end).during::<OpenError>("what a crash left at the end cannot be cut off")?;
        storage.write_at(blocks.end, footer.bytes()).during::<OpenError>("the footer cannot be written")?;
    }
    storage.flush().during("the file cannot be flushed")
}

fn tables(footer: &Footer, blocks: Blocks, footer_at: u64) -> Tables {
    let Blocks { header, table, sorted, .. } = blocks;
    let block_size = header.block_size();
    let count = footer.size().div_ceil(u64::from(block_size)) as usize;
    let slot = slot_size(block_size);
    let mut gaps: Vec<Range<u64>> = Vec::new();
    let mut at = None;
    for start in sorted.iter().map(|sector| u64::from(*sector) * SECTOR) {
        // What is before the first block may be of a kind that this code does not know; it is left alone.
        if let Some(at) = at.filter(|at| *at < start) {
            gaps.push(at..start);
        }
        at = Some(start + slot);
    }
    let own = [footer.header_offset()..footer.header_offset() + 1024, {
        let table = header.table_offset();
        table..table + table_size(header.entries())
    }];
    let locators = header.locators().map(|locator| locator.offset..locator.offset.saturating_add(u64::from(locator.length)));
    for own in own.into_iter().chain(locators) {
        gaps.retain(|gap| gap.end <= own.start || own.end <= gap.start);
    }
    let aligned = slot + 4096;
    let alignment = if footer_at + count as u64 * aligned < u64::from(u32::MAX) * SECTOR { 4096 } else { SECTOR };
    let shape = Shape { bitmap: bitmap_size(block_size), block: u64::from(block_size), alignment };
    let entries: Vec<AtomicU32> = table.into_iter().map(AtomicU32::new).collect();
    Tables {
        bitmaps: Bitmaps::new(entries.len(), shape.bitmap as usize, u64::from(block_size) / SECTOR),
        entries,
        block_size: u64::from(block_size),
        bitmap_size: shape.bitmap,
        header,
        is_broken: false,
        state: Mutex::new(State {
            space: Space::new(shape, footer_at, gaps),
            footer_at,
            dirty_sectors: BTreeSet::new(),
            new_blocks: BTreeSet::new(),
            suspect_blocks: BTreeSet::new(),
            commit: None,
            commits: 0,
        }),
    }
}
