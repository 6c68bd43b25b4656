//! `maru disk merge`.

use std::path::PathBuf;

use clap::Args;
use disk::tool::{self, Child};

use super::format::FormatName;
use super::progress::with_progress;

const AFTER_HELP: &str = "\
EXAMPLES
  maru disk merge web1.vhdx
  maru disk merge web1.vhdx --into base.vhdx --keep

  Below a running VM, whose disk is a child of web1.vhdx:
    maru disk merge web1.vhdx --in-use";

/// Write what a child holds into its parent, and remove the child
///
/// Neither may be in use, unless with --in-use, by VMs that have the child as a parent of their disk. If this is interrupted, the child is as it was: run it again, and it finishes. Other children of the same parent
/// cannot be used afterwards; children of the merged one get their new parent with `maru disk rebase --unsafe`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct MergeArgs {
    /// The child
    child: PathBuf,
    /// The parent, to be sure that it is the one that is meant
    #[arg(long)]
    into: Option<PathBuf>,
    /// Keep the child, as one that equals its parent
    #[arg(long)]
    keep: bool,
    /// Merge below running VMs, whose disks hang on the child; it is kept, until they have the parent as theirs
    /// (`maru vm control replace-parents`)
    #[arg(long, conflicts_with_all = ["into", "keep"])]
    in_use: bool,
}

/// Merges the child.
pub fn run(args: &MergeArgs) -> anyhow::Result<()> {
    let format = FormatName::or_extension(None, &args.child).own(&args.child, "merging")?;
    if args.in_use {
        return with_progress(|job| tool::merge_in_use(&args.child, job));
    }
    let child = if args.keep { Child::Keep } else { Child::Remove };
    with_progress(|job| tool::merge(&args.child, format, args.into.as_deref(), child, job))
}
