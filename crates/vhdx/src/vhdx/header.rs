//! The two headers (MS-VHDX 2.2.2): the only structures that are overwritten outside the log, one at a time.

use super::error::{Damage, OpenError, reading};
use super::layout::{HEADERS, PAGE, UNIT, checksum, guid_at, put, put_checksum, read_vec, u16_at, u32_at, u64_at};
use crate::{Guid, Storage};

/// What a header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) sequence: u64,
    pub(crate) file_write_guid: Guid,
    pub(crate) data_write_guid: Guid,
    /// Zero: the log is empty.
    pub(crate) log_guid: Guid,
    pub(crate) log_version: u16,
    pub(crate) version: u16,
    pub(crate) log_length: u32,
    pub(crate) log_offset: u64,
}

impl Header {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; PAGE];
        put(&mut bytes, 0, b"head");
        put(&mut bytes, 8, &self.sequence.to_le_bytes());
        put(&mut bytes, 16, &self.file_write_guid.to_bytes());
        put(&mut bytes, 32, &self.data_write_guid.to_bytes());
        put(&mut bytes, 48, &self.log_guid.to_bytes());
        put(&mut bytes, 64, &self.log_version.to_le_bytes());
        put(&mut bytes, 66, &self.version.to_le_bytes());
        put(&mut bytes, 68, &self.log_length.to_le_bytes());
        put(&mut bytes, 72, &self.log_offset.to_le_bytes());
        put_checksum(&mut bytes);
        bytes
    }

    fn decode(bytes: &[u8], offset: u64) -> Result<Self, Damage> {
        if &bytes[..4] != b"head" {
            return Err(Damage::new("header", offset, "its signature is not 'head'"));
        }
        if checksum(bytes) != u32_at(bytes, 4) {
            return Err(Damage::new("header", offset, "its checksum is wrong"));
        }
        Ok(Self {
            sequence: u64_at(bytes, 8),
            file_write_guid: guid_at(bytes, 16),
            data_write_guid: guid_at(bytes, 32),
            log_guid: guid_at(bytes, 48),
            log_version: u16_at(bytes, 64),
            version: u16_at(bytes, 66),
            log_length: u32_at(bytes, 68),
            log_offset: u64_at(bytes, 72),
        })
    }
}

/// Both headers, as they are in the file.
#[derive(Debug)]
pub(crate) struct Headers {
    /// The one that counts.
    pub(crate) current: Header,
    /// 0 or 1: where it is.
    pub(crate) slot: usize,
    /// What is wrong with the other one.
    pub(crate) other: Option<Damage>,
}

impl Headers {
    /// Reads both. The valid one with the larger sequence number counts; of two equal ones, the first.
    pub(crate) fn read(storage: &dyn Storage) -> Result<Self, OpenError> {
        let mut found = Vec::with_capacity(2);
        for offset in HEADERS {
            let bytes = read_vec(storage, offset, PAGE).map_err(reading("header", offset))?;
            found.push(Header::decode(&bytes, offset));
        }
        let second = found.pop();
        let first = found.pop();
        let (current, slot, other) = match (first, second) {
            (Some(Ok(first)), Some(Ok(second))) if second.sequence > first.sequence => (second, 1, None),
            (Some(Ok(first)), Some(Ok(_))) => (first, 0, None),
            (Some(Ok(first)), Some(Err(damage))) => (first, 0, Some(damage)),
            (Some(Err(damage)), Some(Ok(second))) => (second, 1, Some(damage)),
            (Some(Err(damage)), _) => return Err(damage.into()),
            _ => return Err(Damage::new("header", HEADERS[0], "there is none").into()),
        };
        let offset = HEADERS[slot];
        if current.version != 1 {
            let problem = format!("its format version is {}, not 1", current.version);
            return Err(OpenError::Unsupported { structure: "header", offset, problem });
        }
        let length = u64::from(current.log_length);
        if current.log_offset < UNIT
            || !current.log_offset.is_multiple_of(UNIT)
            || length == 0
            || !length.is_multiple_of(UNIT)
            || length > super::layout::MAX_LOG
            || current.log_offset.checked_add(length).is_none()
        {
            let problem = format!("a log of {length} bytes at offset {} is not possible", current.log_offset);
            return Err(Damage::new("header", offset, problem).into());
        }
        Ok(Self { current, slot, other })
    }

    /// Makes `next` the header, so that one valid header is in the file at every moment: over the older copy, flush; over the other,
    /// flush. Sequence numbers are given here.
    pub(crate) fn replace(&mut self, storage: &dyn Storage, mut next: Header) -> std::io::Result<()> {
        for _ in 0..2 {
            next.sequence = self.current.sequence.wrapping_add(1);
            let slot = 1 - self.slot;
            storage.write_at(HEADERS[slot], &next.encode())?;
            storage.flush()?;
            (self.current, self.slot) = (next, slot);
        }
        self.other = None;
        Ok(())
    }
}
