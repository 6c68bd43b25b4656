//! Damage that is named, and what can be mended is mended. Damage of any kind is in `fuzz`.

use std::sync::Arc;

use super::{MIB, created, open, read, small, try_open};
use crate::testing::Memory;
use crate::vhdx::layout::put;
use crate::vhdx::{Access, OpenError, Remedy, check, repair};
use crate::{Mapping, Storage};

/// An image with data, a log in use, and, in a child, bits.
fn used(options: &super::CreateOptions) -> Memory {
    let file = created(options);
    let (image, disk) = open(&file, Access::ReadWrite);
    for offset in [0, 3 * MIB + 4096, 7 * MIB] {
        disk.write(offset, &[1; 8192]).unwrap();
        disk.flush(|| ()).unwrap();
    }
    disk.zero(3 * MIB, MIB).unwrap();
    disk.flush(|| ()).unwrap();
    drop((image, disk));
    Memory::with(file.content())
}

#[test]
fn short_files_end_in_errors() {
    let whole = used(&small(8 * MIB));
    for size in [0, 1, 8, 4096, 65536, 70_000, 200_000, 300_000, MIB, MIB + 4096, 2 * MIB, 2 * MIB + 65_600, 3 * MIB, 3 * MIB + 8]
    {
        let file = Memory::with(whole.content());
        file.set_size(size).unwrap();
        for access in [Access::ReadOnly, Access::ReadWrite] {
            let storage: Arc<dyn Storage> = Arc::new(Memory::with(file.content()));
            assert!(try_open(storage, access).is_err(), "{size}");
        }
    }
}

fn closed() -> Arc<Memory> {
    let file = created(&small(8 * MIB));
    let (image, disk) = open(&file, Access::ReadWrite);
    disk.write(MIB, &[1; 4096]).unwrap();
    image.close().unwrap();
    file
}

#[test]
fn a_bad_copy_is_written_again_from_the_good_one() {
    for offset in [64 << 10, 128 << 10, 192 << 10, 256 << 10] {
        let file = closed();
        file.write_at(offset + 100, &[0x55; 8]).unwrap();
        let storage: Arc<dyn Storage> = file.clone();
        let report = check(&storage).unwrap();
        assert_eq!(report.problems.len(), 1, "{report:?}");
        assert_eq!((report.problems[0].offset, report.problems[0].remedy), (offset, Remedy::Repair));
        assert!(repair(&storage).unwrap().is_sound());
        assert_eq!(read(&open(&file, Access::ReadWrite).1, MIB, 4096), [1; 4096]);
    }
}

#[test]
fn leaked_space_is_found_and_given_back() {
    let file = closed();
    let size = file.size().unwrap();
    file.set_size(size + 5 * MIB).unwrap();
    let storage: Arc<dyn Storage> = file.clone();
    assert_eq!(check(&storage).unwrap().leaked_bytes, 5 * MIB);
    assert_eq!(repair(&storage).unwrap().leaked_bytes, 0);
    assert_eq!(file.size().unwrap(), size);
}

#[test]
fn damage_names_its_structure_and_place() {
    let file = closed();
    // Block 1, and block 2 in the same place.
    let mut entry = [0; 8];
    file.read_at(3 * MIB + 8, &mut entry).unwrap();
    file.write_at(3 * MIB + 16, &entry).unwrap();
    let error = try_open(file.clone(), Access::ReadWrite).unwrap_err();
    assert!(matches!(error, OpenError::Damaged { offset, .. } if offset == 3 * MIB + 16), "{error}");
    let report = check(&(file.clone() as Arc<dyn Storage>)).unwrap();
    assert_eq!(report.problems[0].remedy, Remedy::None);
    put(&mut entry, 0, &[5]);
    file.write_at(3 * MIB + 16, &entry).unwrap();
    let (image, _) = open(&file, Access::ReadOnly);
    assert!(image.map_read(0, 512, &mut Vec::new()).unwrap_err().to_string().contains("reserved"));
}
