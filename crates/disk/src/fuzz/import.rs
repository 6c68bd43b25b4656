//! Disks of other platforms that were changed.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use miniz_oxide::deflate::compress_to_vec_zlib;
use tempfile::TempDir;
use vhdx::fuzz::{Input, patch};

use crate::Format::Raw;
use crate::import::{Format, References, open};
use crate::tool::{AnyFormat, Existing, Job, export};

/// What is read of a file that opened: enough to come to all of it.
const READS: usize = 64;
const READ: usize = 64 << 10;

/// Where the files are that are tried; each thread has one of its own.
static ROOM: LazyLock<TempDir> = LazyLock::new(|| tempfile::tempdir().expect("a place for files"));

thread_local! {
    static FILE: PathBuf = {
        let name = format!("{:?}", std::thread::current().id()).replace(['(', ')'], "-");
        ROOM.path().join(name)
    };
}

/// A disk with data at its beginning, in its middle and at its end, as our tools make it.
fn made(format: Format) -> Vec<u8> {
    let (raw, path) = (ROOM.path().join(format!("{format:?}.raw")), ROOM.path().join(format!("{format:?}.made")));
    let file = fs::File::create(&raw).expect("a file");
    file.set_len(1 << 30).expect("a long file");
    for at in [0, 600 << 20, (1 << 30) - 4096] {
        std::os::unix::fs::FileExt::write_all_at(&file, &[7; 4096], at).expect("a file that can be written");
    }
    let made = export((&raw, AnyFormat::Own(Raw)), &path, format, Existing::Keep, &Job::default());
    made.expect("a disk that can be made");
    fs::read(&path).expect("a disk that was made")
}

const SECTOR: usize = 512;
const GRAIN_SECTORS: usize = 8;
const GRAINS: usize = 1024;

/// What an OVA has: compressed grains with markers, and the header again at the end.
fn stream() -> Vec<u8> {
    let header = |directory: u64| {
        let mut bytes = [0; SECTOR];
        let mut put = |offset: usize, field: &[u8]| bytes[offset..offset + field.len()].copy_from_slice(field);
        put(0, b"KDMV\x03\0\0\0\x01\0\x03\0");
        put(12, &((GRAINS * GRAIN_SECTORS) as u64).to_le_bytes());
        put(20, &(GRAIN_SECTORS as u64).to_le_bytes());
        put(28, &1u64.to_le_bytes());
        put(36, &1u64.to_le_bytes());
        put(44, &512u32.to_le_bytes());
        put(56, &directory.to_le_bytes());
        put(73, b"\n \r\n\x01");
        bytes
    };
    let mut bytes = header(u64::MAX).to_vec();
    bytes.extend(b"version=1\nparentCID=ffffffff\nRW 8192 SPARSE \"x\"\n");
    bytes.resize(2 * SECTOR, 0);
    let mut tables = vec![0u32; GRAINS];
    for grain in [0, 1, 600, GRAINS - 1] {
        tables[grain] = (bytes.len() / SECTOR) as u32;
        let packed = compress_to_vec_zlib(&[grain as u8; GRAIN_SECTORS * SECTOR], 6);
        bytes.extend(((grain * GRAIN_SECTORS) as u64).to_le_bytes());
        bytes.extend((packed.len() as u32).to_le_bytes());
        bytes.extend(packed);
        bytes.resize(bytes.len().next_multiple_of(SECTOR), 0);
    }
    let first = (bytes.len() / SECTOR) as u32;
    bytes.extend(tables.iter().flat_map(|entry| entry.to_le_bytes()));
    let directory = bytes.len() / SECTOR;
    bytes.extend([first, first + 4].iter().flat_map(|entry| entry.to_le_bytes()));
    bytes.resize(bytes.len().next_multiple_of(SECTOR), 0);
    bytes.extend(header(directory as u64));
    bytes.extend([0; SECTOR]);
    bytes
}

