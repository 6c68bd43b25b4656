//! Disks of other platforms, read so that they can be brought over: qcow2 and VMDK.
//!
//! ```text
//!   open(path, format, references) ──▶ Source ──▶ next_extent(offset, end): data, zeros, hole ──▶ read_at(offset, buffer)
//! ```
//!
//! Reading qcow2 is done by the crate `imago`, in its synchronous form (no runtime), reading VMDK here, in `vmdk`. Nothing is ever written, nor
//! locked: whoever imports a disk sees to it that nobody uses it. A [`Source`] may be used from several threads.
//!
//! # What can be read
//! - qcow2, versions 2 and 3, with compressed (deflate) clusters, external data files and backing files. Not: encrypted images, extended L2
//!   entries (subclusters), and compression with zstd.
//! - VMDK as one sparse file (`monolithicSparse`, `streamOptimized`, which is what an OVA has), or as a descriptor with flat and sparse
//!   extents (`monolithicFlat`, `twoGbMaxExtentFlat`, `twoGbMaxExtentSparse`, `vmfs`). Not: snapshots, which need another disk, and the
//!   sparse extents of ESX hosts (`vmfsSparse`, `seSparse`).
//!
//! # Whom an image may name
//! A backing file, a data file or an extent is a path *in the image*, so whoever made it decides which file of this host is read.
//! [`References`] says how far that goes: by default nowhere.
//!
//! # Errors
//! An image that is damaged or made to do harm is answered with an error. Sizes in its header are checked before memory is taken for
//! them; if the reader of qcow2 itself fails an assertion, that is caught, and the source answers [`ReadError::Damaged`] from then on.

mod error;
mod gate;
mod header;
mod source;
mod vmdk;

use std::path::Path;

pub use error::{OpenError, ReadError};
pub use source::{Content, Extent, Source};

/// The formats of other platforms.
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
