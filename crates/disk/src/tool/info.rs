//! Tells what a disk is, also while somebody uses it.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::open::OpenImage;
use super::{AnyFormat, DiskType, ToolError};
use crate::chain::MAX_IMAGES;
use crate::disk::{Access, Locking, OpenOptions};
use crate::error::OpenError;
use crate::format::{Format, ImageFacts, ParentFacts};
use crate::import;
use crate::layer::{Kind, Layer};
use crate::lock::{self, Holder};

/// What a disk is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskInfo {
    /// Its file.
    pub path: PathBuf,
    /// What the file means.
    pub format: AnyFormat,
    /// How it takes space; not known of disks of other platforms.
    pub disk_type: Option<DiskType>,
    /// Bytes of the virtual disk.
    pub virtual_size: u64,
    /// Bytes that the file takes in its file system.
    pub disk_usage: u64,
    /// The file's length in bytes.
    pub file_size: u64,
    /// Who uses it.
    pub usage: Option<Usage>,
    /// What only images have.
    pub image: Option<ImageInfo>,
}

/// Somebody who uses a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    /// One of the users, if there are several.
    pub holder: Holder,
    /// Whether it may be written.
    pub access: Access,
}

/// What an image says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageInfo {
    /// The unit in which space is taken, in bytes; `None` if the disk takes all its space at once, in one piece.
    pub block_size: Option<u32>,
    /// 512 or 4096.
    pub logical_sector_size: u32,
    /// 512 or 4096.
    pub physical_sector_size: u32,
    /// The virtual disk's identity, which a guest may see.
    pub disk_id: String,
    /// Changes with the data, and children know their parent by it. VHD has none: its children know their parent by `disk_id`.
    pub data_id: Option<String>,
    /// Blocks that are in the file, if there are blocks.
    pub allocated_blocks: Option<u64>,
    /// Bytes of the log; `None` if the format has none.
    pub log_size: Option<u32>,
    /// The log holds changes: the image is in use, or was not closed.
    pub log_in_use: bool,
    /// Of a differencing image.
    pub parent: Option<ParentInfo>,
}

/// How an image names its parent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParentInfo {
    /// From the image's directory, as it stands in the image.
    pub relative_path: Option<String>,
    /// From the root, as it stands in the image.
    pub absolute_path: Option<String>,
    /// The identity that the parent must have.
    pub data_id: String,
    /// Where it is on this machine; `None` if it is not found.
    pub found: Option<PathBuf>,
    /// Whether what was found has the right identity.
    pub fits: bool,
}

/// The disk at `path`, then its parents as far as they are found. Nothing is locked or written.
///
/// # Errors
/// If a file cannot be read, or is not of its format.
pub fn info(path: &Path, format: AnyFormat) -> Result<Vec<DiskInfo>, ToolError> {
    let mut chain: Vec<DiskInfo> = Vec::new();
    let mut seen = Vec::new();
    let mut next = Some(path.to_owned());
    // A parent is of its child's format.
    while let Some(path) = next.take() {
        if chain.len() == MAX_IMAGES {
            return Err(OpenError::ChainTooLong { path, limit: MAX_IMAGES }.into());
        }
        let layer = open(&path)?;
        if seen.contains(&layer.identity) {
            let chain = chain.iter().map(|it| it.path.clone()).chain([path]).collect();
            return Err(OpenError::ParentCycle { chain: crate::error::Chain(chain) }.into());
        }
        seen.push(layer.identity);
        let disk = one(layer, format)?;
        next = disk.image.as_ref().and_then(|it| it.parent.as_ref()).and_then(|it| it.found.clone());
        chain.push(disk);
    }
    Ok(chain)
}

fn open(path: &Path) -> Result<Layer, ToolError> {
    Ok(Layer::open(path, OpenOptions { access: Access::ReadOnly, locking: Locking::Later, ..OpenOptions::default() })?)
}

fn one(layer: Layer, format: AnyFormat) -> Result<DiskInfo, ToolError> {
    let path = layer.path.clone();
    let metadata = layer.file.metadata().map_err(ToolError::io(&path, "reading its attributes"))?;
    let file_size = match layer.kind {
        Kind::File => metadata.len(),
        Kind::BlockDevice => crate::geometry::device_size(&layer.file).map_err(ToolError::io(&path, "reading its size"))?,
    };
    let usage = lock::user(&layer.file).map_err(ToolError::io(&path, "asking who uses it"))?;
    let mut disk = DiskInfo {
        path: path.clone(),
        format,
        disk_type: None,
        virtual_size: file_size,
        disk_usage: metadata.blocks() * 512,
        file_size,
        usage: usage.map(|(access, holder)| Usage { holder, access }),
        image: None,
    };
    match format {
        AnyFormat::Own(Format::Raw) => {
            let is_full = layer.kind == Kind::BlockDevice || disk.disk_usage >= file_size;
            disk.disk_type = Some(if is_full { DiskType::Fixed } else { DiskType::Dynamic });
        }
        AnyFormat::Own(own) => {
            let look = || {
                let open = OpenImage::open(&path, own, Access::ReadOnly, Locking::Later)?;
                let facts = open.image.facts().map_err(ToolError::map(&path))?;
                Ok((open, facts))
            };
            let (open, facts) = retried(look, disk.usage.is_some())?;
            (disk.virtual_size, disk.disk_type) = (open.image.size(), Some(facts.disk_type));
            disk.image = Some(describe(&open, own, facts));
        }
        AnyFormat::Foreign(format) => disk.virtual_size = import::open(&path, format, import::References::Beside)?.size(),
    }
    Ok(disk)
}

/// An image in use may change while it is read, so that it seems damaged: it is looked at again.
fn retried<T>(mut look: impl FnMut() -> Result<T, ToolError>, in_use: bool) -> Result<T, ToolError> {
    for _ in 0..if in_use { 5 } else { 0 } {
        if let Ok(found) = look() {
            return Ok(found);
        }
    }
    look()
}

fn describe(open: &OpenImage, format: Format, facts: ImageFacts) -> ImageInfo {
    ImageInfo {
        block_size: facts.blocks.map(|(size, _)| size),
        logical_sector_size: open.image.logical_sector_size(),
        physical_sector_size: open.image.physical_sector_size(),
        disk_id: facts.disk_id,
        data_id: facts.data_id,
        allocated_blocks: facts.blocks.map(|(_, count)| count),
        log_size: facts.log.map(|(size, _)| size),
        log_in_use: facts.log.is_some_and(|(_, in_use)| in_use),
        parent: facts.parent.map(|parent| find_parent(open, format, parent)),
    }
}

fn find_parent(child: &OpenImage, format: Format, parent: ParentFacts) -> ParentInfo {
    let place = child.path.canonicalize().unwrap_or_else(|_| child.path.clone());
    let directory = place.parent().unwrap_or(Path::new("/"));
    let paths = child.image.parent_paths().into_iter().map(|path| directory.join(path).components().collect());
    let there: Vec<PathBuf> = paths.filter(|it: &PathBuf| it.exists()).collect();
    let fitting = there.iter().find(|path| {
        let opened = OpenImage::open(path, format, Access::ReadOnly, Locking::Later);
        opened.is_ok_and(|it| child.image.accepts(it.image.identity()))
    });
    ParentInfo {
        fits: fitting.is_some(),
        found: fitting.or(there.first()).cloned(),
        data_id: parent.identity.to_string(),
        relative_path: parent.relative_path,
        absolute_path: parent.absolute_path,
    }
}
