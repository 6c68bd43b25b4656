//! `maru cluster`: hosts that become a cluster, and what one decides.

mod by_file;
mod forming;
mod outlook;
mod simulate;
mod status;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;

use self::simulate::SimulateArgs;
use crate::output::Output;
use crate::remote::Connect;
pub use forming::seconds;
use forming::{CreateArgs, JoinArgs};

const CREATE_HELP: &str = "\
The host keeps its VMs, which go on, its tokens, and what else it has. Its certificate authority becomes the cluster's, so that clients go on,
too. marud starts itself anew, which takes some seconds; other hosts can join then.

EXAMPLES
  On the host, as root:
    maru cluster create

  With two networks; the first is that of the store and the API:
    maru cluster create --name plant --address 192.0.2.1 --address 198.51.100.1";

const TOKEN_HELP: &str = "\
The token is for one host. It names the cluster's addresses and the fingerprint of its authority, so that the host that joins cannot be
deceived. Whoever has it can become a host of the cluster, which may do anything: hand it over as you would a root password.

EXAMPLES
    maru cluster token
    maru cluster token --valid 10m";

const JOIN_HELP: &str = "\
On the host that is to join, as root. It must have no VMs. It takes over the cluster's certificate authority: clients that knew this host must be
told of the new one. When the answer was lost, do the same again: it is the same join.

The token is what `maru cluster token` printed on a host of the cluster. It is no argument, since all users of a machine see those.

EXAMPLES
  Asks for the token:
    maru cluster join

  From elsewhere, with a token that nobody sees:
    ssh root@h1 maru cluster token | ssh root@h2 maru cluster join

  From a file:
    maru cluster join --witness --token-file join.token";

const LEAVE_HELP: &str = "\
Drain the host first. Its part in the store goes to another host; then marud starts itself anew as a host that nothing was done on yet, with a
certificate authority and a token of its own. Files of VMs stay on its volumes.

EXAMPLES
    maru host drain h3
    maru cluster leave";

const RESTORE_HELP: &str = "\
Only when most members of the store are lost for ever. With all others coming back, wait for them instead: nothing is lost then.

On one host, as root. It becomes a cluster of one host, with what its own member of the store has, or what a backup has; what was changed
after that is lost. All other hosts are forgotten. They MUST be off, or have left with `maru cluster leave --force`, before VMs are started here:
the new cluster knows nothing of VMs that still run there, and a VM that runs twice destroys its disks. Each of them joins again after that.

Backups are made every hour on each host with a member of the store, in /var/lib/maru/backups.

EXAMPLES
  From what this host's own member has:
    maru cluster restore newest --others-are-off

  From a backup:
    maru cluster restore /var/lib/maru/backups/20261128T080000.etcd --others-are-off";

/// Clusters
#[derive(Debug, Subcommand)]
pub enum ClusterCommand {
    /// Make a cluster of this host: it becomes the first of it
    #[command(after_help = CREATE_HELP)]
    Create(CreateArgs),
    /// Make a token, with which one host can join
    #[command(after_help = TOKEN_HELP)]
    Token {
        /// For how long it can be used: 90s, 30m, 1h, 2d
        #[arg(long, value_name = "TIME", default_value = "1h", value_parser = seconds)]
        valid: u32,
        #[command(flatten)]
        connect: Connect,
        /// How to show the result
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Let this host join a cluster
    #[command(after_help = JOIN_HELP)]
    Join(JoinArgs),
    /// Let this host leave its cluster
    #[command(after_help = LEAVE_HELP)]
    Leave {
        /// Do not ask the cluster: for a host that was removed from it, or whose cluster is no more
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        connect: Connect,
    },
    /// Remove a host that is dead and does not come back
    Remove {
        /// Its name
        host: String,
        #[command(flatten)]
        connect: Connect,
    },
    /// Show the cluster: its hosts, where its store is, and what is waited for
    Status {
        #[command(flatten)]
        connect: Connect,
        /// How to show the result
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Have all hosts make new certificates for themselves
    RotateCertificates {
        #[command(flatten)]
        connect: Connect,
    },
    /// Begin again with one host, when most members of the store are lost for ever
    #[command(after_help = RESTORE_HELP)]
    Restore {
        /// A backup, or `newest` for what this host's own member of the store has
        #[arg(value_name = "BACKUP")]
        from: PathBuf,
        /// Confirm that no other host of the cluster runs
        #[arg(long, required = true)]
        others_are_off: bool,
    },
    /// Tell what would become of VMs if hosts failed
    WhatIf {
        /// The hosts that would fail
        #[arg(long, value_name = "HOST", required = true, value_delimiter = ',')]
        host_down: Vec<String>,
        #[command(flatten)]
        connect: Connect,
        /// How to show the result
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Show or change what holds for the cluster
    Policy {
        /// So many hosts may fail and all VMs that run still fit: a VM whose start would break that is not started
        #[arg(long, value_name = "HOSTS")]
        survive_failures: Option<u32>,
        #[command(flatten)]
        connect: Connect,
        /// How to show the result
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Play what happens to a cluster, in virtual time, with the code that decides in real ones
    #[command(after_help = simulate::AFTER_HELP)]
    Simulate(SimulateArgs),
}

/// Does what was asked for.
pub fn run(command: ClusterCommand) -> anyhow::Result<ExitCode> {
    match command {
        ClusterCommand::WhatIf { host_down, connect, output } => outlook::what_if(&host_down, &connect, output)?,
        ClusterCommand::Policy { survive_failures, connect, output } => outlook::policy(survive_failures, &connect, output)?,
        ClusterCommand::Create(args) => forming::create(&args)?,
        ClusterCommand::Token { valid, connect, output } => forming::token(valid, &connect, output)?,
        ClusterCommand::Join(args) => forming::join(&args)?,
        ClusterCommand::Leave { force: true, .. } => by_file::leave()?,
        ClusterCommand::Leave { force: false, connect } => forming::leave(&connect)?,
        ClusterCommand::Remove { host, connect } => forming::remove(&host, &connect)?,
        ClusterCommand::Status { connect, output } => status::show(&connect, output)?,
        ClusterCommand::RotateCertificates { connect } => forming::rotate(&connect)?,
        ClusterCommand::Restore { from, others_are_off: _ } => by_file::restore(&from)?,
        ClusterCommand::Simulate(args) => return Ok(simulate::run(args)?),
    }
    Ok(ExitCode::SUCCESS)
}
