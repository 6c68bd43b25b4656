//! What an image does in the simplest cases.

use super::{MIB, created, differencing, open, read, small};
use crate::testing::Executor;
use crate::vhdx::{Access, CreateOptions, Kind};
use crate::{Guid, MapError, Mapping, Place};
use std::sync::Arc;

#[test]
fn what_was_written_is_read_after_a_close() {
    let file = created(&small(16 * MIB));
    let (image, disk) = open(&file, Access::ReadWrite);
    disk.write(3 * MIB - 512, &[7; 1024]).unwrap();
    assert_eq!(read(&disk, 3 * MIB - 1024, 2048), [[0; 512], [7; 512], [7; 512], [0; 512]].concat());
    image.close().unwrap();
    for access in [Access::ReadOnly, Access::ReadWrite] {
        let (image, disk) = open(&file, access);
        assert_eq!(read(&disk, 3 * MIB - 512, 1024), [7; 1024]);
        assert_eq!(read(&disk, 0, 1024), [0; 1024]);
        assert_eq!(image.allocated_blocks().unwrap(), 2);
    }
}

#[test]
fn what_was_flushed_is_read_from_a_file_that_was_not_closed() {
    let file = created(&small(16 * MIB));
    let (image, disk) = open(&file, Access::ReadWrite);
    disk.write(MIB, &[7; 4096]).unwrap();
    disk.flush(|| ()).unwrap();
    disk.write(5 * MIB, &[8; 4096]).unwrap();
    let before = file.done();
    drop((disk, image));
    let (image, disk) = open(&file, Access::ReadOnly);
    assert!(image.info().log_in_use);
    assert_eq!(read(&disk, MIB, 4096), [7; 4096]);
    assert_eq!(read(&disk, 5 * MIB, 4096), [0; 4096]);
    assert_eq!(file.done(), before, "reading changes nothing");
    let (image, disk) = open(&file, Access::ReadWrite);
    assert!(!image.info().log_in_use);
    assert_eq!(read(&disk, MIB, 4096), [7; 4096]);
}

#[test]
fn opening_for_writing_alone_leaves_the_file_untouched() {
    let file = created(&small(16 * MIB));
    let before = file.done();
    let (image, disk) = open(&file, Access::ReadWrite);
    read(&disk, 0, 65536);
    image.close().unwrap();
    assert_eq!(file.done(), before);
}

#[test]
fn the_first_change_gives_new_identities() {
    let file = created(&small(16 * MIB));
    let (image, disk) = open(&file, Access::ReadWrite);
    let before = image.info();
    disk.write(0, &[1; 512]).unwrap();
    let after = image.info();
    assert_ne!(before.data_write_guid, after.data_write_guid);
    assert_ne!(before.file_write_guid, after.file_write_guid);
    assert!(after.log_in_use);
    assert_eq!(before.disk_id, after.disk_id);
}

#[test]
fn ranges_outside_the_disk_are_refused() {
    let (image, _) = open(&created(&small(4 * MIB)), Access::ReadWrite);
    let mut extents = Vec::new();
    for (offset, length) in
        [(4 * MIB, 512), (4 * MIB - 512, 1024), (1, 512), (0, 100), (u64::MAX - 511, 512), (512, u64::MAX - 511)]
    {
        assert!(matches!(image.map_read(offset, length, &mut extents), Err(MapError::Range { .. })), "{offset} {length}");
        assert!(matches!(image.map_write(offset, length, &mut extents), Err(MapError::Range { .. })), "{offset} {length}");
        assert!(matches!(image.map_zero(offset, length, &mut extents), Err(MapError::Range { .. })), "{offset} {length}");
    }
    assert!(extents.is_empty());
}

#[test]
fn an_image_opened_for_reading_cannot_be_changed() {
    let (image, disk) = open(&created(&small(4 * MIB)), Access::ReadOnly);
    assert!(matches!(image.map_write(0, 512, &mut Vec::new()), Err(MapError::ReadOnly)));
    assert!(matches!(image.map_zero(0, 512, &mut Vec::new()), Err(MapError::ReadOnly)));
    disk.flush(|| ()).unwrap();
}

#[test]
fn neighbouring_blocks_are_one_extent() {
    let (image, disk) = open(&created(&small(16 * MIB)), Access::ReadWrite);
    disk.write(0, &vec![1; 4 << 20]).unwrap();
    let mut extents = Vec::new();
    image.finish(image.map_read(0, 16 * MIB, &mut extents).unwrap());
    assert_eq!(extents.len(), 2);
    assert_eq!(extents[0].length, 4 * MIB);
    assert_eq!((extents[1].length, extents[1].place), (12 * MIB, Place::Zero));
}

#[test]
fn sixty_four_tebibytes_cost_almost_nothing() {
    let file = created(&CreateOptions::new(64 << 40));
    assert!(file.allocated() < MIB, "{}", file.allocated());
    let (_, disk) = open(&file, Access::ReadWrite);
    disk.write((64 << 40) - 4096, &[9; 4096]).unwrap();
    assert_eq!(read(&disk, (64 << 40) - 8192, 8192), [[0; 4096], [9; 4096]].concat());
}

#[test]
fn a_fixed_disk_has_its_place_from_the_start() {
    let file = created(&CreateOptions { kind: Kind::Fixed { allocate: false }, ..small(5 * MIB) });
    let (image, disk) = open(&file, Access::ReadWrite);
    assert_eq!(image.allocated_blocks().unwrap(), 5);
    disk.write(0, &[1; 4096]).unwrap();
    disk.zero(0, 5 * MIB).unwrap();
    assert_eq!(read(&disk, 0, 4096), [0; 4096]);
    image.close().unwrap();
    assert_eq!(open(&file, Access::ReadOnly).0.allocated_blocks().unwrap(), 5);
}

