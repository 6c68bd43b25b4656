//! `maru disk rebase`.

use std::path::PathBuf;

use clap::Args;
use disk::tool::{self, RebaseContent};

use super::format::FormatName;
use super::progress::with_progress;

const AFTER_HELP: &str = "\
EXAMPLES
  Hang a child on another disk; it reads as before:
    maru disk rebase web1.vhdx --parent other.vhdx

  The parent was moved, or its child was merged into it:
    maru disk rebase web1.vhdx --parent /new/place/base.vhdx --unsafe";

/// Give a child another parent
///
/// What differs between the old parent and the new one is written into the child, so that it reads as before.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct RebaseArgs {
    /// The child
    child: PathBuf,
    /// Its new parent
    #[arg(long)]
    parent: PathBuf,
    /// Only name the new parent: you know that it holds the same as the old one, which need not be there
    #[arg(long = "unsafe")]
    trust: bool,
}

/// Rebases the child.
pub fn run(args: &RebaseArgs) -> anyhow::Result<()> {
    let format = FormatName::or_extension(None, &args.child).own(&args.child, "another parent")?;
    let content = if args.trust { RebaseContent::Trust } else { RebaseContent::Keep };
    with_progress(|job| tool::rebase(&args.child, format, &args.parent, content, job))
}
