//! Opens an image: from the file's first bytes to tables that are understood.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Condvar, Mutex};

use super::error::{Damage, OpenError, reading, writing};
use super::geometry::Geometry;
use super::header::{Header, Headers};
use super::image::{Image, State};
use super::layout::{BAT, IDENTIFIER, MAX_BAT, MAX_FILE, METADATA, PAGE};
use super::log::{LogWriter, Target, replay};
use super::metadata::{Facts as MetadataFacts, read_table};
use super::overlay::Overlay;
use super::regions::Regions;
use super::scan::{Rules, take_structures};
use super::space::Space;
use super::table::Table;
use crate::{Guid, Storage};

/// What an image is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The file is never written.
    ReadOnly,
    /// The file is written from the first change on; before, only if its log was in use.
    ReadWrite,
}

/// How to open an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenOptions {
    /// What for.
    pub access: Access,
}

/// What an image says about itself that only a change of its size changes while it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Bytes of the virtual disk.
    pub size: u64,
    /// 512 or 4096.
    pub logical_sector_size: u32,
    /// 512 or 4096.
    pub physical_sector_size: u32,
    /// The virtual disk's identity.
    pub disk_id: Guid,
    /// Changes when the data is changed for the first time after an open; children know their parent by it.
    pub data_write_guid: Guid,
}

/// Looks at a file that another may be writing: its log, which is never the same twice then, is left alone.
///
/// # Errors
/// See [`OpenError`].
pub fn peek(file: &dyn Storage) -> Result<Facts, OpenError> {
    let mut identifier = [0; 8];
    file.read_at(0, &mut identifier).map_err(reading("file", 0))?;
    if &identifier != IDENTIFIER {
        return Err(OpenError::NotVhdx);
    }
    let headers = Headers::read(file)?;
    let (regions, _) = Regions::read(file)?;
    let metadata = regions.get(METADATA)?;
    let facts = MetadataFacts::read(file, metadata, &read_table(file, metadata)?)?;
    Ok(Facts {
        size: facts.size,
        logical_sector_size: facts.logical,
        physical_sector_size: facts.physical,
        disk_id: facts.id,
        data_write_guid: headers.current.data_write_guid,
    })
}

/// The tables of a file, read and checked, with its log replayed.
pub(crate) struct Opened {
    /// The file, with its log's changes over it if those are in memory.
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) headers: Headers,
    pub(crate) log_was_used: bool,
    pub(crate) regions: Regions,
    pub(crate) region_damages: Vec<Damage>,
    pub(crate) items: Vec<super::metadata::Item>,
    pub(crate) facts: MetadataFacts,
    pub(crate) rules: Rules,
}

impl Opened {
    pub(crate) fn read(file: Arc<dyn Storage>, access: Access) -> Result<Self, OpenError> {
        let mut identifier = [0; 8];
        match file.read_at(0, &mut identifier) {
            Ok(()) if &identifier == IDENTIFIER => {}
            Err(source) if source.kind() != std::io::ErrorKind::UnexpectedEof => {
                return Err(OpenError::Io { action: "reading the image", source });
            }
            _ => return Err(OpenError::NotVhdx),
        }
        let mut headers = Headers::read(&*file)?;
        let log_was_used = !headers.current.log_guid.is_zero();
        let mut storage = Arc::clone(&file);
        if log_was_used && access == Access::ReadOnly {
            let mut overlay = Overlay::new(Arc::clone(&file)).map_err(reading("log", 0))?;
            replay(&*file, &headers.current, Target::Memory(&mut overlay))?;
            storage = Arc::new(overlay);
        } else if log_was_used {
            replay(&*file, &headers.current, Target::File)?;
            let file_write_guid = Guid::random().map_err(writing)?;
            let next = Header { log_guid: Guid::ZERO, file_write_guid, ..headers.current };
            headers.replace(&*file, next).map_err(writing)?;
        }
        let log = headers.log();
        let (regions, region_damages) = Regions::read(&*storage)?;
        regions.validate(log)?;
        let (bat, metadata) = (regions.get(BAT)?, regions.get(METADATA)?);
        let items = read_table(&*storage, metadata)?;
        let facts = MetadataFacts::read(&*storage, metadata, &items)?;
        let geometry = Geometry::new(facts.block_size, facts.logical, facts.has_parent);
        if geometry.entries(facts.size) * 8 > bat.length.into() {
            let problem = format!("{} bytes are too few for a disk of {} bytes", bat.length, facts.size);
            return Err(Damage::new("block allocation table", bat.offset, problem).into());
        }
        let file_size = storage.size().map_err(reading("file", 0))?;
        if bat.end() > file_size {
            return Err(Damage::new("block allocation table", bat.offset, "the file ends in it").into());
        }
        let rules = Rules { geometry, size: facts.size, file_size, bat_offset: bat.offset };
        Ok(Self { storage, headers, log_was_used, regions, region_damages, items, facts, rules })
    }
}

impl Headers {
    /// Offset and length of the log.
    pub(crate) fn log(&self) -> (u64, u64) {
        (self.current.log_offset, self.current.log_length.into())
    }
}

impl Image {
    /// Opens the image in `file`. A log in use is replayed: into the file if it is opened for writing, else in memory.
    ///
    /// Opening for writing goes through the whole BAT and refuses any damage in it; opening for reading looks at each page of tables
    /// when it is first needed.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(file: Arc<dyn Storage>, options: &OpenOptions) -> Result<Self, OpenError> {
        let access = options.access;
        let data_end = if access == Access::ReadOnly { file.size().map_err(reading("file", 0))? } else { u64::MAX };
        let opened = Opened::read(file, access)?;
        let Opened { storage, headers, regions, items, facts, rules, .. } = opened;
        let mut space = Space::default();
        if access == Access::ReadWrite {
            if rules.file_size > MAX_FILE {
                let problem = format!("{} bytes are more than the 128 TiB that can be written to", rules.file_size);
                return Err(OpenError::Unsupported { structure: "file", offset: 0, problem });
            }
            take_structures(&mut space, headers.log(), &regions.list)?;
            rules.take_all(&*storage, &mut space, &mut |damage| Err(damage.into()))?;
            space.quarantine_gaps();
        }
        let chunks = rules.geometry.chunk(super::layout::MAX_DISK / rules.geometry.block_size) + 1;
        let log_capacity = LogWriter::capacity(headers.log().1);
        Ok(Self {
            storage,
            access,
            geometry: rules.geometry,
            block_size: facts.block_size,
            logical: facts.logical,
            physical: facts.physical,
            is_fixed: facts.leave_blocks_allocated,
            disk_id: facts.id,
            size: AtomicU64::new(facts.size),
            bat_offset: AtomicU64::new(rules.bat_offset),
            data_end,
            bat: Table::new(MAX_BAT / PAGE as u64),
            bitmaps: Table::new(if facts.has_parent { chunks * 256 } else { 0 }),
            tickets: crate::epochs::Epochs::default(),
            started: AtomicBool::new(false),
            idle: Condvar::new(),
            log_capacity,
            state: Mutex::new(State {
                headers,
                regions,
                items,
                parent: facts.parent,
                log: None,
                space,
                file_size: rules.file_size,
                flushed_size: rules.file_size,
                has_new_holes: false,
                pages: BTreeMap::new(),
                dirty: 0,
                flying: None,
                last_id: 0,
                next_data_write_guid: None,
                is_broken: false,
            }),
        })
    }
}
