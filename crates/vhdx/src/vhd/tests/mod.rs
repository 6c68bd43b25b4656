//! The same small tools for all tests: files in memory, random numbers, and a user that reads and writes.

mod checks;
mod crashes;
mod formats;
mod hostile;
mod interop;
mod memory;
mod model;
mod ordering;
mod sizes;

use std::sync::Arc;

use super::*;
use crate::fuzz::vhd::parent;
use crate::testing::Random;
use crate::{Extent, MapError, Mapping, Place, Step, Storage};
use memory::Memory;

/// Small blocks make much happen in small disks.
const BLOCK: u32 = 4096;

fn options(kind: NewKind, size: u64, block_size: u32) -> CreateOptions {
    CreateOptions { size, kind, block_size, id: UniqueId(*b"0123456789abcdef"), created: Timestamp(800_000_000) }
}

fn new(kind: NewKind, size: u64, block_size: u32) -> Arc<Memory> {
    let memory = Arc::new(Memory::default());
    create(&*memory, &options(kind, size, block_size)).unwrap();
    memory
}

fn open(memory: &Arc<Memory>) -> Image {
    Image::open(memory.clone(), Access::ReadWrite).unwrap()
}

/// The byte that the parent has everywhere.
const PARENT: u8 = 0xaa;

fn read(image: &Image, storage: &dyn Storage, offset: u64, length: u64) -> Vec<u8> {
    let (mut extents, mut data) = (Vec::new(), Vec::new());
    let ticket = image.map_read(offset, length, &mut extents).unwrap();
    for Extent { length, place } in extents {
        let mut part = vec![if place == Place::Parent { PARENT } else { 0 }; length as usize];
        if let Place::File(offset) = place {
            storage.read_at(offset, &mut part).unwrap();
        }
        data.extend(part);
    }
    image.finish(ticket);
    assert_eq!(data.len() as u64, length);
    data
}

fn try_write(image: &Image, storage: &dyn Storage, offset: u64, data: &[u8]) -> Result<(), MapError> {
    let mut extents = Vec::new();
    let ticket = image.map_write(offset, data.len() as u64, &mut extents)?;
    let mut done = 0;
    for Extent { length, place } in extents {
        let Place::File(offset) = place else { panic!("a write goes to {place:?}") };
        storage.write_at(offset, &data[done..done + length as usize]).unwrap();
        done += length as usize;
    }
    assert_eq!(done, data.len());
    image.complete(ticket);
    Ok(())
}

fn write(image: &Image, storage: &dyn Storage, offset: u64, data: &[u8]) {
    try_write(image, storage, offset, data).unwrap();
}

fn zero(image: &Image, storage: &dyn Storage, offset: u64, length: u64) {
    let mut extents = Vec::new();
    let ticket = image.map_zero(offset, length, &mut extents).unwrap();
    for Extent { length, place } in extents {
        let Place::File(offset) = place else { panic!("zeros go to {place:?}") };
        storage.punch(offset, length).unwrap();
    }
    image.complete(ticket);
}
