//! The header of dynamic and differencing disks: where the table is, and who the parent is (VHD specification 1.0, "Dynamic Disk
//! Header Format").

use super::bytes::{array, put, sum_checksum, u32_at, u64_at};
use super::footer::{SECTOR, Timestamp, UniqueId};

/// The header's size in bytes.
pub(crate) const HEADER: u64 = 1024;

/// The smallest and the largest block that is accepted, in bytes. Real disks have 512 KiB or 2 MiB; the bitmap of the largest is 64 KiB.
pub(crate) const BLOCK_SIZES: std::ops::RangeInclusive<u32> = 4096..=256 << 20;

/// The longest table that is accepted, in entries: 32 MiB, twice what 2040 GiB need in blocks of 512 KiB.
pub(crate) const MAX_ENTRIES: u32 = 8 << 20;

/// The longest parent name, in UTF-16 units.
pub(crate) const NAME_UNITS: usize = 256;

/// The longest path of a parent that is accepted, in bytes of UTF-16: what Windows allows.
pub(crate) const MAX_PATH: u32 = 65_536;

/// A relative path in UTF-16LE.
pub(crate) const RELATIVE: [u8; 4] = *b"W2ru";
/// An absolute path in UTF-16LE.
pub(crate) const ABSOLUTE: [u8; 4] = *b"W2ku";

const COOKIE: &[u8; 8] = b"cxsparse";
const CHECKSUM: usize = 36;
const LOCATORS: usize = 576;

/// Where one way to name the parent is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Locator {
    /// How it is written.
    pub code: [u8; 4],
    /// In bytes.
    pub length: u32,
    /// In the file.
    pub offset: u64,
}

/// A header that was found good, as it was read.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Header([u8; 1024]);

impl Header {
    pub fn new(table_offset: u64, entries: u32, block_size: u32) -> Header {
        let mut bytes = [0; 1024];
        put(&mut bytes, 0, COOKIE);
        put(&mut bytes, 8, &u64::MAX.to_be_bytes());
        put(&mut bytes, 24, &0x0001_0000u32.to_be_bytes());
        put(&mut bytes, 32, &block_size.to_be_bytes());
        let mut header = Header(bytes);
        header.set_table(table_offset, entries);
        header
    }

    /// Takes what was read, or says what is wrong with it.
    pub fn parse(bytes: &[u8; 1024]) -> Result<Header, String> {
        if &array::<8>(bytes, 0) != COOKIE {
            return Err("it does not begin with \"cxsparse\"".into());
        }
        if u32_at(bytes, CHECKSUM) != sum_checksum(bytes, CHECKSUM) {
            return Err("its checksum is wrong".into());
        }
        let version = u32_at(bytes, 24);
        if version >> 16 != 1 {
            return Err(format!("version {}.{} is not known", version >> 16, version & 0xffff));
        }
        let header = Header(*bytes);
        let block = header.block_size();
        if !block.is_power_of_two() || !BLOCK_SIZES.contains(&block) {
            return Err(format!("blocks of {block} bytes are not possible"));
        }
        if header.entries() > MAX_ENTRIES {
            return Err(format!("a table of {} blocks is longer than any disk needs", header.entries()));
        }
        if !header.table_offset().is_multiple_of(SECTOR) {
            return Err(format!("the block table cannot be at offset {}", header.table_offset()));
        }
        Ok(header)
    }

    /// As stored.
    pub fn bytes(&self) -> &[u8; 1024] {
        &self.0
    }

    pub fn table_offset(&self) -> u64 {
        u64_at(&self.0, 16)
    }

    /// How many entries the table has.
    pub fn entries(&self) -> u32 {
        u32_at(&self.0, 28)
    }

    pub fn block_size(&self) -> u32 {
        u32_at(&self.0, 32)
    }

    /// All that changes is in the header's first sector, which is written as a whole or not at all.
    pub fn set_table(&mut self, offset: u64, entries: u32) {
        put(&mut self.0, 16, &offset.to_be_bytes());
        put(&mut self.0, 28, &entries.to_be_bytes());
        self.seal();
    }

    pub fn parent_id(&self) -> UniqueId {
        UniqueId(array(&self.0, 40))
    }

    pub fn parent_time(&self) -> Timestamp {
        Timestamp(u32_at(&self.0, 56))
    }

    /// The parent's name, as far as it is UTF-16.
    pub fn parent_name(&self) -> String {
        let units = (0..NAME_UNITS).map(|unit| u16::from_be_bytes(array(&self.0, 64 + 2 * unit))).take_while(|unit| *unit != 0);
        char::decode_utf16(units).map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
    }

    /// The ways to name the parent that are in use.
    pub fn locators(&self) -> impl Iterator<Item = Locator> {
        (0..8).map(|slot| LOCATORS + 24 * slot).filter_map(|at| {
            let code = array(&self.0, at);
            let (length, offset) = (u32_at(&self.0, at + 8), u64_at(&self.0, at + 16));
            (code != [0; 4] && length != 0).then_some(Locator { code, length, offset })
        })
    }

    /// Names the parent. The name has at most [`NAME_UNITS`] units; there are at most eight locators.
    pub fn set_parent(&mut self, id: UniqueId, time: Timestamp, name: &str, locators: &[Locator]) {
        self.0[40..].fill(0);
        put(&mut self.0, 40, &id.0);
        put(&mut self.0, 56, &time.0.to_be_bytes());
        for (unit, value) in name.encode_utf16().take(NAME_UNITS).enumerate() {
            put(&mut self.0, 64 + 2 * unit, &value.to_be_bytes());
        }
        for (slot, locator) in locators.iter().take(8).enumerate() {
            let at = LOCATORS + 24 * slot;
            put(&mut self.0, at, &locator.code);
            // The specification counts sectors here; Windows writes bytes, and readers go by the length.
            put(&mut self.0, at + 4, &locator.length.next_multiple_of(SECTOR as u32).to_be_bytes());
            put(&mut self.0, at + 8, &locator.length.to_be_bytes());
            put(&mut self.0, at + 16, &locator.offset.to_be_bytes());
        }
        self.seal();
    }

    fn seal(&mut self) {
        let sum = sum_checksum(&self.0, CHECKSUM);
        put(&mut self.0, CHECKSUM, &sum.to_be_bytes());
    }
}
