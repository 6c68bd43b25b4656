//! Why an image could not be created, opened or changed.

use std::io;

use crate::MapError;

/// Something in the file that is not as the format wants it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Damage {
    pub(crate) structure: &'static str,
    pub(crate) offset: u64,
    pub(crate) problem: String,
}

impl Damage {
    pub(crate) fn new(structure: &'static str, offset: u64, problem: impl Into<String>) -> Self {
        Self { structure, offset, problem: problem.into() }
    }
}

/// Why an image could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is no VHDX in this file.
    #[error("the file does not start with 'vhdxfile': it is not a VHDX image")]
    NotVhdx,
    /// A structure of the image is damaged.
    #[error("{structure} at offset {offset} of the file: {problem}; check the image with 'maru disk check'")]
    Damaged {
        /// Which part of the format.
        structure: &'static str,
        /// Where it is in the file.
        offset: u64,
        /// What is wrong with it.
        problem: String,
    },
    /// The image uses something that this version does not know and must not ignore.
    #[error("{structure} at offset {offset} of the file: {problem}; open the image with the program that made it")]
    Unsupported {
        /// Which part of the format.
        structure: &'static str,
        /// Where it is in the file.
        offset: u64,
        /// What is not known.
        problem: String,
    },
    /// The file could not be read or written.
    #[error("{action}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The cause.
        source: io::Error,
    },
}

impl From<Damage> for OpenError {
    fn from(Damage { structure, offset, problem }: Damage) -> Self {
        Self::Damaged { structure, offset, problem }
    }
}

impl From<Damage> for MapError {
    fn from(Damage { structure, offset, problem }: Damage) -> Self {
        Self::Damaged { structure, offset, problem }
    }
}

/// Makes an [`OpenError::Io`] of a failed action; an end of the file where something must be is damage.
pub(crate) fn reading(structure: &'static str, offset: u64) -> impl FnOnce(io::Error) -> OpenError {
    move |source| match source.kind() {
        io::ErrorKind::UnexpectedEof => Damage::new(structure, offset, "the file ends before it").into(),
        _ => OpenError::Io { action: "reading the image", source },
    }
}

pub(crate) fn writing(source: io::Error) -> OpenError {
    OpenError::Io { action: "writing the image", source }
}

/// Why an image could not be created.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// What was asked for cannot be expressed in the format.
    #[error("{0}")]
    Options(String),
    /// The file could not be written.
    #[error("{action}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The cause.
        source: io::Error,
    },
}

/// Why an open image could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// The new size is not possible.
    #[error("a size of {size} bytes: {problem}")]
    Size {
        /// What was asked for.
        size: u64,
        /// What is wrong with it.
        problem: String,
    },
    /// There is data beyond the new end.
    #[error("there is data at {offset}, beyond the new end of {size} bytes; free it in the guest, or say that it may be lost")]
    DataBeyondEnd {
        /// A block with data, in the virtual disk.
        offset: u64,
        /// The size that was asked for.
        size: u64,
    },
    /// The parent's facts cannot be stored.
    #[error("the parent's names: {0}")]
    Parent(String),
    /// A table could not be read or written.
    #[error(transparent)]
    Map(#[from] MapError),
}
