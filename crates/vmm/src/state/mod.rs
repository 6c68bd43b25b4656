//! The form of a saved VM.
//!
//! A saved VM is a stream of sections, each with a kind, a version, a length and a checksum of its own, between a head and an end mark:
//!
//! ```text
//! "MARUSAVE"  format version (u32)  0 (u32)
//! section:    kind (16 bytes)  version (u32)  CRC-32 (u32)  length (u64)  payload
//! ...
//! section:    kind "end", payload: number of sections before it (u64)
//! ```
//!
//! All numbers are little-endian. Payloads are protobuf messages with tagged fields, so that a later version adds fields and
//! still reads what an earlier one wrote; memory is raw. A reader refuses a section that it does not know, or of a newer version: leaving
//! something out that the saving monitor thought worth writing would lose it.

mod memory;

use std::io::{self, Read, Write};

pub use memory::{load_memory_chunk, save_memory};

const MAGIC: &[u8; 8] = b"MARUSAVE";
const FORMAT: u32 = 1;
const END: &str = "end";
/// The largest payload that is read: what is longer was not written by us.
const MAX_PAYLOAD: u64 = 64 << 20;

/// Why a saved VM could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Reading or writing failed.
    #[error("{what} the saved state")]
    Io {
        /// Which of them.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Not a saved VM at all.
    #[error("this is not a saved VM: the file does not start as one")]
    NotASavedVm,
    /// Written by a later release.
    #[error("the saved VM has {what} version {found}, this release reads up to {known}; use a newer release")]
    TooNew {
        /// The format as a whole, or a section.
        what: String,
        /// The version found.
        found: u32,
        /// The newest that is known.
        known: u32,
    },
    /// It ends too early.
    #[error("the saved VM is truncated: it ends inside {0}")]
    Truncated(String),
    /// A checksum is wrong.
    #[error("the saved VM is damaged: section '{0}' does not match its checksum")]
    Checksum(String),
    /// The content makes no sense.
    #[error("the saved VM is damaged: section '{section}': {reason}")]
    Malformed {
        /// The section.
        section: String,
        /// What is wrong.
        reason: String,
    },
}

impl StateError {
    /// A section with content that makes no sense.
    pub fn malformed(section: &str, reason: impl ToString) -> StateError {
        StateError::Malformed { section: section.into(), reason: reason.to_string() }
    }
}

fn writing(source: io::Error) -> StateError {
    StateError::Io { what: "writing", source }
}

/// Writes a saved VM.
pub struct Writer<W> {
    inner: W,
    sections: u64,
    bytes: u64,
}

impl<W: Write> Writer<W> {
    /// Writes the head.
    pub fn new(mut inner: W) -> Result<Writer<W>, StateError> {
        inner.write_all(MAGIC).map_err(writing)?;
        inner.write_all(&FORMAT.to_le_bytes()).map_err(writing)?;
        inner.write_all(&[0; 4]).map_err(writing)?;
        Ok(Writer { inner, sections: 0, bytes: 16 })
    }

    /// Writes a section.
    pub fn section(&mut self, kind: &str, version: u32, payload: &[u8]) -> Result<(), StateError> {
        self.parts(kind, version, &[payload])
    }

    /// Writes a section whose payload is in several pieces.
    pub fn parts(&mut self, kind: &str, version: u32, parts: &[&[u8]]) -> Result<(), StateError> {
        let length: u64 = parts.iter().map(|part| part.len() as u64).sum();
        let mut head = [0; 32];
        head[..kind.len()].copy_from_slice(kind.as_bytes());
        head[16..20].copy_from_slice(&version.to_le_bytes());
        head[24..].copy_from_slice(&length.to_le_bytes());
        let checksum = checksum(&head, parts);
        head[20..24].copy_from_slice(&checksum.to_le_bytes());
        self.inner.write_all(&head).map_err(writing)?;
        for part in parts {
            self.inner.write_all(part).map_err(writing)?;
        }
        self.sections += 1;
        self.bytes += 32 + length;
        Ok(())
    }

    /// Writes the end mark; returns the stream and its length in bytes.
    pub fn finish(mut self) -> Result<(W, u64), StateError> {
        let sections = self.sections;
        self.section(END, 1, &sections.to_le_bytes())?;
        self.inner.flush().map_err(writing)?;
        Ok((self.inner, self.bytes))
    }
}

/// CRC-32 of a section's head (its checksum counted as zero) and payload.
fn checksum(head: &[u8; 32], parts: &[&[u8]]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&head[..20]);
    crc.update(&head[24..]);
    parts.iter().for_each(|part| crc.update(part));
    crc.finalize()
}

/// A section as it was read, its checksum verified.
pub struct Section {
    /// What it is.
    pub kind: String,
    /// The version of its content.
    pub version: u32,
    /// Its content.
    pub payload: Vec<u8>,
}

impl Section {
    /// Decodes the payload, if this release knows its version.
    pub fn decode<M: prost::Message + Default>(&self, known: u32) -> Result<M, StateError> {
        self.check_version(known)?;
        M::decode(self.payload.as_slice()).map_err(|e| StateError::malformed(&self.kind, e))
    }

