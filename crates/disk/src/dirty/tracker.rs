//! The maps of one disk, and the file that keeps them.

use std::collections::BTreeMap;
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use super::error::{MapError, OpenError, PersistError};
use super::file::{MapFile, Opened};
use super::snapshot::Part;
use super::{DirtyMap, Granularity, Identity, MAX_MAPS, MAX_NAME, Storage};

/// All maps of a disk. Clones are the same.
///
/// ```
/// use disk::dirty::{Granularity, Tracker};
/// let tracker = Tracker::in_memory(1 << 30);
/// tracker.add("nightly", Granularity::DEFAULT)?;
/// let mut marker = tracker.marker();
/// marker.write_begins(5 << 20, 4096)?;
/// // ... the write itself ...
/// marker.write_ended(5 << 20, 4096);
/// let taken = tracker.take("nightly", 0..1 << 30)?;
/// assert_eq!(taken.iter().collect::<Vec<_>>(), [5 << 20..(5 << 20) + 65536]);
/// taken.confirm();
/// assert_eq!(tracker.count("nightly")?, 0);
/// # Ok::<(), disk::dirty::MapError>(())
/// ```
#[derive(Clone)]
pub struct Tracker {
    shared: Arc<Shared>,
}

struct Shared {
    size: u64,
    maps: RwLock<Maps>,
    /// Changes with `maps`; a marker that has the same number has the same maps.
    version: AtomicU64,
    /// Held by everything that is rare: adding, removing, taking, checkpoints.
    rare: Mutex<()>,
    file: Option<MapFile>,
}

type Maps = Arc<[Arc<Named>]>;

struct Named {
    name: String,
    live: DirtyMap,
    /// What was taken and is neither confirmed nor back.
    taken: Mutex<BTreeMap<usize, Arc<DirtyMap>>>,
}

/// What opening found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recovery {
    /// Nothing was written after the last checkpoint; the maps are exact.
    Exact,
    /// The last user did not stop cleanly, or the disk has grown.
    Widened {
        /// So many bytes were marked because they may have been written.
        bytes: u64,
    },
}

impl Tracker {
    /// Maps that end with the process.
    pub fn in_memory(size: u64) -> Tracker {
        Tracker::build(size, Vec::new(), None)
    }

    /// Makes a new file of maps, without any in it, over whatever the storage holds. `path` is what error texts call it.
    pub fn create(storage: Box<dyn Storage>, path: impl Into<PathBuf>, identity: Identity) -> Result<Tracker, PersistError> {
        let file = MapFile::create(storage, path.into(), identity)?;
        Ok(Tracker::build(identity.size, Vec::new(), Some(file)))
    }

    /// Opens the maps of a disk that is as `identity` says now. A disk may have grown; the new part is marked then. To grow one in use, pause
    /// its queues, make a checkpoint, grow the disk and open the maps again.
    pub fn open(
        storage: Box<dyn Storage>,
        path: impl Into<PathBuf>,
        identity: Identity,
    ) -> Result<(Tracker, Recovery), OpenError> {
        let Opened { file, maps, widened_bytes: bytes, grown } = MapFile::open(storage, path.into(), identity)?;
        let recovery = if bytes == 0 { Recovery::Exact } else { Recovery::Widened { bytes } };
        let tracker = Tracker::build(identity.size, maps, Some(file));
        if grown {
            let io = |PersistError { path, action, source }| OpenError::Io { path, action, source };
            tracker.checkpoint().map_err(io)?;
        }
        Ok((tracker, recovery))
    }

    fn build(size: u64, maps: Vec<(String, DirtyMap)>, file: Option<MapFile>) -> Tracker {
        let maps = maps.into_iter().map(|(name, live)| Arc::new(Named { name, live, taken: Mutex::default() })).collect();
        let shared = Shared { size, maps: RwLock::new(maps), version: AtomicU64::new(0), rare: Mutex::new(()), file };
        Tracker { shared: Arc::new(shared) }
    }

    /// The disk's size in bytes.
    pub fn size(&self) -> u64 {
        self.shared.size
    }

    /// For one queue or thread, which marks its writes with it.
    pub fn marker(&self) -> Marker {
        let version = self.shared.version.load(Ordering::Acquire);
        Marker { maps: self.shared.maps(), version, shared: self.shared.clone() }
    }

