//! Writes an image that no engine is using, on this thread.

use vhdx::{Extent, MapError, Place, Storage, Ticket};

use crate::format::ImageFile;

/// Writes whole sectors.
pub(crate) fn write(image: &dyn ImageFile, file: &dyn Storage, offset: u64, data: &[u8]) -> Result<(), MapError> {
    let (ticket, extents) = mapped(image, |extents| image.map_write(offset, data.len() as u64, extents))?;
    let mut done = 0;
    let written = extents.iter().try_for_each(|Extent { length, place }| {
        let part = &data[done..done + *length as usize];
        done += part.len();
        if let Place::File(at) = place { file.write_at(*at, part) } else { Ok(()) }
    });
    end(image, ticket, written, "writing its data")
}

/// Makes whole sectors read as zeros.
pub(crate) fn zero(image: &dyn ImageFile, file: &dyn Storage, offset: u64, length: u64) -> Result<(), MapError> {
    let (ticket, extents) = mapped(image, |extents| image.map_zero(offset, length, extents))?;
    let zeroed = extents.iter().try_for_each(
        |Extent { length, place }| {
            if let Place::File(at) = place { file.punch(*at, *length) } else { Ok(()) }
        },
    );
    end(image, ticket, zeroed, "making zeros in it")
}

/// Maps, and writes tables first where that is asked for.
fn mapped(
    image: &dyn ImageFile,
    mut map: impl FnMut(&mut Vec<Extent>) -> Result<Ticket, MapError>,
) -> Result<(Ticket, Vec<Extent>), MapError> {
    let mut extents = Vec::new();
    loop {
        match map(&mut extents) {
            Ok(ticket) => return Ok((ticket, extents)),
            Err(MapError::CommitFirst) => image.settle()?,
            Err(error) => return Err(error),
        }
    }
}

fn end(image: &dyn ImageFile, ticket: Ticket, result: std::io::Result<()>, action: &'static str) -> Result<(), MapError> {
    match result {
        Ok(()) => image.complete(ticket),
        Err(_) => image.finish(ticket),
    }
    result.map_err(|source| MapError::Io { action, source })
}
