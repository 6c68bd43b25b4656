//! The formats of a disk's file.
// What only tools ask of an image stands beside what the engine asks of it.
#![cfg_attr(not(feature = "tool"), allow(dead_code, unused_imports))]

mod vhd;
mod vhdx2;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;
use std::{fmt, io};

use vhdx::vhd::UniqueId;
use vhdx::vhdx::BeyondEnd;
use vhdx::{Guid, MapError, Mapping, Storage};

use crate::disk::Access;

pub(crate) use vhd::vhd_parent;
pub(crate) use vhdx2::vhdx_parent;

/// What a disk's file means. Whoever opens a disk says it: what a guest can write into a raw disk must not make it an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// The file is the disk, byte by byte.
    #[default]
    Raw,
    /// A VHDX image.
    Vhdx,
    /// A VHD image.
    Vhd,
}

impl Format {
    /// By the file's extension: `.vhdx` and `.avhdx`, `.vhd` and `.avhd`, raw otherwise.
    ///
    /// ```
    /// assert_eq!(disk::Format::from_path("/srv/Root.VHDX".as_ref()), disk::Format::Vhdx);
    /// assert_eq!(disk::Format::from_path("/dev/sdb".as_ref()), disk::Format::Raw);
    /// ```
    #[must_use]
    pub fn from_path(path: &Path) -> Format {
        match path.extension().and_then(|it| it.to_str()).map(str::to_ascii_lowercase).as_deref() {
            Some("vhdx" | "avhdx") => Format::Vhdx,
            Some("vhd" | "avhd") => Format::Vhd,
            _ => Format::Raw,
        }
    }

    /// Whether it has tables.
    #[must_use]
    pub fn is_image(self) -> bool {
        self != Format::Raw
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Format::Raw => "raw",
            Format::Vhdx => "VHDX",
            Format::Vhd => "VHD",
        })
    }
}

/// How a disk takes space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskType {
    /// All of it from the beginning.
    Fixed,
    /// As it is written.
    Dynamic,
    /// As it is written; what was not written is read from a parent.
    Differencing,
}

impl fmt::Display for DiskType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DiskType::Fixed => "fixed",
            DiskType::Dynamic => "dynamic",
            DiskType::Differencing => "differencing",
        })
    }
}

/// What any image's error is, where it is only passed on.
pub(crate) type ImageError = Box<dyn std::error::Error + Send + Sync>;

/// What a child knows its parent by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Identity {
    /// It changes whenever the image's data is changed.
    Vhdx(Guid),
    /// It stays as long as the disk exists.
    Vhd(UniqueId),
}

impl Identity {
    /// As it is in a file.
    pub fn bytes(&self) -> [u8; 16] {
        match self {
            Identity::Vhdx(guid) => guid.to_bytes(),
            Identity::Vhd(id) => id.0,
        }
    }

    /// What tells the image's data from what it was before a change, if the format has a mark for that.
    pub fn data_mark(self) -> Option<[u8; 16]> {
        if let Identity::Vhdx(guid) = self { Some(guid.to_bytes()) } else { None }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Identity::Vhdx(id) => id.fmt(f),
            Identity::Vhd(id) => id.fmt(f),
        }
    }
}

/// A parent, as a child is to name it.
#[derive(Clone, Debug)]
pub(crate) struct ParentNames {
    pub identity: Identity,
    /// From the child's directory, as Windows writes it.
    pub relative_path: Option<String>,
    /// From the root, as we write it.
    pub absolute_path: String,
    /// When its file was changed last.
    pub changed: SystemTime,
}

/// What an image says about itself, besides what it is as a [`Mapping`].
pub(crate) struct ImageFacts {
    pub disk_type: DiskType,
    /// The virtual disk's identity.
    pub disk_id: String,
    /// What children know it by, if that changes with the data.
    pub data_id: Option<String>,
    /// The unit in which space is taken, in bytes, and how many of it are in the file; `None` where all of the disk is one.
    pub blocks: Option<(u32, u64)>,
    /// Bytes of the log, and whether it holds changes.
    pub log: Option<(u32, bool)>,
    pub parent: Option<ParentFacts>,
    /// Whether a block of zeros can leave the file.
    pub can_free_zeros: bool,
}

