//! `maru disk convert`.

use std::path::PathBuf;

use clap::Args;
use disk::tool::{self, AnyFormat, Existing, NewDisk, ToolError};

use super::format::{FormatName, TypeName, sector_size, small_size};
use super::progress::with_progress;

const AFTER_HELP: &str = "\
EXAMPLES
  Bring a disk over from QEMU:
    maru disk convert old.qcow2 root.vhdx

  Make one disk of a chain:
    maru disk convert web1.vhdx whole.vhdx

  For a program that knows raw disks only:
    maru disk convert root.vhdx root.raw

  For a cloud that takes fixed VHDs:
    maru disk convert root.vhdx root.vhd --type fixed";

/// Copy a disk into a new one of any format
///
/// What is zeros takes no space in the new disk, unless its type is fixed. The new file gets its name when it is whole and durable: if this is
/// interrupted, nothing is left, or what was there before. qcow2 and VMDK can be read, not written (qemu-img convert does that).
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct ConvertArgs {
    /// The disk to copy
    source: PathBuf,
    /// The new disk
    destination: PathBuf,
    /// What the source means (by its extension when left out)
    #[arg(long, value_enum)]
    source_format: Option<FormatName>,
    /// What the new file means (by its extension when left out)
    #[arg(long, value_enum)]
    format: Option<FormatName>,
    /// How the new disk takes space (dynamic when left out)
    #[arg(long = "type", value_enum)]
    disk_type: Option<TypeName>,
    /// The unit in which the new disk takes space: 1M to 256M, in a VHD also less (2M when left out)
    #[arg(long, value_parser = small_size)]
    block_size: Option<u32>,
    /// The unit in which the guest addresses it: 512 or 4096 (the source's when left out)
    #[arg(long, value_name = "BYTES", value_parser = sector_size)]
    sector_size: Option<u32>,
    /// Replace the destination if it exists, and nobody uses it
    #[arg(long)]
    overwrite: bool,
}

/// Converts the disk.
pub fn run(args: ConvertArgs) -> anyhow::Result<()> {
    let format = match FormatName::or_extension(args.format, &args.destination) {
        AnyFormat::Own(format) => format,
        format @ AnyFormat::Foreign(_) => {
            let way_out = "convert to raw, and from there with qemu-img convert";
            return Err(ToolError::Unsupported { path: args.destination, format, what: "writing", way_out }.into());
        }
    };
    let disk = NewDisk {
        format,
        disk_type: args.disk_type.map(Into::into),
        size: None,
        parent: None,
        block_size: args.block_size,
        sector_size: args.sector_size,
    };
    let from = FormatName::or_extension(args.source_format, &args.source);
    let existing = if args.overwrite { Existing::Replace } else { Existing::Keep };
    with_progress(|job| tool::convert((&args.source, from), &args.destination, &disk, existing, job))
}
