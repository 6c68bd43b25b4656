//! `maru`: the command for all of Maru.
//!
//! ```text
//!  cli (what can be said) ──> host ──> crate check
//!                        ├──> cluster ──> crate cluster, its simulation
//!                        ├──> disk ──> disk::tool
//!                        ├──> switch ──> marud's API, or a running switch's control socket
//!                        ├──> crate lab
//!                        ├──> vm::manage, volume, image, task, event, token ──> remote ──> marud's API
//!                        ├──> vm::run ──> a monitor (maru-vmm) as a child, its console in this terminal
//!                        └──> vm::control ──> a running monitor's control socket
//! ```
//!
//! Each command has a module with its options, its error enum, and a function that does it. What is wrong with the command line is
//! exit status 2, other failures are 1, unless the command says otherwise under EXIT STATUS in its help.

mod cli;
mod cluster;
mod complete;
mod disk;
mod drain;
mod event;
mod host;
mod image;
mod init;
mod options;
mod output;
mod remote;
mod size;
mod switch;
mod task;
mod terminal;
mod token;
mod vm;
mod volume;
mod yaml;

use std::io;
use std::process::ExitCode;

use clap::Parser;
use cli::{Cli, Command};
use host::HostCommand;
use remote::RemoteError;
use vm::VmCommand;
use vm::control::ControlError;
use vm::run::RunError;

fn main() -> ExitCode {
    complete::answer();
    match run(Cli::parse().command) {
        Ok(status) => status,
        // Whoever read our output has seen enough (`| head`).
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            error.downcast_ref().map_or(1, RunError::exit_status).into()
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Host(HostCommand::Check(args)) => return Ok(host::check(&args)?.into()),
        Command::Host(HostCommand::Init(args)) => init::run(&args)?,
        Command::Host(HostCommand::Show(args)) => host::show(&args)?,
        Command::Host(HostCommand::Drain(args)) => drain::run(&args)?,
        Command::Host(HostCommand::Resume(args)) => host::want(&args.connect, &args.host, "resume")?,
        Command::Host(HostCommand::ConfirmDead(args)) => host::want(&args.connect, &args.host, "confirm-dead")?,
        Command::Cluster(command) => return cluster::run(command),
        Command::Volume(command) => volume::run(&command)?,
        Command::Image(command) => image::run(command)?,
        Command::Task(command) => task::run(command)?,
        Command::Event(command) => event::run(&command)?,
        Command::Token(command) => token::run(command)?,
        Command::Context(command) => remote::run(command)?,
        Command::Disk(command) => return disk::run(command),
        Command::Vm(VmCommand::Run(args)) => return Ok(vm::run::run(&args)?.into()),
        Command::Vm(VmCommand::Control(args)) => vm::control::run(*args)?,
        Command::Vm(VmCommand::Managed(command)) => vm::manage::run(command)?,
        Command::Switch(command) => switch::run(command)?,
        Command::Port(command) => switch::run_port(command)?,
        Command::Acl(command) => switch::run_acl(command)?,
        Command::Team(command) => switch::run_team(command)?,
        Command::Lab(command) => return Ok(lab::cli::run(command)?),
        Command::Completions { shell } => output::print(&complete::script(&shell.to_string())?)?,
        Command::Man { directory } => cli::man(&directory)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let plain = error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe);
    let remote = error.downcast_ref().is_some_and(RemoteError::is_broken_pipe);
    plain || remote || error.downcast_ref().is_some_and(ControlError::is_broken_pipe)
}
