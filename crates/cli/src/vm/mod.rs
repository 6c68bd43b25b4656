//! `maru vm`: virtual machines. Those of `marud` ([`manage`]), and those without it: such a VM runs as long as its command does, or
//! until it is told to stop.

pub mod checkpoint;
pub mod clone;
mod cloud_init;
mod console;
pub mod control;
pub mod edit;
mod limit;
pub mod manage;
mod place;
pub mod run;
pub mod transfer;
mod usage;

use clap::Subcommand;

/// Subcommands of `maru vm`.
#[derive(Debug, Subcommand)]
pub enum VmCommand {
    #[command(flatten)]
    Managed(manage::ManageCommand),
    /// Run a VM in this terminal, without marud
    Run(Box<run::RunArgs>),
    /// Talk to a running VM through its control socket, without marud
    Control(Box<control::ControlArgs>),
}
