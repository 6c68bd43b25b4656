//! Where things are in a VHDX file, its identities and its limits (MS-VHDX 2.2), and how its numbers are read.

use crate::Guid;

/// Everything but the first megabyte is in units of this.
pub(crate) const UNIT: u64 = 1 << 20;
/// Tables are cached, logged and written in pages of this size.
pub(crate) const PAGE: usize = 4096;

pub(crate) const IDENTIFIER: &[u8; 8] = b"vhdxfile";
pub(crate) const HEADERS: [u64; 2] = [64 << 10, 128 << 10];
pub(crate) const REGION_TABLES: [u64; 2] = [192 << 10, 256 << 10];
pub(crate) const REGION_TABLE_SIZE: usize = 64 << 10;

pub(crate) const BAT: Guid = Guid::new(0x2dc2_7766, 0xf623, 0x4200, [0x9d, 0x64, 0x11, 0x5e, 0x9b, 0xfd, 0x4a, 0x08]);
pub(crate) const METADATA: Guid = Guid::new(0x8b7c_a206, 0x4790, 0x4b9a, [0xb8, 0xfe, 0x57, 0x5f, 0x05, 0x0f, 0x88, 0x6e]);

pub(crate) const FILE_PARAMETERS: Guid = Guid::new(0xcaa1_6737, 0xfa36, 0x4d43, [0xb3, 0xb6, 0x33, 0xf0, 0xaa, 0x44, 0xe7, 0x6b]);
pub(crate) const DISK_SIZE: Guid = Guid::new(0x2fa5_4224, 0xcd1b, 0x4876, [0xb2, 0x11, 0x5d, 0xbe, 0xd8, 0x3b, 0xf4, 0xb8]);
pub(crate) const DISK_ID: Guid = Guid::new(0xbeca_12ab, 0xb2e6, 0x4523, [0x93, 0xef, 0xc3, 0x09, 0xe0, 0x00, 0xc7, 0x46]);
pub(crate) const LOGICAL_SECTOR: Guid = Guid::new(0x8141_bf1d, 0xa96f, 0x4709, [0xba, 0x47, 0xf2, 0x33, 0xa8, 0xfa, 0xab, 0x5f]);
pub(crate) const PHYSICAL_SECTOR: Guid = Guid::new(0xcda3_48c7, 0x445d, 0x4471, [0x9c, 0xc9, 0xe9, 0x88, 0x52, 0x51, 0xc5, 0x56]);
pub(crate) const PARENT_LOCATOR: Guid = Guid::new(0xa8d3_5f2d, 0xb30b, 0x454d, [0xab, 0xf7, 0xd3, 0xd8, 0x48, 0x34, 0xab, 0x0c]);
/// Found in files whose creation did not end.
pub(crate) const INCOMPLETE: Guid = Guid::new(0x71cc_85f0, 0x1b69, 0x4e28, [0x95, 0x58, 0xc3, 0xbf, 0x83, 0xae, 0x75, 0xd3]);
/// The kind of a parent locator that names a VHDX.
pub(crate) const VHDX_LOCATOR: Guid = Guid::new(0xb04a_efb7, 0xd19e, 0x4a81, [0xb7, 0x89, 0x25, 0xb8, 0xe9, 0x44, 0x59, 0x13]);

/// The largest virtual disk: 64 TiB.
pub(crate) const MAX_DISK: u64 = 64 << 40;
/// The largest file that is opened for writing: a full 64 TiB disk, its tables, and as much again in gaps. It bounds the memory that
/// the map of free space can take (16 MiB).
pub(crate) const MAX_FILE: u64 = 128 << 40;
/// The largest log, BAT and metadata region, as other implementations have them.
pub(crate) const MAX_LOG: u64 = 1 << 30;
pub(crate) const MAX_BAT: u64 = 513 << 20;
pub(crate) const MAX_METADATA: u64 = 128 << 20;

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array_at(bytes, at))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}

pub(crate) fn guid_at(bytes: &[u8], at: usize) -> Guid {
    Guid::from_bytes(array_at(bytes, at))
}

/// Panics if the bytes end before it: callers know the size of the structure that they read.
fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}

pub(crate) fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// The CRC-32C of a structure whose checksum stands at offset 4 and counts as zero.
pub(crate) fn checksum(bytes: &[u8]) -> u32 {
    let crc = crc32c::crc32c(&bytes[..4]);
    let crc = crc32c::crc32c_append(crc, &[0; 4]);
    crc32c::crc32c_append(crc, &bytes[8..])
}

pub(crate) fn put_checksum(bytes: &mut [u8]) {
    let crc = checksum(bytes);
    put(bytes, 4, &crc.to_le_bytes());
}

/// What may be in the file in a range, in memory bounded by what is asked.
pub(crate) fn read_vec(storage: &dyn crate::Storage, offset: u64, length: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    storage.read_at(offset, &mut bytes)?;
    Ok(bytes)
}
