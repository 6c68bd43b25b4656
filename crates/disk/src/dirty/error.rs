//! What can go wrong with maps and their file.

use std::io;
use std::path::PathBuf;

/// Why the maps of a disk could not be opened. Whatever depended on them starts with a full copy, on new maps.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file could not be read.
    #[error("dirty maps {path}: {action} failed: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// There is no valid header: no such file, never finished, or damaged.
    #[error("dirty maps {path}: this is not a file of dirty maps, or its headers are damaged; create it anew and copy the whole disk once",
        path = .0.display())]
    NoHeader(PathBuf),
    /// It was written by a later version.
    #[error("dirty maps {path}: format version {version} is not known here; use the Maru that wrote it, or create it anew",
        path = path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// The version it has.
        version: u32,
    },
    /// It belongs to another disk.
    #[error("dirty maps {path}: they belong to another disk; create them anew and copy the whole disk once", path = .0.display())]
    OtherDisk(PathBuf),
    /// The disk was written without the maps.
    #[error("dirty maps {path}: the disk was written without them; create them anew and copy the whole disk once", path = .0.display())]
    Stale(PathBuf),
    /// The disk is smaller now.
    #[error("dirty maps {path}: they are for {maps} bytes, the disk has {disk}; create them anew and copy the whole disk once",
        path = path.display())]
    Size {
        /// The file.
        path: PathBuf,
        /// The size that the maps are for.
        maps: u64,
        /// The size of the disk.
        disk: u64,
    },
    /// A part of it is damaged.
    #[error("dirty maps {path}: the snapshot is damaged ({problem}); create them anew and copy the whole disk once", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: &'static str,
    },
}

/// The file of the maps could not be written. A write to the disk that failed to be noted must not be made, unless the file is given
/// up first.
#[derive(Debug, thiserror::Error)]
#[error("dirty maps {path}: {action} failed: {source}; make room for the file or give the maps up", path = path.display())]
pub struct PersistError {
    /// The file.
    pub path: PathBuf,
    /// What was tried.
    pub action: &'static str,
    /// The cause.
    pub source: io::Error,
}

/// Why a named map could not be made, found or removed.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// There is no map with this name.
    #[error("this disk has no dirty map named '{0}'; add it first")]
    Unknown(String),
    /// There is one already.
    #[error("this disk already has a dirty map named '{0}'; remove it first, or take another name")]
    Exists(String),
    /// The name is empty or too long.
    #[error("'{0}' cannot name a dirty map: a name has 1 to {max} bytes", max = super::MAX_NAME)]
    Name(String),
    /// There are as many as there can be.
    #[error("a disk has at most {max} dirty maps; remove one first", max = super::MAX_MAPS)]
    TooMany,
    /// The file could not be written.
    #[error(transparent)]
    Persist(#[from] PersistError),
}
