//! VHD images that were changed.

use std::sync::{Arc, LazyLock};

use super::{Input, patch};
use crate::testing::{Executor, Memory};
use crate::vhd::bytes::{put, sum_checksum};
use crate::vhd::{Access, CreateOptions, Image, NewKind, ParentName, Timestamp, UniqueId, check, create, repair};
use crate::{Mapping, Place, Storage};

/// Small blocks make much happen in a small disk.
const BLOCK: u32 = 4096;
const SIZE: u64 = 9 * BLOCK as u64;
const FOOTER: usize = 512;
const HEADER: usize = 1024;

/// A parent as a child may name it; there is no such file.
pub(crate) fn parent() -> ParentName {
    ParentName {
        id: UniqueId([7; 16]),
        changed: Timestamp(12_345),
        name: "père.vhd".into(),
        relative_path: Some(".\\père.vhd".into()),
        absolute_path: Some("C:\\disks\\père.vhd".into()),
    }
}

fn used(kind: NewKind) -> Vec<u8> {
    let options = CreateOptions { size: SIZE, kind, block_size: BLOCK, id: UniqueId([1; 16]), created: Timestamp(800_000_000) };
    let file = Arc::new(Memory::new());
    create(&*file, &options).expect("options that go together");
    let image = Image::open(file.clone(), Access::ReadWrite).expect("an image that was just made");
    let disk = Executor { mapping: Arc::new(image), file: file.clone(), parent: None };
    let change = || {
        disk.write(0, &[3; 2 * BLOCK as usize])?;
        disk.write(5 * u64::from(BLOCK) + 512, &[4; 512])?;
        disk.flush(|| ())
    };
    change().expect("memory does not fail");
    let mut bytes = vec![0; file.size().expect("memory does not fail") as usize];
    file.read_at(0, &mut bytes).expect("memory does not fail");
    bytes
}

static IMAGES: LazyLock<[Vec<u8>; 3]> =
    LazyLock::new(|| [used(NewKind::Fixed), used(NewKind::Dynamic), used(NewKind::Differencing(parent()))]);

/// Opens a changed image and uses it.
///
/// # Panics
/// If that is not survived; if a file that was not understood was written to.
pub fn vhd(data: &[u8]) -> bool {
    let mut input = Input::new(data);
    let bytes = IMAGES[usize::from(input.byte()) % IMAGES.len()].clone();
    let end = bytes.len() as u64;
    let places = [(0, 512), (512, 64), (512, 1024), (1536, 40), (1536, 1536), (end - 512, 512), (0, end)];
    changed(bytes, &places, input)
}

/// The same, with nothing changed but how a child names its parent.
///
/// # Panics
/// As of [`vhd()`].
pub fn vhd_locator(data: &[u8]) -> bool {
    // The parent's name and eight locators, and what they refer to.
    changed(IMAGES[2].clone(), &[(552, 24), (576, 512), (1088, 192), (1536, 2048)], Input::new(data))
}

fn changed(mut bytes: Vec<u8>, places: &[(u64, u64)], mut input: Input) -> bool {
    let how = input.byte();
    if how & 0x70 == 0x70 {
        bytes.truncate(input.below(bytes.len() as u64) as usize);
    }
    patch(&mut input, places, |offset, change| {
        if let Some(part) = bytes.get_mut(offset as usize..offset as usize + change.len()) {
            part.copy_from_slice(change);
        }
    });
    if how & 3 > 0 {
        let end = bytes.len();
        seal(&mut bytes, 0, FOOTER, 64);
        seal(&mut bytes, FOOTER, HEADER, 36);
        seal(&mut bytes, end.saturating_sub(FOOTER), FOOTER, 64);
    }
    exercise(&bytes)
}

fn seal(bytes: &mut [u8], at: usize, length: usize, field: usize) {
    if let Some(part) = bytes.get_mut(at..at + length) {
        let sum = sum_checksum(part, field);
        put(part, field, &sum.to_be_bytes());
    }
}

fn file_of(bytes: &[u8]) -> (Arc<Memory>, u64) {
    let file = Arc::new(Memory::new());
    file.write_at(0, bytes).expect("memory does not fail");
    let done = file.done();
    (file, done)
}

/// Does everything that can be done with an image.
fn exercise(bytes: &[u8]) -> bool {
    let (file, done) = file_of(bytes);
    check(&*file).expect("reading does not fail");
    if let Ok(image) = Image::open(file.clone(), Access::ReadOnly) {
        let mut extents = Vec::new();
        let ticket = image.map_read(0, image.size().min(1 << 20), &mut extents).expect("tables that were looked at");
        image.finish(ticket);
        let length = bytes.len() as u64;
        let is_inside = |place| !matches!(place, Place::File(offset) if offset >= length);
        assert!(extents.iter().all(|extent| is_inside(extent.place)), "data outside of the file");
    }
    assert_eq!(file.done(), done, "a file that was only read was written to");
    let opened = Image::open(file.clone(), Access::ReadWrite);
    let is_understood = opened.is_ok();
    match opened {
        Ok(image) => use_all(Arc::new(image), &file),
        Err(_) => assert_eq!(file.done(), done, "a file that was not understood was written to"),
    }
    let (file, done) = file_of(bytes);
    match repair(&*file) {
        Ok(_) => drop(Image::open(file, Access::ReadWrite).expect("a file that was repaired")),
        Err(_) => assert_eq!(file.done(), done, "a file that could not be repaired was written to"),
    }
    is_understood
}

fn use_all(image: Arc<Image>, file: &Arc<Memory>) {
    let disk = Executor { mapping: image.clone(), file: file.clone(), parent: None };
    let size = image.size().min(64 << 10);
    let _ = disk.write(0, &vec![1; size as usize]);
    let _ = disk.zero(0, size);
    let _ = disk.flush(|| ());
    drop(disk);
    let Ok(image) = Arc::try_unwrap(image) else { panic!("the disk is gone") };
    let _ = image.set_parent(parent());
    if image.size() < 1 << 20 {
        let _ = image.resize(2 * image.size());
    }
}
