//! What can go wrong with an import.

use std::io;
use std::path::{Path, PathBuf};

/// Why an image could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It could not be opened or read, or not a file that it refers to; the source says which.
    #[error("image {path}: {source}; check the path and its permissions", path = path.display())]
    Io {
        /// The image.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// It is a directory, a pipe or the like.
    #[error("image {path}: {file} is not a file or block device; name the image's file", path = path.display(), file = file.display())]
    NotAFile {
        /// The image.
        path: PathBuf,
        /// What is none, the image or a file that it refers to.
        file: PathBuf,
    },
    /// It refers to a file that it may not refer to.
    #[error(
        "image {path}: it refers to {file}, which is not allowed; allow references if you trust whoever made it, or convert it to \
         an image without them",
        path = path.display(), file = file.display()
    )]
    Reference {
        /// The image.
        path: PathBuf,
        /// The file.
        file: PathBuf,
    },
    /// The chain of backing files is too long, or leads back to itself.
    #[error("image {path}: more than {max} backing files; convert it to an image without them", path = path.display())]
    TooDeep {
        /// The image.
        path: PathBuf,
        /// How many there may be.
        max: usize,
    },
    /// It uses what cannot be read.
    #[error("image {path}: {what}; convert it with 'qemu-img convert -O raw' first", path = path.display())]
    Unsupported {
        /// The image.
        path: PathBuf,
        /// What it is.
        what: String,
    },
    /// It is not of the format, or damaged.
    #[error("image {path}: not an intact {format} image: {problem}; check its format with 'qemu-img check'", path = path.display())]
    Damaged {
        /// The image.
        path: PathBuf,
        /// The format it was opened as.
        format: &'static str,
        /// What is wrong.
        problem: String,
    },
}

/// Why a part of an image could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It is not inside the disk.
    #[error("bytes {offset} to {end} are not inside the image's disk of {size} bytes")]
    Range {
        /// First byte.
        offset: u64,
        /// First byte after it.
        end: u64,
        /// The disk's size.
        size: u64,
    },
    /// The image could not be read, or what it says there makes no sense.
    #[error("image {path} at offset {offset} of its disk: {source}", path = path.display())]
    Io {
        /// The image.
        path: PathBuf,
        /// Where in the virtual disk.
        offset: u64,
        /// The cause.
        source: io::Error,
    },
    /// It is so damaged that reading it was given up.
    #[error("image {path} is damaged; check it with 'qemu-img check'", path = .0.display())]
    Damaged(PathBuf),
}

/// Sorts the errors of the reader.
pub(super) fn open_error(path: &Path, format: &'static str, source: io::Error) -> OpenError {
    let path = path.to_owned();
    match source.kind() {
        io::ErrorKind::Unsupported => OpenError::Unsupported { path, what: source.to_string() },
        io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput | io::ErrorKind::UnexpectedEof | io::ErrorKind::Other => {
            OpenError::Damaged { path, format, problem: source.to_string() }
        }
        _ => OpenError::Io { path, source },
    }
}
