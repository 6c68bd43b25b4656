//! A disk that is written.

use std::path::PathBuf;
use std::sync::Arc;

use vhdx::Storage;

use super::ToolError;
use crate::format::ToolImage;
use crate::put;

/// A disk's file, and its tables if it is an image.
pub(super) struct Target {
    pub path: PathBuf,
    pub file: Arc<dyn Storage>,
    pub image: Option<Arc<dyn ToolImage>>,
}

impl Target {
    /// Writes whole sectors.
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<(), ToolError> {
        match &self.image {
            None => self.file.write_at(offset, data).map_err(ToolError::io(&self.path, "writing it")),
            Some(image) => put::write(&**image, &*self.file, offset, data).map_err(ToolError::image(&self.path, "writing it")),
        }
    }

    /// Makes whole sectors read as zeros.
    pub fn zero(&self, offset: u64, length: u64) -> Result<(), ToolError> {
        match &self.image {
            None => self.file.punch(offset, length).map_err(ToolError::io(&self.path, "making zeros in it")),
            Some(image) => put::zero(&**image, &*self.file, offset, length).map_err(ToolError::image(&self.path, "writing it")),
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
