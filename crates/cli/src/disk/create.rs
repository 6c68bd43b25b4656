//! `maru disk create`.

use std::path::PathBuf;

use clap::Args;
use disk::tool::{self, NewDisk, ToolError};

use super::format::{FormatName, TypeName, sector_size, small_size};
use crate::size::ByteSize;

const AFTER_HELP: &str = "\
EXAMPLES
  A disk of 100 GiB that takes space as it is written:
    maru disk create root.vhdx --size 100G

  A child that holds what differs from its parent:
    maru disk create web1.vhdx --parent base.vhdx

  With sectors of 4096 bytes, all space taken now:
    maru disk create data.vhdx --size 1T --type fixed --sector-size 4096";

/// Make a new, empty disk
///
/// A file that is there already is never overwritten. What fails or is interrupted leaves nothing.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct CreateArgs {
    /// The new file
    path: PathBuf,
    /// Size of the disk (the parent's by default): a number and K, M, G or T
    #[arg(long)]
    size: Option<ByteSize>,
    /// What the file means (by its extension when left out: .vhdx, .vhd; raw otherwise)
    #[arg(long, value_enum)]
    format: Option<FormatName>,
    /// How it takes space (dynamic when left out; differencing with --parent)
    #[arg(long = "type", value_enum)]
    disk_type: Option<TypeName>,
    /// The parent of a differencing disk; it must not be changed any more
    #[arg(long)]
    parent: Option<PathBuf>,
    /// The unit in which it takes space: 1M to 256M, in a VHD also less (2M when left out)
    #[arg(long, value_parser = small_size)]
    block_size: Option<u32>,
    /// The unit in which the guest addresses it: 512 or 4096
    #[arg(long, value_name = "BYTES", value_parser = sector_size)]
    sector_size: Option<u32>,
}

/// Makes the disk.
pub fn run(args: CreateArgs) -> Result<(), ToolError> {
    let format = FormatName::or_extension(args.format, &args.path).own(&args.path, "making one")?;
    let parent = match args.parent {
        Some(parent) => {
            let format = FormatName::or_extension(None, &parent).own(&parent, "making a child")?;
            Some((parent, format))
        }
        None => None,
    };
    let disk = NewDisk {
        format,
        disk_type: args.disk_type.map(Into::into),
        size: args.size.map(|size| size.0),
        parent,
        block_size: args.block_size,
        sector_size: args.sector_size,
    };
    tool::create(&args.path, &disk)
}
