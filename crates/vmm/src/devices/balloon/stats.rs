//! What the guest says about its memory.

use std::io::Read;

/// A statistic (§5.5.6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Stat {
    /// Bytes swapped in.
    SwapIn = 0,
    /// Bytes swapped out.
    SwapOut = 1,
    /// Major page faults.
    MajorFaults = 2,
    /// Minor page faults.
    MinorFaults = 3,
    /// Bytes that are not used for anything.
    FreeMemory = 4,
    /// Bytes that the guest has.
    TotalMemory = 5,
    /// Bytes that can be had without swapping.
    AvailableMemory = 6,
    /// Bytes of caches that could be dropped.
    DiskCaches = 7,
    /// Huge pages allocated.
    HugePageAllocations = 8,
    /// Huge pages that could not be allocated.
    HugePageFailures = 9,
}

const STATS: usize = 10;

/// What the guest said last. A guest may leave out any value, and may lie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BalloonStats {
    values: [Option<u64>; STATS],
    /// How many times the guest sent statistics; a request was answered when this has grown.
    pub updates: u64,
}

impl BalloonStats {
    /// One value, if the guest sent it.
    pub fn get(&self, stat: Stat) -> Option<u64> {
        self.values[stat as usize]
    }

    /// Takes the values from a buffer: entries of a 16-bit tag and a 64-bit value. Unknown tags are skipped.
    pub(super) fn update(&mut self, mut buffer: impl Read) {
        self.values = [None; STATS];
        self.updates += 1;
        // Newer drivers know some more tags; nobody needs more entries than this.
        for _ in 0..64 {
            let mut entry = [0; 10];
            if buffer.read_exact(&mut entry).is_err() {
                return;
            }
            let (tag, value) = entry.split_at(2);
            let tag = u16::from_le_bytes([tag[0], tag[1]]);
            if let (Some(slot), Ok(value)) = (self.values.get_mut(usize::from(tag)), value.try_into()) {
                *slot = Some(u64::from_le_bytes(value));
            }
        }
    }
}