    /// Refuses a version that this release does not know.
    pub fn check_version(&self, known: u32) -> Result<(), StateError> {
        if self.version > known {
            return Err(StateError::TooNew { what: format!("section '{}'", self.kind), found: self.version, known });
        }
        Ok(())
    }
}

/// Reads a saved VM.
pub struct Reader<R> {
    inner: R,
    sections: u64,
    buffer: Vec<u8>,
}

impl<R: Read> Reader<R> {
    /// Reads the head.
    pub fn new(mut inner: R) -> Result<Reader<R>, StateError> {
        let mut head = [0; 16];
        match inner.read_exact(&mut head) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(StateError::NotASavedVm),
            other => other.map_err(|source| StateError::Io { what: "reading", source })?,
        }
        if &head[..8] != MAGIC {
            return Err(StateError::NotASavedVm);
        }
        let found = u32::from_le_bytes([head[8], head[9], head[10], head[11]]);
        if found == 0 || head[12..] != [0; 4] {
            return Err(StateError::NotASavedVm);
        }
        if found > FORMAT {
            return Err(StateError::TooNew { what: "format".into(), found, known: FORMAT });
        }
        Ok(Reader { inner, sections: 0, buffer: Vec::new() })
    }

    fn read(&mut self, place: &str, length: u64) -> Result<(), StateError> {
        self.buffer.clear();
        // `take` and `read_to_end` grow the buffer as data come: a length that lies costs no memory.
        let read = (&mut self.inner).take(length).read_to_end(&mut self.buffer);
        let read = read.map_err(|source| StateError::Io { what: "reading", source })?;
        if (read as u64) < length { Err(StateError::Truncated(place.into())) } else { Ok(()) }
    }

    /// The next section; `None` at the end mark.
    pub fn next_section(&mut self) -> Result<Option<Section>, StateError> {
        self.read("a section's head", 32)?;
        let head: [u8; 32] = self.buffer.as_slice().try_into().map_err(|_| StateError::Truncated("a section's head".into()))?;
        let name = head[..16].split(|b| *b == 0).next().unwrap_or_default();
        let kind = std::str::from_utf8(name).map_err(|_| StateError::malformed("?", "its kind is not text"))?.to_string();
        let version = u32::from_le_bytes([head[16], head[17], head[18], head[19]]);
        let crc = u32::from_le_bytes([head[20], head[21], head[22], head[23]]);
        let mut length = [0; 8];
        length.copy_from_slice(&head[24..]);
        let length = u64::from_le_bytes(length);
        if length > MAX_PAYLOAD {
            return Err(StateError::malformed(&kind, format!("{length} bytes long, at most {MAX_PAYLOAD} are expected")));
        }
        self.read(&format!("section '{kind}'"), length)?;
        if checksum(&head, &[&self.buffer]) != crc {
            return Err(StateError::Checksum(kind));
        }
        if kind == END {
            let expected = self.buffer.as_slice().try_into().map(u64::from_le_bytes).unwrap_or(u64::MAX);
            if expected != self.sections {
                return Err(StateError::malformed(END, format!("{expected} sections were written, {} are here", self.sections)));
            }
            return Ok(None);
        }
        self.sections += 1;
        Ok(Some(Section { kind, version, payload: std::mem::take(&mut self.buffer) }))
    }

    /// Gives a section's payload back, so that its memory is used again for the next one.
    pub fn recycle(&mut self, section: Section) {
        self.buffer = section.payload;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn saved() -> Vec<u8> {
        let mut writer = Writer::new(Vec::new()).unwrap();
        writer.section("first", 1, b"content").unwrap();
        writer.parts("second", 3, &[b"in ", b"pieces"]).unwrap();
        let (bytes, length) = writer.finish().unwrap();
        assert_eq!(bytes.len() as u64, length);
        bytes
    }

    fn read_all(bytes: &[u8]) -> Result<Vec<(String, u32, Vec<u8>)>, StateError> {
        let mut reader = Reader::new(bytes)?;
        let mut sections = Vec::new();
        while let Some(section) = reader.next_section()? {
            sections.push((section.kind, section.version, section.payload));
        }
        Ok(sections)
    }

    #[test]
    fn what_is_written_is_read_back() {
        let sections = read_all(&saved()).unwrap();
        assert_eq!(sections, [("first".into(), 1, b"content".to_vec()), ("second".into(), 3, b"in pieces".to_vec())]);
    }

    #[test]
    fn every_truncation_and_every_flipped_bit_is_noticed() {
        let bytes = saved();
        for length in 0..bytes.len() {
            assert!(read_all(&bytes[..length]).is_err(), "cut at {length}");
        }
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(read_all(&damaged).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_newer_release_is_named_as_the_way_out() {
        let mut bytes = saved();
        bytes[8] = 9;
        assert!(read_all(&bytes).unwrap_err().to_string().contains("use a newer release"));
        let section = Section { kind: "vcpu".into(), version: 2, payload: Vec::new() };
        assert!(section.check_version(1).unwrap_err().to_string().contains("section 'vcpu' version 2"));
        assert!(read_all(b"").is_err() && read_all(b"#!/bin/sh and more than sixteen bytes").is_err());
    }
}
