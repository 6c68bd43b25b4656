//! QEMU reads what we write, and we read what it writes. `qemu-img` has to be there.

use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use super::{MIB, try_open};
use crate::testing::{Executor, Random};
use crate::vhdx::{Access, CreateOptions, Image, Kind, create};
use crate::{Mapping, Storage};

fn qemu_img(arguments: &[&str]) {
    let output = Command::new("qemu-img").args(arguments).output().expect("qemu-img is needed: install qemu-utils");
    assert!(output.status.success(), "qemu-img {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn open(path: &Path, access: Access) -> (Arc<Image>, Executor) {
    let file: Arc<dyn Storage> = Arc::new(File::options().read(true).write(access == Access::ReadWrite).open(path).unwrap());
    let image = try_open(Arc::clone(&file), access).unwrap();
    let mapping: Arc<dyn Mapping> = Arc::<Image>::clone(&image);
    (image, Executor { mapping, file, parent: None })
}

fn make(path: &Path, options: &CreateOptions) -> (Arc<Image>, Executor) {
    let file = File::options().read(true).write(true).create_new(true).open(path).unwrap();
    create(&file, options).unwrap();
    open(path, Access::ReadWrite)
}

/// Writes the same scattered data to a disk and to a raw file of the same size.
fn scatter(disk: &Executor, raw: &File, size: u64, seed: u64) {
    let mut random = Random::new(seed);
    for _ in 0..60 {
        let length = 512 * (1 + random.below(200));
        let offset = random.below((size - length) / 512) * 512;
        let data: Vec<u8> = (0..length).map(|_| random.next() as u8).collect();
        disk.write(offset, &data).unwrap();
        raw.write_at(offset, &data).unwrap();
    }
}

fn raw_file(path: &Path, size: u64) -> File {
    let file = File::options().read(true).write(true).create(true).truncate(true).open(path).unwrap();
    file.set_len(size).unwrap();
    file
}

fn assert_same(disk: &Executor, raw: &File, size: u64) {
    let (mut ours, mut theirs) = (vec![0; MIB as usize], vec![0; MIB as usize]);
    for offset in (0..size).step_by(MIB as usize) {
        let count = (size - offset).min(MIB) as usize;
        disk.read(offset, &mut ours[..count]).unwrap();
        raw.read_at(offset, &mut theirs[..count]).unwrap();
        assert!(ours[..count] == theirs[..count], "differs in the megabyte at {offset}");
    }
}

#[test]
fn qemu_reads_images_of_every_block_size() {
    let folder = tempfile::tempdir().unwrap();
    let (raw_path, back) = (folder.path().join("raw"), folder.path().join("back"));
    for shift in 20..=28 {
        for is_fixed in [false, true].into_iter().take(1 + usize::from(shift % 4 == 0)) {
            let path = folder.path().join("ours.vhdx");
            let size = if is_fixed { 40 * MIB } else { 300 * MIB + 1536 };
            let kind = if is_fixed { Kind::Fixed { allocate: false } } else { Kind::Dynamic };
            let (image, disk) = make(&path, &CreateOptions { block_size: 1 << shift, kind, ..CreateOptions::new(size) });
            let raw = raw_file(&raw_path, size);
            scatter(&disk, &raw, size, shift);
            image.close().unwrap();
            qemu_img(&["check", "-f", "vhdx", text(&path)]);
            qemu_img(&["compare", "-f", "vhdx", "-F", "raw", text(&path), text(&raw_path)]);
            qemu_img(&["convert", "-f", "vhdx", "-O", "raw", text(&path), text(&back)]);
            assert_same(&disk, &File::open(&back).unwrap(), size);
            std::fs::remove_file(&path).unwrap();
        }
    }
}

#[test]
fn qemu_replays_our_log() {
    let folder = tempfile::tempdir().unwrap();
    let (path, raw_path) = (folder.path().join("ours.vhdx"), folder.path().join("raw"));
    let size = 1000 * MIB;
    let (_image, disk) = make(&path, &CreateOptions::new(size));
    let raw = raw_file(&raw_path, size);
    for seed in 0..4 {
        scatter(&disk, &raw, size, seed);
        disk.flush(|| ()).unwrap();
    }
    // The last commit's pages are in the log only.
    scatter(&disk, &raw, size, 99);
    let mut commit = disk.mapping.begin_commit().unwrap().unwrap();
    while let Some(step) = commit.steps.pop_front() {
        match step {
            crate::Step::Write { offset, data } => disk.file.write_at(offset, &data).unwrap(),
            crate::Step::Durable => break,
            _ => {}
        }
    }
    qemu_img(&["check", "-f", "vhdx", "-r", "all", text(&path)]);
    qemu_img(&["compare", "-f", "vhdx", "-F", "raw", text(&path), text(&raw_path)]);
    let (_, disk) = open(&path, Access::ReadWrite);
    assert_same(&disk, &raw, size);
}

#[test]
fn qemu_opens_an_image_that_was_started_and_holds_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ours.vhdx");
    let (_image, disk) = make(&path, &CreateOptions::new(100 * MIB));
    disk.write(0, &[1; 512]).unwrap();
    qemu_img(&["check", "-f", "vhdx", "-r", "all", text(&path)]);
    let (image, disk) = open(&path, Access::ReadWrite);
    assert!(!image.info().log_in_use);
    disk.write(0, &[1; 512]).unwrap();
    image.close().unwrap();
    qemu_img(&["check", "-f", "vhdx", text(&path)]);
}

#[test]
fn we_read_and_change_what_qemu_wrote() {
    let folder = tempfile::tempdir().unwrap();
    let (path, raw_path) = (folder.path().join("theirs.vhdx"), folder.path().join("raw"));
    for (options, size) in [
        ("subformat=dynamic", 600 * MIB),
        ("subformat=dynamic,block_size=1M", 70 * MIB + 512),
        ("subformat=dynamic,block_size=2M,block_state_zero=off", 1500 * MIB),
        ("subformat=dynamic,block_size=256M,log_size=4M", 600 * MIB),
        ("subformat=fixed", 33 * MIB + 512),
        ("subformat=fixed,block_size=32M", 70 * MIB),
    ] {
        let raw = raw_file(&raw_path, size);
        let mut random = Random::new(size);
        for _ in 0..20 {
            let offset = random.below(size / 512 - 8) * 512;
            raw.write_at(offset, &[random.next() as u8; 4096]).unwrap();
        }
        qemu_img(&["convert", "-f", "raw", "-O", "vhdx", "-o", options, text(&raw_path), text(&path)]);
        let (image, disk) = open(&path, Access::ReadWrite);
        assert_same(&disk, &raw, size);
        scatter(&disk, &raw, size, 7);
        image.close().unwrap();
        qemu_img(&["check", "-f", "vhdx", text(&path)]);
        qemu_img(&["compare", "-f", "vhdx", "-F", "raw", text(&path), text(&raw_path)]);
        assert_same(&open(&path, Access::ReadOnly).1, &raw, size);
    }
}

#[test]
fn creating_sixty_four_tebibytes_takes_a_moment_and_no_room() {
    use std::os::unix::fs::MetadataExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large.vhdx");
    drop(make(&path, &CreateOptions::new(64 << 40)));
    assert!(std::fs::metadata(&path).unwrap().blocks() * 512 < 8 * MIB);
    qemu_img(&["check", "-f", "vhdx", text(&path)]);
}
