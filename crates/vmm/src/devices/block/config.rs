//! The configuration space and the features (virtio 1.2 §5.2.3, §5.2.4).

use disk::{Access, Disk};

/// Feature bits (virtio 1.2 §5.2.3).
pub(super) mod feature {
    pub const SEG_MAX: u32 = 2;
    pub const RO: u32 = 5;
    pub const BLK_SIZE: u32 = 6;
    pub const FLUSH: u32 = 9;
    pub const TOPOLOGY: u32 = 10;
    pub const CONFIG_WCE: u32 = 11;
    pub const MQ: u32 = 12;
    pub const DISCARD: u32 = 13;
    pub const WRITE_ZEROES: u32 = 14;
}

/// The unit of the protocol, whatever the disk's own sectors are.
pub(super) const SECTOR: u64 = 512;

/// Data segments in one request; fewer in a small queue, since with header and status they have to fit in it even without
/// indirect descriptors.
const SEG_MAX: u32 = 254;
/// Where the writeback byte is.
const WRITEBACK: u64 = 32;
const LENGTH: usize = 60;

/// Sectors in one discard: a GiB.
pub(super) const MAX_DISCARD_SECTORS: u32 = (1 << 30) / SECTOR as u32;
/// Sectors zeroed by one request: less, because storage that cannot zero has to be written, and pausing waits for it.
pub(super) const MAX_ZEROES_SECTORS: u32 = (64 << 20) / SECTOR as u32;

pub(super) fn features(disk: &Disk, queues: u16) -> u64 {
    let mut bits = vec![feature::SEG_MAX, feature::BLK_SIZE, feature::FLUSH, feature::TOPOLOGY];
    match disk.access() {
        Access::ReadOnly => bits.push(feature::RO),
        Access::ReadWrite => bits.extend([feature::CONFIG_WCE, feature::DISCARD, feature::WRITE_ZEROES]),
    }
    if queues > 1 {
        bits.push(feature::MQ);
    }
    bits.into_iter().fold(0, |features, bit| features | 1 << bit)
}

/// What the configuration space tells.
pub(super) struct Space<'a> {
    pub disk: &'a Disk,
    pub queues: u16,
    pub queue_size: u16,
    pub writeback: bool,
}

impl Space<'_> {
    fn bytes(&self) -> [u8; LENGTH] {
        let mut space = [0; LENGTH];
        let mut put = |offset: usize, bytes: &[u8]| space[offset..offset + bytes.len()].copy_from_slice(bytes);
        let sector = self.disk.sector_size().bytes();
        put(0, &(self.disk.capacity() / SECTOR).to_le_bytes());
        put(12, &SEG_MAX.min(u32::from(self.queue_size).saturating_sub(2).max(1)).to_le_bytes());
        put(20, &sector.to_le_bytes());
        // Topology: logical sectors in a physical one (as a power of two), offset of the first aligned one, smallest and best
        // I/O in logical sectors.
        let exponent = (self.disk.physical_sector_size() / sector).ilog2() as u8;
        put(24, &[exponent, 0]);
        put(26, &1u16.to_le_bytes());
        put(28, &0u32.to_le_bytes());
        put(WRITEBACK as usize, &[u8::from(self.writeback)]);
        put(34, &self.queues.to_le_bytes());
        put(36, &MAX_DISCARD_SECTORS.to_le_bytes());
        put(40, &1u32.to_le_bytes());
        put(44, &(sector / SECTOR as u32).to_le_bytes());
        put(48, &MAX_ZEROES_SECTORS.to_le_bytes());
        put(52, &1u32.to_le_bytes());
        put(56, &[1]);
        space
    }

    /// Reads from it; what is past its end is left alone.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        let space = self.bytes();
        let Some(rest) = usize::try_from(offset).ok().and_then(|offset| space.get(offset..)) else { return };
        let count = rest.len().min(data.len());
        data[..count].copy_from_slice(&rest[..count]);
    }
}

/// The new writeback mode, if this write sets it: the only writable field.
pub(super) fn written_writeback(offset: u64, data: &[u8]) -> Option<bool> {
    match data {
        [value] if offset == WRITEBACK => Some(*value != 0),
        _ => None,
    }
}
