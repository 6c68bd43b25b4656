//! What is checked in a qcow2 image's header before the reader sees it: sizes that it would take memory for, and what it cannot read.
//!
//! Field names and offsets are those of QEMU's `docs/interop/qcow2.txt`; numbers are big-endian.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// A header without version 3's additional fields, and those of them that are looked at: `incompatible_features`.
const HEADER_BYTES: usize = 72;
const FEATURES_AT: u64 = 72;
/// Bits 0 to 2: not closed cleanly, damaged once, external data file. A reader that does not write copes with the first two.
const KNOWN_FEATURES: u64 = 0b111;
const COMPRESSION_TYPE: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;
/// QEMU's own limits.
const MAX_L1_BYTES: u64 = 32 << 20;
const MAX_REFCOUNT_TABLE_BYTES: u64 = 8 << 20;
const MAX_SNAPSHOTS: u32 = 65_536;

/// Checks a file that is about to be opened as qcow2.
pub(super) fn check_qcow2(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    let mut header = [0; HEADER_BYTES];
    file.read_exact_at(&mut header, 0)?;
    let length = file.metadata()?.len();
    // A block device has no length here; the limits alone have to do.
    let length = if length == 0 { u64::MAX } else { length };
    let invalid = |problem: &str| Err(io::Error::new(io::ErrorKind::InvalidData, problem));

    if header[..4] != *b"QFI\xfb" {
        return invalid("it does not begin as one");
    }
    if !(2..=3).contains(&u32_at(&header, 4)) {
        return unsupported("it is neither qcow2 version 2 nor 3");
    }
    if !(9..=21).contains(&u32_at(&header, 20)) {
        return invalid("its cluster size is out of range");
    }
    let cluster_bytes = 1u64 << u32_at(&header, 20);
    if u32_at(&header, 32) != 0 {
        return unsupported("it is encrypted");
    }
    if u32_at(&header, 4) >= 3 {
        let mut features = [0; 8];
        file.read_exact_at(&mut features, FEATURES_AT)?;
        match u64::from_be_bytes(features) & !KNOWN_FEATURES {
            0 => {}
            features if features & EXTENDED_L2 != 0 => return unsupported("it has extended L2 entries (subclusters)"),
            features if features & COMPRESSION_TYPE != 0 => return unsupported("it is compressed with zstd"),
            _ => return unsupported("it has features that are not known here"),
        }
    }
    let inside = |offset: u64, bytes: u64| offset.checked_add(bytes).is_some_and(|end| end <= length.next_multiple_of(512));
    let l1_bytes = u64::from(u32_at(&header, 36)) * 8;
    if l1_bytes > MAX_L1_BYTES || !inside(u64_at(&header, 40), l1_bytes) {
        return invalid("its L1 table does not fit");
    }
    let refcount_bytes = u64::from(u32_at(&header, 56)) * cluster_bytes;
    if refcount_bytes > MAX_REFCOUNT_TABLE_BYTES || !inside(u64_at(&header, 48), refcount_bytes) {
        return invalid("its refcount table does not fit");
    }
    if u32_at(&header, 60) > MAX_SNAPSHOTS {
        return invalid("it has too many snapshots");
    }
    // What its L1 table can map at most; also keeps sums of offsets far from 64 bits.
    let mapped = u128::from(l1_bytes / 8) * u128::from(cluster_bytes / 8) * u128::from(cluster_bytes);
    if u128::from(u64_at(&header, 24)) > mapped {
        return invalid("its L1 table is too small for its size");
    }
    Ok(())
}

fn unsupported(what: &str) -> io::Result<()> {
    Err(io::Error::new(io::ErrorKind::Unsupported, what))
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_be_bytes(std::array::from_fn(|index| bytes[offset + index]))
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_be_bytes(std::array::from_fn(|index| bytes[offset + index]))
}
