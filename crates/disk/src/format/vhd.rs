//! VHD as an image of disks and of tools.

use std::io;
use std::path::PathBuf;

use vhdx::vhd::{self as format, Image, Kind, ParentName, UniqueId};
use vhdx::vhdx::BeyondEnd;
use vhdx::{MapError, Mapping};

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

/// A parent as VHD stores it; `None` if it is of another format.
pub(crate) fn vhd_parent(names: &ParentNames) -> Option<ParentName> {
    let name = names.absolute_path.rsplit('/').next().unwrap_or_default();
    Some(ParentName {
        id: id(names.identity)?,
        changed: names.changed.into(),
        name: name.to_owned(),
        relative_path: names.relative_path.clone(),
        absolute_path: Some(names.absolute_path.clone()),
    })
}

fn id(identity: Identity) -> Option<UniqueId> {
    if let Identity::Vhd(id) = identity { Some(id) } else { None }
}

impl ImageFile for Image {
    fn resize(&self, bytes: u64, beyond_end: BeyondEnd) -> Result<(), ImageError> {
        let now = self.size();
        if bytes < now && beyond_end == BeyondEnd::Refuse {
            return Err(format!("it has {now} bytes, more than {bytes}").into());
        }
        Ok(Image::resize(self, bytes)?)
    }

    fn settle(&self) -> Result<(), MapError> {
        self.commit()
    }

    fn close(&self) -> Result<(), MapError> {
        Image::close(self)
    }

    fn identity(&self) -> Identity {
        Identity::Vhd(self.info().id)
    }

    fn next_identity(&self) -> io::Result<Identity> {
        Ok(self.identity())
    }

    fn disk_id(&self) -> [u8; 16] {
        self.info().id.0
    }

    fn accepts(&self, parent: Identity) -> bool {
        self.info().parent.is_some_and(|it| Identity::Vhd(it.id) == parent)
    }

    fn parent_paths(&self) -> Vec<PathBuf> {
        let Some(parent) = self.info().parent else { return Vec::new() };
        // Some programs store the name alone.
        let paths = match (parent.relative_path, parent.absolute_path) {
            (None, None) => [Some(parent.name), None],
            (relative, absolute) => [relative, absolute],
        };
        paths.into_iter().flatten().filter_map(|path| host_path(&path)).collect()
    }

    fn is_empty(&self) -> Result<bool, MapError> {
        let info = self.info();
        Ok(info.kind == Kind::Differencing && info.allocated_blocks == Some(0))
    }

    fn set_parent(&self, parent: &ParentNames) -> Result<(), ImageError> {
        Ok(Image::set_parent(self, vhd_parent(parent).ok_or_else(foreign_parent)?)?)
    }

    fn relink(&self, now: Identity, next: Option<Identity>) -> Result<(), ImageError> {
        // The identity stays, so what is in the file is right already.
        if self.accepts(now) && next.is_none_or(|next| next == now) { Ok(()) } else { Err(foreign_parent()) }
    }
}

impl ToolImage for Image {
    fn facts(&self) -> Result<ImageFacts, MapError> {
        let info = self.info();
        let disk_type = match info.kind {
            Kind::Fixed => DiskType::Fixed,
            Kind::Dynamic => DiskType::Dynamic,
            Kind::Differencing => DiskType::Differencing,
        };
        Ok(ImageFacts {
            disk_type,
            disk_id: info.id.to_string(),
            data_id: None,
            blocks: info.block_size.zip(info.allocated_blocks),
            log: None,
            parent: info.parent.map(|parent| ParentFacts {
                identity: Identity::Vhd(parent.id),
                relative_path: parent.relative_path,
                absolute_path: parent.absolute_path,
            }),
            // A block that is in no file of a chain is the parent's, not zeros.
            can_free_zeros: info.kind == Kind::Dynamic,
        })
    }

    fn obstacle_to_readers(&self, _: u64) -> Result<Option<&'static str>, MapError> {
        Ok(Some("nothing in a VHD tells its data from what it was before"))
    }

    fn free_zeros(&self, block: u64) -> Result<(), MapError> {
        let block_size = u64::from(self.block_size());
        let offset = block * block_size;
        let mut rest = Vec::new();
        let ticket = self.map_zero(offset, block_size.min(self.size() - offset), &mut rest)?;
        self.complete(ticket);
        Ok(())
    }

    fn move_to_front(&self, most: usize, copy: &mut CopyBlock<'_>) -> Result<u64, MapError> {
        Image::move_to_front(self, most, copy)
    }
}
