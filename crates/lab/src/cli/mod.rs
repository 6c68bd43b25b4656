//! `maru lab`: a lab that a person starts and works with from a shell.
//!
//! ```text
//!   maru lab up ──► daemon (owns hubs and QEMUs) ◄── control socket ── maru lab status, exec, cut...
//! ```
//!
//! The daemon is this same program started again in the background. It ends with `maru lab down`; when it is killed, its
//! hosts end with it.

mod client;
mod daemon;
mod protocol;
mod screen;
mod units;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use crate::LabError;
use protocol::{PowerAction, Request};

/// Why a command did not work.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// There is no daemon.
    #[error("no lab named {0} is running: start one with `maru lab up`")]
    NotRunning(String),
    /// There is one already.
    #[error("a lab named {0} is already running: end it with `maru lab down`, or choose another --name")]
    AlreadyRunning(String),
    /// The daemon could not start the lab.
    #[error("the lab did not start: {0}")]
    Start(String),
    /// The daemon refused a command.
    #[error("{0}")]
    Refused(String),
    /// The connection to the daemon broke.
    #[error("cannot talk to the lab named {name}; the end of `maru lab down` or a crash of its daemon look like this")]
    Connection {
        /// The lab.
        name: String,
        /// The cause.
        source: io::Error,
    },
    /// Something on this machine.
    #[error("cannot {what}")]
    Local {
        /// What was tried.
        what: String,
        /// The cause.
        source: io::Error,
    },
    /// In the daemon: the lab could not be made.
    #[error(transparent)]
    Lab(#[from] LabError),
}

/// Which lab a command is for.
#[derive(Debug, Clone, Args)]
pub struct LabName {
    /// Name of the lab
    #[arg(long, default_value = "default", env = "MARU_LAB", value_parser = units::name)]
    name: String,
}

