//! Both ways with qemu-img, which must be there: a test that is left out proves nothing.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use super::*;

const SIZE: u64 = (20 << 20) + 512 * 3;

fn qemu_img(arguments: &[&str]) {
    let output = Command::new("qemu-img").args(arguments).output().expect("qemu-img is needed: apt-get install qemu-utils");
    assert!(output.status.success(), "qemu-img {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn file(path: &Path) -> Arc<File> {
    Arc::new(File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap())
}

/// Bytes with holes: some blocks whole, some in part, some not at all.
fn content() -> Vec<u8> {
    let mut random = Random::new(42);
    let mut bytes = vec![0; SIZE as usize];
    for (block, part) in bytes.chunks_mut(2 << 20).enumerate() {
        let length = [part.len(), 70_000, 0, 512][block % 4].min(part.len());
        part[..length].fill_with(|| random.next() as u8);
    }
    bytes
}

#[test]
fn qemu_reads_what_we_write() {
    for kind in [NewKind::Fixed, NewKind::Dynamic] {
        let directory = tempfile::tempdir().unwrap();
        let (vhd, raw) = (directory.path().join("a.vhd"), directory.path().join("a.raw"));
        let storage = file(&vhd);
        create(&*storage, &options(kind, SIZE, BLOCK_SIZE)).unwrap();
        let image = Image::open(storage.clone(), Access::ReadWrite).unwrap();
        let content = content();
        for (index, part) in content.chunks(1 << 20).enumerate().filter(|(_, part)| part.iter().any(|byte| *byte != 0)) {
            write(&image, &*storage, (index as u64) << 20, part);
        }
        image.commit().unwrap();
        qemu_img(&["convert", "-f", "vpc", "-O", "raw", vhd.to_str().unwrap(), raw.to_str().unwrap()]);
        assert!(fs::read(&raw).unwrap() == content, "qemu reads something else");
    }
}

#[test]
fn we_read_and_write_what_qemu_writes() {
    for subformat in ["dynamic", "fixed"] {
        let directory = tempfile::tempdir().unwrap();
        let (vhd, raw) = (directory.path().join("a.vhd"), directory.path().join("a.raw"));
        let mut content = content();
        fs::write(&raw, &content).unwrap();
        let create = format!("subformat={subformat},force_size=on");
        let (vhd_name, raw_name) = (vhd.to_str().unwrap(), raw.to_str().unwrap());
        qemu_img(&["convert", "-f", "raw", "-O", "vpc", "-o", &create, raw_name, vhd_name]);
        let storage = file(&vhd);
        assert_eq!(check(&*storage).unwrap(), Report::default());
        let image = Image::open(storage.clone(), Access::ReadWrite).unwrap();
        assert_eq!(image.size(), SIZE);
        assert!(read(&image, &*storage, 0, SIZE) == content, "we read something else");

        write(&image, &*storage, 5 << 20, &[5; 4096]);
        content[5 << 20..][..4096].fill(5);
        zero(&image, &*storage, 0, 2 << 20);
        content[..2 << 20].fill(0);
        image.commit().unwrap();
        qemu_img(&["convert", "-f", "vpc", "-O", "raw", vhd_name, raw_name]);
        assert!(fs::read(&raw).unwrap() == content, "qemu reads something else");
    }
}

#[test]
fn qemu_reads_what_was_resized() {
    let directory = tempfile::tempdir().unwrap();
    let (vhd, raw) = (directory.path().join("a.vhd"), directory.path().join("a.raw"));
    let storage = file(&vhd);
    create(&*storage, &options(NewKind::Dynamic, SIZE, BLOCK_SIZE)).unwrap();
    let image = Image::open(storage.clone(), Access::ReadWrite).unwrap();
    write(&image, &*storage, 0, &[7; 512]);
    // More than 128 blocks, so the table has to move.
    let size = 600 << 20;
    image.resize(size).unwrap();
    write(&image, &*storage, size - 512, &[8; 512]);
    image.commit().unwrap();
    qemu_img(&["convert", "-f", "vpc", "-O", "raw", vhd.to_str().unwrap(), raw.to_str().unwrap()]);
    let raw = file(&raw);
    let mut ends = [[0; 512]; 2];
    raw.read_at(0, &mut ends[0]).unwrap();
    Storage::read_at(&*raw, size - 512, &mut ends[1]).unwrap();
    assert_eq!((Storage::size(&*raw).unwrap(), ends), (size, [[7; 512], [8; 512]]));
}