/// Opens a changed VMDK, with compressed grains or without, and reads it.
///
/// # Panics
/// If that is not survived.
pub fn vmdk(data: &[u8]) -> bool {
    static IMAGES: LazyLock<[Vec<u8>; 2]> = LazyLock::new(|| [made(Format::Vmdk), stream()]);
    let mut input = Input::new(data);
    let image = &IMAGES[usize::from(input.byte()) % IMAGES.len()];
    let end = image.len() as u64;
    // Header, descriptor, footer; the directory and the tables of one, the grains of the other.
    let places = [(0, 80), (0, 80), (512, 400), (end - 1024, 80), (21 * 512, 2 << 10), (1024, end - 1024)];
    changed(image, &places, input, Format::Vmdk)
}

/// Opens a changed qcow2 image and reads it.
///
/// # Panics
/// If that is not survived.
pub fn qcow2(data: &[u8]) -> bool {
    static IMAGE: LazyLock<Vec<u8>> = LazyLock::new(|| made(Format::Qcow2));
    let image = &*IMAGE;
    // Header, L1 table, and the two L2 tables and refcounts wherever they are.
    let places = [(0, 112), (0, 112), (64 << 10, 16), (128 << 10, image.len() as u64 - (128 << 10))];
    changed(image, &places, Input::new(data), Format::Qcow2)
}

/// Opens a descriptor that is made of the input, beside two files that it may name.
///
/// # Panics
/// If that is not survived.
pub fn vmdk_descriptor(data: &[u8]) -> bool {
    const ACCESS: [&str; 6] = ["RW", "RW", "RW", "RDONLY", "NOACCESS", ""];
    const SECTORS: [&str; 7] = ["8", "8", "8192", "0", "-1", "18446744073709551615", "36028797018963967"];
    const EXTENT: [&str; 12] = [
        "FLAT \"flat\"",
        "FLAT \"flat\" 0",
        "FLAT \"flat\" 8",
        "FLAT \"flat\" 36028797018963967",
        "VMFS \"flat\"",
        "SPARSE \"stream\"",
        "SPARSE \"flat\"",
        "FLAT \"stream\" 1",
        "ZERO",
        "FLAT \"\" 0",
        "FLAT \"",
        "FLAT \"/dev/zero\" 0",
    ];
    static EXTENTS: LazyLock<()> = LazyLock::new(|| {
        fs::write(ROOM.path().join("flat"), [7; 8192]).expect("a file");
        fs::write(ROOM.path().join("stream"), stream()).expect("a file");
    });
    LazyLock::force(&EXTENTS);
    let mut input = Input::new(data);
    let mut text = b"# Disk DescriptorFile\nversion=1\n".to_vec();
    for _ in 0..1 + input.below(4) {
        let line = [input.one_of(&ACCESS), input.one_of(&SECTORS), input.one_of(&EXTENT)].join(" ");
        text.extend(line.as_bytes());
        text.push(b'\n');
    }
    // Then whatever comes, or nothing.
    if input.byte() & 1 == 0 {
        text.extend(input.rest());
    }
    FILE.with(|path| {
        fs::write(path, text).expect("a file that can be written");
        read(path, Format::Vmdk)
    })
}

fn changed(image: &[u8], places: &[(u64, u64)], mut input: Input, format: Format) -> bool {
    let mut bytes = image.to_vec();
    if input.byte() & 0x70 == 0x70 {
        bytes.truncate(input.below(bytes.len() as u64) as usize);
    }
    patch(&mut input, places, |offset, change| {
        if let Some(part) = bytes.get_mut(offset as usize..offset as usize + change.len()) {
            part.copy_from_slice(change);
        }
    });
    FILE.with(|path| {
        fs::write(path, bytes).expect("a file that can be written");
        read(path, format)
    })
}

fn read(path: &Path, format: Format) -> bool {
    let Ok(source) = open(path, format, References::Beside) else { return false };
    let mut buffer = vec![0; READ];
    let mut at = 0;
    for _ in 0..READS {
        let count = (source.size() - at).min(READ as u64) as usize;
        let _ = source.read_at(at, &mut buffer[..count]);
        let Ok(Some(extent)) = source.next_extent(at, u64::MAX) else { break };
        assert!(extent.length > 0 && extent.length <= source.size() - at, "{extent:?} at {at}");
        at += extent.length;
    }
    true
}
