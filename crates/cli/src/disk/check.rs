//! `maru disk check`.

use std::fmt::Write;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use disk::tool::{self, Remedy, Report};
use serde::Serialize;

use super::format::FormatName;
use crate::output::{Output, print};
use crate::size::ByteSize;

const AFTER_HELP: &str = "\
EXAMPLES
  maru disk check root.vhdx
  maru disk check root.vhdx --repair

EXIT STATUS
  0  nothing is wrong
  1  something is wrong (after --repair: something is left)
  2  it could not be checked";

/// Look for damage, and repair it
///
/// Goes through all tables of an image, and looks whether its parents are there and fit. A disk that is in use can be checked, not
/// repaired: it is looked at several times, and what is reported was there more than once.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct CheckArgs {
    /// The disk
    path: PathBuf,
    /// Repair what can be repaired without a guess: no data is lost
    #[arg(long)]
    repair: bool,
    /// What the file means (by its extension when left out)
    #[arg(long, value_enum)]
    format: Option<FormatName>,
    /// How to show the result
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// Checks the disk; answers the exit status.
pub fn run(args: &CheckArgs) -> io::Result<ExitCode> {
    let format = FormatName::or_extension(args.format, &args.path);
    let result = if args.repair { tool::repair(&args.path, format) } else { tool::check(&args.path, format) };
    let report = match result {
        Ok(report) => report,
        Err(error) => {
            eprintln!("error: {:#}", anyhow::Error::new(error));
            return Ok(2.into());
        }
    };
    print(&args.output.render(&View::from(&report), || render(&report, args.repair))?)?;
    Ok(u8::from(!report.is_sound()).into())
}

fn render(report: &Report, repaired: bool) -> String {
    let mut text = String::new();
    // Writing to a text cannot fail.
    for finding in &report.findings {
        let place = finding.offset.map(|it| format!(" at offset {it}")).unwrap_or_default();
        let remedy = if finding.remedy == Remedy::Repair { " (--repair mends it)" } else { "" };
        let _ = writeln!(text, "{}{place}: {}{remedy}", finding.structure, finding.problem);
    }
    if report.more > 0 {
        let _ = writeln!(text, "{} more problems", report.more);
    }
    if let Some(holder) = &report.in_use_by {
        let _ = writeln!(text, "in use by {holder}, which goes on");
        if report.passing > 0 {
            let _ = writeln!(text, "{} more were gone at a second look: changes under way, not damage", report.passing);
        }
        if !report.is_sound() {
            text += "what is named above was there at more than one look\n";
        }
    }
    if report.log_in_use && report.in_use_by.is_none() {
        text += "the log holds changes: the disk was not closed, the next use makes them\n";
    }
    if report.leaked_bytes > 0 && report.in_use_by.is_none() {
        let _ = writeln!(text, "{} of the file belong to nothing; --repair gives them back", ByteSize(report.leaked_bytes));
    }
    let verdict = match (report.is_sound(), repaired) {
        (true, _) => "nothing is wrong",
        (false, false) => "something is wrong",
        (false, true) => "something is left that cannot be repaired: restore the disk, or read from it what can be read",
    };
    let blocks = report.allocated_blocks.map(|count| format!("; {count} blocks in the file")).unwrap_or_default();
    let _ = writeln!(text, "{verdict}{blocks}");
    text
}

/// As JSON.
#[derive(Serialize)]
struct View<'a> {
    sound: bool,
    problems: Vec<FindingView<'a>>,
    more_problems: u64,
    log_in_use: bool,
    allocated_blocks: Option<u64>,
    leaked_bytes: u64,
    in_use_by: Option<String>,
    changes_under_way: u64,
}

#[derive(Serialize)]
struct FindingView<'a> {
    structure: &'a str,
    offset: Option<u64>,
    problem: &'a str,
    can_be_repaired: bool,
}

impl<'a> From<&'a Report> for View<'a> {
    fn from(report: &'a Report) -> View<'a> {
        let problems = report.findings.iter().map(|it| FindingView {
            structure: it.structure,
            offset: it.offset,
            problem: &it.problem,
            can_be_repaired: it.remedy == Remedy::Repair,
        });
        View {
            sound: report.is_sound(),
            problems: problems.collect(),
            more_problems: report.more,
            log_in_use: report.log_in_use,
            allocated_blocks: report.allocated_blocks,
            leaked_bytes: report.leaked_bytes,
            in_use_by: report.in_use_by.as_ref().map(ToString::to_string),
            changes_under_way: report.passing,
        }
    }
}