#[test]
fn trimmed_blocks_are_zeros_and_their_space_is_used_again() {
    let file = created(&small(16 * MIB));
    let (image, disk) = open(&file, Access::ReadWrite);
    disk.write(0, &vec![5; 8 << 20]).unwrap();
    disk.flush(|| ()).unwrap();
    let allocated = file.allocated();
    disk.zero(2 * MIB, 4 * MIB).unwrap();
    assert_eq!(read(&disk, 2 * MIB, 4 << 20), vec![0; 4 << 20]);
    for _ in 0..4 {
        disk.flush(|| ()).unwrap();
    }
    assert!(file.allocated() < allocated - 3 * MIB, "the log and the tables take a little");
    let mut extents = Vec::new();
    image.finish(image.map_write(12 * MIB, MIB, &mut extents).unwrap());
    assert_eq!(extents[0].place, Place::File(6 * MIB));
    assert_eq!(read(&disk, 12 * MIB, 1 << 20), vec![0; 1 << 20]);
    image.close().unwrap();
}

fn family(size: u64) -> (Arc<crate::testing::Memory>, Executor) {
    let (image, parent) = open(&created(&small(size)), Access::ReadWrite);
    parent.write(0, &vec![0xaa; size as usize]).unwrap();
    (created(&differencing(size, image.info().data_write_guid)), parent)
}

#[test]
fn a_child_shows_its_parent_where_it_was_not_written() {
    let (file, parent) = family(8 * MIB);
    let parent = Arc::new(parent);
    let (image, mut child) = open(&file, Access::ReadWrite);
    child.parent = Some(Arc::clone(&parent));
    child.write(MIB + 1024, &[1; 512]).unwrap();
    child.write(3 * MIB, &vec![2; 1 << 20]).unwrap();
    child.zero(5 * MIB, MIB).unwrap();
    child.zero(6 * MIB + 4096, 4096).unwrap();
    child.write(5 * MIB + 4096, &[3; 4096]).unwrap();
    let check = |child: &Executor| {
        assert_eq!(read(child, MIB + 512, 1536), [[0xaa; 512], [1; 512], [0xaa; 512]].concat());
        assert_eq!(read(child, 3 * MIB - 512, 1024), [[0xaa; 512], [2; 512]].concat());
        assert_eq!(read(child, 5 * MIB, 12288), [[0; 4096], [3; 4096], [0; 4096]].concat(), "not the parent's");
        assert_eq!(read(child, 6 * MIB, 12288), [[0xaa; 4096], [0; 4096], [0xaa; 4096]].concat());
    };
    check(&child);
    image.close().unwrap();
    let (image, mut child) = open(&file, Access::ReadOnly);
    child.parent = Some(parent);
    check(&child);
    assert!(image.info().parent.is_some());
    assert_eq!(image.allocated_blocks().unwrap(), 4);
}

#[test]
fn sectors_of_a_failed_write_stay_the_parents() {
    let (file, parent) = family(4 * MIB);
    let (image, mut child) = open(&file, Access::ReadWrite);
    child.parent = Some(Arc::new(parent));
    let mut extents = Vec::new();
    let ticket = image.map_write(0, 4096, &mut extents).unwrap();
    let Place::File(place) = extents[0].place else { panic!() };
    child.file.write_at(place, &[9; 512]).unwrap();
    assert_eq!(read(&child, 0, 4096), [0xaa; 4096], "not yet complete");
    image.finish(ticket);
    assert_eq!(read(&child, 0, 4096), [0xaa; 4096]);
}

#[test]
fn a_child_that_fills_a_block_forgets_its_bits() {
    let (file, parent) = family(4 * MIB);
    let (image, mut child) = open(&file, Access::ReadWrite);
    child.parent = Some(Arc::new(parent));
    for offset in (0..MIB).step_by(65536) {
        child.write(offset, &[4; 65536]).unwrap();
    }
    assert_eq!(image.entry(0).unwrap().0 & 7, 6);
    assert_eq!(image.entry(1).unwrap().0 & 7, 0);
    assert_eq!(read(&child, 0, 1 << 20), vec![4; 1 << 20]);
}

#[test]
fn an_unknown_linkage_is_told() {
    let (file, _) = family(MIB);
    let parent = open(&file, Access::ReadOnly).0.info().parent.unwrap();
    assert!(parent.accepts(parent.linkage));
    assert!(!parent.accepts(Guid::random().unwrap()));
}

#[test]
fn bits_of_a_block_that_was_never_present_mean_nothing() {
    let (file, parent) = family(4 * MIB);
    let (image, mut child) = open(&file, Access::ReadWrite);
    child.write(0, &[1; 512]).unwrap();
    let bitmap = image.bitmap_page_offset(0).unwrap();
    image.close().unwrap();
    // All bits of block 1.
    child.file.write_at(bitmap + 256, &[0xff; 256]).unwrap();
    let image;
    (image, child) = open(&file, Access::ReadWrite);
    child.parent = Some(Arc::new(parent));
    child.write(MIB + 512, &[2; 512]).unwrap();
    assert_eq!(read(&child, MIB, 1536), [[0xaa; 512], [2; 512], [0xaa; 512]].concat());
    image.close().unwrap();
    let parent = child.parent;
    (_, child) = open(&file, Access::ReadOnly);
    child.parent = parent;
    assert_eq!(read(&child, MIB, 1536), [[0xaa; 512], [2; 512], [0xaa; 512]].concat());
}
