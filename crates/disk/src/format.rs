//! The formats of a disk's file.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vhdx::{Guid, MapError, Mapping, vhdx as vhdx2};

use crate::disk::Access;

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

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Format::Raw => "raw",
            Format::Vhdx => "VHDX",
            Format::Vhd => "VHD",
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
}

/// What a disk asks of an image besides where its data is.
pub(crate) trait ImageFile: Mapping {
    /// Makes the virtual disk larger. No commit is under way; requests may be.
    fn grow(&self, bytes: u64) -> Result<(), ImageError>;

    /// Makes all that is complete durable, on this thread. No commit is under way.
    fn settle(&self) -> Result<(), MapError>;

    /// Leaves the file as one that nobody uses.
    fn close(&self) -> Result<(), MapError>;

    /// What children know it by.
    fn identity(&self) -> Identity;

    /// The virtual disk's own identity; a child has its parent's.
    fn disk_id(&self) -> [u8; 16];

    /// Changes when the data is first changed after an open.
    fn data_write(&self) -> [u8; 16];

    /// What that will be then; what it is if that has happened.
    fn next_data_write(&self) -> std::io::Result<[u8; 16]>;

    /// Whether an image with this identity is the parent.
    fn accepts(&self, parent: Identity) -> bool;

    /// Where the parent may be, by the file's own words: relative paths are from the image's directory.
    fn parent_paths(&self) -> Vec<PathBuf>;
}

/// Understands `file` as an image. It reads and writes tables through this file, which has no `O_DIRECT`.
pub(crate) fn open_image(format: Format, file: Arc<File>, access: Access) -> Result<Arc<dyn ImageFile>, ImageError> {
    match format {
        Format::Raw => Err("a raw disk has no tables".into()),
        Format::Vhdx => {
            let access = match access {
                Access::ReadOnly => vhdx2::Access::ReadOnly,
                Access::ReadWrite => vhdx2::Access::ReadWrite,
            };
            Ok(Arc::new(vhdx2::Image::open(file, &vhdx2::OpenOptions { access })?))
        }
        Format::Vhd => Err("VHD images cannot be attached; convert it to VHDX".into()),
    }
}

impl ImageFile for vhdx2::Image {
    fn grow(&self, bytes: u64) -> Result<(), ImageError> {
        Ok(self.resize(bytes, vhdx2::BeyondEnd::Refuse)?)
    }

    fn settle(&self) -> Result<(), MapError> {
        self.flush()
    }

    fn close(&self) -> Result<(), MapError> {
        vhdx2::Image::close(self)
    }

    fn identity(&self) -> Identity {
        Identity::Vhdx(self.info().data_write_guid)
    }

    fn disk_id(&self) -> [u8; 16] {
        self.info().disk_id.to_bytes()
    }

    fn data_write(&self) -> [u8; 16] {
        self.info().data_write_guid.to_bytes()
    }

    fn next_data_write(&self) -> std::io::Result<[u8; 16]> {
        Ok(self.next_data_write_guid()?.to_bytes())
    }

    fn accepts(&self, Identity::Vhdx(parent): Identity) -> bool {
        self.info().parent.is_some_and(|it| it.accepts(parent))
    }

    fn parent_paths(&self) -> Vec<PathBuf> {
        let Some(parent) = self.info().parent else { return Vec::new() };
        // A volume path names a disk of a Windows machine.
        [parent.relative_path, parent.absolute_path].into_iter().flatten().filter_map(|path| host_path(&path)).collect()
    }
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
