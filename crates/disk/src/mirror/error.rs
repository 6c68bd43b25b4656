//! Why mirrors do not start, end, and do not hand over.

use std::io;
use std::path::PathBuf;

use crate::error::{EngineError, IoError};

/// Why a mirror did not start. The source is as before.
#[derive(Debug, thiserror::Error)]
pub enum MirrorError {
    /// Not all of the source fits.
    #[error("mirror to {path}: it has {size} bytes, the disk {needed}; grow it or choose another", path = path.display())]
    TooSmall {
        /// The target.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
        /// The source's.
        needed: u64,
    },
    /// The target cannot be written.
    #[error("mirror to {path}: it is open for reading only; open it for writing", path = .0.display())]
    ReadOnly(PathBuf),
    /// The target's sectors are larger than what the source's user writes.
    #[error("mirror to {path}: its sectors have {size} bytes, the disk's {needed}; choose a target with sectors of {needed}",
        path = path.display())]
    Sectors {
        /// The target.
        path: PathBuf,
        /// Its sectors in bytes.
        size: u32,
        /// The source's.
        needed: u32,
    },
    /// One is the other, or among its parents.
    #[error("mirror to {path}: it is, or hangs on, the disk itself or one of its parents ({source_path}); choose another",
        path = path.display(), source_path = source_path.display())]
    SameFile {
        /// The source.
        source_path: PathBuf,
        /// The target.
        path: PathBuf,
    },
    /// One of the disks has no engine.
    #[error("mirror: {0}")]
    Engine(#[from] EngineError),
    /// The mirror's thread was refused.
    #[error("mirror: its thread did not start: {0}")]
    Thread(#[source] io::Error),
}

/// How a mirror has ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MirrorEnd {
    /// The target is the disk.
    #[error("the mirror was handed over to")]
    HandedOver,
    /// Somebody ended it.
    #[error("the mirror was ended by request")]
    Aborted,
    /// The source could not be read.
    #[error("the mirror has ended: reading {path} at {offset} failed: {error}", path = path.display())]
    Source {
        /// The source.
        path: PathBuf,
        /// Where, in bytes.
        offset: u64,
        /// Why.
        error: IoError,
    },
    /// The target could not be written.
    #[error("the mirror has ended: writing {path} at {offset} failed: {error}; the disk goes on without it", path = path.display())]
    Target {
        /// The target.
        path: PathBuf,
        /// Where, in bytes; 0 for a flush.
        offset: u64,
        /// Why.
        error: IoError,
    },
}

/// Why there was no hand-over.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandOverError {
    /// Another one is under way.
    #[error("a hand-over of this mirror is under way; complete it or drop it first")]
    UnderWay,
    /// What is left does not fit into the pause, and is not becoming less.
    #[error(
        "{remaining_bytes} bytes are still to be copied, at {bytes_per_second} in a second, and the disk is written as fast; \
        limit the disk's writes, or allow a longer pause"
    )]
    NotConverging {
        /// Bytes to be copied.
        remaining_bytes: u64,
        /// How fast that went.
        bytes_per_second: u64,
    },
    /// The pause's limit has passed; writes went on.
    #[error("the pause was longer than allowed, and writes went on; allow a longer one")]
    TooLate,
    /// There is no mirror any more.
    #[error(transparent)]
    Ended(MirrorEnd),
}
