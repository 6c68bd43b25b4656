//! A disk that is a VHD, against an array of bytes; what the format has not is refused with the way out.

use super::images::*;
use super::*;
use crate::tool::{self, DiskType, NewDisk};

pub(super) fn options() -> OpenOptions {
    OpenOptions { format: Format::Vhd, ..OpenOptions::default() }
}

/// A VHD with blocks of 512 KiB.
pub(super) fn create(path: &Path, disk_type: DiskType, size: usize) {
    let block_size = (disk_type == DiskType::Dynamic).then_some(512 << 10);
    let disk =
        NewDisk { format: Format::Vhd, disk_type: Some(disk_type), size: Some(size as u64), block_size, ..NewDisk::default() };
    tool::create(path, &disk).unwrap();
}

fn create_child(path: &Path, parent: &Path) {
    let parent = Some((parent.to_owned(), Format::Vhd));
    let disk = NewDisk { format: Format::Vhd, parent, block_size: Some(512 << 10), ..NewDisk::default() };
    tool::create(path, &disk).unwrap();
}

#[test]
fn a_vhd_and_its_chain_are_an_array_of_bytes_for_two_engines() {
    for seed in seeds() {
        println!("MARU_TEST_SEED={seed}");
        let directory = directory();
        let at = |name: &str| directory.path().join(name);
        // The last block is not whole, and data is not aligned to pages.
        let mut model = vec![0; 5 * MIB + 512 * 3];
        let disk_type = if seed % 2 == 0 { DiskType::Fixed } else { DiskType::Dynamic };
        create(&at("a.vhd"), disk_type, model.len());
        work(&at("a.vhd"), options(), &mut model, seed, 150);
        let first = model.clone();
        create_child(&at("b.vhd"), &at("a.vhd"));
        work(&at("b.vhd"), options(), &mut model, seed + 100, 150);
        let second = model.clone();
        create_child(&at("c.avhd"), &at("b.vhd"));
        work(&at("c.avhd"), options(), &mut model, seed + 200, 150);
        work(&at("c.avhd"), options(), &mut model, seed + 300, 150);
        assert!(content(&at("a.vhd")) == first && content(&at("b.vhd")) == second, "a parent was changed");
        let c = at("c.avhd");
        let report = tool::check(&c, tool::AnyFormat::from_path(&c)).unwrap();
        assert!(report.is_sound(), "{report:?}");
    }
}

#[test]
fn a_vhd_grows_while_it_is_used_and_a_child_does_not() {
    let directory = directory();
    for disk_type in [DiskType::Fixed, DiskType::Dynamic] {
        let path = directory.path().join(format!("{disk_type}.vhd"));
        create(&path, disk_type, 2 * MIB);
        let disk = Disk::open(&path, options()).unwrap();
        // The last one needs another table: one of 128 entries is a sector.
        grow_while_written(&disk, [3 * MIB, 5 * MIB + 512, 500 * MIB]);
        let error = disk.resize(3 << 40).unwrap_err();
        assert!(error.to_string().contains("2040 GiB"), "{error}");
        drop(disk);
        let disk = Disk::open(&path, options()).unwrap();
        assert_eq!(disk.capacity(), 500 << 20);
        let mut engine = Engine::new(&disk, 4).unwrap();
        assert_eq!((read(&mut engine, MIB, 4096), read(&mut engine, 5 * MIB, 512)), (vec![199; 4096], vec![9; 512]));
        drop((engine, disk));
        let child = directory.path().join("child.vhd");
        create_child(&child, &path);
        let error = Disk::open(&child, options()).unwrap().resize(600 << 20).unwrap_err();
        assert!(matches!(&error, ResizeError::Image { .. }) && error.to_string().contains("merge it"), "{error}");
        std::fs::remove_file(child).unwrap();
    }
}

