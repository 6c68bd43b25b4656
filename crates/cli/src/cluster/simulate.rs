//! `maru cluster simulate`: what a cluster decides.

use std::path::PathBuf;
use std::process::ExitCode;
use std::{fs, io};

use clap::Args;
use cluster::simulate::fuzz::{self, Faults};
use cluster::simulate::scenario::{Scenario, ScenarioError};

use crate::output;

/// The largest scenario in bytes.
const LARGEST: u64 = 1024 * 1024;

pub const AFTER_HELP: &str = "\
A scenario is a TOML file: hosts, VMs, and steps with their times. It is played within moments, changes nothing, and needs no host. The log has
the time in seconds, who it is about, and what happens there; `*` is what is done from outside, `?` what was asked for, `=` how each VM
stands at the end.

STEPS
  power-cut MACHINE               power-on MACHINE
  freeze MACHINE SECONDS          crash-marud MACHINE SECONDS     stop-marud MACHINE SECONDS
  stop-guard MACHINE SECONDS      crash-member MACHINE            start-member MACHINE
  stop-member MACHINE SECONDS     cut NETWORK FROM TO             mend NETWORK FROM TO
  isolate NETWORK MACHINE         isolate-out NETWORK MACHINE     isolate-in NETWORK MACHINE
  rejoin NETWORK MACHINE          loss NETWORK PERCENT            slow SECONDS
  heal                            power-off-guest VM              crash-vm VM
  start VM                        stop VM                         move VM HOST
  drain HOST                      go-down HOST                    resume HOST
  confirm-dead HOST               explain VM                      what-if HOST

EXIT STATUS
  0 if no VM ran twice or where it must not, 1 otherwise, or if the file is no scenario.

EXAMPLES
  What happens when the power of a host is cut:
    cat > cut.toml <<END
    title = \"A power cut\"
    hosts = 3
    end_s = 30
    [[vm]]
    name = \"web\"
    [[step]]
    at_s = 10
    do = \"power-cut h1\"
    END
    maru cluster simulate cut.toml

  One of the random runs of the tests, with a dozen faults:
    maru cluster simulate --seed 7";

/// What to play.
#[derive(Debug, Args)]
#[group(required = true)]
pub struct SimulateArgs {
    /// A scenario
    #[arg(value_name = "FILE", conflicts_with = "seed")]
    file: Option<PathBuf>,
    /// A random run instead, with the faults that this number makes
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,
}

/// Why nothing was played.
#[derive(Debug, thiserror::Error)]
pub enum SimulateError {
    /// The file cannot be read.
    #[error("{} cannot be read", .0.display())]
    Read(PathBuf, #[source] io::Error),
    /// The file is too large to be a scenario.
    #[error("{} has more than {LARGEST} bytes, which no scenario has", .0.display())]
    Large(PathBuf),
    /// The file is no scenario.
    #[error("{}", .0.display())]
    Scenario(PathBuf, #[source] ScenarioError),
    /// The log cannot be printed.
    #[error(transparent)]
    Print(#[from] io::Error),
}

/// Plays it.
pub fn run(args: SimulateArgs) -> Result<ExitCode, SimulateError> {
    let (log, violation) = match (args.file, args.seed) {
        (Some(file), _) => {
            let size = fs::metadata(&file).map_err(|error| SimulateError::Read(file.clone(), error))?.len();
            if size > LARGEST {
                return Err(SimulateError::Large(file));
            }
            let text = fs::read_to_string(&file).map_err(|error| SimulateError::Read(file.clone(), error))?;
            let played = Scenario::parse(&text).map_err(|error| SimulateError::Scenario(file, error))?.play();
            (played.log, played.violation)
        }
        (None, seed) => {
            let report = fuzz::run(seed.unwrap_or_default(), None, Faults::All, true);
            (report.log, report.violation)
        }
    };
    output::print(&log)?;
    if let Some(violation) = &violation {
        eprintln!("error: {violation}");
    }
    Ok(ExitCode::from(u8::from(violation.is_some())))
}