/// How an image names its parent.
pub(crate) struct ParentFacts {
    pub identity: Identity,
    pub relative_path: Option<String>,
    pub absolute_path: Option<String>,
}

/// Copies a block inside a file: the old offset, the new one, and a length. The new place holds zeros.
pub(crate) type CopyBlock<'a> = dyn FnMut(u64, u64, u64) -> io::Result<()> + 'a;

/// What a disk asks of an image besides where its data is.
pub(crate) trait ImageFile: Mapping {
    /// Gives the virtual disk another size. No commit is under way; if it grows, requests may be.
    fn resize(&self, bytes: u64, beyond_end: BeyondEnd) -> Result<(), ImageError>;

    /// Makes all that is complete durable, on this thread; waits for a commit that is under way on another.
    fn settle(&self) -> Result<(), MapError>;

    /// Leaves the file as one that nobody uses.
    fn close(&self) -> Result<(), MapError>;

    /// What children know it by.
    fn identity(&self) -> Identity;

    /// What children are going to know it by when its data is changed next.
    fn next_identity(&self) -> io::Result<Identity>;

    /// The virtual disk's own identity, which stays.
    fn disk_id(&self) -> [u8; 16];

    /// Whether an image with this identity is the parent.
    fn accepts(&self, parent: Identity) -> bool;

    /// Where the parent may be, by the file's own words: relative paths are from the image's directory.
    fn parent_paths(&self) -> Vec<PathBuf>;

    /// Whether all of it is the parent's.
    fn is_empty(&self) -> Result<bool, MapError>;

    /// Names another parent. Durable when it returns.
    fn set_parent(&self, parent: &ParentNames) -> Result<(), ImageError>;

    /// Has the parent accepted by its identity `now`, and by that which it has `next`. Durable when it returns.
    fn relink(&self, now: Identity, next: Option<Identity>) -> Result<(), ImageError>;
}

/// What tools ask of an image that no request is using.
pub(crate) trait ToolImage: ImageFile {
    /// What it says about itself. May look at a whole table.
    fn facts(&self) -> Result<ImageFacts, MapError>;

    /// Why a merge cannot write it, and make it as large as `size`, beside readers who see nothing of what is changed.
    fn obstacle_to_readers(&self, size: u64) -> Result<Option<&'static str>, MapError>;

    /// Frees a block of which all bytes are zeros, if [`ImageFacts::can_free_zeros`].
    fn free_zeros(&self, block: u64) -> Result<(), MapError>;

    /// Moves up to `most` blocks from the file's end to its front; answers how many.
    fn move_to_front(&self, most: usize, copy: &mut CopyBlock<'_>) -> Result<u64, MapError>;
}

/// Understands a file as an image. It reads and writes tables through it; a file has no `O_DIRECT`.
pub(crate) fn open_image(format: Format, storage: Arc<dyn Storage>, access: Access) -> Result<Arc<dyn ToolImage>, ImageError> {
    match format {
        Format::Raw => Err("a raw disk has no tables".into()),
        Format::Vhdx => Ok(Arc::new(vhdx::vhdx::Image::open(storage, &vhdx::vhdx::OpenOptions { access: access.into() })?)),
        Format::Vhd => Ok(Arc::new(vhdx::vhd::Image::open(storage, access.into())?)),
    }
}

/// A child that was told of a parent of another format.
fn foreign_parent() -> ImageError {
    "the parent is an image of another format".into()
}

/// A path as Windows writes it, for this machine: backslashes separate directories unless it is one of ours. A drive or a share
/// cannot be found here.
pub(crate) fn host_path(path: &str) -> Option<PathBuf> {
    if path.starts_with('/') {
        return Some(path.into());
    }
    let is_elsewhere = path.starts_with('\\') || path.as_bytes().get(1) == Some(&b':');
    (!is_elsewhere && !path.is_empty()).then(|| path.replace('\\', "/").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_windows_are_followed_where_they_can_lead_somewhere() {
        assert_eq!(host_path(".\\a\\base.vhdx"), Some("./a/base.vhdx".into()));
        assert_eq!(host_path("/srv/a\\b.vhdx"), Some("/srv/a\\b.vhdx".into()));
        assert_eq!(host_path("C:\\a.vhdx"), None);
        assert_eq!(host_path("\\\\server\\share\\a.vhdx"), None);
        assert_eq!(host_path(""), None);
    }
}
