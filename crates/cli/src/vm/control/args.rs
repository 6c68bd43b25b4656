//! The command line of `maru vm control`.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Subcommand, ValueEnum};
use vmm::memory::BLOCK;

use crate::options::{DISK_FORM, DiskOption, LIMITS_FORM, LimitsOption, NET_FORM, NET_LIMITS_FORM, NetLimitsOption, NetOption};
use crate::output::Output;
use crate::size::ByteSize;

const AFTER_HELP: &str = "\
EXAMPLES
  What a VM that was started with `maru vm run --control web.sock` does:
    maru vm control --socket web.sock status

  Shut it down as its power button would:
    maru vm control --socket web.sock power-button

  Save it, end it, and go on later:
    maru vm control --socket web.sock save web.saved
    maru vm control --socket web.sock stop
    maru vm run --restore web.saved

  Plug a disk in and out again:
    maru vm control --socket web.sock add-disk data.raw,id=data
    maru vm control --socket web.sock remove data

  Look at its console (Ctrl-] leaves it):
    maru vm control --socket web.sock console";

/// Talk to a running VM through its control socket
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct ControlArgs {
    /// The VM's control socket (`maru vm run --control`)
    #[arg(long, value_name = "SOCKET")]
    pub(super) socket: PathBuf,

    #[command(subcommand)]
    pub(super) action: Action,
}

/// A new layer of a disk.
#[derive(Clone, Debug)]
pub(super) struct LayerOption {
    /// The disk.
    pub id: String,
    /// The new file.
    pub path: PathBuf,
}

impl FromStr for LayerOption {
    type Err = String;

