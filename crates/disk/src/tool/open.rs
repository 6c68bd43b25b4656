//! Opens one file of a disk, without the parents, for tools that change it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use vhdx::{Mapping, Storage};

use super::source::Level;
use super::target::Target;
use super::{AnyFormat, ToolError};
use crate::disk::{Access, Locking, OpenOptions};
use crate::error::OpenError;
use crate::format::{Format, Identity, ToolImage, open_image};
use crate::layer::{Kind, Layer};
use crate::lock;

/// An image, with its lock.
pub(super) struct OpenImage {
    // Before the file that it is in.
    pub image: Arc<dyn ToolImage>,
    pub storage: Arc<dyn Storage>,
    pub path: PathBuf,
    _lock: Option<Layer>,
}

impl OpenImage {
    pub fn open(path: &Path, format: Format, access: Access, locking: Locking) -> Result<OpenImage, ToolError> {
        OpenImage::of(Layer::open(path, OpenOptions { access, locking, format, ..OpenOptions::default() })?, format, access)
    }

    /// To be written by a merge, beside readers: the child that is merged, or the parent of the child that its children know by this.
    pub fn open_for_merge(path: &Path, format: Format, into_from: Option<Identity>) -> Result<OpenImage, ToolError> {
        let access = Access::ReadWrite;
        let layer = Layer::open(path, OpenOptions { access, locking: Locking::Later, format, ..OpenOptions::default() })?;
        lock::take_for_merge(&layer.file, into_from, path)?;
        OpenImage::of(layer, format, access)
    }

    fn of(layer: Layer, format: Format, access: Access) -> Result<OpenImage, ToolError> {
        if layer.kind == Kind::BlockDevice {
            return Err(OpenError::ImageOnDevice { path: layer.path.clone(), format }.into());
        }
        let open = OpenImage::within(layer.file.clone(), &layer.path, format, access)?;
        Ok(OpenImage { _lock: Some(layer), ..open })
    }

    /// An image in any storage; the caller sees to it that nobody else has it. `path` is what error texts call it.
    pub fn within(storage: Arc<dyn Storage>, path: &Path, format: Format, access: Access) -> Result<OpenImage, ToolError> {
        match open_image(format, storage.clone(), access) {
            Ok(image) => Ok(OpenImage { image, storage, path: path.to_owned(), _lock: None }),
            Err(source) => Err(OpenError::Image { path: path.to_owned(), format, source }.into()),
        }
    }

    /// To be read.
    pub fn level(&self) -> Level {
        Level {
            path: self.path.clone(),
            file: Arc::clone(&self.storage),
            tables: Some(Arc::clone(&self.image) as Arc<dyn Mapping>),
            size: self.image.size(),
        }
    }

    /// To be written.
    pub fn target(&self) -> Target {
        Target { path: self.path.clone(), file: Arc::clone(&self.storage), image: Some(Arc::clone(&self.image)) }
    }

    /// Writes the tables, and leaves the file as one that nobody uses.
    pub fn close(&self) -> Result<(), ToolError> {
        self.target().close()
    }
}

/// Refuses what only images have.
pub(super) fn only_images(path: &Path, format: Format, what: &'static str) -> Result<(), ToolError> {
    match format {
        Format::Vhdx | Format::Vhd => Ok(()),
        Format::Raw => Err(ToolError::Unsupported {
            path: path.to_owned(),
            format: AnyFormat::Own(format),
            what,
            way_out: "convert the disk to VHDX (maru disk convert), or name the right format if it is an image",
        }),
    }
}
