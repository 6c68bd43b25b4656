//! Opens one file of a disk, without the parents, for tools that change it.

use std::path::Path;
use std::sync::Arc;

use vhdx::vhdx as vhdx2;

use super::{AnyFormat, ToolError};
use crate::disk::{Access, Locking, OpenOptions};
use crate::error::OpenError;
use crate::format::Format;
use crate::layer::{Kind, Layer};

/// A VHDX image, with its lock.
pub(super) struct OpenImage {
    // Before the file that it is in.
    pub image: Arc<vhdx2::Image>,
    pub layer: Layer,
}

impl OpenImage {
    pub fn open(path: &Path, access: Access, locking: Locking) -> Result<OpenImage, ToolError> {
        let layer = Layer::open(path, OpenOptions { access, locking, format: Format::Vhdx, ..OpenOptions::default() })?;
        OpenImage::from_layer(layer, access)
    }

    pub fn from_layer(layer: Layer, access: Access) -> Result<OpenImage, ToolError> {
        if layer.kind == Kind::BlockDevice {
            return Err(OpenError::ImageOnDevice { path: layer.path.clone(), format: Format::Vhdx }.into());
        }
        let access = match access {
            Access::ReadOnly => vhdx2::Access::ReadOnly,
            Access::ReadWrite => vhdx2::Access::ReadWrite,
        };
        match vhdx2::Image::open(layer.file.clone(), &vhdx2::OpenOptions { access }) {
            Ok(image) => Ok(OpenImage { image: Arc::new(image), layer }),
            Err(source) => {
                Err(OpenError::Image { path: layer.path.clone(), format: Format::Vhdx, source: Box::new(source) }.into())
            }
        }
    }

    /// Writes the tables, and leaves the file as one that nobody uses.
    pub fn close(&self) -> Result<(), ToolError> {
        let path = &self.layer.path;
        self.image.close().map_err(ToolError::image(path, "closing it"))?;
        self.layer.file.sync_all().map_err(ToolError::io(path, "making it durable"))
    }
}

/// Refuses what only VHDX images have.
pub(super) fn only_vhdx(path: &Path, format: Format, what: &'static str) -> Result<(), ToolError> {
    match format {
        Format::Vhdx => Ok(()),
        _ => Err(ToolError::Unsupported {
            path: path.to_owned(),
            format: AnyFormat::Own(format),
            what,
            way_out: "convert the disk to VHDX (maru disk convert)",
        }),
    }
}

/// VHD images are not understood here.
pub(super) fn no_vhd(path: &Path) -> ToolError {
    ToolError::Unsupported {
        path: path.to_owned(),
        format: AnyFormat::Own(Format::Vhd),
        what: "this",
        way_out: "convert the disk to VHDX with qemu-img convert -f vpc -O vhdx",
    }
}
