//! Makes new, empty disks.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use vhdx::vhdx::{self as vhdx2, CreateOptions, Kind};
use vhdx::{Guid, vhd};

use super::locator::name_parent;
use super::newfile::{Existing, NewFile};
use super::{AnyFormat, ToolError};
use crate::disk::{Access, Disk, Locking, OpenOptions};
use crate::format::{DiskType, Format, Identity, vhd_parent, vhdx_parent};
use crate::layer::Layer;

/// A disk to be made. What is `None` has a default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewDisk {
    /// What its file means.
    pub format: Format,
    /// How it takes space: dynamic by default, differencing with a parent.
    pub disk_type: Option<DiskType>,
    /// Bytes of the virtual disk; the parent's by default.
    pub size: Option<u64>,
    /// The parent of a differencing disk, and its format.
    pub parent: Option<(PathBuf, Format)>,
    /// The unit in which an image takes space: 2 MiB by default.
    pub block_size: Option<u32>,
    /// The unit in which an image is addressed: 512 by default; the parent's in a child.
    pub sector_size: Option<u32>,
}

/// Makes an empty disk at `path`, which must not exist. Durable when it returns; on failure nothing is left.
///
/// # Errors
/// See [`ToolError`].
pub fn create(path: &Path, disk: &NewDisk) -> Result<(), ToolError> {
    let parent = disk.open_parent(path)?;
    let new = NewFile::create(path, Existing::Keep)?;
    disk.write(path, &new, parent.as_ref())?;
    new.publish()
}

/// Makes a new, empty child at `path` of the VHDX image at `leaf`, which a VM is using and goes on to: see [`layers`](crate::layers). Durable
/// when it returns; on failure nothing is left.
///
/// # Errors
/// See [`ToolError`].
pub fn create_layer(path: &Path, leaf: &Path) -> Result<(), ToolError> {
    let options = OpenOptions { access: Access::ReadOnly, locking: Locking::Later, ..OpenOptions::default() };
    let parent = Layer::open(leaf, options)?;
    let facts = vhdx2::peek(&*parent.file).map_err(ToolError::image(leaf, "reading what it is"))?;
    let names = name_parent(path, leaf, Identity::Vhdx(facts.data_write_guid))?;
    let Some(names) = vhdx_parent(&names) else { return Err(ToolError::options(leaf, "it is no VHDX image")) };
    let mut options = CreateOptions::new(facts.size);
    (options.logical_sector_size, options.physical_sector_size) = (facts.logical_sector_size, facts.physical_sector_size);
    (options.kind, options.disk_id) = (Kind::Differencing(names), Some(facts.disk_id));
    let new = NewFile::create(path, Existing::Keep)?;
    vhdx2::create(&**new.file(), &options).map_err(ToolError::image(path, "creating it"))?;
    new.publish()
}

impl NewDisk {
    fn resolved_type(&self) -> DiskType {
        self.disk_type.unwrap_or(if self.parent.is_some() { DiskType::Differencing } else { DiskType::Dynamic })
    }

    /// The parent, locked against changes; refuses what does not go together.
    pub(super) fn open_parent(&self, path: &Path) -> Result<Option<Disk>, ToolError> {
        let refuse = |problem: &str| Err(ToolError::options(path, problem));
        let disk_type = self.resolved_type();
        match (&self.parent, disk_type) {
            (None, DiskType::Differencing) => refuse("a differencing disk needs a parent (--parent)"),
            (None, _) => Ok(None),
            (Some(_), DiskType::Fixed | DiskType::Dynamic) => refuse("only a differencing disk has a parent"),
            (Some(_), DiskType::Differencing) if !self.format.is_image() => Err(ToolError::Unsupported {
                path: path.to_owned(),
                format: AnyFormat::Own(self.format),
                what: "making a child",
                way_out: "make a VHDX child (its name ends with .vhdx)",
            }),
            (Some((parent, format)), DiskType::Differencing) => {
                if *format != self.format {
                    let problem = format!("the parent of a {0} image must be {0} as well; convert it first", self.format);
                    return refuse(&format!("{problem} (maru disk convert)"));
                }
                Ok(Some(Disk::open(parent, OpenOptions { format: *format, access: Access::ReadOnly, ..OpenOptions::default() })?))
            }
        }
    }

    /// Writes the empty disk into a new file. `path` is where that is going to be.
    pub(super) fn write(&self, path: &Path, new: &NewFile, parent: Option<&Disk>) -> Result<(), ToolError> {
        let Some(size) = self.size.or(parent.map(Disk::capacity)) else {
            return Err(ToolError::options(path, "its size is missing (--size)"));
        };
        match self.format {
            Format::Raw => self.write_raw(path, new, size),
            Format::Vhdx => self.write_vhdx(path, new, size, parent),
            Format::Vhd => self.write_vhd(path, new, size, parent),
        }
    }

