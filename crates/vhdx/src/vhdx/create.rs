//! Makes a new image.

use super::entry::Entry;
use super::error::CreateError;
use super::geometry::Geometry;
use super::header::Header;
use super::layout::{BAT, HEADERS, IDENTIFIER, MAX_BAT, MAX_DISK, MAX_LOG, METADATA, REGION_TABLES, UNIT, put};
use super::locator::Parent;
use super::metadata::{Facts, encode_table};
use super::regions::{Region, Regions};
use crate::{Guid, Storage};

/// What kind of image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Blocks take space when they are written.
    Dynamic,
    /// All blocks have their place from the start.
    Fixed {
        /// Take the space in the file system now, too; a write cannot fail for lack of it then.
        allocate: bool,
    },
    /// What is not written is in the parent.
    Differencing(Parent),
}

/// What to create.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateOptions {
    /// Of the virtual disk, in bytes: whole logical sectors, up to 64 TiB.
    pub size: u64,
    /// What kind of image.
    pub kind: Kind,
    /// The unit in which space is taken: a power of two from 1 MiB to 256 MiB.
    pub block_size: u32,
    /// 512 or 4096; a child has its parent's.
    pub logical_sector_size: u32,
    /// 512 or 4096.
    pub physical_sector_size: u32,
    /// In bytes: whole megabytes up to 1 GiB. One commit carries a third of it.
    pub log_size: u32,
    /// The virtual disk's identity (SCSI page 83); a child has its parent's. A random one if `None`.
    pub disk_id: Option<Guid>,
}

impl CreateOptions {
    /// A dynamic disk of `size` bytes, with blocks of 2 MiB, sectors of 512 (physical 4096) bytes, and a log of 1 MiB.
    #[must_use]
    pub fn new(size: u64) -> Self {
        Self {
            size,
            kind: Kind::Dynamic,
            block_size: 2 << 20,
            logical_sector_size: 512,
            physical_sector_size: 4096,
            log_size: 1 << 20,
            disk_id: None,
        }
    }

    fn validate(&self) -> Result<(), CreateError> {
        let refuse = |text: String| Err(CreateError::Options(text));
        let sectors = [self.logical_sector_size, self.physical_sector_size];
        if sectors.iter().any(|size| ![512, 4096].contains(size)) {
            return refuse(format!("sector sizes of {} and {} bytes: 512 and 4096 are possible", sectors[0], sectors[1]));
        }
        if self.size == 0 || self.size > MAX_DISK || !self.size.is_multiple_of(sectors[0].into()) {
            return refuse(format!("a size of {} bytes: whole sectors of {} up to 64 TiB are possible", self.size, sectors[0]));
        }
        if !self.block_size.is_power_of_two() || !(1 << 20..=256 << 20).contains(&self.block_size) {
            return refuse(format!(
                "a block size of {} bytes: a power of two from 1 MiB to 256 MiB is possible",
                self.block_size
            ));
        }
        let log = u64::from(self.log_size);
        if log == 0 || log > MAX_LOG || !log.is_multiple_of(UNIT) {
            return refuse(format!("a log of {log} bytes: whole megabytes up to 1 GiB are possible"));
        }
        Ok(())
    }
}

/// Bytes of the region for a BAT of this many entries.
pub(crate) fn bat_length(entries: u64) -> u64 {
    (entries * 8).next_multiple_of(UNIT)
}

/// Writes an empty image; what was in the file is lost. The file's signature is written last: a file whose creation was cut off is no
/// VHDX.
///
/// A BAT without blocks stays a hole, however large the disk.
///
/// # Errors
/// See [`CreateError`]; the file's content is undefined then.
pub fn create(storage: &dyn Storage, options: &CreateOptions) -> Result<(), CreateError> {
    options.validate()?;
    let io = |action| move |source| CreateError::Io { action, source };
    let writing = || io("writing the image");
    let random = || Guid::random().map_err(io("getting random numbers"));
    let parent = if let Kind::Differencing(parent) = &options.kind { Some(parent.clone()) } else { None };
    let facts = Facts {
        block_size: options.block_size,
        leave_blocks_allocated: matches!(options.kind, Kind::Fixed { .. }),
        has_parent: parent.is_some(),
        size: options.size,
        id: options.disk_id.map_or_else(random, Ok)?,
        logical: options.logical_sector_size,
        physical: options.physical_sector_size,
        parent,
    };
    let (items, contents) = facts.items().map_err(CreateError::Options)?;
    let geometry = Geometry::new(facts.block_size, facts.logical, facts.has_parent);
    let bat_length = bat_length(geometry.entries(facts.size));
    debug_assert!(bat_length <= MAX_BAT);
    let metadata = Region { id: METADATA, offset: UNIT + u64::from(options.log_size), length: UNIT as u32, required: true };
    let bat = Region { id: BAT, offset: metadata.end(), length: bat_length as u32, required: true };
    let payload = if facts.leave_blocks_allocated { geometry.blocks(facts.size) * geometry.block_size } else { 0 };

    storage.set_size(0).and_then(|()| storage.set_size(bat.end() + payload)).map_err(writing())?;
    if options.kind == (Kind::Fixed { allocate: true }) {
        storage.allocate(bat.end(), payload).map_err(io("taking the space of the disk"))?;
    }
    if payload > 0 {
        write_fixed_bat(storage, &geometry, facts.size, bat).map_err(writing())?;
    }
    storage.write_at(metadata.offset, &encode_table(&items)).map_err(writing())?;
    for (offset, content) in contents {
        storage.write_at(metadata.offset + u64::from(offset), &content).map_err(writing())?;
    }
    let regions = Regions { list: vec![bat, metadata] }.encode();
    REGION_TABLES.iter().try_for_each(|offset| storage.write_at(*offset, &regions)).map_err(writing())?;
    let mut header = Header {
        sequence: 0,
        file_write_guid: random()?,
        data_write_guid: random()?,
        log_guid: Guid::ZERO,
        log_version: 0,
        version: 1,
        log_length: options.log_size,
        log_offset: UNIT,
    };
    for offset in HEADERS {
        header.sequence += 1;
        storage.write_at(offset, &header.encode()).map_err(writing())?;
    }
    storage.flush().map_err(writing())?;
    storage.write_at(0, &identifier()).map_err(writing())?;
    storage.flush().map_err(writing())
}

fn identifier() -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    put(&mut bytes, 0, IDENTIFIER);
    let creator: Vec<u8> = concat!("Maru ", env!("CARGO_PKG_VERSION")).encode_utf16().flat_map(u16::to_le_bytes).collect();
    put(&mut bytes, 8, &creator);
    bytes
}

fn write_fixed_bat(storage: &dyn Storage, geometry: &Geometry, size: u64, bat: Region) -> std::io::Result<()> {
    let blocks = geometry.blocks(size);
    let entries = geometry.entries(size);
    let mut block = 0;
    let mut bytes = Vec::with_capacity(UNIT as usize);
    for index in 0..entries {
        let is_payload = geometry.payload_index(block) == index && block < blocks;
        let entry = if is_payload { Entry::full(bat.end() + block * geometry.block_size) } else { Entry::NOT_PRESENT };
        block += u64::from(is_payload);
        bytes.extend_from_slice(&entry.0.to_le_bytes());
        if bytes.len() == UNIT as usize || index + 1 == entries {
            storage.write_at(bat.offset + (index + 1) * 8 - bytes.len() as u64, &bytes)?;
            bytes.clear();
        }
    }
    Ok(())
}
