//! The footer: what kind of disk this is and how large (VHD specification 1.0, "Hard Disk Footer Format").
//!
//! The bytes are kept as they were read: what this code does not know is written back unchanged.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::bytes::{array, put, sum_checksum, u32_at, u64_at};

/// The unit in which a VHD is addressed, and the size of a footer.
pub const SECTOR: u64 = 512;

/// The largest virtual disk of the format, in bytes: 2040 GiB.
pub const MAX_SIZE: u64 = 2040 << 30;

/// Seconds from 1970 to 2000, where the format's time begins.
const YEAR_2000: u64 = 946_684_800;

const COOKIE: &[u8; 8] = b"conectix";
const CHECKSUM: usize = 64;
const ANYWHERE: u64 = u64::MAX;

/// How a virtual disk takes space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// All of it from the beginning.
    Fixed,
    /// Block by block, when they are first written.
    Dynamic,
    /// Block by block; what was not written is read from a parent.
    Differencing,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Fixed => "fixed",
            Kind::Dynamic => "dynamic",
            Kind::Differencing => "differencing",
        })
    }
}

/// What tells one disk from all others, as stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct UniqueId(pub [u8; 16]);

impl fmt::Display for UniqueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            if matches!(at, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

/// A time of the format: seconds since 2000-01-01 00:00 UTC, up to the year 2136.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(pub u32);

impl From<SystemTime> for Timestamp {
    /// Times that the format cannot hold become its first or last.
    fn from(time: SystemTime) -> Timestamp {
        let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Timestamp(u32::try_from(seconds.saturating_sub(YEAR_2000)).unwrap_or(u32::MAX))
    }
}

impl From<Timestamp> for SystemTime {
    fn from(time: Timestamp) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(YEAR_2000 + u64::from(time.0))
    }
}

/// A footer that was found good.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Footer([u8; 512]);

impl Footer {
    /// A new disk's footer. `header_offset` is where the header of a dynamic disk is.
    pub fn new(kind: Kind, size: u64, id: UniqueId, created: Timestamp, header_offset: u64) -> Footer {
        let mut bytes = [0; 512];
        put(&mut bytes, 0, COOKIE);
        put(&mut bytes, 8, &2u32.to_be_bytes()); // the bit that is always set
        put(&mut bytes, 12, &0x0001_0000u32.to_be_bytes());
        put(&mut bytes, 16, &(if kind == Kind::Fixed { ANYWHERE } else { header_offset }).to_be_bytes());
        put(&mut bytes, 24, &created.0.to_be_bytes());
        // Programs of old take the size from the geometry, which is smaller. By this creator they know that "current size" counts.
        put(&mut bytes, 28, b"win ");
        put(&mut bytes, 32, &0x0006_0003u32.to_be_bytes());
        put(&mut bytes, 36, b"Wi2k");
        put(&mut bytes, 40, &size.to_be_bytes());
        let code: u32 = match kind {
            Kind::Fixed => 2,
            Kind::Dynamic => 3,
            Kind::Differencing => 4,
        };
        put(&mut bytes, 60, &code.to_be_bytes());
        put(&mut bytes, 68, &id.0);
        let mut footer = Footer(bytes);
        footer.set_size(size);
        footer
    }

    /// Takes what was read, or says what is wrong with it.
    pub fn parse(bytes: &[u8; 512]) -> Result<Footer, String> {
        if &array::<8>(bytes, 0) != COOKIE {
            return Err("it does not begin with \"conectix\"".into());
        }
        if u32_at(bytes, CHECKSUM) != sum_checksum(bytes, CHECKSUM) {
            return Err("its checksum is wrong".into());
        }
        let version = u32_at(bytes, 12);
        if version >> 16 != 1 {
            return Err(format!("version {}.{} is not known", version >> 16, version & 0xffff));
        }
        let code = u32_at(bytes, 60);
        if !(2..=4).contains(&code) {
            return Err(format!("disk type {code} is not known"));
        }
        let footer = Footer(*bytes);
        let size = footer.size();
        if size == 0 || size > MAX_SIZE || !size.is_multiple_of(SECTOR) {
            return Err(format!("a disk of {size} bytes is not possible"));
        }
        let offset = footer.header_offset();
        if footer.kind() != Kind::Fixed && (!offset.is_multiple_of(SECTOR) || offset < SECTOR) {
            return Err(format!("the header cannot be at offset {offset}"));
        }
        Ok(footer)
    }

    /// As stored.
    pub fn bytes(&self) -> &[u8; 512] {
        &self.0
    }

    pub fn kind(&self) -> Kind {
        match u32_at(&self.0, 60) {
            2 => Kind::Fixed,
            3 => Kind::Dynamic,
            _ => Kind::Differencing,
        }
    }

    /// The virtual disk's size in bytes.
    pub fn size(&self) -> u64 {
        u64_at(&self.0, 48)
    }

    pub fn set_size(&mut self, size: u64) {
        put(&mut self.0, 48, &size.to_be_bytes());
        put(&mut self.0, 56, &geometry(size));
        self.seal();
    }

    pub fn header_offset(&self) -> u64 {
        u64_at(&self.0, 16)
    }

    pub fn set_header_offset(&mut self, offset: u64) {
        put(&mut self.0, 16, &offset.to_be_bytes());
        self.seal();
    }

    pub fn id(&self) -> UniqueId {
        UniqueId(array(&self.0, 68))
    }

    pub fn created(&self) -> Timestamp {
        Timestamp(u32_at(&self.0, 24))
    }

    /// The program that made the disk.
    pub fn creator(&self) -> String {
        String::from_utf8_lossy(&array::<4>(&self.0, 28)).trim_end_matches(['\0', ' ']).to_owned()
    }

    /// Cylinders, heads, sectors per track, as stored.
    #[cfg(test)]
    pub fn geometry(&self) -> (u16, u8, u8) {
        (super::bytes::u16_at(&self.0, 56), self.0[58], self.0[59])
    }

    fn seal(&mut self) {
        let sum = sum_checksum(&self.0, CHECKSUM);
        put(&mut self.0, CHECKSUM, &sum.to_be_bytes());
    }
}

/// The geometry of a disk (VHD specification 1.0, appendix "CHS Calculation"), as stored.
fn geometry(size: u64) -> [u8; 4] {
    let total = (size / SECTOR).min(65_535 * 16 * 255);
    let (mut sectors, mut heads);
    let mut tracks;
    if total >= 65_535 * 16 * 63 {
        (sectors, heads) = (255, 16);
        tracks = total / sectors;
    } else {
        sectors = 17;
        tracks = total / sectors;
        heads = tracks.div_ceil(1024).max(4);
        if tracks >= heads * 1024 || heads > 16 {
            (sectors, heads) = (31, 16);
            tracks = total / sectors;
        }
        if tracks >= heads * 1024 {
            (sectors, heads) = (63, 16);
            tracks = total / sectors;
        }
    }
    let cylinders = ((tracks / heads) as u16).to_be_bytes();
    [cylinders[0], cylinders[1], heads as u8, sectors as u8]
}
