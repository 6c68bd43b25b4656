//! `--format` and `--type`, as people write them.

use std::path::Path;

use clap::ValueEnum;
use disk::tool::{AnyFormat, DiskType};
use disk::{Format, import};

/// A format's name on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FormatName {
    /// VHDX
    Vhdx,
    /// VHD
    #[value(alias = "vpc")]
    Vhd,
    /// The file is the disk, byte by byte
    Raw,
    /// QEMU's; to bring disks over
    Qcow2,
    /// VMware's; to bring disks over
    Vmdk,
}

impl FormatName {
    /// The format that was named, or else that of the file's extension.
    pub fn or_extension(name: Option<FormatName>, path: &Path) -> AnyFormat {
        name.map_or_else(|| AnyFormat::from_path(path), AnyFormat::from)
    }

    /// The name of a format.
    pub fn of(format: AnyFormat) -> &'static str {
        match format {
            AnyFormat::Own(Format::Vhdx) => "vhdx",
            AnyFormat::Own(Format::Vhd) => "vhd",
            AnyFormat::Own(Format::Raw) => "raw",
            AnyFormat::Foreign(import::Format::Qcow2) => "qcow2",
            AnyFormat::Foreign(import::Format::Vmdk) => "vmdk",
        }
    }
}

impl From<FormatName> for AnyFormat {
    fn from(name: FormatName) -> AnyFormat {
        match name {
            FormatName::Vhdx => AnyFormat::Own(Format::Vhdx),
            FormatName::Vhd => AnyFormat::Own(Format::Vhd),
            FormatName::Raw => AnyFormat::Own(Format::Raw),
            FormatName::Qcow2 => AnyFormat::Foreign(import::Format::Qcow2),
            FormatName::Vmdk => AnyFormat::Foreign(import::Format::Vmdk),
        }
    }
}

/// A type's name on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TypeName {
    /// Takes all its space at once
    Fixed,
    /// Takes space as it is written
    Dynamic,
    /// Holds what differs from its parent
    Differencing,
}

impl From<TypeName> for DiskType {
    fn from(name: TypeName) -> DiskType {
        match name {
            TypeName::Fixed => DiskType::Fixed,
            TypeName::Dynamic => DiskType::Dynamic,
            TypeName::Differencing => DiskType::Differencing,
        }
    }
}

/// A block or sector size, which has to fit into 32 bits.
pub fn small_size(text: &str) -> Result<u32, String> {
    let size: crate::size::ByteSize = text.parse().map_err(|error: crate::size::SizeError| error.to_string())?;
    u32::try_from(size.0).map_err(|_| format!("'{text}' is too large"))
}

/// A sector size: a bare number of bytes is what everybody writes.
pub fn sector_size(text: &str) -> Result<u32, String> {
    match text {
        "512" => Ok(512),
        "4096" | "4K" | "4k" => Ok(4096),
        _ => Err("512 and 4096 are possible".into()),
    }
}