    /// Adds a clean map. It knows the writes that begin from now on: call it while none is under way, as when a backup's point in
    /// time is set. With a file, the map is on stable storage when this returns.
    pub fn add(&self, name: &str, granularity: Granularity) -> Result<(), MapError> {
        if name.is_empty() || name.len() > MAX_NAME {
            return Err(MapError::Name(name.to_owned()));
        }
        let rare = self.shared.rare();
        let maps = self.shared.maps();
        if maps.iter().any(|map| map.name == name) {
            return Err(MapError::Exists(name.to_owned()));
        }
        if maps.len() >= MAX_MAPS {
            return Err(MapError::TooMany);
        }
        let live = DirtyMap::new(self.shared.size, granularity);
        let named = Arc::new(Named { name: name.to_owned(), live, taken: Mutex::default() });
        self.shared.replace(maps.iter().cloned().chain([named]).collect());
        self.shared.checkpoint(&rare, None).inspect_err(|_| self.shared.replace(maps)).map_err(MapError::from)
    }

    /// Removes a map. What was taken from it is void.
    pub fn remove(&self, name: &str) -> Result<(), MapError> {
        let rare = self.shared.rare();
        self.shared.find(name)?;
        let maps = self.shared.maps().iter().filter(|map| map.name != name).cloned().collect();
        self.shared.replace(maps);
        Ok(self.shared.checkpoint(&rare, None)?)
    }

    /// The names of all maps, with the sizes of their regions.
    pub fn names(&self) -> Vec<(String, Granularity)> {
        self.shared.maps().iter().map(|map| (map.name.clone(), map.live.granularity())).collect()
    }

    /// Takes the marks of all regions that the range touches; see [`DirtyMap::take`].
    pub fn take(&self, name: &str, range: Range<u64>) -> Result<Taken, MapError> {
        // A checkpoint must see each mark, here or there.
        let _rare = self.shared.rare();
        let named = self.shared.find(name)?;
        let bits = Arc::new(named.live.take(&range));
        let key = Arc::as_ptr(&bits) as usize;
        named.taken().insert(key, bits.clone());
        Ok(Taken { named, bits, key })
    }

    /// How many regions of a map are marked; taken ones are not.
    pub fn count(&self, name: &str) -> Result<u64, MapError> {
        Ok(self.shared.find(name)?.live.count())
    }

    /// Marks in one map what another one has, for example one that a move brought along.
    pub fn merge(&self, name: &str, other: &DirtyMap) -> Result<(), MapError> {
        let named = self.shared.find(name)?;
        named.live.merge(other);
        // These marks stand for no write that the journal knows; only a checkpoint makes them stable.
        Ok(self.checkpoint()?)
    }

    /// Puts the exact maps on stable storage and empties the journal. Writes into regions that were not written since wait meanwhile. The
    /// last thing of a clean stop; in between it is worth its price after a backup was confirmed. Without a file there is nothing to do.
    pub fn checkpoint(&self) -> Result<(), PersistError> {
        let rare = self.shared.rare();
        self.shared.checkpoint(&rare, None)
    }

    /// Says that the disk's `data_write` is about to become another one, and that what was announced before has come about. When this
    /// returns, a crash before or after that change leaves maps that are still known to fit. Said twice, only this one fits any more.
    pub fn announce(&self, data_write: [u8; 16]) -> Result<(), PersistError> {
        let rare = self.shared.rare();
        self.shared.checkpoint(&rare, Some(data_write))
    }
}

impl Tracker {
    /// Returns once all writes that [`Marker::wants_note`] wanted noted are on stable storage.
    pub(super) fn note_wanted(&self) -> Result<(), PersistError> {
        let Some(file) = &self.shared.file else { return Ok(()) };
        file.journal.note_wanted().map_err(|source| PersistError { path: file.path.clone(), action: "noting writes", source })
    }

    /// Where the maps are kept; nowhere if they end with the process.
    pub(crate) fn file(&self) -> Option<&Path> {
        self.shared.file.as_ref().map(|file| file.path.as_path())
    }

    /// Whether both are the same maps.
    pub(crate) fn is(&self, other: &Tracker) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }
}

