//! The variable part of the file: all maps of a disk at one moment.
//!
//! ```text
//!   number of maps (u32)
//!   for each: length of its name (u8), name, shift of its granularity (u8),
//!             leaves: number (u32), 1 for "all set" or 0 and 512 words (u64), ...
//!             u32::MAX
//! ```
//! It is written and read in pieces: a map of a large disk need not exist twice in memory.

use std::io;

use super::format::Snapshot;
use super::map::LEAF_WORDS;
use super::{DirtyMap, Granularity, MAX_MAPS, MAX_NAME, Storage};

const PIECE: usize = 256 * 1024;
const END: u32 = u32::MAX;

/// What is saved of a map: the bits of all parts together.
pub(super) struct Part<'a> {
    pub name: &'a str,
    pub granularity: Granularity,
    pub bits: &'a DirtyMap,
}

/// Why a snapshot was not written.
pub(super) enum WriteError {
    /// It does not fit before `limit`.
    NoRoom,
    Io(io::Error),
}

/// Writes a snapshot at `offset`, as long as it ends before `limit`.
pub(super) fn write(storage: &dyn Storage, offset: u64, limit: u64, maps: &[Part]) -> Result<Snapshot, WriteError> {
    let mut writer = Writer { storage, offset, limit, at: offset, piece: Vec::new(), checksum: crc32fast::Hasher::new() };
    writer.put(&(maps.len() as u32).to_le_bytes())?;
    for map in maps {
        writer.put(&[map.name.len() as u8])?;
        writer.put(map.name.as_bytes())?;
        writer.put(&[map.granularity.shift])?;
        for (number, words) in map.bits.filled_leaves() {
            writer.put(&(number as u32).to_le_bytes())?;
            let full = words == [u64::MAX; LEAF_WORDS];
            writer.put(&[u8::from(full)])?;
            if !full {
                words.iter().try_for_each(|word| writer.put(&word.to_le_bytes()))?;
            }
        }
        writer.put(&END.to_le_bytes())?;
    }
    writer.end()
}

struct Writer<'a> {
    storage: &'a dyn Storage,
    offset: u64,
    limit: u64,
    at: u64,
    piece: Vec<u8>,
    checksum: crc32fast::Hasher,
}

impl Writer<'_> {
    fn put(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        self.piece.extend_from_slice(bytes);
        if self.piece.len() >= PIECE { self.write_piece() } else { Ok(()) }
    }

    fn write_piece(&mut self) -> Result<(), WriteError> {
        let end = self.at + self.piece.len() as u64;
        if end > self.limit {
            return Err(WriteError::NoRoom);
        }
        self.storage.write_at(self.at, &self.piece).map_err(WriteError::Io)?;
        self.checksum.update(&self.piece);
        self.at = end;
        self.piece.clear();
        Ok(())
    }

    fn end(mut self) -> Result<Snapshot, WriteError> {
        self.write_piece()?;
        Ok(Snapshot { offset: self.offset, length: self.at - self.offset, checksum: self.checksum.finalize() })
    }
}

/// Why a snapshot could not be read.
#[derive(Debug)]
pub(super) enum ReadError {
    Damaged(&'static str),
    Io(io::Error),
}

/// Reads the maps of a disk with `size` bytes.
pub(super) fn read(storage: &dyn Storage, snapshot: Snapshot, size: u64) -> Result<Vec<(String, DirtyMap)>, ReadError> {
    let end = snapshot.offset.checked_add(snapshot.length).ok_or(ReadError::Damaged("its length is impossible"))?;
    let mut reader = Reader { storage, at: snapshot.offset, end, piece: Vec::new(), used: 0, checksum: crc32fast::Hasher::new() };
    let count = u32::from_le_bytes(reader.take()?);
    if count as usize > MAX_MAPS {
        return Err(ReadError::Damaged("it has too many maps"));
    }
    let mut maps = Vec::new();
    for _ in 0..count {
        let [length] = reader.take()?;
        let mut name = vec![0; usize::from(length)];
        reader.fill(&mut name)?;
        let name = String::from_utf8(name).map_err(|_| ReadError::Damaged("a name is not UTF-8"))?;
        if name.is_empty() || name.len() > MAX_NAME || maps.iter().any(|(other, _)| *other == name) {
            return Err(ReadError::Damaged("a name is empty, too long or used twice"));
        }
        let [shift] = reader.take()?;
        let granularity = Granularity::from_shift(shift).ok_or(ReadError::Damaged("a granularity is out of range"))?;
        let map = DirtyMap::new(size, granularity);
        loop {
            let number = u32::from_le_bytes(reader.take()?);
            if number == END {
                break;
            }
            let mut words = [u64::MAX; LEAF_WORDS];
            match reader.take()? {
                [1] => {}
                [0] => {
                    for word in &mut words {
                        *word = u64::from_le_bytes(reader.take()?);
                    }
                }
                _ => return Err(ReadError::Damaged("a leaf is of unknown kind")),
            }
            if !map.fill_leaf(number as usize, &words) {
                return Err(ReadError::Damaged("a leaf lies past the end of the disk"));
            }
        }
        maps.push((name, map));
    }
    reader.end(snapshot.checksum)?;
    Ok(maps)
}

struct Reader<'a> {
    storage: &'a dyn Storage,
    at: u64,
    end: u64,
    piece: Vec<u8>,
    used: usize,
    checksum: crc32fast::Hasher,
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], ReadError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn fill(&mut self, mut bytes: &mut [u8]) -> Result<(), ReadError> {
        while !bytes.is_empty() {
            if self.used == self.piece.len() {
                self.read_piece()?;
            }
            let count = bytes.len().min(self.piece.len() - self.used);
            bytes[..count].copy_from_slice(&self.piece[self.used..self.used + count]);
            self.used += count;
            bytes = &mut bytes[count..];
        }
        Ok(())
    }

    fn read_piece(&mut self) -> Result<(), ReadError> {
        let length = (self.end - self.at).min(PIECE as u64) as usize;
        if length == 0 {
            return Err(ReadError::Damaged("it ends too early"));
        }
        self.piece.resize(length, 0);
        self.storage.read_at(self.at, &mut self.piece).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => ReadError::Damaged("the file is too short"),
            _ => ReadError::Io(error),
        })?;
        self.checksum.update(&self.piece);
        self.at += length as u64;
        self.used = 0;
        Ok(())
    }

    fn end(self, checksum: u32) -> Result<(), ReadError> {
        if self.used != self.piece.len() || self.at != self.end {
            return Err(ReadError::Damaged("it is longer than its maps"));
        }
        if self.checksum.finalize() != checksum {
            return Err(ReadError::Damaged("its checksum is wrong"));
        }
        Ok(())
    }
}
