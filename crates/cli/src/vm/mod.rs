//! `maru vm`: virtual machines without a daemon. Each runs as long as its command does, or until it is told to stop.

pub mod control;
pub mod run;

use clap::Subcommand;

/// Subcommands of `maru vm`.
#[derive(Debug, Subcommand)]
pub enum VmCommand {
    /// Run a VM in this terminal
    Run(Box<run::RunArgs>),
    /// Talk to a running VM through its control socket
    Control(Box<control::ControlArgs>),
}
