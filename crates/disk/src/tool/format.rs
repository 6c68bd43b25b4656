//! All formats that tools know, those that disks are only brought over from and to among them.

use std::fmt;
use std::path::Path;

use super::ToolError;
use crate::format::Format;
use crate::import;

/// What a disk's file means to a tool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnyFormat {
    /// One that can be read and written.
    Own(Format),
    /// One of another platform, which can be read, and made by [`export`](super::export).
    Foreign(import::Format),
}

impl AnyFormat {
    /// By the file's extension: `.vhdx`, `.avhdx`, `.vhd`, `.avhd`, `.qcow2`, `.vmdk`, raw otherwise. Content never decides.
    #[must_use]
    pub fn from_path(path: &Path) -> AnyFormat {
        match path.extension().and_then(|it| it.to_str()).map(str::to_ascii_lowercase).as_deref() {
            Some("qcow2") => AnyFormat::Foreign(import::Format::Qcow2),
            Some("vmdk") => AnyFormat::Foreign(import::Format::Vmdk),
            _ => AnyFormat::Own(Format::from_path(path)),
        }
    }

    /// The format, if its disks can be changed.
    ///
    /// # Errors
    /// [`ToolError::Unsupported`] with `what` was to be done.
    pub fn own(self, path: &Path, what: &'static str) -> Result<Format, ToolError> {
        match self {
            AnyFormat::Own(format) => Ok(format),
            AnyFormat::Foreign(_) => Err(ToolError::Unsupported {
                path: path.to_owned(),
                format: self,
                what,
                way_out: "use qemu-img for it, or convert the disk to VHDX first (maru disk convert)",
            }),
        }
    }
}

impl fmt::Display for AnyFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AnyFormat::Own(format) => format.fmt(f),
            AnyFormat::Foreign(import::Format::Qcow2) => f.write_str("qcow2"),
            AnyFormat::Foreign(import::Format::Vmdk) => f.write_str("VMDK"),
        }
    }
}
