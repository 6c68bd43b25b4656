//! `maru disk compact`.

use std::path::PathBuf;

use clap::Args;
use disk::tool;

use super::format::FormatName;
use super::progress::with_progress;
use crate::output::print;
use crate::size::ByteSize;

const AFTER_HELP: &str = "\
EXAMPLES
  maru disk compact root.vhdx

A guest that discards what it deletes (fstrim) leaves little to do here.";

/// Make an image's file as small as what it holds
///
/// Frees blocks that hold only zeros, and moves the others to the front of the file. The disk must not be in use; its children still fit. If this
/// is interrupted, the disk holds the same: run it again.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct CompactArgs {
    /// The disk
    path: PathBuf,
}

/// Compacts the disk.
pub fn run(args: &CompactArgs) -> anyhow::Result<()> {
    let format = FormatName::or_extension(None, &args.path).own(&args.path, "compacting")?;
    let saved = with_progress(|job| tool::compact(&args.path, format, job))?;
    Ok(print(&format!("the file is {} shorter\n", ByteSize(saved)))?)
}
