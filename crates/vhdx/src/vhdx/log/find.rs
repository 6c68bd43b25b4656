//! Finds the active sequence in a log of unknown content (MS-VHDX 2.3.2), in time that grows with the log's length only.
//!
//! Interior sectors of an entry start with "desc", "zero" or "data", and first sectors with "loge": two well-formed entries cannot
//! overlap, and looking at signatures before contents keeps a hostile log from making us read anything many times.

use std::collections::BTreeMap;
use std::io;

use super::entry::{descriptor_at, descriptor_sectors};
use crate::vhdx::error::Damage;
use crate::vhdx::header::Header;
use crate::vhdx::layout::{MAX_FILE, PAGE, guid_at, read_vec, u32_at, u64_at};
use crate::{Guid, Storage};

const SECTOR: u64 = PAGE as u64;

/// A valid entry.
#[derive(Clone, Debug)]
pub(super) struct Found {
    /// In the ring.
    pub(super) position: u64,
    pub(super) length: u64,
    tail: u64,
    pub(super) sequence: u64,
    pub(super) descriptors: usize,
    pub(super) flushed_size: u64,
    pub(super) last_size: u64,
}

/// The log's ring in the file.
pub(super) struct Ring<'a> {
    pub(super) storage: &'a dyn Storage,
    pub(super) offset: u64,
    pub(super) length: u64,
}

impl Ring<'_> {
    /// One sector; positions run over the end of the ring.
    pub(super) fn sector(&self, position: u64) -> io::Result<Vec<u8>> {
        read_vec(self.storage, self.offset + position % self.length, PAGE)
    }

    /// The valid entries, by position.
    fn entries(&self, guid: Guid) -> io::Result<BTreeMap<u64, Found>> {
        let mut signatures = Vec::with_capacity((self.length / SECTOR) as usize);
        let mut heads = Vec::new();
        let mut chunk = Vec::new();
        for position in (0..self.length).step_by(PAGE) {
            let at = (position % (1 << 20)) as usize;
            if at == 0 {
                chunk = read_vec(self.storage, self.offset + position, 1 << 20)?;
            }
            let sector = &chunk[at..at + PAGE];
            signatures.push([sector[0], sector[1], sector[2], sector[3]]);
            if let Some(head) = self.head(position, sector, guid) {
                heads.push(head);
            }
        }
        let mut entries = BTreeMap::new();
        for head in heads {
            if self.is_well_formed(&head, &signatures) && self.is_intact(&head)? {
                entries.insert(head.position, head);
            }
        }
        Ok(entries)
    }

    /// The fields of an entry's first sector, if they are possible.
    fn head(&self, position: u64, sector: &[u8], guid: Guid) -> Option<Found> {
        let head = Found {
            position,
            length: u32_at(sector, 8).into(),
            tail: u32_at(sector, 12).into(),
            sequence: u64_at(sector, 16),
            descriptors: u32_at(sector, 24) as usize,
            flushed_size: u64_at(sector, 48),
            last_size: u64_at(sector, 56),
        };
        let possible = &sector[..4] == b"loge"
            && guid_at(sector, 32) == guid
            && head.sequence > 0
            && head.length.is_multiple_of(SECTOR)
            && (SECTOR..=self.length).contains(&head.length)
            && head.tail.is_multiple_of(SECTOR)
            && head.tail < self.length
            && head.last_size <= MAX_FILE
            && descriptor_sectors(head.descriptors) as u64 * SECTOR <= head.length;
        possible.then_some(head)
    }

    fn is_well_formed(&self, head: &Found, signatures: &[[u8; 4]]) -> bool {
        let descriptors = descriptor_sectors(head.descriptors) as u64;
        (1..head.length / SECTOR).all(|index| {
            let signature = &signatures[((head.position / SECTOR + index) % signatures.len() as u64) as usize];
            if index < descriptors { signature == b"desc" || signature == b"zero" } else { signature == b"data" }
        })
    }

    /// Checks the checksum, and that each descriptor and each data sector belongs to this entry.
    fn is_intact(&self, head: &Found) -> io::Result<bool> {
        let first = self.sector(head.position)?;
        let wanted = u32_at(&first, 4);
        let mut crc = crc32c::crc32c(&first[..4]);
        crc = crc32c::crc32c_append(crc, &[0; 4]);
        crc = crc32c::crc32c_append(crc, &first[8..]);
        for at in (SECTOR..head.length).step_by(PAGE) {
            crc = crc32c::crc32c_append(crc, &self.sector(head.position + at)?);
        }
        if crc != wanted {
            return Ok(false);
        }
        let mut data_sectors = 0;
        let mut sector = first;
        for index in 0..head.descriptors {
            let at = descriptor_at(index);
            if index > 0 && at.is_multiple_of(PAGE) {
                sector = self.sector(head.position + at as u64)?;
            }
            let bytes = &sector[at % PAGE..at % PAGE + 32];
            let offset = u64_at(bytes, 16);
            let length = match &bytes[..4] {
                b"desc" => {
                    data_sectors += 1;
                    SECTOR
                }
                b"zero" => u64_at(bytes, 8),
                _ => return Ok(false),
            };
            // Headers and the file's identifier are never logged; nothing is so far out that extending the file could hurt.
            // An entry that changes the log itself would pull the ground from under its own replay.
            let inside = offset >= 192 << 10
                && offset.checked_add(length).is_some_and(|end| {
                    end <= MAX_FILE && (end <= self.offset || offset >= self.offset.saturating_add(self.length))
                });
            if u64_at(bytes, 24) != head.sequence || !offset.is_multiple_of(SECTOR) || !length.is_multiple_of(SECTOR) || !inside {
                return Ok(false);
            }
        }
        let start = descriptor_sectors(head.descriptors) as u64 * SECTOR;
        if start + data_sectors * SECTOR != head.length {
            return Ok(false);
        }
        for at in (start..head.length).step_by(PAGE) {
            let sector = self.sector(head.position + at)?;
            let sequence = u64::from(u32_at(&sector, 4)) << 32 | u64::from(u32_at(&sector, PAGE - 4));
            if sequence != head.sequence {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The entries to replay, in order; `None` if the log has no valid sequence.
    ///
    /// A head is an entry without a valid successor. Its sequence is valid if its tail is an entry from which successors lead to it.
    /// Each entry leads to one head only, so all walks together pass each entry once.
    pub(super) fn active_sequence(&self, header: &Header) -> io::Result<Option<Vec<Found>>> {
        let entries = self.entries(header.log_guid)?;
        let successor = |entry: &Found| {
            let next = entries.get(&((entry.position + entry.length) % self.length))?;
            (entry.sequence.checked_add(1) == Some(next.sequence)).then_some(next)
        };
        let mut best: Option<Vec<Found>> = None;
        for head in entries.values().filter(|entry| successor(entry).is_none()) {
            if best.as_ref().and_then(|walk| walk.last()).is_some_and(|best| best.sequence >= head.sequence) {
                continue;
            }
            let mut walk = Vec::new();
            let mut at = entries.get(&head.tail);
            let mut taken = 0;
            while let Some(entry) = at {
                walk.push(entry.clone());
                taken += entry.length;
                if entry.position == head.position || taken > self.length {
                    break;
                }
                at = successor(entry);
            }
            if taken <= self.length && walk.last().is_some_and(|last| last.position == head.position) {
                best = Some(walk);
            }
        }
        Ok(best)
    }
}

/// A log in use without a valid sequence cannot be opened: what it held is lost.
pub(super) fn no_sequence(offset: u64) -> Damage {
    Damage::new("log", offset, "it is in use, but holds no valid sequence of entries")
}
