//! `maru disk copy`.

use std::path::PathBuf;

use clap::Args;
use disk::tool::{self, CopyMethod, Existing};

use super::progress::with_progress;

const AFTER_HELP: &str = "\
EXAMPLES
  maru disk copy template.vhdx web1.vhdx

Where the file system can (XFS, Btrfs, NFS 4.2), the copy shares the data and is there at once.";

/// Copy a disk's file as it is
///
/// Holes stay holes. A child's copy has the same parent. To change the format, use `convert`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct CopyArgs {
    /// The file to copy
    source: PathBuf,
    /// The new file
    destination: PathBuf,
    /// Replace the destination if it exists, and nobody uses it
    #[arg(long)]
    overwrite: bool,
}

/// Copies the file.
pub fn run(args: &CopyArgs) -> anyhow::Result<()> {
    let existing = if args.overwrite { Existing::Replace } else { Existing::Keep };
    let method = with_progress(|job| tool::copy(&args.source, &args.destination, existing, job))?;
    if method == CopyMethod::Shared {
        eprintln!("the copy shares its data with the original until one of them is changed");
    }
    Ok(())
}
