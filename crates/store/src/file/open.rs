//! Opening the store's file, or refusing to.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use redb::{Database, DatabaseError, ReadableDatabase};

use super::backup::{self, backup_directory, remove_if_there, sync_directory};
use super::{DELETED, ENTRIES, FORMAT, FORMAT_VERSION, FileStore, META, REVISION};
use crate::Revision;

/// How long a store may still be in use. A program that was killed while it started another one leaves a process behind that has its open
/// files, locks included, until it becomes that other program.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between two tries.
const TRY_AGAIN: Duration = Duration::from_millis(10);

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("the store {} is used by another process: stop that first", .0.display())]
    InUse(PathBuf),
    /// Its content makes no sense. The file was not changed.
    #[error("the store {} is damaged ({reason}). It is left as it is. {}", .path.display(), way_out(path, backups))]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
        /// Its backups, the newest last.
        backups: Vec<PathBuf>,
    },
    /// There are backups, but no store.
    #[error("the store {} is gone, but there are backups of it. {}", .path.display(), way_out(path, backups))]
    Gone {
        /// The file.
        path: PathBuf,
        /// Its backups, the newest last.
        backups: Vec<PathBuf>,
    },
    /// Written by a newer program.
    #[error("the store {} has the form {found}, and this program knows {FORMAT_VERSION}: use a newer program", .path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// The form that it says.
        found: u64,
    },
    /// The directory cannot be used.
    #[error("the store {} cannot be used", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

fn way_out(path: &Path, backups: &[PathBuf]) -> String {
    match backups.last() {
        Some(newest) => {
            let count = backups.len();
            let (newest, path) = (newest.display(), path.display());
            format!(
                "The newest of {count} automatic backups is {newest}: to go on from it, move {path} away and copy the backup there"
            )
        }
        None => "There is no automatic backup: move it away to begin with an empty one".into(),
    }
}

impl FileStore {
    /// Opens the store in a directory, or makes an empty one where there was none.
    ///
    /// # Errors
    /// When it is in use, damaged, gone, too new, or the directory cannot be written.
    pub fn open(directory: &Path) -> Result<FileStore, OpenError> {
        let path = directory.join("store.redb");
        let io = |source| OpenError::Io { path: path.clone(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(backup_directory(directory)).map_err(io)?;
        let lock = take_lock(&directory.join("store.lock"), &path)?;
        if path.try_exists().map_err(io)? {
            check(directory, &path)?;
        } else {
            let backups = backup::list(directory);
            if !backups.is_empty() {
                return Err(OpenError::Gone { path, backups });
            }
            create(directory, &path).map_err(io)?;
        }
        let database = patiently(|| match Database::open(&path) {
            Err(DatabaseError::DatabaseAlreadyOpen) => Err(OpenError::InUse(path.clone())),
            opened => opened.map_err(|error| {
                let (path, reason) = (path.clone(), error.to_string());
                OpenError::Damaged { path, reason, backups: backup::list(directory) }
            }),
        })?;
        Ok(FileStore { directory: directory.into(), database, watchers: Mutex::default(), _lock: lock })
    }
}

fn take_lock(lock: &Path, path: &Path) -> Result<File, OpenError> {
    let opened = File::options().create(true).truncate(false).write(true).mode(0o600).open(lock);
    let file = opened.map_err(|source| OpenError::Io { path: lock.into(), source })?;
    patiently(|| match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse(path.into())),
        Err(TryLockError::Error(source)) => Err(OpenError::Io { path: lock.into(), source }),
    })?;
    Ok(file)
}

/// Tries again for a while as long as the store is in use.
fn patiently<T>(attempt: impl Fn() -> Result<T, OpenError>) -> Result<T, OpenError> {
    let start = Instant::now();
    loop {
        match attempt() {
            Err(OpenError::InUse(_)) if start.elapsed() < PATIENCE => std::thread::sleep(TRY_AGAIN),
            result => return result,
        }
    }
}

/// Makes an empty store; a crash on the way leaves none.
fn create(directory: &Path, path: &Path) -> io::Result<()> {
    let unfinished = directory.join("unfinished");
    remove_if_there(&unfinished)?;
    File::options().create_new(true).write(true).mode(0o600).open(&unfinished)?;
    let make = || -> Result<(), redb::Error> {
        let database = Database::create(&unfinished)?;
        let writing = database.begin_write()?;
        writing.open_table(ENTRIES)?;
        writing.open_table(DELETED)?;
        writing.open_table(META)?.insert(FORMAT, FORMAT_VERSION)?;
        Ok(writing.commit()?)
    };
    make().map_err(io::Error::other)?;
    fs::rename(&unfinished, path)?;
    sync_directory(directory)
}

/// Checks a copy of the file, and keeps it as a backup if it is whole.
fn check(directory: &Path, path: &Path) -> Result<(), OpenError> {
    let copy = backup_directory(directory).join("unfinished");
    let io = |source| OpenError::Io { path: copy.clone(), source };
    remove_if_there(&copy).map_err(io)?;
    fs::copy(path, &copy).map_err(io)?;
    let known = backup::list(directory);
    let damaged = |reason| OpenError::Damaged { path: path.into(), reason, backups: known.clone() };
    // The engine trusts its pages: some damage makes it panic. A process that has no copy to lose can take that.
    let result =
        catch_unwind(AssertUnwindSafe(|| verify(&copy))).unwrap_or_else(|_| Err("its pages contradict each other".into()));
    match result {
        Ok((FORMAT_VERSION, revision)) => {
            // The same state again would push older ones out.
            if known.last().and_then(|newest| backup::revision_of(newest)) == Some(revision) {
                return remove_if_there(&copy).map_err(io);
            }
            backup::keep(directory, &copy, revision).map(drop).map_err(io)
        }
        Ok((found, _)) => Err(OpenError::Newer { path: path.into(), found }),
        Err(reason) => {
            remove_if_there(&copy).map_err(io)?;
            Err(damaged(reason))
        }
    }
}

/// Reads all of a file; gives the form of its tables and its revision.
fn verify(path: &Path) -> Result<(u64, Revision), String> {
    let text = |error: redb::Error| error.to_string();
    let mut database = Database::open(path).map_err(|error| text(error.into()))?;
    match database.check_integrity().map_err(|error| text(error.into()))? {
        true => {}
        false => return Err("checksums of its pages are wrong".into()),
    }
    let numbers = || -> Result<_, redb::Error> {
        let reading = database.begin_read()?;
        reading.open_table(ENTRIES)?;
        reading.open_table(DELETED)?;
        let meta = reading.open_table(META)?;
        let number = |name| meta.get(name).map(|value| value.map_or(0, |value| value.value()));
        Ok((number(FORMAT)?, Revision(number(REVISION)?)))
    };
    numbers().map_err(text)
}
