//! qcow2 version 3, by QEMU's `docs/interop/qcow2.txt`; numbers are big-endian.
//!
//! ```text
//!   header │ L1 table │ data and L2 tables, in the order in which they were needed │ refcount blocks │ refcount table
//! ```
//! No unit is left out, so all refcounts are one.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};

use super::{Space, UNIT};

const HEADER_BYTES: u32 = 104;
/// Entries of an L2 table, which has one unit.
const TABLE_ENTRIES: u64 = UNIT / 8;
/// Refcounts of two bytes in a block of one unit.
const REFCOUNTS: u64 = UNIT / 2;
/// In an entry: what it refers to has no other owner, and may be written in place.
const COPIED: u64 = 1 << 63;

pub(crate) struct Writer {
    space: Space,
    size: u64,
    /// The offset of each L2 table; 0 of one that is not there.
    l1: Mutex<Vec<u64>>,
}

impl Writer {
    pub fn new(file: Arc<File>, size: u64) -> Writer {
        let tables = size.div_ceil(TABLE_ENTRIES * UNIT);
        let first = 1 + (tables * 8).div_ceil(UNIT);
        Writer { space: Space::new(file, first), size, l1: Mutex::new(vec![0; tables as usize]) }
    }

    pub fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let places = self.space.append(data)?;
        if places.iter().all(Option::is_none) {
            return Ok(());
        }
        let entries: Vec<u8> = places.iter().flat_map(|place| place.map_or(0, |at| at | COPIED).to_be_bytes()).collect();
        let (table, index) = (offset / UNIT / TABLE_ENTRIES, offset / UNIT % TABLE_ENTRIES);
        self.space.file.write_all_at(&entries, self.table(table as usize) + index * 8)
    }

    fn table(&self, index: usize) -> u64 {
        let mut l1 = self.l1.lock().unwrap_or_else(PoisonError::into_inner);
        if l1[index] == 0 {
            l1[index] = self.space.take(1);
        }
        l1[index]
    }

    pub fn finish(self) -> io::Result<()> {
        let file = &self.space.file;
        let l1 = self.l1.into_inner().unwrap_or_else(PoisonError::into_inner);
        let used = self.space.units();
        let (blocks, table_units) = refcounts_of(used);
        let total = used + blocks + table_units;
        for block in 0..blocks {
            let counts = (total - block * REFCOUNTS).min(REFCOUNTS) as usize;
            file.write_all_at(&1u16.to_be_bytes().repeat(counts), (used + block) * UNIT)?;
        }
        let table_at = (used + blocks) * UNIT;
        let table: Vec<u8> = (0..blocks).flat_map(|block| ((used + block) * UNIT).to_be_bytes()).collect();
        file.write_all_at(&table, table_at)?;
        let entries: Vec<u8> = l1.iter().flat_map(|table| (if *table == 0 { 0 } else { table | COPIED }).to_be_bytes()).collect();
        file.write_all_at(&entries, UNIT)?;

        let mut header = [0; HEADER_BYTES as usize];
        let mut put = |offset: usize, bytes: &[u8]| header[offset..offset + bytes.len()].copy_from_slice(bytes);
        put(0, b"QFI\xfb");
        put(4, &3u32.to_be_bytes());
        put(20, &UNIT.trailing_zeros().to_be_bytes());
        put(24, &self.size.to_be_bytes());
        put(36, &(l1.len() as u32).to_be_bytes());
        put(40, &UNIT.to_be_bytes());
        put(48, &table_at.to_be_bytes());
        put(56, &(table_units as u32).to_be_bytes());
        // The width of a refcount in bits, as a power of two.
        put(96, &4u32.to_be_bytes());
        put(100, &HEADER_BYTES.to_be_bytes());
        file.write_all_at(&header, 0)?;
        file.set_len(total * UNIT)
    }
}

/// Units of the refcount blocks, and of the table that names these, behind so many units. Both are counted, too.
fn refcounts_of(used: u64) -> (u64, u64) {
    let (mut blocks, mut table_units) = (0, 0);
    loop {
        let needed = ((used + blocks + table_units).div_ceil(REFCOUNTS), (blocks * 8).div_ceil(UNIT));
        if needed == (blocks, table_units) {
            return needed;
        }
        (blocks, table_units) = needed;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refcounts_reach_over_all_units_and_no_block_is_too_many() {
        let edges = [1, 5, REFCOUNTS, 100 * REFCOUNTS, (UNIT / 8) * REFCOUNTS, 1 << 40];
        for used in edges.into_iter().flat_map(|edge| edge.saturating_sub(3).max(1)..edge + 4) {
            let (blocks, table_units) = refcounts_of(used);
            let total = used + blocks + table_units;
            assert!(total <= blocks * REFCOUNTS && total > (blocks - 1) * REFCOUNTS, "{used}");
            assert!(blocks * 8 <= table_units * UNIT && blocks * 8 > (table_units - 1) * UNIT, "{used}");
        }
    }
}
