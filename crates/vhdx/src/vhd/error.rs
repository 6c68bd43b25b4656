//! What can go wrong, one type per operation.

use std::io;

use super::footer::{Kind, MAX_SIZE};

/// Something in a file that is not as it must be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{structure} at offset {offset} of the file: {problem}")]
pub struct Damage {
    /// Which part of the format.
    pub structure: &'static str,
    /// Where it is in the file.
    pub offset: u64,
    /// What is wrong with it.
    pub problem: String,
}

impl Damage {
    pub(crate) fn new(structure: &'static str, offset: u64, problem: impl Into<String>) -> Damage {
        Damage { structure, offset, problem: problem.into() }
    }
}

/// Why an image could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is no footer: neither at the end of the file nor at its beginning.
    #[error(
        "this is not a VHD: there is no footer in the last sector (offset {end}: {problem}) and no copy in the first; \
         if it was one, 'maru disk check --repair' looks for the footer"
    )]
    NotVhd {
        /// Where the footer should be.
        end: u64,
        /// What is wrong there.
        problem: String,
    },
    /// A structure is damaged.
    #[error("{0}; check the image with 'maru disk check'")]
    Damaged(#[from] Damage),
    /// The footer is one byte short, as old versions of Virtual PC wrote it.
    #[error(
        "the footer at offset {0} of the file has 511 bytes; open the image for reading only, or run 'maru disk check --repair' on it"
    )]
    ShortFooter(u64),
    /// The file could not be read or written.
    #[error("{action}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The cause.
        source: io::Error,
    },
}

/// Why an image could not be created.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// There is something in the file.
    #[error("the file has {0} bytes already; give the disk a new file")]
    NotEmpty(u64),
    /// The format has no disk of this size.
    #[error("a VHD of {0} bytes is not possible; take a multiple of 512 up to {MAX_SIZE} bytes (2040 GiB), or the VHDX format")]
    Size(u64),
    /// The format has no blocks of this size.
    #[error("blocks of {0} bytes are not possible; take 512 KiB, 2 MiB (usual), or another power of two up to 256 MiB")]
    BlockSize(u32),
    /// The parent cannot be named.
    #[error(transparent)]
    Parent(#[from] ParentError),
    /// The file could not be written.
    #[error("{action}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The cause.
        source: io::Error,
    },
}

/// Why a parent could not be named.
#[derive(Debug, thiserror::Error)]
pub enum ParentError {
    /// The disk is not a differencing one.
    #[error("a {0} disk has no parent; only a differencing disk does")]
    NoParent(Kind),
    /// A name is too long, or has a zero in it.
    #[error("the parent's {what} has {units} UTF-16 units; it must have 1 to {most}, none of them zero")]
    Name {
        /// Which one.
        what: &'static str,
        /// How long it is.
        units: usize,
        /// How long it may be.
        most: usize,
    },
    /// The image was opened for reading only.
    #[error("the image is open for reading only")]
    ReadOnly,
    /// The file could not be written.
    #[error("{action}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The cause.
        source: io::Error,
    },
}

/// Why a disk did not get another size.
#[derive(Debug, thiserror::Error)]
pub enum ResizeError {
    /// The format has no disk of this size.
    #[error("a VHD of {0} bytes is not possible; take a multiple of 512 up to {MAX_SIZE} bytes (2040 GiB), or the VHDX format")]
    Size(u64),
    /// Differencing disks keep the size they have.
    #[error("a differencing disk keeps its size; merge it into its parent and resize that")]
    Differencing,
    /// It was to become smaller while requests are under way.
    #[error("{0} requests to the disk are under way; make it smaller when they are done")]
    Busy(u64),
    /// The image was opened for reading only.
    #[error("the image is open for reading only")]
    ReadOnly,
    /// What was not yet in the file could not be brought there.
    #[error(transparent)]
    Commit(#[from] crate::MapError),
    /// The file could not be written.
    #[error("{action}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The cause.
        source: io::Error,
    },
}

/// Why an image could not be checked or repaired.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    /// Nothing in the file says what it is.
    #[error("there is no footer at the end of the file, at its beginning, or behind its last data; this may not be a VHD")]
    NoFooter,
    /// What is damaged exists only once.
    #[error("{0}; there is no second copy of it: restore the image from a backup")]
    Lost(Damage),
    /// The file may be one of two disks.
    #[error("{0}")]
    Doubtful(Damage),
    /// The file could not be read or written.
    #[error("{action}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The cause.
        source: io::Error,
    },
}

/// Names what was tried when I/O failed.
pub(crate) trait Action<T> {
    fn during<E: FromIo>(self, action: &'static str) -> Result<T, E>;
}

/// Made from what was tried and why it failed.
pub(crate) trait FromIo {
    fn from_io(action: &'static str, source: io::Error) -> Self;
}

impl<T> Action<T> for io::Result<T> {
    fn during<E: FromIo>(self, action: &'static str) -> Result<T, E> {
        self.map_err(|source| E::from_io(action, source))
    }
}

macro_rules! from_io {
    ($($name:ty),*) => {$(
        impl FromIo for $name {
            fn from_io(action: &'static str, source: io::Error) -> Self {
                Self::Io { action, source }
            }
        }
    )*};
}

from_io!(OpenError, CreateError, ParentError, ResizeError, RepairError, crate::MapError);
