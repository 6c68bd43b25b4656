//! No content of a file can make us panic, and what can be mended is mended.

use std::sync::Arc;

use super::{MIB, created, differencing, open, read, small, try_open};
use crate::testing::{Executor, Memory, Random};
use crate::vhdx::layout::{PAGE, put, put_checksum, u32_at};
use crate::vhdx::{Access, BeyondEnd, OpenError, Remedy, check, repair};
use crate::{Guid, Mapping, Storage};

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

fn patch(file: &Memory, offset: u64, length: usize, random: &mut Random) {
    let mut bytes = vec![0; length];
    file.read_at(offset, &mut bytes).unwrap();
    for _ in 0..=random.below(3) {
        // Near the start, where the fields are.
        let range = if random.below(2) == 0 { 128 } else { length as u64 };
        let at = random.below(range.min(length as u64 - 8)) as usize;
        let value = [0, 1, 0xff, 0x80, random.next() as u8][random.below(5) as usize];
        let count = [1, 1, 2, 4, 8][random.below(5) as usize];
        bytes[at..at + count].fill(value);
    }
    if random.below(4) > 0 && [b"head", b"regi", b"loge"].iter().any(|signature| bytes.starts_with(*signature)) {
        let end = if bytes.starts_with(b"loge") { (u32_at(&bytes, 8) as usize).clamp(64, length) } else { length };
        put_checksum(&mut bytes[..end]);
    }
    file.write_at(offset, &bytes).unwrap();
}

/// Does everything that can be done with an image; only that it ends is of interest.
fn exercise(file: &Memory, access: Access) {
    let storage: Arc<dyn Storage> = Arc::new(Memory::with(file.content()));
    let _ = check(&storage);
    if access == Access::ReadWrite {
        let _ = repair(&(Arc::new(Memory::with(file.content())) as Arc<dyn Storage>));
    }
    let Ok(image) = try_open(Arc::clone(&storage), access) else { return };
    let disk = Executor { mapping: image.clone(), file: storage, parent: None };
    let mut bytes = vec![0; MIB as usize];
    let size = image.size();
    for offset in (0..size.min(16 * MIB)).step_by(bytes.len()) {
        let count = (size - offset).min(MIB) as usize;
        let _ = disk.read(offset, &mut bytes[..count]);
        let _ = disk.write(offset, &bytes[..count.min(4096)]);
        let _ = disk.zero(offset, (count as u64).min(MIB));
    }
    let _ = image.allocated_blocks();
    let _ = image.flush();
    let _ = image.resize(size / 2 / 4096 * 4096, BeyondEnd::Discard);
    let _ = image.resize(20 * MIB, BeyondEnd::Discard);
    let _ = image.info().parent.map(|parent| image.set_parent(&parent));
    let _ = image.close();
}

#[test]
fn damaged_images_end_in_errors_at_worst() {
    let places: [(u64, usize); 9] = [
        (0, PAGE),
        (64 << 10, PAGE),
        (128 << 10, PAGE),
        (192 << 10, 64 << 10),
        (256 << 10, 64 << 10),
        (MIB, 12 * PAGE),
        (2 * MIB, PAGE),
        (2 * MIB + (64 << 10), 2 * PAGE),
        (3 * MIB, PAGE),
    ];
    for (number, options) in [small(8 * MIB), differencing(8 * MIB, Guid::random().unwrap())].iter().enumerate() {
        let start = used(options);
        for seed in 0..3000 {
            let mut random = Random::new(seed * 2 + number as u64);
            let file = Memory::with(start.content());
            for _ in 0..=random.below(2) {
                let (mut offset, mut length) = places[random.below(places.len() as u64) as usize];
                if offset == MIB {
                    // An entry of the log starts on one of its first pages.
                    let page = random.below(8);
                    (offset, length) = (offset + page * PAGE as u64, 2 * PAGE);
                }
                patch(&file, offset, length, &mut random);
            }
            let access = if random.below(2) == 0 { Access::ReadOnly } else { Access::ReadWrite };
            let result = std::panic::catch_unwind(|| exercise(&file, access));
            assert!(result.is_ok(), "image {number}, seed {seed}");
        }
    }
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
