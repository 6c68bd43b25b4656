//! Layers of a disk that is open: added, merged below it, merged into the one below.

use std::os::fd::OwnedFd;
use std::sync::Mutex;

use vhdx::testing::Random;

use super::images::*;
use super::*;
use crate::layers::LayerError;
use crate::tool::{self, AnyFormat, Job, NewDisk, ToolError};

const SIZE: usize = 16 * MIB;

/// A disk of which a model knows the content.
struct Modelled {
    directory: TempDir,
    disk: Disk,
    content: Vec<u8>,
    random: Random,
}

impl Modelled {
    fn new() -> Modelled {
        let directory = directory();
        let path = directory.path().join("0.vhdx");
        let size = Some(SIZE as u64);
        tool::create(&path, &NewDisk { format: Format::Vhdx, size, block_size: Some(1 << 20), ..NewDisk::default() }).unwrap();
        let disk = Disk::open(&path, image_options()).unwrap();
        Modelled { directory, disk, content: vec![0; SIZE], random: Random::new(5) }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes and zeroes parts all over it.
    fn change(&mut self) {
        let mut engine = Engine::new(&self.disk, 1).unwrap();
        for _ in 0..40 {
            let offset = self.random.below(SIZE as u64 / 512 - 64) as usize * 512;
            let length = 512 * (1 + self.random.below(63) as usize);
            let value = self.random.next() as u8;
            if value.is_multiple_of(8) {
                let block = offset / MIB * MIB;
                let zero =
                    |engine: &mut Engine| engine.write_zeroes(0, block as u64, MIB as u64, Zeroing::Unmap, Durability::Volatile);
                run(&mut engine, zero).unwrap();
                self.content[block..block + MIB].fill(0);
            } else {
                write(&mut engine, offset, &vec![value; length], Durability::Volatile).unwrap();
                self.content[offset..offset + length].fill(value);
            }
        }
        if self.random.below(2) == 0 {
            flush(&mut engine).unwrap();
        }
    }

    fn assert_content(&self) {
        let mut engine = Engine::new(&self.disk, 1).unwrap();
        assert!(read(&mut engine, 0, SIZE) == self.content, "the disk holds something else");
    }

    fn add_layer(&mut self, name: &str) {
        let path = self.at(name);
        tool::create_layer(&path, self.disk.path()).unwrap();
        self.disk = self.disk.prepare_layer(writable(&path), path).unwrap().add().unwrap();
    }

    fn chain(&self) -> Vec<String> {
        self.disk.chain().map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect()
    }

    /// As a program that is started anew finds it.
    fn assert_stored(self) {
        let path = self.disk.path().to_owned();
        drop(self.disk);
        assert!(content(&path) == self.content, "the files hold something else");
        for name in std::fs::read_dir(self.directory.path()).unwrap() {
            let report = tool::check(&name.unwrap().path(), AnyFormat::Own(Format::Vhdx)).unwrap();
            assert!(report.is_sound(), "{report:?}");
        }
    }
}

fn writable(path: &Path) -> OwnedFd {
    File::options().read(true).write(true).open(path).unwrap().into()
}

fn readable(path: &Path) -> (PathBuf, OwnedFd) {
    (path.to_owned(), File::open(path).unwrap().into())
}

#[test]
fn layers_take_what_is_written_and_leave_what_was_there_to_others() {
    let mut it = Modelled::new();
    it.change();
    let before = it.content.clone();
    it.add_layer("1.vhdx");
    it.change();
    it.add_layer("2.vhdx");
    it.assert_content();
    it.change();
    assert_eq!(it.chain(), ["2.vhdx", "1.vhdx", "0.vhdx"]);
    it.assert_content();
    // A checkpoint is a disk that can be read, and have children of its own.
    assert!(content(&it.at("0.vhdx")) == before);
    let parent = Some((it.at("0.vhdx"), Format::Vhdx));
    tool::create(&it.at("branch.vhdx"), &NewDisk { format: Format::Vhdx, parent, ..NewDisk::default() }).unwrap();
    assert!(matches!(Disk::open(it.at("0.vhdx"), image_options()), Err(OpenError::Locked(_))));
    it.assert_stored();
}

#[test]
fn a_layer_that_was_not_used_is_empty_or_does_not_fit() {
    let mut it = Modelled::new();
    it.change();
    let path = it.at("1.vhdx");
    tool::create_layer(&path, it.disk.path()).unwrap();
    let fits =
        || tool::info(&path, AnyFormat::Own(Format::Vhdx)).unwrap()[0].image.as_ref().unwrap().parent.as_ref().unwrap().fits;
    // Made, and never added, because everything ended here.
    assert!(fits());
    // Added, and taken back, because another disk's could not be added.
    let old = it.disk.clone();
    drop(old.prepare_layer(writable(&path), path.clone()).unwrap().add().unwrap());
    let error = old.take_back(LayerError::Busy(path.clone()));
    assert!(matches!(error, LayerError::Busy(_)), "{error}");
    it.assert_content();
    assert!(fits());
    it.change();
    assert!(!fits());
    it.assert_content();
    std::fs::remove_file(path).unwrap();
    drop(old);
    it.assert_stored();
}

#[test]
fn files_that_are_no_new_layers_are_refused_and_the_disk_goes_on() {
    let mut it = Modelled::new();
    it.change();
    let refused = |it: &Modelled, path: &Path| {
        let error = it.disk.prepare_layer(writable(path), path.to_owned()).map(drop).unwrap_err();
        it.assert_content();
        error.to_string()
    };
    let new = |path: &Path, parent: &Path| {
        let parent = Some((parent.to_owned(), Format::Vhdx));
        tool::create(path, &NewDisk { format: Format::Vhdx, parent, ..NewDisk::default() }).unwrap();
    };
    assert!(refused(&it, &it.at("0.vhdx")).contains("made of already"));
    let (other, child) = (it.at("other.vhdx"), it.at("child.vhdx"));
    create(&other, SIZE, None);
    assert!(refused(&it, &other).contains("is no child of"));
    new(&child, &other);
    assert!(refused(&it, &child).contains("is no child of"));
    let path = it.at("1.vhdx");
    tool::create_layer(&path, it.disk.path()).unwrap();
    {
        let _user = Disk::open(&child, image_options()).unwrap();
        assert!(refused(&it, &child).contains("in use by"));
        let held = it.disk.clone();
        let _engine = Engine::new(&held, 1).unwrap();
        let added = it.disk.prepare_layer(writable(&path), path.clone()).unwrap().add();
        assert!(matches!(added, Err(LayerError::Busy(_))));
    }
    it.disk.resize(2 * SIZE as u64).unwrap();
    it.content.resize(2 * SIZE, 0);
    assert!(
        it.disk.prepare_layer(writable(&path), path.clone()).map(drop).unwrap_err().to_string().contains("the disk 33554432")
    );
    let raw = Disk::open(patterned(it.directory.path(), SIZE), OpenOptions::default()).unwrap();
    let error = raw.prepare_layer(writable(&path), path).map(drop).unwrap_err().to_string();
    assert!(error.contains("raw disk") && error.contains("maru disk convert"), "{error}");
}

#[test]
fn a_layer_in_the_middle_is_merged_while_the_disk_is_written() {
    let mut it = Modelled::new();
    it.change();
    it.add_layer("1.vhdx");
    it.change();
    it.add_layer("2.vhdx");
    it.change();
    it.add_layer("3.vhdx");
    // Both are read through a child that stays, and by nobody else.
    for (middle, below) in [("2.vhdx", "1.vhdx"), ("1.vhdx", "0.vhdx")] {
        let (middle, below) = (it.at(middle), it.at(below));
        let shared = Mutex::new(&mut it);
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let mut it = shared.lock().unwrap();
                while !is_over.load(Ordering::Relaxed) {
                    it.change();
                    it.assert_content();
                }
            });
            let _over = Over(&is_over);
            tool::merge_in_use(&middle, &Job::default()).unwrap();
            assert!(!writer.is_finished());
        });
        // As by a VM that is started anew before its disk is linked past the layer.
        it.assert_content();
        let files = it.disk.chain().skip_while(|path| *path != below).map(readable).collect();
        it.disk = it.disk.prepare_parents(files).unwrap().replace().unwrap();
        it.assert_content();
        std::fs::remove_file(middle).unwrap();
    }
    it.change();
    assert_eq!(it.chain(), ["3.vhdx", "0.vhdx"]);
    it.assert_stored();
}

