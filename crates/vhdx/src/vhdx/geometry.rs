//! How the virtual disk is divided into blocks and chunks, and where their entries are in the BAT (MS-VHDX 2.5).

use super::layout::UNIT;

/// Sectors whose bits are in one sector bitmap block.
const CHUNK_SECTORS: u64 = 1 << 23;

/// The sizes that say which BAT entry is whose. All are powers of two.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Geometry {
    pub(crate) block_size: u64,
    pub(crate) sector: u64,
    /// Payload blocks whose sectors are in one bitmap block.
    pub(crate) ratio: u64,
    pub(crate) has_parent: bool,
}

impl Geometry {
    pub(crate) fn new(block_size: u32, logical: u32, has_parent: bool) -> Self {
        let (block_size, sector) = (u64::from(block_size), u64::from(logical));
        Self { block_size, sector, ratio: CHUNK_SECTORS * sector / block_size, has_parent }
    }

    pub(crate) fn blocks(&self, size: u64) -> u64 {
        size.div_ceil(self.block_size)
    }

    /// Entries of the BAT of a disk of this size, which is not zero.
    pub(crate) fn entries(&self, size: u64) -> u64 {
        let blocks = self.blocks(size);
        if self.has_parent { blocks.div_ceil(self.ratio) * (self.ratio + 1) } else { blocks + (blocks - 1) / self.ratio }
    }

    pub(crate) fn payload_index(&self, block: u64) -> u64 {
        block + (block >> self.ratio.trailing_zeros())
    }

    pub(crate) fn chunk(&self, block: u64) -> u64 {
        block >> self.ratio.trailing_zeros()
    }

    pub(crate) fn bitmap_index(&self, chunk: u64) -> u64 {
        chunk * (self.ratio + 1) + self.ratio
    }

    /// What the entry at an index of the BAT is for.
    pub(crate) fn owner(&self, index: u64) -> Owner {
        let (chunk, rest) = (index / (self.ratio + 1), index % (self.ratio + 1));
        if rest == self.ratio { Owner::Bitmap } else { Owner::Payload(chunk * self.ratio + rest) }
    }

    /// Megabytes that a payload block takes.
    pub(crate) fn block_units(&self) -> u64 {
        self.block_size / UNIT
    }
}

/// Whose entry it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    Payload(u64),
    Bitmap,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bitmap_entry_follows_each_chunk() {
        let geometry = Geometry::new(2 << 20, 512, true);
        assert_eq!(geometry.ratio, 2048);
        assert_eq!(geometry.payload_index(2047), 2047);
        assert_eq!(geometry.bitmap_index(0), 2048);
        assert_eq!(geometry.payload_index(2048), 2049);
        assert_eq!(geometry.owner(2048), Owner::Bitmap);
        assert_eq!(geometry.owner(2049), Owner::Payload(2048));
        assert_eq!(geometry.entries(1), 2049);
        assert_eq!(Geometry::new(2 << 20, 512, false).entries(4 << 30), 2048);
        assert_eq!(Geometry::new(2 << 20, 512, false).entries((4 << 30) + 1), 2050);
    }
}
