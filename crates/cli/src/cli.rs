//! The command line as a whole.

use std::path::PathBuf;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use lab::cli::LabCommand;

use crate::cluster::ClusterCommand;
use crate::disk::DiskCommand;
use crate::event::EventCommand;
use crate::host::HostCommand;
use crate::image::ImageCommand;
use crate::remote::ContextCommand;
use crate::switch::{AclCommand, PortCommand, SwitchCommand, TeamCommand};
use crate::task::TaskCommand;
use crate::token::TokenCommand;
use crate::vm::VmCommand;
use crate::volume::VolumeCommand;

const AFTER_HELP: &str = "\
EXAMPLES
  Can this machine run VMs?
    maru host check

  The VMs of this host's marud, and one more:
    maru vm list
    maru vm create web --kernel local:vmlinuz --disk local:web.vhdx --memory 1G

  Run one in this terminal, without marud:
    maru vm run --kernel vmlinuz --initrd initrd.img

  Make a disk for it, or bring one over:
    maru disk create root.vhdx --size 20G
    maru disk convert old.qcow2 root.vhdx

  Start virtual hosts that can, on a machine that cannot:
    maru lab up

  Complete commands with the Tab key:
    source <(maru completions bash)

`maru COMMAND --help` explains a command with examples.";

/// Maru: turns Linux machines into one virtualization cluster
#[derive(Debug, Parser)]
#[command(name = "maru", version, after_help = AFTER_HELP, subcommand_required = true, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Hosts: what this machine can do as one, what marud knows of one
    #[command(subcommand)]
    Host(HostCommand),
    /// Clusters: hosts that become one, and what it would do, played in virtual time
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Disks that are files: make, look at, convert
    #[command(subcommand)]
    Disk(DiskCommand),
    /// Virtual machines
    #[command(subcommand)]
    Vm(VmCommand),
    /// Volumes: where a host keeps files of VMs
    #[command(subcommand)]
    Volume(VolumeCommand),
    /// Images: disks that VMs are made from
    #[command(subcommand)]
    Image(ImageCommand),
    /// Long work
    #[command(subcommand)]
    Task(TaskCommand),
    /// What happens
    #[command(subcommand)]
    Event(EventCommand),
    /// Who may do what
    #[command(subcommand)]
    Token(TokenCommand),
    /// Which host's marud to talk to, and as whom
    #[command(subcommand)]
    Context(ContextCommand),
    /// Virtual switches, to which VMs are attached
    #[command(subcommand)]
    Switch(SwitchCommand),
    /// Their ports, and what network cards may do there
    #[command(subcommand)]
    Port(PortCommand),
    /// Access rules of ports
    #[command(subcommand)]
    Acl(AclCommand),
    /// Its uplinks, of one NIC or several
    #[command(subcommand)]
    Team(TeamCommand),
    /// Virtual hosts: a data centre on this machine
    #[command(subcommand)]
    Lab(LabCommand),
    /// Print a script that completes commands in a shell
    #[command(after_help = COMPLETIONS_HELP)]
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Write the manual pages
    #[command(hide = true)]
    Man {
        /// The directory to write them to
        directory: PathBuf,
    },
}

const COMPLETIONS_HELP: &str = "\
Names of VMs and the like are completed, too: marud is asked for them, and given up on after a second.

EXAMPLES
  For this bash, and for every later one:
    source <(maru completions bash)
    maru completions bash > ~/.local/share/bash-completion/completions/maru

  zsh, with the directory in $fpath; fish:
    maru completions zsh > ~/.zfunc/_maru
    maru completions fish > ~/.config/fish/completions/maru.fish";

/// Writes a manual page for each command to `directory`, which is made if there is none.
pub fn man(directory: &std::path::Path) -> std::io::Result<()> {
    std::fs::create_dir_all(directory)?;
    clap_mangen::generate_to(Cli::command(), directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_token_to_join_with_is_no_argument() {
        assert!(Cli::try_parse_from(["maru", "cluster", "join", "maru-join-1/192.0.2.1@8420/x"]).is_err());
        for line in [&["maru", "cluster", "join"][..], &["maru", "cluster", "join", "--token-file", "-"]] {
            assert!(Cli::try_parse_from(line).is_ok(), "{line:?}");
        }
    }

    #[test]
    fn misspelt_commands_get_a_suggestion() {
        let error = Cli::try_parse_from(["maru", "vm", "runn"]).unwrap_err().to_string();
        assert!(error.contains("'run'"), "{error}");
        let error = Cli::try_parse_from(["maru", "hots"]).unwrap_err().to_string();
        assert!(error.contains("'host'"), "{error}");
    }

    #[test]
    fn every_command_gets_a_manual_page() {
        let directory = tempfile::tempdir().unwrap();
        man(directory.path()).unwrap();
        let run = std::fs::read_to_string(directory.path().join("maru-vm-run.1")).unwrap();
        assert!(run.contains("EXIT STATUS"));
    }
}