#[test]
fn what_was_flushed_to_a_vhd_is_there_after_a_crash() {
    let directory = directory();
    let (path, copy) = (directory.path().join("a.vhd"), directory.path().join("copy.vhd"));
    create(&path, DiskType::Dynamic, 16 * MIB);
    let disk = Disk::open(&path, options()).unwrap();
    let mut engine = Engine::new(&disk, 4).unwrap();
    write(&mut engine, 5 * MIB, &[5; 8192], Durability::Volatile).unwrap();
    flush(&mut engine).unwrap();
    write(&mut engine, 9 * MIB, &[9; 512], Durability::Durable).unwrap();
    engine.discard(0, 5 * MIB as u64, MIB as u64, Durability::Durable).unwrap();
    engine.drain(|_, result| result.unwrap());
    // A copy is what a crash would leave: without what is only in memory.
    std::fs::copy(&path, &copy).unwrap();
    let content = content(&copy);
    assert_eq!((&content[9 * MIB..][..512], &content[5 * MIB..][..8192]), (&[9; 512][..], &[0; 8192][..]));
}

#[test]
fn zeros_in_a_child_hide_its_parent_and_discards_take_no_space() {
    let directory = directory();
    let (parent, child) = (directory.path().join("a.vhd"), directory.path().join("b.vhd"));
    create(&parent, DiskType::Dynamic, 8 * MIB);
    write(&mut Engine::new(&Disk::open(&parent, options()).unwrap(), 1).unwrap(), 0, &vec![1; 8 * MIB], Durability::Durable)
        .unwrap();
    create_child(&child, &parent);
    let length = || std::fs::metadata(&child).unwrap().len();
    let before = length();
    let disk = Disk::open(&child, options()).unwrap();
    let mut engine = Engine::new(&disk, 2).unwrap();
    run(&mut engine, |engine| engine.discard(0, 0, 8 * MIB as u64, Durability::Durable)).unwrap();
    assert_eq!(length(), before);
    let zeroing = Zeroing::Unmap;
    run(&mut engine, |engine| engine.write_zeroes(0, 512, MIB as u64, zeroing, Durability::Durable)).unwrap();
    let found = read(&mut engine, 0, MIB + 1024);
    assert_eq!((&found[..512], &found[512 + MIB..]), (&[1; 512][..], &[1; 512][..]));
    assert!(found[512..][..MIB].iter().all(|byte| *byte == 0));
}

#[test]
fn a_vhd_does_not_go_around_the_page_cache() {
    let directory = directory();
    let path = directory.path().join("a.vhd");
    create(&path, DiskType::Dynamic, MIB);
    let error = Disk::open(&path, OpenOptions { cache: Cache::Direct, ..options() }).unwrap_err();
    assert!(matches!(error, OpenError::VhdDirect(_)), "{error}");
}

#[test]
fn another_disk_at_a_parents_place_is_refused() {
    let directory = directory();
    let (parent, child) = (directory.path().join("a.vhd"), directory.path().join("b.vhd"));
    create(&parent, DiskType::Dynamic, MIB);
    create_child(&child, &parent);
    Disk::open(&child, options()).unwrap();
    std::fs::remove_file(&parent).unwrap();
    assert!(matches!(Disk::open(&child, options()), Err(OpenError::ParentMissing { .. })));
    create(&parent, DiskType::Dynamic, MIB);
    assert!(matches!(Disk::open(&child, options()), Err(OpenError::ParentChanged { .. })));
}

#[test]
fn a_move_hands_a_vhd_over_with_all_that_was_written() {
    let directory = directory();
    let path = directory.path().join("a.vhd");
    create(&path, DiskType::Dynamic, 4 * MIB);
    let source = Disk::open(&path, options()).unwrap();
    let target = Disk::open(&path, OpenOptions { locking: Locking::Later, ..options() }).unwrap();
    write(&mut Engine::new(&source, 1).unwrap(), 2 * MIB, &[2; 512], Durability::Volatile).unwrap();
    source.release_lock();
    target.take_lock().unwrap();
    assert_eq!(read(&mut Engine::new(&target, 1).unwrap(), 2 * MIB, 512), [2; 512]);
}