#[test]
fn a_merge_is_refused_while_its_parent_is_read_in_another_way() {
    let mut it = Modelled::new();
    it.change();
    it.add_layer("1.vhdx");
    it.change();
    let (base, middle, branch) = (it.at("0.vhdx"), it.at("1.vhdx"), it.at("branch.vhdx"));
    let in_use = |what: &str| {
        let error = tool::merge_in_use(&middle, &Job::default()).unwrap_err();
        assert!(matches!(&error, ToolError::Open(OpenError::Locked(_))), "{what}: {error}");
    };
    in_use("the leaf is written");
    it.add_layer("2.vhdx");
    let parent = Some((base.clone(), Format::Vhdx));
    tool::create(&branch, &NewDisk { format: Format::Vhdx, parent, ..NewDisk::default() }).unwrap();
    {
        let _other = Disk::open(&branch, image_options()).unwrap();
        in_use("another child is in use");
    }
    for path in [&base, &middle] {
        let _reader = Disk::open(path, OpenOptions { access: Access::ReadOnly, ..image_options() }).unwrap();
        in_use("it is read as a disk");
    }
    std::fs::remove_file(branch).unwrap();
    let cancelled = Job::default();
    cancelled.cancel();
    assert!(matches!(tool::merge_in_use(&middle, &cancelled), Err(ToolError::Cancelled)));
    it.assert_content();
    tool::merge_in_use(&middle, &Job::default()).unwrap();
    it.assert_content();
    it.assert_stored();
}