    fn write_raw(&self, path: &Path, new: &NewFile, size: u64) -> Result<(), ToolError> {
        if self.block_size.is_some() || self.sector_size.is_some() {
            return Err(ToolError::options(path, "a raw disk has neither a block size nor a sector size of its own"));
        }
        let sector = 512;
        if size == 0 || !size.is_multiple_of(sector) {
            return Err(ToolError::options(path, format!("a size of {size} bytes: whole sectors of {sector} are possible")));
        }
        let file = new.file();
        file.set_len(size).map_err(ToolError::io(path, "making it as long as the disk"))?;
        if self.resolved_type() == DiskType::Fixed {
            vhdx::Storage::allocate(&**file, 0, size).map_err(ToolError::io(path, "taking the disk's space"))?;
        }
        Ok(())
    }

    fn write_vhdx(&self, path: &Path, new: &NewFile, size: u64, parent: Option<&Disk>) -> Result<(), ToolError> {
        let mut options = CreateOptions::new(size);
        options.block_size = self.block_size.unwrap_or(options.block_size);
        options.logical_sector_size = self.sector_size.unwrap_or(options.logical_sector_size);
        if self.resolved_type() == DiskType::Fixed {
            options.kind = Kind::Fixed { allocate: true };
        }
        if let Some(parent) = parent {
            let sector = parent.sector_size().bytes();
            if self.sector_size.is_some_and(|asked| asked != sector) {
                return Err(ToolError::options(path, format!("a child has its parent's sector size, {sector} bytes")));
            }
            options.logical_sector_size = sector;
            options.physical_sector_size = parent.physical_sector_size();
            let facts = vhdx2::Image::open(parent.own().file.clone(), &vhdx2::OpenOptions { access: vhdx2::Access::ReadOnly });
            let facts = facts.map_err(ToolError::image(parent.path(), "reading what it is"))?.info();
            let names = name_parent(path, parent.path(), Identity::Vhdx(facts.data_write_guid))?;
            let Some(names) = vhdx_parent(&names) else { return Err(ToolError::options(parent.path(), "it is no VHDX image")) };
            options.kind = Kind::Differencing(names);
            options.disk_id = Some(facts.disk_id);
        }
        vhdx2::create(&**new.file(), &options).map_err(|error| match error {
            vhdx2::CreateError::Options(problem) => ToolError::options(path, problem),
            other => ToolError::image(path, "creating it")(other),
        })
    }

    fn write_vhd(&self, path: &Path, new: &NewFile, size: u64, parent: Option<&Disk>) -> Result<(), ToolError> {
        if self.sector_size.is_some_and(|asked| asked != 512) {
            return Err(ToolError::options(path, "a VHD has sectors of 512 bytes; make a VHDX image"));
        }
        let is_fixed = self.resolved_type() == DiskType::Fixed;
        if is_fixed && self.block_size.is_some() {
            return Err(ToolError::options(path, "a fixed VHD has no blocks"));
        }
        let kind = match parent {
            None if is_fixed => vhd::NewKind::Fixed,
            None => vhd::NewKind::Dynamic,
            Some(parent) if size != parent.capacity() => {
                let problem = "a VHD child keeps its parent's size; leave --size out, or make VHDX images";
                return Err(ToolError::options(path, problem));
            }
            Some(parent) => {
                let identity = parent.image().and_then(|it| it.tables()).map(|it| it.identity());
                let names = identity.map(|identity| name_parent(path, parent.path(), identity)).transpose()?;
                let Some(names) = names.as_ref().and_then(vhd_parent) else {
                    return Err(ToolError::options(parent.path(), "it is no VHD image"));
                };
                vhd::NewKind::Differencing(names)
            }
        };
        let id = Guid::random().map_err(ToolError::io(path, "getting random numbers"))?;
        let options = vhd::CreateOptions {
            size,
            kind,
            block_size: self.block_size.unwrap_or(vhd::BLOCK_SIZE),
            id: vhd::UniqueId(id.to_bytes()),
            created: SystemTime::now().into(),
        };
        vhd::create(&**new.file(), &options).map_err(|error| match error {
            vhd::CreateError::Size(_) | vhd::CreateError::BlockSize(_) => ToolError::options(path, error.to_string()),
            other => ToolError::image(path, "creating it")(other),
        })?;
        if is_fixed {
            vhdx::Storage::allocate(&**new.file(), 0, size).map_err(ToolError::io(path, "taking the disk's space"))?;
        }
        Ok(())
    }
}
