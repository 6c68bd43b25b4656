//! `maru disk resize`.

use std::path::PathBuf;

use clap::Args;
use disk::tool::{self, Smaller, ToolError};

use super::format::FormatName;
use crate::size::ByteSize;

const AFTER_HELP: &str = "\
EXAMPLES
  maru disk resize root.vhdx 200G
  maru disk resize root.vhdx 50G --shrink

The partitions in the disk are the guest's: grow them after the disk, make them smaller before it.";

/// Give a disk another size
///
/// The disk must not be in use, and no child may hang on it.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct ResizeArgs {
    /// The disk
    path: PathBuf,
    /// The new size: a number and K, M, G or T
    size: ByteSize,
    /// Allow a smaller size: what is behind it is lost
    #[arg(long)]
    shrink: bool,
    /// What the file means (by its extension when left out)
    #[arg(long, value_enum)]
    format: Option<FormatName>,
}

/// Resizes the disk.
pub fn run(args: &ResizeArgs) -> Result<(), ToolError> {
    let format = FormatName::or_extension(args.format, &args.path).own(&args.path, "resizing")?;
    let smaller = if args.shrink { Smaller::Cut } else { Smaller::Refuse };
    tool::resize(&args.path, format, args.size.0, smaller)
}
