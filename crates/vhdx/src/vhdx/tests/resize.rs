//! Disks that change their size, and children that change their parent.

use std::sync::Arc;

use super::{MIB, created, differencing, open, read, small, try_open};
use crate::testing::{Executor, Memory, Random};
use crate::vhdx::{Access, BeyondEnd, ChangeError, Kind, Parent, check};
use crate::{Guid, Mapping, Storage};

const GIB: u64 = 1 << 30;

#[test]
fn a_table_that_became_too_small_moves() {
    let file = created(&small(100 * GIB));
    let (image, disk) = open(&file, Access::ReadWrite);
    for index in 0..50 {
        disk.write(index * 2 * GIB, &[index as u8 + 1; 512]).unwrap();
    }
    image.resize(5000 * GIB, BeyondEnd::Refuse).unwrap();
    disk.write(4999 * GIB, &[99; 512]).unwrap();
    for _ in 0..4 {
        disk.flush(|| ()).unwrap();
    }
    image.close().unwrap();
    let storage: Arc<dyn Storage> = file.clone();
    assert!(check(&storage).unwrap().is_sound());
    let (image, disk) = open(&file, Access::ReadWrite);
    assert_eq!(image.size(), 5000 * GIB);
    assert_eq!(read(&disk, 4999 * GIB, 512), [99; 512]);
    for index in 0..50 {
        assert_eq!(read(&disk, index * 2 * GIB, 1024), [[index as u8 + 1; 512], [0; 512]].concat());
    }
}

#[test]
fn a_fixed_disk_grows_with_all_its_space() {
    let file = created(&crate::vhdx::CreateOptions { kind: Kind::Fixed { allocate: true }, ..small(700 * MIB + 512) });
    let (image, disk) = open(&file, Access::ReadWrite);
    disk.write(0, &[1; 512]).unwrap();
    image.resize(3000 * MIB, BeyondEnd::Refuse).unwrap();
    assert_eq!(image.allocated_blocks().unwrap(), 3000);
    disk.write(2999 * MIB, &[2; 512]).unwrap();
    image.close().unwrap();
    let (image, disk) = open(&file, Access::ReadOnly);
    assert_eq!(image.allocated_blocks().unwrap(), 3000);
    assert_eq!(read(&disk, 2999 * MIB, 512), [2; 512]);
    assert_eq!(read(&disk, 0, 512), [1; 512]);
}

#[test]
fn data_behind_the_new_end_is_lost_only_on_demand() {
    let file = created(&small(16 * MIB));
    let (image, disk) = open(&file, Access::ReadWrite);
    disk.write(12 * MIB, &[1; 512]).unwrap();
    let refused = image.resize(8 * MIB, BeyondEnd::Refuse).unwrap_err();
    assert!(matches!(refused, ChangeError::DataBeyondEnd { offset, .. } if offset == 12 * MIB));
    image.resize(13 * MIB, BeyondEnd::Refuse).unwrap();
    image.resize(8 * MIB, BeyondEnd::Discard).unwrap();
    image.resize(16 * MIB, BeyondEnd::Refuse).unwrap();
    assert_eq!(read(&disk, 12 * MIB, 512), [0; 512]);
    assert_eq!(image.allocated_blocks().unwrap(), 0);
}

#[test]
fn a_resize_that_was_cut_leaves_the_old_disk_or_the_new_one() {
    for (old, new) in [(100 * GIB, 400 * GIB), (100 * GIB, 101 * GIB), (100 * GIB, 3 * GIB), (3 * MIB + 512, 90 * MIB)] {
        let start = created(&small(old));
        let (image, disk) = open(&start, Access::ReadWrite);
        disk.write(2 * MIB, &[1; 4096]).unwrap();
        disk.write(old - 512, &[2; 512]).unwrap();
        image.close().unwrap();
        for cut in 0.. {
            let file = Arc::new(Memory::with(start.content()));
            file.cut_at(cut);
            let (image, _) = open(&file, Access::ReadWrite);
            let is_done = image.resize(new, BeyondEnd::Discard).is_ok();
            for seed in 0..6 {
                let context = format!("{old} to {new}, cut {cut}, seed {seed}");
                let after = Arc::new(Memory::with(file.crash(&mut Random::new(seed + 10 * cut))));
                let storage: Arc<dyn Storage> = after.clone();
                assert!(check(&storage).unwrap().is_sound(), "{context}");
                let image =
                    try_open(Arc::clone(&storage), Access::ReadWrite).unwrap_or_else(|error| panic!("{context}: {error}"));
                let size = image.size();
                assert!(size == new || (size == old && !is_done), "{context}");
                let disk = Executor { mapping: image, file: storage, parent: None };
                assert_eq!(read(&disk, 2 * MIB, 4096), [1; 4096], "{context}");
                if size >= old {
                    assert_eq!(read(&disk, old - 512, 512), [2; 512], "{context}");
                }
                if size > old {
                    let length = (size - old).min(4 * MIB) as usize;
                    assert_eq!(read(&disk, old, length), vec![0; length], "{context}");
                    disk.write(size - 4096, &[3; 4096]).unwrap();
                    assert_eq!(read(&disk, size - 4096, 4096), [3; 4096], "{context}");
                }
            }
            if is_done {
                break;
            }
        }
    }
}

#[test]
fn a_child_takes_another_parent_and_keeps_its_own_identity() {
    let file = created(&differencing(4 * MIB, Guid::random().unwrap()));
    let (image, disk) = open(&file, Access::ReadWrite);
    let before = image.info();
    let mut parent = Parent { linkage: Guid::random().unwrap(), absolute_path: Some("/srv/x".repeat(2000)), ..Parent::default() };
    for round in 0..3 {
        parent.relative_path = Some(format!("../{}", "y".repeat(round * 3000 + 1)));
        image.set_parent(&parent).unwrap();
        assert_eq!(open(&file, Access::ReadOnly).0.info().parent.as_ref(), Some(&parent), "durable when it returns");
    }
    assert_eq!(image.info().data_write_guid, before.data_write_guid);
    let promised = image.next_data_write_guid().unwrap();
    assert_ne!(promised, before.data_write_guid);
    disk.write(0, &[1; 512]).unwrap();
    assert_eq!(image.info().data_write_guid, promised);
    image.close().unwrap();
    let info = open(&file, Access::ReadOnly).0.info();
    assert_eq!((info.parent, info.data_write_guid), (Some(parent), promised));
}

#[test]
fn an_image_without_a_parent_does_not_get_one() {
    let (image, _) = open(&created(&small(4 * MIB)), Access::ReadWrite);
    let parent = Parent { relative_path: Some("x".to_owned()), ..Parent::default() };
    assert!(matches!(image.set_parent(&parent), Err(ChangeError::Parent(_))));
}
