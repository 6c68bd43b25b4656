//! `maru disk compare`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use disk::tool;

use super::format::FormatName;
use super::progress::with_progress;
use crate::output::print;

const AFTER_HELP: &str = "\
EXAMPLES
  maru disk compare old.qcow2 root.vhdx

EXIT STATUS
  0  they hold the same
  1  they differ
  2  they could not be compared";

/// Compare what two disks hold
///
/// Formats do not matter. If one disk is longer, what is behind the other's end must be zeros.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct CompareArgs {
    /// One disk
    one: PathBuf,
    /// The other
    other: PathBuf,
    /// What the first file means (by its extension when left out)
    #[arg(long, value_enum)]
    format: Option<FormatName>,
    /// What the other file means (by its extension when left out)
    #[arg(long, value_enum)]
    other_format: Option<FormatName>,
}

/// Compares the disks; answers the exit status.
pub fn run(args: &CompareArgs) -> anyhow::Result<ExitCode> {
    let one = (args.one.as_path(), FormatName::or_extension(args.format, &args.one));
    let other = (args.other.as_path(), FormatName::or_extension(args.other_format, &args.other));
    match with_progress(|job| tool::compare(one, other, job)) {
        Ok(None) => {
            print("the disks hold the same\n")?;
            Ok(ExitCode::SUCCESS)
        }
        Ok(Some(offset)) => {
            print(&format!("the disks differ, first at offset {offset}\n"))?;
            Ok(1.into())
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            Ok(2.into())
        }
    }
}
