//! VHDX as an image of disks and of tools.

use std::io;
use std::path::PathBuf;

use vhdx::vhdx::{self as format, BeyondEnd, Image, Parent};
use vhdx::{Guid, MapError};

use super::{
    CopyBlock, DiskType, Identity, ImageError, ImageFacts, ImageFile, ParentFacts, ParentNames, ToolImage, foreign_parent,
    host_path,
};
use crate::disk::Access;

impl From<Access> for format::Access {
    fn from(access: Access) -> format::Access {
        match access {
            Access::ReadOnly => format::Access::ReadOnly,
            Access::ReadWrite => format::Access::ReadWrite,
        }
    }
}

/// A parent as VHDX stores it; `None` if it is of another format.
pub(crate) fn vhdx_parent(names: &ParentNames) -> Option<Parent> {
    Some(Parent {
        linkage: guid(names.identity)?,
        relative_path: names.relative_path.clone(),
        absolute_path: Some(names.absolute_path.clone()),
        ..Parent::default()
    })
}

fn guid(identity: Identity) -> Option<Guid> {
    if let Identity::Vhdx(guid) = identity { Some(guid) } else { None }
}

impl ImageFile for Image {
    fn resize(&self, bytes: u64, beyond_end: BeyondEnd) -> Result<(), ImageError> {
        Ok(self.resize(bytes, beyond_end)?)
    }

    fn settle(&self) -> Result<(), MapError> {
        self.flush()
    }

    fn close(&self) -> Result<(), MapError> {
        Image::close(self)
    }

    fn identity(&self) -> Identity {
        Identity::Vhdx(self.info().data_write_guid)
    }

    fn next_identity(&self) -> io::Result<Identity> {
        self.next_data_write_guid().map(Identity::Vhdx)
    }

    fn disk_id(&self) -> [u8; 16] {
        self.info().disk_id.to_bytes()
    }

    fn accepts(&self, parent: Identity) -> bool {
        let guid = guid(parent);
        self.info().parent.zip(guid).is_some_and(|(parent, guid)| parent.accepts(guid))
    }

    fn parent_paths(&self) -> Vec<PathBuf> {
        let Some(parent) = self.info().parent else { return Vec::new() };
        // A volume path names a disk of a Windows machine.
        [parent.relative_path, parent.absolute_path].into_iter().flatten().filter_map(|path| host_path(&path)).collect()
    }

    fn is_empty(&self) -> Result<bool, MapError> {
        Image::is_empty(self)
    }

    fn set_parent(&self, parent: &ParentNames) -> Result<(), ImageError> {
        Ok(Image::set_parent(self, &vhdx_parent(parent).ok_or_else(foreign_parent)?)?)
    }

    fn relink(&self, now: Identity, next: Option<Identity>) -> Result<(), ImageError> {
        let mut parent = self.info().parent.ok_or("the image has no parent")?;
        parent.linkage = guid(now).ok_or_else(foreign_parent)?;
        parent.linkage2 = next.and_then(guid);
        Ok(Image::set_parent(self, &parent)?)
    }
}

impl ToolImage for Image {
    fn facts(&self) -> Result<ImageFacts, MapError> {
        let info = self.info();
        let disk_type = match (&info.parent, info.is_fixed) {
            (Some(_), _) => DiskType::Differencing,
            (None, true) => DiskType::Fixed,
            (None, false) => DiskType::Dynamic,
        };
        Ok(ImageFacts {
            disk_type,
            disk_id: info.disk_id.to_string(),
            data_id: Some(info.data_write_guid.to_string()),
            blocks: Some((info.block_size, self.allocated_blocks()?)),
            log: Some((info.log_size, info.log_in_use)),
            parent: info.parent.map(|parent| ParentFacts {
                identity: Identity::Vhdx(parent.linkage),
                relative_path: parent.relative_path,
                absolute_path: parent.absolute_path,
            }),
            can_free_zeros: !info.is_fixed,
        })
    }

    fn obstacle_to_readers(&self, size: u64) -> Result<Option<&'static str>, MapError> {
        Image::obstacle_to_readers(self, size)
    }

    fn free_zeros(&self, block: u64) -> Result<(), MapError> {
        self.release_zeros(block)
    }

    fn move_to_front(&self, most: usize, copy: &mut CopyBlock<'_>) -> Result<u64, MapError> {
        Image::move_to_front(self, most, copy)
    }
}