impl Shared {
    fn maps(&self) -> Maps {
        self.maps.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn replace(&self, maps: Maps) {
        let mut current = self.maps.write().unwrap_or_else(PoisonError::into_inner);
        *current = maps;
        // Under the lock, so that a marker that sees the number finds the maps.
        self.version.fetch_add(1, Ordering::SeqCst);
    }

    fn find(&self, name: &str) -> Result<Arc<Named>, MapError> {
        self.maps().iter().find(|map| map.name == name).cloned().ok_or_else(|| MapError::Unknown(name.to_owned()))
    }

    fn rare(&self) -> MutexGuard<'_, ()> {
        self.rare.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn checkpoint(&self, _rare: &MutexGuard<'_, ()>, announced: Option<[u8; 16]>) -> Result<(), PersistError> {
        let Some(file) = &self.file else { return Ok(()) };
        let mut writer = file.journal.lock();
        let before = file.journal.forget(&mut writer);
        // Only now: a mark that is not in here waits for the lock, and is noted in the next journal.
        let maps = self.maps();
        let whole: Vec<Arc<DirtyMap>> = maps.iter().map(|map| map.whole()).collect();
        let live = maps.iter().zip(&whole);
        let parts: Vec<Part> =
            live.map(|(map, bits)| Part { name: &map.name, granularity: map.live.granularity(), bits }).collect();
        let result = file.checkpoint(&mut writer, &parts, announced);
        if result.is_err() && !writer.undecided {
            file.journal.remember(&mut writer, &before);
        }
        result
    }
}

impl Named {
    fn taken(&self) -> MutexGuard<'_, BTreeMap<usize, Arc<DirtyMap>>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything marked, with what is taken: what goes back enters `live` before it leaves `taken`, so that none is missed.
    fn whole(&self) -> Arc<DirtyMap> {
        let whole = DirtyMap::new(self.live.size(), self.live.granularity());
        self.taken().values().for_each(|taken| whole.merge(taken));
        whole.merge(&self.live);
        Arc::new(whole)
    }
}

/// Marks the writes of one queue or thread.
pub struct Marker {
    shared: Arc<Shared>,
    maps: Maps,
    version: u64,
}

impl Marker {
    /// A write, discard or zeroing of this range is about to start. When this returns, a crash cannot hide it any more: mostly at once,
    /// after one flush of the maps' file for the first write into a coarse region.
    ///
    /// # Errors
    /// If that flush fails: then the write must not start.
    pub fn write_begins(&mut self, offset: u64, length: u64) -> Result<(), PersistError> {
        self.mark(offset, length);
        match &self.shared.file {
            Some(file) if !self.maps.is_empty() => {
                let noted = file.journal.note(offset..offset.saturating_add(length));
                noted.map_err(|source| PersistError { path: file.path.clone(), action: "noting a write", source })
            }
            _ => Ok(()),
        }
    }

    /// It has ended, well or not, and is about to be reported.
    pub fn write_ended(&mut self, offset: u64, length: u64) {
        self.mark(offset, length);
    }

    /// The first half of [`write_begins`](Marker::write_begins): what a crash must not hide is to be noted by another thread.
    pub(crate) fn wants_note(&mut self, offset: u64, length: u64) -> bool {
        self.mark(offset, length);
        match &self.shared.file {
            Some(file) if !self.maps.is_empty() => file.journal.want(&(offset..offset.saturating_add(length))),
            _ => false,
        }
    }

    fn mark(&mut self, offset: u64, length: u64) {
        let version = self.shared.version.load(Ordering::SeqCst);
        if version != self.version {
            (self.version, self.maps) = (version, self.shared.maps());
        }
        self.maps.iter().for_each(|map| map.live.mark(offset, length));
    }
}

/// Marks that were taken out of a map, to be worked off. Dropped without [`Taken::confirm`], they go back.
pub struct Taken {
    named: Arc<Named>,
    bits: Arc<DirtyMap>,
    key: usize,
}

impl Taken {
    /// What they stand for is done. A crash before the next checkpoint brings them back all the same.
    pub fn confirm(self) {
        self.named.taken().remove(&self.key);
    }
}

impl Deref for Taken {
    type Target = DirtyMap;

    fn deref(&self) -> &DirtyMap {
        &self.bits
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let is_open = self.named.taken().contains_key(&self.key);
        if is_open {
            self.named.live.merge(&self.bits);
            self.named.taken().remove(&self.key);
        }
    }
}