/// Virtual hosts: a data centre on this machine
#[derive(Debug, Clone, Subcommand)]
#[expect(missing_docs, reason = "the flattened arguments are documented where they are defined")]
pub enum LabCommand {
    /// Start a lab of virtual hosts, each with working KVM
    Up(Up),
    /// Show the hosts and their cables
    Status {
        #[command(flatten)]
        lab: LabName,
        /// Output format
        #[arg(short, long, value_enum, default_value_t = Format::Table)]
        output: Format,
    },
    /// Run a program in a host
    Exec {
        #[command(flatten)]
        lab: LabName,
        /// Run it on a terminal
        #[arg(short, long)]
        tty: bool,
        /// Host, such as h1
        host: String,
        /// Program and arguments
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Open a shell in a host
    Console {
        #[command(flatten)]
        lab: LabName,
        /// Host, such as h1
        host: String,
    },
    /// Copy a file to a host
    Push {
        #[command(flatten)]
        lab: LabName,
        /// Host, such as h1
        host: String,
        /// File on this machine
        local: PathBuf,
        /// Path in the host
        path: String,
    },
    /// Copy a file from a host
    Pull {
        #[command(flatten)]
        lab: LabName,
        /// Host, such as h1
        host: String,
        /// Path in the host
        path: String,
        /// File on this machine
        local: PathBuf,
    },
    /// Use a host's power switch
    Power {
        #[command(flatten)]
        lab: LabName,
        /// Host, such as h1
        host: String,
        /// What to do
        #[arg(value_enum)]
        action: PowerAction,
    },
    /// Make a TCP port of a host reachable at 127.0.0.1
    Forward {
        #[command(flatten)]
        lab: LabName,
        /// Host, such as h1
        host: String,
        /// Port in the host
        port: u16,
    },
    /// Cut a host's cable, or make it worse with --loss, --delay or --rate
    Cut(Cut),
    /// Make a host's cable good again
    Uncut {
        #[command(flatten)]
        lab: LabName,
        /// Host, such as h1
        host: String,
        /// Cable net; all without it
        #[arg(long)]
        cable: Option<usize>,
    },
    /// Write the frames on a cable net to a file for Wireshark
    Capture {
        #[command(flatten)]
        lab: LabName,
        /// Cable net
        cable: usize,
        /// The file; without it, the capture ends
        file: Option<PathBuf>,
    },
    /// Power off all hosts and forget their disks
    Down {
        #[command(flatten)]
        lab: LabName,
    },
    /// The lab's background process
    #[command(hide = true)]
    Daemon {
        /// The lab as JSON
        spec: String,
    },
}

/// What the lab shall be.
#[derive(Debug, Clone, Args)]
pub struct Up {
    #[command(flatten)]
    lab: LabName,
    /// Number of hosts
    #[arg(long, default_value_t = 3)]
    hosts: usize,
    /// Memory per host, such as 1024M or 2G
    #[arg(long, default_value = "1G", value_parser = units::mebibytes)]
    memory: u64,
    /// Processors per host
    #[arg(long, default_value_t = 2)]
    cpus: u32,
    /// A disk for each host, such as 10G; repeatable
    #[arg(long, value_parser = units::mebibytes)]
    disk: Vec<u64>,
    /// A disk that all hosts share; repeatable
    #[arg(long, value_parser = units::mebibytes)]
    shared_disk: Vec<u64>,
    /// A disk for each host's state, such as 1G: what is in /var/lib/maru survives a power cut
    #[arg(long, value_parser = units::mebibytes)]
    state_disk: Option<u64>,
    /// A directory that all hosts share, at /shared
    #[arg(long)]
    shared_dir: bool,
    /// Put the kernel and initramfs of a small test guest into the hosts, as /guest/vmlinuz and /guest/initramfs
    #[arg(long)]
    guest: bool,
    /// Have the hosts run marud, with the volume local, with --guest the volume guest, and with --shared-dir the volume shared. They
    /// have etcd in /bin, if it can be fetched
    #[arg(long)]
    managed: bool,
    /// Have the hosts become one cluster; with --managed, --shared-dir and a state disk of 512M
    #[arg(long)]
    cluster: bool,
    /// Have the last host be the cluster's witness, which keeps the store and runs no VMs
    #[arg(long, requires = "cluster")]
    witness: bool,
    /// A program to put into the hosts besides Maru's own, as LOCAL:PATH; repeatable
    #[arg(long, value_parser = units::pair)]
    binary: Vec<(String, String)>,
}

/// What shall be wrong with a cable.
#[derive(Debug, Clone, Args)]
pub struct Cut {
    #[command(flatten)]
    lab: LabName,
    /// Host, such as h1
    host: String,
    /// Cable net; all without it
    #[arg(long)]
    cable: Option<usize>,
    /// Only what the host sends, or only what it receives
    #[arg(long, value_enum)]
    one_way: Option<OneWay>,
    /// Lose this part of the frames, in percent
    #[arg(long, value_parser = units::percent)]
    loss: Option<f64>,
    /// Deliver later, such as 20ms
    #[arg(long, value_parser = units::duration)]
    delay: Option<Duration>,
    /// Limit bits per second, such as 10M
    #[arg(long, value_parser = units::bits)]
    rate: Option<u64>,
}

/// One way of a cable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OneWay {
    /// What the host sends
    From,
    /// What the host receives
    To,
}

/// How output is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    Table,
    /// For programs
    Json,
}

/// Carries out a command and gives the exit code of this process.
///
/// # Errors
/// When it did not work; the text says what to do.
pub fn run(command: LabCommand) -> Result<ExitCode, CliError> {
    let ask = |lab: LabName, request: Request| client::ask(&lab.name, &request).map(|_| ExitCode::SUCCESS);
    match command {
        LabCommand::Up(up) => client::up(up),
        LabCommand::Daemon { spec } => daemon::run(&spec),
        LabCommand::Status { lab, output } => client::status(&lab.name, output),
        LabCommand::Exec { lab, tty, host, command } => client::exec(&lab.name, host, command, tty),
        LabCommand::Console { lab, host } => client::exec(&lab.name, host, vec!["/bin/sh".into(), "-l".into()], true),
        LabCommand::Push { lab, host, local, path } => {
            let local = client::absolute(&local)?;
            ask(lab, Request::Push { host, local, path })
        }
        LabCommand::Pull { lab, host, path, local } => {
            let local = client::absolute(&local)?;
            ask(lab, Request::Pull { host, path, local })
        }
        LabCommand::Power { lab, host, action } => ask(lab, Request::Power { host, action }),
        LabCommand::Forward { lab, host, port } => client::forward(&lab.name, host, port),
        LabCommand::Cut(cut) => client::cut(cut),
        LabCommand::Uncut { lab, host, cable } => ask(lab, Request::Restore { host, cable }),
        LabCommand::Capture { lab, cable, file } => {
            let file = file.as_deref().map(client::absolute).transpose()?;
            ask(lab, Request::Capture { cable, file })
        }
        LabCommand::Down { lab } => ask(lab, Request::Down),
    }
}
