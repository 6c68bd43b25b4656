//! Tests of whole images.

mod basics;
mod crash;
mod damage;
mod model;
mod qemu;
mod resize;

use std::sync::Arc;

use super::{Access, CreateOptions, Image, Kind, OpenError, OpenOptions, Parent, create};
use crate::testing::{Executor, Memory};
use crate::{Guid, Storage};

pub(super) const MIB: u64 = 1 << 20;

pub(super) fn created(options: &CreateOptions) -> Arc<Memory> {
    let file = Arc::new(Memory::new());
    create(&*file, options).unwrap();
    file
}

/// Options for small disks: blocks of 1 MiB.
pub(super) fn small(size: u64) -> CreateOptions {
    CreateOptions { block_size: 1 << 20, ..CreateOptions::new(size) }
}

pub(super) fn differencing(size: u64, linkage: Guid) -> CreateOptions {
    let parent = Parent { linkage, relative_path: Some("parent.vhdx".to_owned()), ..Parent::default() };
    CreateOptions { kind: Kind::Differencing(parent), ..small(size) }
}

pub(super) fn try_open(file: Arc<dyn Storage>, access: Access) -> Result<Arc<Image>, OpenError> {
    Image::open(file, &OpenOptions { access }).map(Arc::new)
}

pub(super) fn open(file: &Arc<Memory>, access: Access) -> (Arc<Image>, Executor) {
    let file: Arc<dyn Storage> = Arc::<Memory>::clone(file);
    let image = try_open(Arc::clone(&file), access).unwrap();
    let mapping: Arc<dyn crate::Mapping> = Arc::<Image>::clone(&image);
    (image, Executor { mapping, file, parent: None })
}

pub(super) fn read(disk: &Executor, offset: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0xee; length];
    disk.read(offset, &mut bytes).unwrap();
    bytes
}
