//! Disks of other platforms, read so that they can be brought over: qcow2 and VMDK.
//!
//! ```text
//!   open(path, format, references) ──▶ Source ──▶ next_extent(offset): data, zeros, hole ──▶ read_at(offset, buffer)
//! ```
//!
//! Reading is done by the crate `imago`, in its synchronous form (no runtime). Nothing is ever written, nor locked: whoever imports a disk sees
//! to it that nobody uses it. A [`Source`] may be used from several threads.
//!
//! # What can be read
//! - qcow2, versions 2 and 3, with compressed (deflate) clusters, external data files and backing files. Not: encrypted images, extended L2
//!   entries (subclusters), and compression with zstd.
//! - VMDK as a descriptor with flat extents (`monolithicFlat`, `twoGbMaxExtentFlat`). Not: sparse and stream-optimised files, which are
//!   what an OVA has; convert those with `qemu-img convert -O raw` first.
//!
//! # Whom an image may name
//! A backing file, a data file or an extent is a path *in the image*, so whoever made it decides which file of this host is read.
//! [`References`] says how far that goes: by default nowhere.
//!
//! # Errors
//! An image that is damaged or made to do harm is answered with an error. Sizes in its header are checked before memory is taken for
//! them; if the reader itself fails an assertion, that is caught, and the source answers [`ReadError::Damaged`] from then on.

mod error;
mod gate;
mod header;
mod source;

use std::path::Path;

pub use error::{OpenError, ReadError};
pub use source::{Content, Extent, Source};

/// The formats that can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// QEMU's.
    Qcow2,
    /// VMware's.
    Vmdk,
}

/// Which other files an image may have read with it. A backing file whose format the image does not tell is looked at to find out, so one
/// that a guest wrote may pretend to be of another format, and refer to files itself; they are under the same rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum References {
    /// None.
    #[default]
    Deny,
    /// Those in the directory of the image, or below it.
    Beside,
    /// Whatever it names. Only for images whose maker is trusted with every file that this process can read.
    Any,
}

/// Opens an image for reading. The format is not guessed: an image that a guest could write might pretend to be of another one.
///
/// # Errors
/// See [`OpenError`].
pub fn open(path: impl AsRef<Path>, format: Format, references: References) -> Result<Source, OpenError> {
    source::open(path.as_ref(), format, references)
}

#[cfg(test)]
mod tests;
