//! The file of a disk's maps: made, opened, brought up to date.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::error::{OpenError, PersistError};
use super::format::{self, BLOCK, Found, Header, SECTOR, SNAPSHOTS, Snapshot, coarse_shift, header_at};
use super::journal::{self, Journal, Noted, Writer};
use super::snapshot::{self, Part, ReadError, WriteError};
use super::{DirtyMap, Identity, Storage};

pub(super) struct MapFile {
    pub path: PathBuf,
    pub journal: Journal,
    state: Mutex<Current>,
}

/// What the newest header says, as far as the next one needs it.
struct Current {
    identity: Identity,
    /// What was announced; the identity's own `data_write` if nothing was.
    next_data_write: [u8; 16],
    snapshot: Snapshot,
}

/// What opening a file yields.
pub(super) struct Opened {
    pub file: MapFile,
    pub maps: Vec<(String, DirtyMap)>,
    /// How many bytes of the disk were marked in each map because the journal had them, or because they are new.
    pub widened_bytes: u64,
    /// The disk is larger than the file says: a checkpoint has to come first.
    pub grown: bool,
}

impl MapFile {
    pub fn create(storage: Box<dyn Storage>, path: PathBuf, identity: Identity) -> Result<MapFile, PersistError> {
        let io = |action| {
            let path = path.clone();
            move |source| PersistError { path, action, source }
        };
        // An old header that is valid must not survive with a new journal.
        for slot in 0..2 {
            storage.write_at(header_at(slot), &[0; BLOCK as usize]).map_err(io("clearing its headers"))?;
        }
        storage.flush().map_err(io("clearing its headers"))?;
        let generation = 1;
        let nothing = Snapshot { offset: SNAPSHOTS, length: 0, checksum: 0 };
        let snapshot = write_beside(&*storage, nothing, &[]).map_err(io("writing the snapshot"))?;
        for generation in [generation - 1, generation] {
            journal::write_empty(&*storage, generation).map_err(io("writing the journal"))?;
        }
        storage.flush().map_err(io("writing the journal"))?;
        let next_data_write = identity.data_write;
        let header = Header { generation, identity, next_data_write, coarse_shift: coarse_shift(identity.size), snapshot };
        storage.write_at(header_at(header.slot()), &header.encode()).map_err(io("writing the header"))?;
        storage.flush().map_err(io("writing the header"))?;
        let journal = Journal::new(storage, identity.size, generation, Noted::nothing().words);
        Ok(MapFile { path, journal, state: Mutex::new(Current { identity, next_data_write, snapshot }) })
    }

    pub fn open(storage: Box<dyn Storage>, path: PathBuf, identity: Identity) -> Result<Opened, OpenError> {
        let io = |action| {
            let path = path.clone();
            move |source| OpenError::Io { path, action, source }
        };
        let header = newest_header(&*storage, &path)?;
        if header.identity.disk != identity.disk {
            return Err(OpenError::OtherDisk(path));
        }
        let size_before = header.identity.size;
        if size_before > identity.size {
            return Err(OpenError::Size { path, maps: header.identity.size, disk: identity.size });
        }
        if ![header.identity.data_write, header.next_data_write].contains(&identity.data_write) {
            return Err(OpenError::Stale(path));
        }
        if header.coarse_shift != coarse_shift(size_before) || header.generation == u64::MAX {
            return Err(OpenError::Damaged { path, problem: "the header's numbers are impossible" });
        }
        let noted = Noted::read(&*storage, header.generation).map_err(io("reading the journal"))?;
        let maps = snapshot::read(&*storage, header.snapshot, size_before).map_err(|error| match error {
            ReadError::Damaged(problem) => OpenError::Damaged { path: path.clone(), problem },
            ReadError::Io(source) => io("reading the snapshot")(source),
        })?;
        let mut widened = 0;
        for range in noted.ranges(size_before) {
            widened += range.end - range.start;
            maps.iter().for_each(|(_, map)| map.mark(range.start, range.end - range.start));
        }
        let grown_bytes = identity.size - size_before;
        let (maps, written) = match grown_bytes {
            0 => (maps, noted.words),
            // The old journal's regions are not those of the new size; a checkpoint follows before anything is noted.
            _ => (grown(maps, size_before, identity.size), Noted::nothing().words),
        };
        let journal = Journal::new(storage, identity.size, header.generation, written);
        let next_data_write = identity.data_write;
        let state = Mutex::new(Current { identity, next_data_write, snapshot: header.snapshot });
        Ok(Opened { file: MapFile { path, journal, state }, maps, widened_bytes: widened + grown_bytes, grown: grown_bytes > 0 })
    }

