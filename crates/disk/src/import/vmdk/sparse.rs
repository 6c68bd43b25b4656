//! An extent that holds only what was written: a directory of tables of grains, which may be compressed.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};

use miniz_oxide::inflate::decompress_slice_iter_to_slice;

use super::{Content, SECTOR, damaged, invalid, unsupported};

const MAGIC: &[u8; 4] = b"KDMV";
/// Of old ESX hosts.
const MAGIC_COW: &[u8; 4] = b"COWD";
const HEADER_BYTES: usize = 512;
const FLAG_NEWLINES: u32 = 1;
const FLAG_ZEROED_GRAINS: u32 = 1 << 2;
const FLAG_COMPRESSED: u32 = 1 << 16;
const FLAG_MARKERS: u32 = 1 << 17;
/// Instead of the directory's place: it is in a footer, since the file was written as a stream.
const IN_FOOTER: u64 = u64::MAX;
/// The footer is the last sector but one: behind it is the marker that ends the stream.
const FOOTER_FROM_END: u64 = 2 * SECTOR;
/// The specification has 512 entries in every table; grains of 64 KiB are usual.
const MAX_TABLE_ENTRIES: u32 = 512;
const MAX_GRAIN_SECTORS: u64 = (16 << 20) / SECTOR;
/// Entries of directories that a disk may have in memory (8 MiB): 64 TiB with grains of 64 KiB.
pub(super) const MAX_DIRECTORY: u64 = 2 << 20;
/// Tables that are kept: more than there are threads that read.
const KEPT_TABLES: usize = 32;
/// In front of a compressed grain: its sector in the extent (8 bytes) and the length of what follows (4).
const MARKER_BYTES: usize = 12;

/// What a header says, checked.
#[derive(Clone, Copy, Debug)]
struct Header {
    capacity_sectors: u64,
    grain_bytes: u64,
    table_entries: u32,
    descriptor_sector: u64,
    descriptor_sectors: u64,
    directory_sector: u64,
    is_compressed: bool,
    has_zeroed_grains: bool,
}

/// An open sparse extent.
pub(super) struct Sparse {
    file: File,
    header: Header,
    /// The sector of each table; 0 of one that is not there.
    directory: Vec<u32>,
    tables: Mutex<Vec<(usize, Arc<[u32]>)>>,
}

/// What a table's entry means.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Grain {
    Hole,
    Zero,
    /// At this offset in the file.
    Data(u64),
}

impl Sparse {
    /// Opens an extent; `None` if the file is not one. The entries of its directory are taken from `budget`.
    pub fn open(mut file: File, budget: &mut u64) -> io::Result<Option<Sparse>> {
        let length = file.seek(SeekFrom::End(0))?;
        let mut bytes = [0; HEADER_BYTES];
        if length < HEADER_BYTES as u64 {
            return Ok(None);
        }
        file.read_exact_at(&mut bytes, 0)?;
        if bytes.starts_with(MAGIC_COW) {
            return Err(unsupported("it is a sparse extent of an ESX host (COWD)"));
        }
        if !bytes.starts_with(MAGIC) {
            return Ok(None);
        }
        let mut header = Header::parse(&bytes, 0)?;
        if header.directory_sector == IN_FOOTER {
            let Some(offset) = length.checked_sub(FOOTER_FROM_END) else {
                return Err(invalid("it ends before its footer"));
            };
            file.read_exact_at(&mut bytes, offset)?;
            if !bytes.starts_with(MAGIC) {
                return Err(damaged("footer", offset, "there is none; the file is incomplete"));
            }
            header = Header::parse(&bytes, offset)?;
        }
        let offset = header.directory_sector.saturating_mul(SECTOR);
        let entries = header.capacity_sectors.div_ceil(header.grain_bytes / SECTOR * u64::from(header.table_entries));
        *budget = budget.checked_sub(entries).ok_or_else(|| unsupported("it has more grain tables than are read"))?;
        if offset.checked_add(entries * 4).is_none_or(|end| end > length) {
            return Err(damaged("grain directory", offset, "it is not inside the file"));
        }
        let directory = read_entries(&file, offset, entries as usize)?;
        Ok(Some(Sparse { file, header, directory, tables: Mutex::default() }))
    }

    /// In bytes.
    pub fn size(&self) -> u64 {
        self.header.capacity_sectors * SECTOR
    }

    /// Offset and length of the descriptor inside the file, in bytes.
    pub fn descriptor(&self) -> (u64, u64) {
        (self.header.descriptor_sector.saturating_mul(SECTOR), self.header.descriptor_sectors.saturating_mul(SECTOR))
    }

