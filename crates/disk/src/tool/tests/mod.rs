//! The power goes at any change or flush of what tools do to an image: what it held is there, and run again they finish.

mod alone;
mod compact;
mod merge;

use std::path::Path;
use std::sync::Arc;

use vhdx::testing::{Content, Memory, Random};
use vhdx::vhd::{self, NewKind};
use vhdx::vhdx as vhdx2;
use vhdx::{Guid, Storage};

use super::open::OpenImage;
use super::source::Source;
use super::{Job, ToolError};
use crate::disk::Access;
use crate::format::{Format, Identity};

const MIB: u64 = 1 << 20;

/// Of what a disk of each format is made here: few blocks, so that much happens in each.
fn block_size(format: Format) -> u64 {
    if format == Format::Vhdx { MIB } else { 16 << 10 }
}

/// Bytes of data in a block.
const DATA: u64 = 16 << 10;

/// An empty image; a child of `parent` if there is one.
fn created(format: Format, size: u64, parent: Option<&OpenImage>) -> Memory {
    let file = Memory::new();
    let identity = parent.map(|it| it.image.identity());
    match format {
        Format::Vhdx => {
            let mut options = vhdx2::CreateOptions { block_size: MIB as u32, ..vhdx2::CreateOptions::new(size) };
            if let Some(Identity::Vhdx(linkage)) = identity {
                let relative_path = Some("parent.vhdx".to_owned());
                options.kind = vhdx2::Kind::Differencing(vhdx2::Parent { linkage, relative_path, ..vhdx2::Parent::default() });
            }
            vhdx2::create(&file, &options).unwrap();
        }
        _ => {
            let kind = match identity {
                Some(Identity::Vhd(id)) => {
                    let (changed, name) = (vhd::Timestamp(0), "parent.vhd".to_owned());
                    NewKind::Differencing(vhd::ParentName { id, changed, name, relative_path: None, absolute_path: None })
                }
                _ => NewKind::Dynamic,
            };
            let id = vhd::UniqueId(Guid::random().unwrap().to_bytes());
            let block_size = block_size(format) as u32;
            vhd::create(&file, &vhd::CreateOptions { size, kind, block_size, id, created: vhd::Timestamp(0) }).unwrap();
        }
    }
    file
}

fn open(file: &Arc<Memory>, format: Format, access: Access) -> Result<OpenImage, ToolError> {
    let storage: Arc<dyn Storage> = Arc::<Memory>::clone(file);
    OpenImage::within(storage, Path::new("test"), format, access)
}

/// A copy of a file, with its power on.
fn copy(file: &Memory) -> Arc<Memory> {
    Arc::new(Memory::with(file.content()))
}

fn memory(content: Content) -> Arc<Memory> {
    Arc::new(Memory::with(content))
}

/// All that an image holds, read through its parents: the image first. Each accepts the next.
fn content(files: &[&Arc<Memory>], format: Format, context: &str) -> Vec<u8> {
    let images: Vec<OpenImage> = files
        .iter()
        .map(|file| open(file, format, Access::ReadOnly).unwrap_or_else(|error| panic!("{context}: {error}")))
        .collect();
    for pair in images.windows(2) {
        assert!(pair[0].image.accepts(pair[1].image.identity()), "{context}: the parent does not fit");
    }
    let source = Source::of_levels(images.iter().map(OpenImage::level).collect(), false);
    let mut bytes = vec![0; source.size as usize];
    source.read_range(0, &mut bytes).unwrap_or_else(|error| panic!("{context}: {error}"));
    bytes
}

/// Nothing is wrong with the tables of an image.
fn assert_sound(file: &Arc<Memory>, format: Format, context: &str) {
    let storage: Arc<dyn Storage> = Arc::<Memory>::clone(file);
    if format == Format::Vhdx {
        let report = vhdx2::check(&storage).unwrap();
        assert!(report.is_sound(), "{context}: {report:?}");
    } else {
        assert_eq!(vhd::check(&*storage).unwrap(), vhd::Report::default(), "{context}");
    }
}

/// Bytes that are never zero.
fn bytes(random: &mut Random, length: u64) -> Vec<u8> {
    (0..length).map(|_| random.next() as u8 | 1).collect()
}
