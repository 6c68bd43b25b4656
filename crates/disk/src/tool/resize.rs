//! Gives a disk another size.

use std::path::Path;

use vhdx::vhdx::BeyondEnd;

use super::ToolError;
use super::open::OpenImage;
use crate::disk::{Access, Locking, OpenOptions};
use crate::format::Format;
use crate::layer::{Kind, Layer};

/// What to do if the disk becomes smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Smaller {
    /// Refuse.
    Refuse,
    /// What was behind the new end is lost.
    Cut,
}

/// Gives the disk at `path` a size in bytes. What is new reads as zeros. Durable when it returns.
///
/// # Errors
/// See [`ToolError`]; the disk has its old size then, or the new one.
pub fn resize(path: &Path, format: Format, size: u64, smaller: Smaller) -> Result<(), ToolError> {
    let refuse_smaller = |now: u64| {
        if size < now && smaller == Smaller::Refuse {
            let problem = format!("it has {now} bytes, more than {size}; to lose what is behind that, say --shrink");
            return Err(ToolError::options(path, problem));
        }
        Ok(())
    };
    match format {
        Format::Raw => {
            let layer = Layer::open(path, OpenOptions { access: Access::ReadWrite, ..OpenOptions::default() })?;
            if layer.kind == Kind::BlockDevice {
                return Err(ToolError::options(path, "it is a block device; resize it with what made it (LVM, for example)"));
            }
            if size == 0 || !size.is_multiple_of(512) {
                return Err(ToolError::options(path, format!("{size} bytes are not whole sectors of 512 bytes")));
            }
            let resizing = || ToolError::io(path, "changing its size");
            refuse_smaller(layer.file.metadata().map_err(resizing())?.len())?;
            layer.file.set_len(size).and_then(|()| layer.file.sync_all()).map_err(resizing())
        }
        Format::Vhdx | Format::Vhd => {
            let open = OpenImage::open(path, format, Access::ReadWrite, Locking::Now)?;
            refuse_smaller(open.image.size())?;
            open.image.resize(size, BeyondEnd::Discard).map_err(ToolError::boxed(path, "changing its size"))?;
            open.close()
        }
    }
}
