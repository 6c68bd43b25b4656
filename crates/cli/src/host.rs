//! `maru host`: this machine as a host, and what `marud` knows of one.

use std::io::{self, IsTerminal};

use api::client::Method;
use check::{Color, Options};
use clap::{Args, Subcommand};

use crate::drain::DrainArgs;
use crate::init::InitArgs;
use crate::output::{Output, print, terminal_width};
use crate::remote::{Connect, RemoteError, fields, show_one, shown_size, shown_time};
use crate::vm::manage::segment;

/// Where the width of the terminal is not known.
const DEFAULT_WIDTH: usize = 100;

/// Subcommands of `maru host`.
#[derive(Debug, Subcommand)]
pub enum HostCommand {
    /// Check what this machine can do as a host
    Check(CheckArgs),
    /// Make this machine a host: start marud, and print what clients need
    Init(InitArgs),
    /// Show what marud knows of its host
    Show(ShowArgs),
    /// Have all VMs of a host of the cluster go to others; it takes none until it is resumed
    Drain(DrainArgs),
    /// Let a drained host take VMs again; those that had left it come back
    Resume(ClusterHostArgs),
    /// Vouch that a host that is not there runs nothing: its VMs are started on other hosts
    ///
    /// For a host without a watchdog, whose VMs wait. If it does run some, these run twice, and their disks are destroyed: make sure that it
    /// has no power.
    ConfirmDead(ClusterHostArgs),
}

/// What is shown, and how.
#[derive(Debug, Args)]
pub struct ShowArgs {
    #[command(flatten)]
    connect: Connect,
    /// How to show the result
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// A host of the cluster.
#[derive(Debug, Args)]
pub struct ClusterHostArgs {
    /// Its name
    pub host: String,
    #[command(flatten)]
    pub connect: Connect,
}

/// Wants something of a host of the cluster.
pub fn want(connect: &Connect, host: &str, what: &str) -> Result<(), RemoteError> {
    Ok(connect.client()?.call(Method::POST, &format!("/hosts/{}/{what}", segment(host)), None::<&()>)?)
}

/// `maru host show`.
pub fn show(args: &ShowArgs) -> Result<(), RemoteError> {
    let host: api::HostInfo = args.connect.host()?.get("/host")?;
    show_one(args.output, &host, || {
        fields(&[
            ("name", host.name.clone()),
            ("known as", host.names.join(", ")),
            ("marud", format!("{}, since {}", host.version, shown_time(host.started_at))),
            ("processors", host.cpus.to_string()),
            ("memory", format!("{}, {} available", shown_size(host.memory_bytes), shown_size(host.memory_available_bytes))),
            ("VMs", format!("{}, of which {} run", host.vms, host.vms_running)),
        ])
    })
}

const AFTER_HELP: &str = "\
EXAMPLES
  maru host check
  maru host check -o json | jq .verdict

EXIT STATUS
  0  VMs run on this machine (the verdict is READY or DEGRADED)
  1  VMs run on this machine only in virtual hosts (LAB ONLY)";

/// Check what this machine can do as a host
///
/// Looks at hardware, kernel and KVM, runs a tiny VM to see whether KVM really works, and says what is missing, what that costs,
/// and how to fix it. Changes nothing.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct CheckArgs {
    /// How to show the result
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// Checks the machine; returns the exit status.
pub fn check(args: &CheckArgs) -> io::Result<u8> {
    let report = check::run(&Options::default());
    let text = || report.render_text(color(), terminal_width().unwrap_or(DEFAULT_WIDTH));
    print(&args.output.render(&report, text)?)?;
    Ok(u8::try_from(report.exit_code()).unwrap_or(1))
}

/// Colours for a terminal, unless the user wants none (<https://no-color.org>).
fn color() -> Color {
    let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    if io::stdout().is_terminal() && !unwanted { Color::Always } else { Color::Never }
}
