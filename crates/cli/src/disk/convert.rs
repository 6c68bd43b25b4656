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

  For a cloud that takes fixed VHDs, for QEMU and for VMware:
    maru disk convert root.vhdx root.vhd --type fixed
    maru disk convert root.vhdx root.qcow2
    maru disk convert root.vhdx root.vmdk";

/// Copy a disk into a new one of any format
///
/// What is zeros takes no space in the new disk, unless its type is fixed. The new file gets its name when it is whole and durable: if this is
/// interrupted, nothing is left, or what was there before.
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
    let from = FormatName::or_extension(args.source_format, &args.source);
    let existing = if args.overwrite { Existing::Replace } else { Existing::Keep };
    let format = match FormatName::or_extension(args.format, &args.destination) {
        AnyFormat::Own(format) => format,
        AnyFormat::Foreign(format) => {
            no_kind(&args, format)?;
            return with_progress(|job| tool::export((&args.source, from), &args.destination, format, existing, job));
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
    with_progress(|job| tool::convert((&args.source, from), &args.destination, &disk, existing, job))
}

/// Refuses what only our own formats have.
fn no_kind(args: &ConvertArgs, format: disk::import::Format) -> Result<(), ToolError> {
    if args.disk_type.is_none() && args.block_size.is_none() && args.sector_size.is_none() {
        return Ok(());
    }
    Err(ToolError::Unsupported {
        path: args.destination.clone(),
        format: AnyFormat::Foreign(format),
        what: "choosing type, block size or sector size",
        way_out: "leave these options out",
    })
}
