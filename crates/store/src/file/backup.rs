//! Copies of the store's file.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use redb::{Database, ReadableDatabase, ReadableTable};

use super::{DELETED, ENTRIES, FileStore, META, file};
use crate::{Revision, Store, StoreError};

/// How many are kept.
const KEPT: usize = 10;

/// Why there is no new backup.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The store cannot be read, or its copy not be written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The directory of the backups.
    #[error("the backup {} cannot be written", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl FileStore {
    /// Writes a copy of everything as it is at this moment, unless the newest backup has it all already. Commits go on meanwhile.
    ///
    /// # Errors
    /// When there is no room, say. The older backups are then still there.
    pub fn backup(&self) -> Result<PathBuf, BackupError> {
        let directory = backup_directory(&self.directory);
        let revision = self.revision()?;
        if let Some(newest) = list(&self.directory).pop().filter(|newest| revision_of(newest) == Some(revision)) {
            return Ok(newest);
        }
        let unfinished = directory.join("unfinished");
        let io = |source| BackupError::Io { path: unfinished.clone(), source };
        fs::create_dir_all(&directory).map_err(io)?;
        remove_if_there(&unfinished).map_err(io)?;
        self.copy_to(&unfinished)?;
        keep(&self.directory, &unfinished, revision).map_err(io)
    }

    fn copy_to(&self, path: &Path) -> Result<(), StoreError> {
        let copy = Database::create(path).map_err(file)?;
        let writing = copy.begin_write().map_err(file)?;
        let reading = self.database.begin_read().map_err(file)?;
        {
            let mut to = writing.open_table(ENTRIES).map_err(file)?;
            for item in reading.open_table(ENTRIES).map_err(file)?.iter().map_err(file)? {
                let (key, value) = item.map_err(file)?;
                to.insert(key.value(), value.value()).map_err(file)?;
            }
            let mut to = writing.open_table(DELETED).map_err(file)?;
            for item in reading.open_table(DELETED).map_err(file)?.iter().map_err(file)? {
                to.insert(item.map_err(file)?.0.value(), ()).map_err(file)?;
            }
            let mut to = writing.open_table(META).map_err(file)?;
            for item in reading.open_table(META).map_err(file)?.iter().map_err(file)? {
                let (key, value) = item.map_err(file)?;
                to.insert(key.value(), value.value()).map_err(file)?;
            }
        }
        writing.commit().map_err(file)
    }
}

pub(super) fn backup_directory(directory: &Path) -> PathBuf {
    directory.join("backup")
}

/// A name: the time in seconds since 1970, and the revision. Their order is that of the backups.
fn name(seconds: u64, revision: Revision) -> String {
    format!("{seconds:012}-{:016}.redb", revision.0)
}

/// All backups, the newest last.
pub(super) fn list(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(backup_directory(directory)).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| revision_of(path).is_some()).collect();
    paths.sort();
    paths
}

/// The revision in a backup's name.
pub(super) fn revision_of(path: &Path) -> Option<Revision> {
    let (time, revision) = path.file_name()?.to_str()?.strip_suffix(".redb")?.split_once('-')?;
    time.parse::<u64>().ok()?;
    revision.parse().ok().map(Revision)
}

/// Makes a whole copy a backup, and forgets the oldest.
pub(super) fn keep(directory: &Path, copy: &Path, revision: Revision) -> io::Result<PathBuf> {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let path = backup_directory(directory).join(name(seconds, revision));
    File::open(copy)?.sync_all()?;
    fs::rename(copy, &path)?;
    let all = list(directory);
    for old in &all[..all.len().saturating_sub(KEPT)] {
        fs::remove_file(old)?;
    }
    sync_directory(&backup_directory(directory))?;
    Ok(path)
}

pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

pub(super) fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
