//! The command line of `maru vm run`.

use std::path::{Path, PathBuf};

use clap::{ArgGroup, Args, ValueEnum};
use vmm::config::{ConsoleConfig, OnReset};

use crate::options::{CPUS_FORM, CpuOption, DISK_FORM, MEMORY_FORM, MemoryOption, NET_FORM, VSOCK_FORM, VsockOption};

const AFTER_HELP: &str = "\
The VM's console is this terminal. Ctrl-] ends the VM at once, as if its power were cut; SIGINT, SIGTERM and SIGHUP do the \
same. A second one, after a second or more, does not wait for the monitor to obey. When standard input is not a terminal, it is sent to the guest; its end does not end the VM.

EXAMPLES
  A kernel and an initial file system, one vCPU, 512 MiB:
    maru vm run --kernel vmlinuz --initrd initrd.img

  A system on a disk, with a network card on the TAP tap0:
    maru vm run --kernel vmlinuz --initrd initrd.img --cmdline 'root=/dev/vda1 ro' \\
        --disk root.raw --net tap=tap0 --cpus 2 --memory 2G

  Memory and vCPUs that can grow while it runs, and a socket for `maru vm control`:
    maru vm run --kernel vmlinuz --disk root.raw --cmdline root=/dev/vda \\
        --cpus 2,max=8 --memory 1G,hotplug=4G --control /run/user/1000/web.sock --name web

  Go on where `maru vm control --socket S save web.saved` stopped; a disk lies elsewhere now:
    maru vm run --restore web.saved --disk disk0=/srv/root.raw

EXIT STATUS
  0      the guest powered off, or the VM was told to stop
  1      the VM could not be started or restored
  2      wrong usage
  3      the guest reset and --on-reset is exit
  4      the VM failed: the guest crashed its CPU (triple fault), or KVM reported an error
  128+n  the monitor was killed by signal n

ENVIRONMENT
  MARU_VMM  the monitor to use, instead of the maru-vmm beside maru or on PATH";

/// Run a VM in this terminal
///
/// Starts a VM from a kernel, or one that was saved, and joins its console to this terminal until it ends.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP, group = ArgGroup::new("source").required(true))]
pub struct RunArgs {
    /// Kernel to boot: a bzImage (vmlinuz), or an ELF kernel with a PVH entry
    #[arg(long, value_name = "FILE", group = "source")]
    kernel: Option<PathBuf>,

    /// Saved VM to go on with, instead of --kernel
    ///
    /// The VM is what it was when it was saved; --disk and --net say only where its disks and network cards are on this host.
    #[arg(long, value_name = "FILE", group = "source", conflicts_with_all = [
        "initrd", "cmdline", "cpus", "cpu_features", "memory", "console", "balloon", "no_rng", "vsock", "name", "on_reset",
    ])]
    restore: Option<PathBuf>,

    /// Initial file system (initramfs)
    #[arg(long, value_name = "FILE")]
    pub(super) initrd: Option<PathBuf>,

    /// Kernel command line; `console=` for the chosen console is added if there is none
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true, allow_hyphen_values = true)]
    pub(super) cmdline: String,

    /// A disk: a raw file or a block device; may be given several times
    ///
    /// ro: the guest may only read it. direct: go around the host's page cache. queues: threads of its own, one per vCPU up to
    /// four by default. serial: what the guest sees, at most 20 bytes. id: its name, disk0, disk1... by default. A comma in the
    /// file's name is written twice. With --restore: ID=FILE, where the saved VM's disk ID is now.
    #[arg(long = "disk", value_name = DISK_FORM)]
    pub(super) disks: Vec<String>,

    /// A network card on a TAP or a switch's vhost-user socket; may be given several times
    ///
    /// mac: its address; made from the VM's name and the card's number by default, so give VMs in one network different names.
    /// queues: pairs of receive and transmit queues. mtu: the largest packet that the guest is told. id: its name, net0, net1...
    /// by default. With --restore: ID=tap=NAME or ID=vhost-user=SOCKET, what carries the frames of the saved VM's card ID now.
    #[arg(long = "net", value_name = NET_FORM)]
    pub(super) nets: Vec<String>,

    /// Virtual CPUs
    ///
    /// max: how many it may have after `set-cpus`. threads: per core, 1 or 2. sockets: the cores are spread over them.
    #[arg(long, value_name = CPUS_FORM, default_value = "1")]
    pub(super) cpus: CpuOption,

    /// All that the guest may see of the processors, such as sse2,avx; without this, what the host has
    ///
    /// `maru-vmm --cpu-features` prints what guests could have on a host. A host that lacks some of it does not run the VM.
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    pub(super) cpu_features: Option<Vec<String>>,

    /// Memory, with the unit K, M, G or T
    ///
    /// hotplug: how much more it may get with `set-memory`. hugepages: use the host's 2 MiB pages.
    #[arg(long, value_name = MEMORY_FORM, default_value = "512M")]
    pub(super) memory: MemoryOption,

    /// What the console is for the guest: its serial port (ttyS0), or a virtio console (hvc0), which is faster
    #[arg(long, value_enum, default_value_t = Console::Serial)]
    pub(super) console: Console,

    /// Add a balloon, which gives memory that the guest does not use back to the host
    #[arg(long)]
    pub(super) balloon: bool,

    /// Leave the entropy device out
    #[arg(long)]
    pub(super) no_rng: bool,

    /// Sockets between guest and host: the guest's context id, 3 or more, and where the host's socket is made
    #[arg(long, value_name = VSOCK_FORM)]
    pub(super) vsock: Option<VsockOption>,

    /// The VM's name, for people and for the addresses of its network cards
    #[arg(long, value_name = "NAME", default_value = "vm")]
    pub(super) name: String,

    /// What to do when the guest resets: boot anew, or end with exit status 3
    #[arg(long, value_enum, default_value_t = Reset::Restart)]
    pub(super) on_reset: Reset,

    /// Make a control socket here, for `maru vm control`
    #[arg(long, value_name = "SOCKET")]
    pub(super) control: Option<PathBuf>,

    /// Do not confine the monitor's system calls and files; for finding errors only
    #[arg(long)]
    pub(super) unconfined: bool,
}

/// What a VM is started from.
pub(super) enum ConfigSource<'a> {
    /// This kernel.
    Boot(&'a Path),
    /// This saved VM.
    Saved(&'a Path),
}

impl RunArgs {
    /// What the VM is started from; clap sees to it that it is one thing.
    pub(super) fn source(&self) -> ConfigSource<'_> {
        match (&self.restore, &self.kernel) {
            (Some(saved), _) => ConfigSource::Saved(saved),
            (None, kernel) => ConfigSource::Boot(kernel.as_deref().unwrap_or(Path::new(""))),
        }
    }
}

/// `--console`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Console {
    /// The serial port.
    Serial,
    /// A virtio console.
    Virtio,
}

impl From<Console> for ConsoleConfig {
    fn from(console: Console) -> ConsoleConfig {
        match console {
            Console::Serial => ConsoleConfig::Serial,
            Console::Virtio => ConsoleConfig::Virtio,
        }
    }
}

/// `--on-reset`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Reset {
    /// Boot anew.
    Restart,
    /// End with exit status 3.
    Exit,
}

impl From<Reset> for OnReset {
    fn from(reset: Reset) -> OnReset {
        match reset {
            Reset::Restart => OnReset::Restart,
            Reset::Exit => OnReset::Exit,
        }
    }
}
