//! A disk that is written.

use std::path::PathBuf;
use std::sync::Arc;

use vhdx::{Extent, MapError, Place, Storage, Ticket};

use super::ToolError;
use crate::format::ToolImage;

/// A disk's file, and its tables if it is an image.
pub(super) struct Target {
    pub path: PathBuf,
    pub file: Arc<dyn Storage>,
    pub image: Option<Arc<dyn ToolImage>>,
}

impl Target {
    /// Writes whole sectors.
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<(), ToolError> {
        let writing = || ToolError::io(&self.path, "writing it");
        let Some(image) = &self.image else {
            return self.file.write_at(offset, data).map_err(writing());
        };
        let (ticket, extents) = self.mapped(&**image, |extents| image.map_write(offset, data.len() as u64, extents))?;
        let mut done = 0;
        for Extent { length, place } in extents {
            let part = &data[done..done + length as usize];
            if let Place::File(at) = place
                && let Err(error) = self.file.write_at(at, part)
            {
                image.finish(ticket);
                return Err(writing()(error));
            }
            done += length as usize;
        }
        image.complete(ticket);
        Ok(())
    }

    /// Makes whole sectors read as zeros.
    pub fn zero(&self, offset: u64, length: u64) -> Result<(), ToolError> {
        let zeroing = || ToolError::io(&self.path, "making zeros in it");
        let Some(image) = &self.image else {
            return self.file.punch(offset, length).map_err(zeroing());
        };
        let (ticket, extents) = self.mapped(&**image, |extents| image.map_zero(offset, length, extents))?;
        for Extent { length, place } in extents {
            if let Place::File(at) = place
                && let Err(error) = self.file.punch(at, length)
            {
                image.finish(ticket);
                return Err(zeroing()(error));
            }
        }
        image.complete(ticket);
        Ok(())
    }

    /// Maps, and writes tables first where that is asked for.
    fn mapped(
        &self,
        image: &dyn ToolImage,
        mut map: impl FnMut(&mut Vec<Extent>) -> Result<Ticket, MapError>,
    ) -> Result<(Ticket, Vec<Extent>), ToolError> {
        let mut extents = Vec::new();
        loop {
            match map(&mut extents) {
                Ok(ticket) => return Ok((ticket, extents)),
                Err(MapError::CommitFirst) => image.settle().map_err(ToolError::image(&self.path, "writing its tables"))?,
                Err(error) => return Err(ToolError::map(&self.path)(error)),
            }
        }
    }

    /// All that was written is durable, and the file is as one that nobody uses.
    pub fn close(&self) -> Result<(), ToolError> {
        if let Some(image) = &self.image {
            image.close().map_err(ToolError::image(&self.path, "closing it"))?;
        }
        self.file.flush().map_err(ToolError::io(&self.path, "making it durable"))
    }
}