    fn from_str(text: &str) -> Result<LayerOption, String> {
        match text.split_once('=') {
            Some((id, path)) if !id.is_empty() && !path.is_empty() => Ok(LayerOption { id: id.into(), path: path.into() }),
            _ => Err("write ID=FILE, like disk0=root-2.vhdx".into()),
        }
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(super) enum Action {
    /// Show what the VM is and does
    Status {
        /// How to show it
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Show the VM's configuration as it is now, as JSON
    Config,
    /// Pause the guest
    Pause,
    /// Let a paused guest go on
    Resume,
    /// Press the power button: the guest shuts itself down
    PowerButton,
    /// Reset the machine at once, as its reset button would
    Reset,
    /// End the VM at once, as if its power were cut
    Stop,
    /// Save the whole VM to a file; it stays paused
    ///
    /// `maru vm run --restore FILE` goes on where it stopped. Its disks are not part of the file and must be as they were when it
    /// was saved. The file holds the guest's memory: whoever can read it can read the guest's secrets.
    Save {
        /// The file; it appears when all of it is on the storage
        file: PathBuf,
        /// Replace the file if there is one
        #[arg(long)]
        force: bool,
    },
    /// Plug a disk in
    AddDisk {
        /// The disk, as for `maru vm run --disk`
        #[arg(value_name = DISK_FORM)]
        disk: DiskOption,
    },
    /// Plug a network card in
    AddNet {
        /// The card, as for `maru vm run --net`
        #[arg(value_name = NET_FORM)]
        net: NetOption,
    },
    /// Ask the guest to give a disk or network card back
    Remove {
        /// Its name
        id: String,
    },
    /// Grow a disk; a block device must have grown already
    ResizeDisk {
        /// The disk
        id: String,
        /// Its new size, like 20G
        size: ByteSize,
    },
    /// Give disks of a paused VM new files: what is written from now on goes there
    ///
    /// What was a disk's file becomes the parent of the new one, is only read, and may be read by others. All disks get theirs, or none. For
    /// VHDX disks.
    AddLayer {
        /// The disk, and the file that is made for it
        #[arg(value_name = "ID=FILE", required = true)]
        layers: Vec<LayerOption>,
    },
    /// Put other files below a disk's own, which must read the same
    ReplaceParents {
        /// The disk
        id: String,
        /// What is to be its nearest parent; with its own parents
        parent: PathBuf,
    },
    /// Write what a disk's own file holds into its parent, which is the disk's file from then on
    ///
    /// The guest's requests wait meanwhile: for a file that holds much, add a layer on it first, and merge it below that
    /// (`maru disk merge --in-use`).
    MergeLeaf {
        /// The disk
        id: String,
        /// Refuse to write more than this
        #[arg(long, value_name = "SIZE")]
        most: Option<ByteSize>,
    },
    /// Limit how much a disk may do, from now on
    LimitDisk {
        /// The disk
        id: String,
        /// The limits, as for `maru vm run --disk`; what is left out has none
        #[arg(value_name = LIMITS_FORM)]
        limits: LimitsOption,
    },
    /// Limit how much a network card on a TAP may carry, from now on
    LimitNet {
        /// The card
        id: String,
        /// The limits, in bytes a second; what is left out has none
        #[arg(value_name = NET_LIMITS_FORM)]
        limits: NetLimitsOption,
    },
    /// Give the VM this many vCPUs, at most its `max`
    SetCpus {
        /// The number
        count: u32,
    },
    /// Give the VM this much memory beside that at start, at most its `hotplug`
    SetMemory {
        /// How much, like +1G; +0 takes it all back
        #[arg(value_name = "+SIZE")]
        more: MoreMemory,
    },
    /// Have the balloon take this much memory from the guest
    SetBalloon {
        /// How much, like 256M; 0 gives it all back
        size: ByteSize,
    },
    /// Plug the cable of a network card in or out
    SetLink {
        /// The card
        id: String,
        /// In or out
        #[arg(value_enum)]
        link: Link,
    },
    /// How fast the guest changes its memory: counts the pages of 4 KiB that changed in some time
    DirtyRate {
        /// How long to count, in milliseconds
        #[arg(long, value_name = "MS", default_value_t = 1000)]
        for_ms: u64,
    },
    /// Look at the VM's console and type; Ctrl-] leaves it, the VM goes on
    Console,
    /// Print what happens to the VM, until it ends
    Events {
        /// How to print it
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
}

/// A network card's cable.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Link {
    /// In.
    Up,
    /// Out.
    Down,
}

/// Memory beside that at start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MoreMemory(pub ByteSize);

impl FromStr for MoreMemory {
    type Err = String;

    fn from_str(text: &str) -> Result<MoreMemory, String> {
        // Without the sign it reads as the VM's whole memory.
        let more = text.strip_prefix('+').ok_or_else(|| {
            format!("write +{text}: it is the memory beside that at start, and the memory at start always stays")
        })?;
        let size: ByteSize = more.parse().map_err(|error: crate::size::SizeError| error.to_string())?;
        if !size.0.is_multiple_of(BLOCK) {
            return Err("it must be a multiple of 2M".into());
        }
        Ok(MoreMemory(size))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        args: ControlArgs,
    }

    fn parse(rest: &[&str]) -> Result<Action, String> {
        let line = [&["control", "--socket", "/s"], rest].concat();
        Command::try_parse_from(line).map(|command| command.args.action).map_err(|error| error.to_string())
    }

    #[test]
    fn every_action_has_its_form() {
        let lines: [&[&str]; 21] = [
            &["status"],
            &["status", "-o", "json"],
            &["config"],
            &["pause"],
            &["resume"],
            &["power-button"],
            &["reset"],
            &["stop"],
            &["save", "/f", "--force"],
            &["add-disk", "/d,ro"],
            &["add-net", "tap=t"],
            &["remove", "disk0"],
            &["resize-disk", "disk0", "20G"],
            &["limit-disk", "disk0", "iops=500"],
            &["limit-net", "net0", "receive=10M"],
            &["set-cpus", "4"],
            &["set-memory", "+1G"],
            &["set-balloon", "0"],
            &["set-link", "net0", "down"],
            &["console"],
            &["events", "-o", "json"],
        ];
        for line in lines {
            assert!(parse(line).is_ok(), "{line:?}: {:?}", parse(line));
        }
    }

    #[test]
    fn mistakes_are_explained() {
        let cases: [(&[&str], &str); 9] = [
            (&["set-memory", "1G"], "write +1G"),
            (&["set-memory", "+1"], "'1' has no unit"),
            (&["set-memory", "+1M"], "multiple of 2M"),
            (&["set-balloon", "big"], "'big' is no size"),
            (&["set-link", "net0", "left"], "up, down"),
            (&["add-disk", "/d,rw"], "there is no part 'rw'"),
            (&["limit-disk", "disk0", "iops=many"], "'many' is no number"),
            (&["add-net", "br0"], "tap= or vhost-user= is missing"),
            (&["powerbutton"], "power-button"),
        ];
        for (line, expected) in cases {
            let error = parse(line).unwrap_err();
            assert!(error.contains(expected), "{line:?}: {error}");
        }
        let without_socket = Command::try_parse_from(["control", "status"]).err().unwrap().to_string();
        assert!(without_socket.contains("--socket"));
    }
}
