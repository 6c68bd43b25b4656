//! Opening images: what they say about themselves, their parents, and what is said when it cannot be done.

use std::os::unix::fs::symlink;

use super::images::*;
use super::*;

fn refused(path: &Path) -> OpenError {
    let error = Disk::open(path, image_options()).unwrap_err();
    assert!(error.to_string().contains(&path.display().to_string()), "{error}");
    error
}

#[test]
fn the_chain_is_found_beside_the_image_wherever_it_is_opened_from() {
    let directory = directory();
    let at = |name: &str| directory.path().join(name);
    create(&at("a.vhdx"), MIB, None);
    create(&at("b.vhdx"), MIB, Some(&at("a.vhdx")));
    create(&at("c.avhdx"), 2 * MIB, Some(&at("b.vhdx")));
    let elsewhere = tempfile::tempdir().unwrap();
    let link = elsewhere.path().join("link.vhdx");
    symlink(at("c.avhdx"), &link).unwrap();
    for path in [at("c.avhdx"), link] {
        let disk = Disk::open(&path, image_options()).unwrap();
        assert_eq!(disk.capacity(), 2 * MIB as u64);
        assert_eq!((disk.sector_size(), disk.physical_sector_size()), (SectorSize::Bytes512, 4096));
        let chain: Vec<&Path> = disk.chain().collect();
        assert_eq!(chain, [path.as_path(), &at("b.vhdx"), &at("a.vhdx")]);
        // Nobody may change a parent meanwhile; reading it is fine.
        assert!(matches!(Disk::open(at("a.vhdx"), image_options()), Err(OpenError::Locked(_))));
        let reader = OpenOptions { access: Access::ReadOnly, ..image_options() };
        Disk::open(at("b.vhdx"), reader).unwrap();
    }
    Disk::open(at("a.vhdx"), image_options()).unwrap();
}

#[test]
fn the_files_of_a_chain_can_be_passed_to_whom_may_not_open_any() {
    let directory = directory();
    let at = |name: &str| directory.path().join(name);
    create(&at("a.vhdx"), MIB, None);
    write_pattern(&at("a.vhdx"));
    create(&at("b.vhdx"), MIB, Some(&at("a.vhdx")));
    create(&at("c.vhdx"), MIB, Some(&at("b.vhdx")));
    let files = || Disk::open_files(at("c.vhdx"), image_options()).unwrap();
    let held = files();
    // Where they were opened, nothing is left.
    let moved = ["a.vhdx", "b.vhdx", "c.vhdx"].map(|name| (at(name), at("gone").with_extension(name)));
    moved.iter().for_each(|(from, to)| std::fs::rename(from, to).unwrap());
    {
        let disk = Disk::from_files(held, image_options()).unwrap();
        let chain: Vec<&Path> = disk.chain().collect();
        assert_eq!(chain, [at("c.vhdx"), at("b.vhdx"), at("a.vhdx")]);
        let mut engine = Engine::new(&disk, 1).unwrap();
        assert_eq!(read(&mut engine, 0, 512), [7; 512]);
        write(&mut engine, 512, &[8; 512], Durability::Durable).unwrap();
        // All are locked as when the disk is opened by its path.
        let parent = Disk::open(at("gone.b.vhdx"), image_options());
        assert!(matches!(parent, Err(OpenError::Locked(_))), "{parent:?}");
    }
    moved.iter().for_each(|(to, from)| std::fs::rename(from, to).unwrap());

    let mut swapped = files();
    swapped.swap(1, 2);
    assert!(matches!(Disk::from_files(swapped, image_options()), Err(OpenError::ParentChanged { .. })));
    let mut twice = files();
    twice.extend(files());
    assert!(matches!(Disk::from_files(twice, image_options()), Err(OpenError::StrayFile { .. })));
    let own_twice = files().into_iter().take(1).chain(files()).collect();
    assert!(matches!(Disk::from_files(own_twice, image_options()), Err(OpenError::ParentCycle { .. })));
    let own = files().into_iter().take(1).collect();
    assert_eq!(Disk::from_files(own, image_options()).unwrap().chain().count(), 3);
}

fn write_pattern(path: &Path) {
    let disk = Disk::open(path, image_options()).unwrap();
    write(&mut Engine::new(&disk, 1).unwrap(), 0, &[7; 512], Durability::Durable).unwrap();
}

