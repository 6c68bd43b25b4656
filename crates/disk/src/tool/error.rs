//! Why an operation on a disk failed.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};

use vhdx::MapError;

use super::format::AnyFormat;
use crate::error::{LockError, OpenError};
use crate::format::ImageError;
use crate::import;

/// Why an operation on a disk failed. Causes that [`Error::source`] gives are not part of the text.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// A disk could not be opened; its text tells all causes.
    #[error("{0}")]
    Open(OpenError),
    /// A disk of another platform could not be opened; its text tells all causes.
    #[error("{0}")]
    OpenForeign(import::OpenError),
    /// A disk of another platform could not be read; its text tells all causes.
    #[error("{0}")]
    ReadForeign(import::ReadError),
    /// There is a file where a new one was to be made.
    #[error("disk {path}: it exists already; choose another name, or remove it first", path = .0.display())]
    Exists(PathBuf),
    /// What was asked for does not go together, or is not possible.
    #[error("disk {path}: {problem}", path = path.display())]
    Options {
        /// The disk.
        path: PathBuf,
        /// What is wrong, and what is possible.
        problem: String,
    },
    /// The format cannot do this.
    #[error("disk {path}: {what} is not supported for {format} disks; {way_out}", path = path.display())]
    Unsupported {
        /// The disk.
        path: PathBuf,
        /// Its format.
        format: AnyFormat,
        /// What was asked for.
        what: &'static str,
        /// What to do instead.
        way_out: &'static str,
    },
    /// The image refused, or its tables could not be read or written.
    #[error("disk {path}: {action}", path = path.display())]
    Image {
        /// The disk.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The system refused.
    #[error("disk {path}: {action}", path = path.display())]
    Io {
        /// The disk.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// [`Job::cancel`](super::Job::cancel) was called.
    #[error("stopped before it was done")]
    Cancelled,
}

impl From<OpenError> for ToolError {
    fn from(error: OpenError) -> ToolError {
        ToolError::Open(error)
    }
}

impl From<LockError> for ToolError {
    fn from(error: LockError) -> ToolError {
        ToolError::Open(error.into())
    }
}

impl From<import::OpenError> for ToolError {
    fn from(error: import::OpenError) -> ToolError {
        ToolError::OpenForeign(error)
    }
}

impl From<import::ReadError> for ToolError {
    fn from(error: import::ReadError) -> ToolError {
        ToolError::ReadForeign(error)
    }
}

impl ToolError {
    /// For what the system refuses.
    pub(super) fn io(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> ToolError {
        move |source| ToolError::Io { path: path.to_owned(), action, source }
    }

    /// For what an image refuses.
    pub(super) fn image<E: Error + Send + Sync + 'static>(path: &Path, action: &'static str) -> impl FnOnce(E) -> ToolError {
        move |source| ToolError::Image { path: path.to_owned(), action, source: Box::new(source) }
    }

    /// For what an image of any format refuses.
    pub(super) fn boxed(path: &Path, action: &'static str) -> impl FnOnce(ImageError) -> ToolError {
        move |source| ToolError::Image { path: path.to_owned(), action, source }
    }

    /// For tables that cannot be read.
    pub(super) fn map(path: &Path) -> impl FnOnce(MapError) -> ToolError {
        ToolError::image(path, "finding out where its data is")
    }

    pub(super) fn options(path: &Path, problem: impl Into<String>) -> ToolError {
        ToolError::Options { path: path.to_owned(), problem: problem.into() }
    }
}