    /// Makes `parts` the newest generation. The caller holds the journal's lock, and had it forget what is stable.
    pub fn checkpoint(&self, writer: &mut Writer, parts: &[Part], announced: Option<[u8; 16]>) -> Result<(), PersistError> {
        let io = |action| move |source| PersistError { path: self.path.clone(), action, source };
        let storage = self.journal.storage();
        let mut current = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let generation = writer.generation + 1;
        let slot = format::slot_of(generation);
        if writer.undecided {
            // First make certain that the attempt before is not what will be found.
            storage.write_at(header_at(slot), &[0; SECTOR]).map_err(io("clearing a header"))?;
            storage.flush().map_err(io("clearing a header"))?;
            writer.undecided = false;
        }
        self.journal.begin_next(writer).map_err(io("writing the journal"))?;
        let snapshot = write_beside(storage, current.snapshot, parts).map_err(io("writing the snapshot"))?;
        storage.flush().map_err(io("writing the snapshot"))?;
        // Without news both stay: whether what was announced has come about is not known here. With news it has.
        let (data_write, next_data_write) = match announced {
            None => (current.identity.data_write, current.next_data_write),
            Some(next) => (current.next_data_write, next),
        };
        let identity = Identity { data_write, ..current.identity };
        let header =
            Header { generation, identity, next_data_write, coarse_shift: coarse_shift(current.identity.size), snapshot };
        writer.undecided = true;
        storage.write_at(header_at(slot), &header.encode()).map_err(io("writing the header"))?;
        storage.flush().map_err(io("writing the header"))?;
        writer.undecided = false;
        writer.generation = generation;
        *current = Current { identity, next_data_write, snapshot };
        Ok(())
    }
}

/// The same maps for a disk that has grown. What was added may hold anything, so it is marked.
fn grown(maps: Vec<(String, DirtyMap)>, before: u64, size: u64) -> Vec<(String, DirtyMap)> {
    let grow = |(name, map): (String, DirtyMap)| {
        let larger = DirtyMap::new(size, map.granularity());
        larger.merge(&map);
        larger.mark(before, size - before);
        (name, larger)
    };
    maps.into_iter().map(grow).collect()
}

/// Writes a snapshot where the current one is not: before it if there is room, otherwise after it.
fn write_beside(storage: &dyn Storage, current: Snapshot, parts: &[Part]) -> io::Result<Snapshot> {
    let end = current.offset.saturating_add(current.length).next_multiple_of(BLOCK);
    for (offset, limit) in [(SNAPSHOTS, current.offset), (end, u64::MAX)] {
        match snapshot::write(storage, offset, limit, parts) {
            Ok(snapshot) => return Ok(snapshot),
            Err(WriteError::NoRoom) => {}
            Err(WriteError::Io(error)) => return Err(error),
        }
    }
    Err(io::ErrorKind::StorageFull.into())
}

fn newest_header(storage: &dyn Storage, path: &Path) -> Result<Header, OpenError> {
    let mut newest: Option<Header> = None;
    let mut other_version = None;
    for slot in 0..2 {
        let mut sector = [0; SECTOR];
        match storage.read_at(header_at(slot), &mut sector) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => continue,
            Err(source) => return Err(OpenError::Io { path: path.to_owned(), action: "reading the header", source }),
        }
        match Header::decode(&sector) {
            Found::Header(header) if header.slot() == slot => {
                if newest.is_none_or(|newest| newest.generation < header.generation) {
                    newest = Some(header);
                }
            }
            Found::Version(version) => other_version = Some(version),
            Found::Header(_) | Found::Nothing => {}
        }
    }
    match (newest, other_version) {
        (_, Some(version)) => Err(OpenError::Version { path: path.to_owned(), version }),
        (Some(header), None) => Ok(header),
        (None, None) => Err(OpenError::NoHeader(path.to_owned())),
    }
}
