//! The fixed parts of the file: headers and sectors of the journal. Numbers are little-endian.

use super::Identity;

pub(super) const BLOCK: u64 = 4096;
/// Where snapshots begin.
pub(super) const SNAPSHOTS: u64 = 4 * BLOCK;
pub(super) const VERSION: u32 = 1;
const MAGIC: &[u8; 8] = b"MARUDMAP";
/// The size of what storage writes whole or not at all.
pub(super) const SECTOR: usize = 512;
const CHECKSUM_AT: usize = SECTOR - 4;

/// One generation of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub generation: u64,
    pub identity: Identity,
    /// What the disk's `data_write` is about to become; the same if it stays.
    pub next_data_write: [u8; 16],
    pub coarse_shift: u32,
    pub snapshot: Snapshot,
}

/// Where the saved bits are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Snapshot {
    pub offset: u64,
    pub length: u64,
    pub checksum: u32,
}

/// What was found where a header should be.
pub(super) enum Found {
    Header(Header),
    /// Whole, but of another version.
    Version(u32),
    Nothing,
}

impl Header {
    /// The slot in which this generation has its header and its journal.
    pub fn slot(&self) -> usize {
        slot_of(self.generation)
    }

    pub fn encode(&self) -> [u8; SECTOR] {
        let mut sector = [0; SECTOR];
        let mut put = |offset: usize, bytes: &[u8]| sector[offset..offset + bytes.len()].copy_from_slice(bytes);
        put(0, MAGIC);
        put(8, &VERSION.to_le_bytes());
        put(12, &self.coarse_shift.to_le_bytes());
        put(16, &self.generation.to_le_bytes());
        put(24, &self.identity.disk);
        put(40, &self.identity.data_write);
        put(56, &self.next_data_write);
        put(72, &self.identity.size.to_le_bytes());
        put(80, &self.snapshot.offset.to_le_bytes());
        put(88, &self.snapshot.length.to_le_bytes());
        put(96, &self.snapshot.checksum.to_le_bytes());
        seal(&mut sector);
        sector
    }

    pub fn decode(sector: &[u8; SECTOR]) -> Found {
        if &sector[..8] != MAGIC || !is_sealed(sector) {
            return Found::Nothing;
        }
        let version = u32_at(sector, 8);
        if version != VERSION {
            return Found::Version(version);
        }
        let guid = |offset: usize| std::array::from_fn(|index| sector[offset + index]);
        Found::Header(Header {
            generation: u64_at(sector, 16),
            identity: Identity { disk: guid(24), data_write: guid(40), size: u64_at(sector, 72) },
            next_data_write: guid(56),
            coarse_shift: u32_at(sector, 12),
            snapshot: Snapshot { offset: u64_at(sector, 80), length: u64_at(sector, 88), checksum: u32_at(sector, 96) },
        })
    }
}

pub(super) fn slot_of(generation: u64) -> usize {
    (generation % 2) as usize
}

pub(super) fn header_at(slot: usize) -> u64 {
    slot as u64 * BLOCK
}

pub(super) fn journal_at(slot: usize) -> u64 {
    (2 + slot as u64) * BLOCK
}

/// Words of bits in a sector of the journal: what generation and checksum leave.
pub(super) const JOURNAL_WORDS: usize = 62;
pub(super) const JOURNAL_SECTORS: usize = 8;
/// The most coarse regions that a disk can have.
pub(super) const MAX_REGIONS: u64 = (JOURNAL_SECTORS * JOURNAL_WORDS * 64) as u64;
/// The smallest coarse region: 16 MiB. Smaller ones would be noted more often than a crash is worth.
const MIN_COARSE_SHIFT: u32 = 24;

/// The size of a disk's coarse regions, as a power of two.
pub(super) fn coarse_shift(size: u64) -> u32 {
    (MIN_COARSE_SHIFT..63).find(|shift| size.div_ceil(1 << shift) <= MAX_REGIONS).unwrap_or(63)
}

pub(super) fn encode_journal(generation: u64, words: &[u64]) -> [u8; SECTOR] {
    let mut sector = [0; SECTOR];
    sector[..8].copy_from_slice(&generation.to_le_bytes());
    for (bytes, word) in sector[8..CHECKSUM_AT].chunks_exact_mut(8).zip(words) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    seal(&mut sector);
    sector
}

/// The bits of a sector and their generation; `None` if it is damaged.
pub(super) fn decode_journal(sector: &[u8; SECTOR]) -> Option<(u64, [u64; JOURNAL_WORDS])> {
    is_sealed(sector).then(|| (u64_at(sector, 0), std::array::from_fn(|index| u64_at(sector, 8 + 8 * index))))
}

fn seal(sector: &mut [u8; SECTOR]) {
    let checksum = crc32fast::hash(&sector[..CHECKSUM_AT]);
    sector[CHECKSUM_AT..].copy_from_slice(&checksum.to_le_bytes());
}

fn is_sealed(sector: &[u8; SECTOR]) -> bool {
    crc32fast::hash(&sector[..CHECKSUM_AT]) == u32_at(sector, CHECKSUM_AT)
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|index| bytes[offset + index]))
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|index| bytes[offset + index]))
}
