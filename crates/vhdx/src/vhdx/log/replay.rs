//! Makes the changes that a log holds: in the file, or in memory over a file that must not change.

use super::entry::{descriptor_at, descriptor_sectors};
use super::find::{Ring, no_sequence};
use crate::Storage;
use crate::vhdx::error::{Damage, OpenError, reading, writing};
use crate::vhdx::header::Header;
use crate::vhdx::layout::{PAGE, put, u64_at};
use crate::vhdx::overlay::Overlay;

/// Where replayed pages go.
pub(crate) enum Target<'a> {
    /// Into the file.
    File,
    /// Over it.
    Memory(&'a mut Overlay),
}

/// Replays the log of `header`, which is in use. Doing it again does no harm: a crash in the midst of it costs nothing.
pub(crate) fn replay(storage: &dyn Storage, header: &Header, mut target: Target<'_>) -> Result<(), OpenError> {
    let (offset, length) = (header.log_offset, u64::from(header.log_length));
    if header.log_version != 0 {
        let problem = format!("its version is {}, not 0", header.log_version);
        return Err(OpenError::Unsupported { structure: "log", offset, problem });
    }
    let ring = Ring { storage, offset, length };
    let entries = ring.active_sequence(header).map_err(reading("log", offset))?.ok_or_else(|| no_sequence(offset))?;
    let size = storage.size().map_err(reading("log", offset))?;
    let (flushed, last) = entries.last().map_or((0, 0), |head| (head.flushed_size, head.last_size));
    if size < flushed {
        let problem = format!("the file was {flushed} bytes long when it was written; {size} are left: the file was cut");
        return Err(Damage::new("log", offset, problem).into());
    }
    for entry in &entries {
        let mut sector = ring.sector(entry.position).map_err(reading("log", offset))?;
        let mut data = entry.position + descriptor_sectors(entry.descriptors) as u64 * PAGE as u64;
        for index in 0..entry.descriptors {
            let at = descriptor_at(index);
            if index > 0 && at.is_multiple_of(PAGE) {
                sector = ring.sector(entry.position + at as u64).map_err(reading("log", offset))?;
            }
            let descriptor = &sector[at % PAGE..at % PAGE + 32];
            let place = u64_at(descriptor, 16);
            if &descriptor[..4] == b"zero" {
                zero(storage, &mut target, place, u64_at(descriptor, 8))?;
                continue;
            }
            let mut page = ring.sector(data).map_err(reading("log", offset))?;
            put(&mut page, 0, &descriptor[8..16]);
            put(&mut page, PAGE - 4, &descriptor[4..8]);
            data += PAGE as u64;
            match &mut target {
                Target::File => storage.write_at(place, &page).map_err(writing)?,
                Target::Memory(overlay) => overlay.put_page(place, page),
            }
        }
    }
    match target {
        Target::File => {
            if storage.size().map_err(writing)? < last {
                storage.set_size(last).map_err(writing)?;
            }
            storage.flush().map_err(writing)
        }
        Target::Memory(overlay) => {
            overlay.grow(last);
            Ok(())
        }
    }
}

fn zero(storage: &dyn Storage, target: &mut Target<'_>, offset: u64, length: u64) -> Result<(), OpenError> {
    match target {
        Target::Memory(overlay) => overlay.put_zeros(offset, length),
        Target::File => {
            let end = storage.size().map_err(writing)?.min(offset + length);
            if offset < end {
                storage.punch(offset, end - offset).map_err(writing)?;
            }
            if end < offset + length {
                storage.set_size(offset + length).map_err(writing)?;
            }
        }
    }
    Ok(())
}