#[test]
fn a_missing_parent_is_named_with_the_whole_chain() {
    let directory = directory();
    let at = |name: &str| directory.path().join(name);
    create(&at("a.vhdx"), MIB, None);
    create(&at("b.vhdx"), MIB, Some(&at("a.vhdx")));
    create(&at("c.vhdx"), MIB, Some(&at("b.vhdx")));
    std::fs::rename(at("a.vhdx"), at("gone.vhdx")).unwrap();
    let error = refused(&at("c.vhdx"));
    assert!(matches!(error, OpenError::ParentMissing { .. }), "{error}");
    let text = error.to_string();
    for name in ["c.vhdx -> ", "b.vhdx", "a.vhdx"] {
        assert!(text.contains(name), "{text}");
    }
}

#[test]
fn a_parent_that_was_changed_is_refused() {
    let directory = directory();
    let at = |name: &str| directory.path().join(name);
    create(&at("a.vhdx"), MIB, None);
    create(&at("b.vhdx"), MIB, Some(&at("a.vhdx")));
    {
        let disk = Disk::open(at("a.vhdx"), image_options()).unwrap();
        write(&mut Engine::new(&disk, 1).unwrap(), 0, &[1; 512], Durability::Durable).unwrap();
    }
    let error = refused(&at("b.vhdx"));
    assert!(matches!(error, OpenError::ParentChanged { .. }), "{error}");
}

#[test]
fn an_image_is_not_its_own_ancestor() {
    let directory = directory();
    let at = |name: &str| directory.path().join(name);
    create(&at("a.vhdx"), MIB, None);
    create(&at("b.vhdx"), MIB, Some(&at("a.vhdx")));
    std::fs::remove_file(at("a.vhdx")).unwrap();
    symlink(at("b.vhdx"), at("a.vhdx")).unwrap();
    let error = refused(&at("b.vhdx"));
    assert!(matches!(error, OpenError::ParentCycle { .. }), "{error}");
}

#[test]
fn chains_longer_than_the_limit_are_refused_and_shorter_ones_are_read_through() {
    let directory = directory();
    let at = |number: usize| directory.path().join(format!("{number}.vhdx"));
    let limit = crate::chain::MAX_IMAGES;
    create(&at(0), MIB, None);
    {
        let disk = Disk::open(at(0), image_options()).unwrap();
        write(&mut Engine::new(&disk, 1).unwrap(), 4096, &[7; 4096], Durability::Volatile).unwrap();
    }
    for number in 1..=limit {
        create(&at(number), MIB, Some(&at(number - 1)));
    }
    assert_eq!(content(&at(limit - 1))[4096..8192], [7; 4096]);
    let error = refused(&at(limit));
    assert!(matches!(error, OpenError::ChainTooLong { .. }), "{error}");
}

#[test]
fn what_is_no_image_is_refused_by_name_and_never_guessed() {
    let directory = directory();
    let path = patterned(directory.path(), MIB);
    assert!(refused(&path).to_string().contains("as a VHDX image"));
    // An image opened as raw is a raw disk.
    let image = directory.path().join("a.vhdx");
    create(&image, MIB, None);
    let disk = Disk::open(&image, OpenOptions::default()).unwrap();
    assert_eq!((disk.format(), disk.capacity()), (Format::Raw, std::fs::metadata(&image).unwrap().len()));
    drop(disk);
    let sectors = OpenOptions { sector_size: Some(SectorSize::Bytes4096), ..image_options() };
    assert!(matches!(Disk::open(&image, sectors), Err(OpenError::SectorSize { .. })));
}

#[test]
fn a_move_hands_an_image_over_with_all_that_was_written() {
    let directory = directory();
    let path = directory.path().join("a.vhdx");
    create(&path, 4 * MIB, None);
    let source = Disk::open(&path, image_options()).unwrap();
    write(&mut Engine::new(&source, 1).unwrap(), 0, &[1; 512], Durability::Durable).unwrap();
    let target = Disk::open(&path, OpenOptions { locking: Locking::Later, ..image_options() }).unwrap();
    assert!(target.take_lock().is_err());
    write(&mut Engine::new(&source, 1).unwrap(), 2 * MIB, &[2; 512], Durability::Volatile).unwrap();
    source.release_lock();
    assert!(matches!(Engine::new(&source, 1), Err(EngineError::Unlocked(_))));
    target.take_lock().unwrap();
    let mut engine = Engine::new(&target, 1).unwrap();
    assert_eq!((read(&mut engine, 0, 512), read(&mut engine, 2 * MIB, 512)), (vec![1; 512], vec![2; 512]));
    write(&mut engine, 3 * MIB, &[3; 512], Durability::Volatile).unwrap();
    drop(engine);
    // And back.
    target.release_lock();
    source.take_lock().unwrap();
    assert_eq!(read(&mut Engine::new(&source, 1).unwrap(), 3 * MIB, 512), [3; 512]);
}
