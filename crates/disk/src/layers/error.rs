//! Why a disk's layers were not changed.

use std::path::{Path, PathBuf};

use vhdx::MapError;

use crate::error::{LockError, OpenError};
use crate::format::{Format, ImageError};

/// Why a disk's layers were not changed.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// Another format.
    #[error("disk {path}: it is a {format} disk, and layers are made of VHDX images; convert it (maru disk convert) while nobody uses it",
        path = path.display())]
    Format {
        /// The disk.
        path: PathBuf,
        /// What it is.
        format: Format,
    },
    /// Nothing is written to it.
    #[error("disk {path}: it is attached read-only, so it needs no layers", path = .0.display())]
    ReadOnly(PathBuf),
    /// Engines use it.
    #[error("disk {path}: it is in use at this moment; pause the VM first", path = .0.display())]
    Busy(PathBuf),
    /// Dirty maps are on, or a mirror is being made.
    #[error("disk {path}: a mirror or dirty maps are for the files that it has; end the mirror first", path = .0.display())]
    Tracked(PathBuf),
    /// Its lock is not held.
    #[error("disk {path}: its lock was given up or not yet taken; take it first", path = .0.display())]
    Unlocked(PathBuf),
    /// It is no child.
    #[error("disk {path}: it has no parent", path = .0.display())]
    NoParent(PathBuf),
    /// A file is not what it should be.
    #[error("disk {path}: {problem}", path = path.display())]
    Unfit {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// More than the caller wants to wait for.
    #[error("disk {path}: it holds {bytes} bytes, more than the {most} for which its guest may wait; give it a new layer, and merge this one \
        below it", path = path.display())]
    TooMuch {
        /// The disk.
        path: PathBuf,
        /// What it holds.
        bytes: u64,
        /// The most that was allowed.
        most: u64,
    },
    /// A file could not be opened or locked.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A file could not be read or written.
    #[error("disk {path}: {action}: {source}", path = path.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: ImageError,
    },
    /// It failed, and the disk cannot go on as it was.
    #[error("{error}; and then the disk could not be opened as it was: {source}; restart the VM")]
    Lost {
        /// Why it failed.
        error: Box<LayerError>,
        /// What failed then.
        source: OpenError,
    },
}

impl From<LockError> for LayerError {
    fn from(error: LockError) -> LayerError {
        LayerError::Open(error.into())
    }
}

impl LayerError {
    pub(super) fn image(path: &Path, action: &'static str) -> impl FnOnce(ImageError) -> LayerError {
        move |source| LayerError::Image { path: path.to_owned(), action, source }
    }

    pub(super) fn map(path: &Path, action: &'static str) -> impl FnOnce(MapError) -> LayerError {
        let refused = LayerError::image(path, action);
        move |source| refused(source.into())
    }
}