    /// Fills the buffer; the range is inside the extent.
    pub fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let grain_bytes = self.header.grain_bytes;
        let mut done = 0;
        while done < buffer.len() {
            let at = offset + done as u64;
            let (number, within) = (at / grain_bytes, at % grain_bytes);
            let count = (grain_bytes - within).min((buffer.len() - done) as u64) as usize;
            let part = &mut buffer[done..done + count];
            match self.grain(number)? {
                Grain::Hole | Grain::Zero => part.fill(0),
                Grain::Data(place) if self.header.is_compressed => {
                    let grain = self.inflate(number, place)?;
                    let found = grain.get(within as usize..within as usize + count);
                    part.copy_from_slice(found.ok_or_else(|| damaged("grain", place, "it ends too early"))?);
                }
                Grain::Data(place) => self.file.read_exact_at(part, place + within)?,
            }
            done += count;
        }
        Ok(())
    }

    /// What is at an offset inside the extent, and for how many bytes: to the end of a table at most, or over tables that are not there.
    pub fn mapping(&self, offset: u64) -> io::Result<(Content, u64)> {
        let grain_bytes = self.header.grain_bytes;
        let number = offset / grain_bytes;
        let entries = u64::from(self.header.table_entries);
        let index = (number / entries) as usize;
        let missing = self.directory[index..].iter().take_while(|it| **it == 0).count();
        if missing > 0 {
            let end = (index + missing) as u64 * entries * grain_bytes;
            return Ok((Content::Hole, end.min(self.size()) - offset));
        }
        let content = |entry: &u32| match self.meaning(*entry) {
            Grain::Hole => Content::Hole,
            Grain::Zero => Content::Zero,
            Grain::Data(_) => Content::Data,
        };
        let table = self.table(index)?;
        let rest = &table[(number % entries) as usize..];
        let first = content(&rest[0]);
        let same = rest.iter().take_while(|entry| content(entry) == first).count() as u64;
        Ok((first, ((number + same) * grain_bytes).min(self.size()) - offset))
    }

    fn grain(&self, number: u64) -> io::Result<Grain> {
        let entries = u64::from(self.header.table_entries);
        let index = (number / entries) as usize;
        if self.directory[index] == 0 {
            return Ok(Grain::Hole);
        }
        Ok(self.meaning(self.table(index)?[(number % entries) as usize]))
    }

    fn meaning(&self, entry: u32) -> Grain {
        match entry {
            0 => Grain::Hole,
            1 if self.header.has_zeroed_grains => Grain::Zero,
            sector => Grain::Data(u64::from(sector) * SECTOR),
        }
    }

    fn table(&self, index: usize) -> io::Result<Arc<[u32]>> {
        let tables = || self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, table)) = tables().iter().find(|it| it.0 == index) {
            return Ok(Arc::clone(table));
        }
        let offset = u64::from(self.directory[index]) * SECTOR;
        let table: Arc<[u32]> = match read_entries(&self.file, offset, self.header.table_entries as usize) {
            Ok(table) => table.into(),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(damaged("grain table", offset, "it is not inside the file"));
            }
            Err(error) => return Err(error),
        };
        let mut tables = tables();
        if tables.len() == KEPT_TABLES {
            tables.remove(0);
        }
        tables.push((index, Arc::clone(&table)));
        Ok(table)
    }

    fn inflate(&self, number: u64, place: u64) -> io::Result<Vec<u8>> {
        let broken = |problem: &str| damaged("compressed grain", place, problem);
        let inside = |result: io::Result<()>| match result {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(broken("it is not inside the file")),
            other => other,
        };
        let mut marker = [0; MARKER_BYTES];
        inside(self.file.read_exact_at(&mut marker, place))?;
        if u64_at(&marker, 0) != number * (self.header.grain_bytes / SECTOR) {
            return Err(broken("it is one of another place in the disk"));
        }
        let length = u64::from(u32_at(&marker, 8));
        // Data that does not compress grows by less than this.
        if length == 0 || length > 2 * self.header.grain_bytes {
            return Err(broken("its length is impossible"));
        }
        let mut packed = vec![0; length as usize];
        inside(self.file.read_exact_at(&mut packed, place + MARKER_BYTES as u64))?;
        let mut grain = vec![0; self.header.grain_bytes as usize];
        let found = decompress_slice_iter_to_slice(&mut grain, std::iter::once(&packed[..]), true, false);
        grain.truncate(found.map_err(|_| broken("it cannot be decompressed"))?);
        Ok(grain)
    }
}

impl Header {
    fn parse(bytes: &[u8; HEADER_BYTES], offset: u64) -> io::Result<Header> {
        let broken = |problem: &str| damaged("header", offset, problem);
        let version = u32_at(bytes, 4);
        if !(1..=3).contains(&version) {
            return Err(unsupported(format!("its header is of version {version}")));
        }
        let flags = u32_at(bytes, 8);
        if flags & FLAG_NEWLINES != 0 && bytes[73..77] != *b"\n \r\n" {
            return Err(broken("line ends were changed when it was transferred as text"));
        }
        let grain_sectors = u64_at(bytes, 20);
        if !grain_sectors.is_power_of_two() || !(8..=MAX_GRAIN_SECTORS).contains(&grain_sectors) {
            return Err(broken("its grain size is out of range"));
        }
        let table_entries = u32_at(bytes, 44);
        if !(1..=MAX_TABLE_ENTRIES).contains(&table_entries) {
            return Err(broken("its grain tables are too large"));
        }
        let capacity_sectors = u64_at(bytes, 12);
        if capacity_sectors == 0 || capacity_sectors > u64::MAX >> 11 {
            return Err(broken("its capacity is out of range"));
        }
        let is_compressed = flags & FLAG_COMPRESSED != 0;
        match u16::from_le_bytes([bytes[77], bytes[78]]) {
            0 | 1 if is_compressed == (bytes[77] == 1) => {}
            0 | 1 => return Err(broken("it contradicts itself on compression")),
            other => return Err(unsupported(format!("it is compressed by method {other}"))),
        }
        if is_compressed && flags & FLAG_MARKERS == 0 {
            return Err(unsupported("it is compressed without markers"));
        }
        Ok(Header {
            capacity_sectors,
            grain_bytes: grain_sectors * SECTOR,
            table_entries,
            descriptor_sector: u64_at(bytes, 28),
            descriptor_sectors: u64_at(bytes, 36),
            directory_sector: u64_at(bytes, 56),
            is_compressed,
            has_zeroed_grains: flags & FLAG_ZEROED_GRAINS != 0,
        })
    }
}

fn read_entries(file: &File, offset: u64, count: usize) -> io::Result<Vec<u32>> {
    let mut bytes = vec![0; count * 4];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(bytes.as_chunks().0.iter().map(|entry| u32::from_le_bytes(*entry)).collect())
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|index| bytes[offset + index]))
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|index| bytes[offset + index]))
}
