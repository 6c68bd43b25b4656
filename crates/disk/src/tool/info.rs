//! Tells what a disk is, also while somebody uses it.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vhdx::Mapping;
use vhdx::vhdx as vhdx2;

use super::open::OpenImage;
use super::{AnyFormat, DiskType, ToolError};
use crate::chain::MAX_IMAGES;
use crate::disk::{Access, Locking, OpenOptions};
use crate::error::OpenError;
use crate::format::{Format, host_path};
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
    /// The unit in which space is taken, in bytes.
    pub block_size: u32,
    /// 512 or 4096.
    pub logical_sector_size: u32,
    /// 512 or 4096.
    pub physical_sector_size: u32,
    /// The virtual disk's identity, which a guest may see.
    pub disk_id: String,
    /// Changes with the data; children know their parent by it.
    pub data_id: String,
    /// Blocks that are in the file.
    pub allocated_blocks: u64,
    /// Bytes of the log.
    pub log_size: u32,
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
        let disk = one(layer, if chain.is_empty() { format } else { AnyFormat::Own(Format::Vhdx) })?;
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
        AnyFormat::Own(Format::Vhdx) => {
            let image = retried(|| OpenImage::open(&path, Access::ReadOnly, Locking::Later), disk.usage.is_some())?.image;
            disk.virtual_size = image.size();
            let facts = image.info();
            disk.disk_type = Some(match (&facts.parent, facts.is_fixed) {
                (Some(_), _) => DiskType::Differencing,
                (None, true) => DiskType::Fixed,
                (None, false) => DiskType::Dynamic,
            });
            disk.image = Some(describe(&path, &image, facts)?);
        }
        AnyFormat::Own(Format::Vhd) => return Err(super::open::no_vhd(&path)),
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

fn describe(path: &Path, image: &Arc<vhdx2::Image>, facts: vhdx2::Info) -> Result<ImageInfo, ToolError> {
    Ok(ImageInfo {
        block_size: facts.block_size,
        logical_sector_size: facts.logical_sector_size,
        physical_sector_size: facts.physical_sector_size,
        disk_id: facts.disk_id.to_string(),
        data_id: facts.data_write_guid.to_string(),
        allocated_blocks: image.allocated_blocks().map_err(ToolError::map(path))?,
        log_size: facts.log_size,
        log_in_use: facts.log_in_use,
        parent: facts.parent.map(|parent| find_parent(path, parent)),
    })
}

fn find_parent(child: &Path, parent: vhdx2::Parent) -> ParentInfo {
    let place = child.canonicalize().unwrap_or_else(|_| child.to_owned());
    let directory = place.parent().unwrap_or(Path::new("/"));
    let paths = [&parent.relative_path, &parent.absolute_path].into_iter().flatten().filter_map(|path| host_path(path));
    let there: Vec<PathBuf> =
        paths.map(|path| directory.join(path).components().collect()).filter(|it: &PathBuf| it.exists()).collect();
    let fitting = there.iter().find(|path| {
        let opened = OpenImage::open(path, Access::ReadOnly, Locking::Later);
        opened.is_ok_and(|it| parent.accepts(it.image.info().data_write_guid))
    });
    ParentInfo {
        fits: fitting.is_some(),
        found: fitting.or(there.first()).cloned(),
        data_id: parent.linkage.to_string(),
        relative_path: parent.relative_path,
        absolute_path: parent.absolute_path,
    }
}