#[test]
fn a_leaf_is_merged_into_its_parent_and_fits_it_until_that_holds_more() {
    let mut it = Modelled::new();
    it.change();
    it.add_layer("1.vhdx");
    it.change();
    it.add_layer("2.vhdx");
    it.change();
    let (leaf, parent) = (it.at("2.vhdx"), it.at("1.vhdx"));
    let refused = it.disk.prepare_merge(writable(&parent), Some(511)).map(drop);
    assert!(matches!(refused, Err(LayerError::TooMuch { bytes, .. }) if bytes >= 512), "{refused:?}");
    {
        let _reader = Disk::open(&parent, OpenOptions { access: Access::ReadOnly, ..image_options() }).unwrap();
        let refused = it.disk.prepare_merge(writable(&parent), None).map(drop);
        assert!(matches!(refused, Err(LayerError::Open(OpenError::Locked(_)))), "{refused:?}");
        assert!(it.disk.prepare_merge(writable(&it.at("0.vhdx")), None).is_err());
    }
    // One that is not done leaves all as it was, the locks too.
    drop(it.disk.prepare_merge(writable(&parent), None).unwrap());
    assert!(matches!(Disk::open(&parent, image_options()), Err(OpenError::Locked(_))));
    it.assert_content();
    let (disk, merged) = it.disk.prepare_merge(writable(&parent), None).unwrap().merge();
    assert!(merged.unwrap() >= 512);
    it.disk = disk;
    assert_eq!(it.chain(), ["1.vhdx", "0.vhdx"]);
    it.assert_content();
    // Whoever does not know of the merge finds the same in the old leaf.
    let copy = directory();
    for name in ["0.vhdx", "1.vhdx", "2.vhdx"] {
        std::fs::copy(it.at(name), copy.path().join(name)).unwrap();
    }
    assert!(content(&copy.path().join("2.vhdx")) == it.content);
    it.change();
    drop(it.disk);
    assert!(matches!(Disk::open(&leaf, image_options()), Err(OpenError::ParentChanged { .. })));
    it.disk = Disk::open(&parent, image_options()).unwrap();
    std::fs::remove_file(&leaf).unwrap();
    it.add_layer("3.vhdx");
    it.change();
    it.assert_content();
    it.assert_stored();
}

#[test]
fn a_disk_that_grew_is_merged_into_what_was_smaller() {
    let mut it = Modelled::new();
    it.change();
    it.add_layer("1.vhdx");
    it.disk.resize(2 * SIZE as u64).unwrap();
    it.content.resize(2 * SIZE, 0);
    let mut engine = Engine::new(&it.disk, 1).unwrap();
    write(&mut engine, 2 * SIZE - 512, &[9; 512], Durability::Volatile).unwrap();
    drop(engine);
    it.content[2 * SIZE - 512..].fill(9);
    it.add_layer("2.vhdx");
    tool::merge_in_use(&it.at("1.vhdx"), &Job::default()).unwrap();
    let mut engine = Engine::new(&it.disk, 1).unwrap();
    assert!(read(&mut engine, 0, 2 * SIZE) == it.content);
    drop(engine);
    // The parent that it takes the place of is as large as it is now.
    let (disk, content) = (it.disk.prepare_parents(vec![readable(&it.at("0.vhdx"))]).unwrap().replace().unwrap(), it.content);
    let mut engine = Engine::new(&disk, 1).unwrap();
    assert!(read(&mut engine, 0, 2 * SIZE) == content);
}
