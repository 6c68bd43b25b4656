//! `maru-vmm`: one virtual machine.
//!
//! Started by `maru vm run` or by the host's daemon; people rarely call it themselves.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use lexopt::prelude::*;
use vmm::config::VmConfig;
use vmm::control::{Connection, Listener};
use vmm::error_chain;
use vmm::machine::Machine;
use vmm::machine::events::event_queue;
use vmm::monitor::Monitor;
use vmm::sandbox::{self, Identity, identity::Circumstances};

const HELP: &str = "\
maru-vmm: one virtual machine

usage: maru-vmm --config FILE [options]

  --config FILE      what the VM is to be, as JSON; - reads standard input
  --restore FILE     go on where a saved VM stopped; without --config, with the configuration that was saved
  --paused           wait for a client that resumes the VM
  --control PATH     listen for control clients at this socket
  --control-fd N     serve the control client on this descriptor
  --lease FILE       run under the lease in this page of maru-guard, and end when it is over
  --exit-with-parent end the VM when the client on --control-fd goes away
  --uid N            the user to become when started as root; by default one that no other VM of this host has
  --gid N            the group to become; by default the one with the user's number
  --unconfined       do not confine the monitor: for debugging only
  --cpu-features     print what guests could have of this host's processors, a name a line
  --version          print the version
  --help             print this

Once everything is open, the monitor gives up its user (if that is root), all files and most system calls. Who started it
removes the control socket after its end.

Standard input and output are the guest's console. Exit status: 0 the guest powered off or the VM was stopped on
request, 1 the VM could not be started, 2 wrong usage, 3 the guest reset the machine (with on-reset \"exit\"),
4 the VM failed, 5 the lease was over.
";

/// The exit status of a VM that failed.
const FAILED: i32 = 4;

#[derive(Default)]
struct Options {
    config: Option<PathBuf>,
    restore: Option<PathBuf>,
    paused: bool,
    control: Option<PathBuf>,
    control_fd: Option<i32>,
    lease: Option<PathBuf>,
    exit_with_parent: bool,
    uid: Option<u32>,
    gid: Option<u32>,
    unconfined: bool,
    cpu_features: bool,
}

fn main() -> ExitCode {
    end_on_panic();
    let options = match parse() {
        Ok(Some(options)) => options,
        Ok(None) => return ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("maru-vmm: {error} (see maru-vmm --help)");
            return ExitCode::from(2);
        }
    };
    match run(&options) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("maru-vmm: {}", error_chain(&*error));
            ExitCode::FAILURE
        }
    }
}

/// Makes a panic on any thread the end of the VM. A bug that a guest found must not leave half a VM behind: a vCPU or a queue that
/// nobody serves, locks that nobody gives back, and a guest that goes on in this state.
fn end_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        eprintln!("maru-vmm: a bug in the monitor, the VM ends: thread '{}' {panic}", thread.name().unwrap_or("?"));
        // SAFETY: ends the process at once, without running anything of it: no lock, no destructor.
        unsafe { libc::_exit(FAILED) };
    }));
}

fn parse() -> Result<Option<Options>, lexopt::Error> {
    let mut options = Options::default();
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("config") => options.config = Some(parser.value()?.into()),
            Long("restore") => options.restore = Some(parser.value()?.into()),
            Long("paused") => options.paused = true,
            Long("control") => options.control = Some(parser.value()?.into()),
            Long("control-fd") => options.control_fd = Some(parser.value()?.parse()?),
            Long("lease") => options.lease = Some(parser.value()?.into()),
            Long("exit-with-parent") => options.exit_with_parent = true,
            Long("uid") => options.uid = Some(parser.value()?.parse()?),
            Long("gid") => options.gid = Some(parser.value()?.parse()?),
            Long("unconfined") => options.unconfined = true,
            Long("cpu-features") => {
                options.cpu_features = true;
                return Ok(Some(options));
            }
            Long("version") => {
                println!("maru-vmm {}", env!("CARGO_PKG_VERSION"));
                return Ok(None);
            }
            Long("help") | Short('h') => {
                print!("{HELP}");
                return Ok(None);
            }
            other => return Err(other.unexpected()),
        }
    }
    if options.config.is_none() && options.restore.is_none() {
        return Err("--config or --restore is needed".into());
    }
    if options.exit_with_parent && options.control_fd.is_none() {
        return Err("--exit-with-parent goes with --control-fd".into());
    }
    Ok(Some(options))
}

fn run(options: &Options) -> Result<u8, Box<dyn std::error::Error>> {
    if options.cpu_features {
        vmm::machine::cpu_features()?.iter().for_each(|name| println!("{name}"));
        return Ok(0);
    }
    let config = options.config.as_deref().map(read_config).transpose()?;
    let listener = match &options.control {
        Some(path) => Some(Listener::bind(path).map_err(|error| format!("control socket {}: {error}", path.display()))?),
        None => None,
    };
    if let Some(page) = &options.lease {
        vmm::lease::take(page).map_err(|error| format!("the lease in {}: {error}", page.display()))?;
    }
    let parent = options.control_fd.map(inherited).transpose()?.map(Connection::from);
    if options.unconfined {
        eprintln!("maru-vmm: WARNING: running unconfined: a guest that breaks out of its VM gets everything that this user has");
    } else {
        sandbox::begin(Identity::choose(options.uid, options.gid, &Circumstances::here())?)?;
    }
    let (sender, queue) = event_queue()?;
    let machine = match (&options.restore, config) {
        (Some(path), config) => {
            let file = File::open(path).map_err(|error| format!("saved VM {}: {error}", path.display()))?;
            let adapt = |saved: VmConfig| {
                Ok(match config {
                    Some(config) => config.for_saved(&saved),
                    None => saved,
                })
            };
            let mut machine = Machine::restore(file, adapt, sender, |_| {})?;
            machine.begin_new_life()?;
            machine
        }
        (None, Some(config)) => {
            let mut machine = Machine::new(config, sender)?;
            machine.boot()?;
            machine
        }
        (None, None) => return Err("--config or --restore is needed".into()),
    };
    let mut monitor = Monitor::new(machine, queue, listener, sandbox::is_confined())?;
    if let Some(parent) = parent {
        monitor.adopt(parent, options.exit_with_parent)?;
    }
    if options.paused {
        monitor.hold();
    }
    let input = std::io::stdin().as_fd().try_clone_to_owned()?;
    monitor.attach_console(std::io::stdout().as_fd().try_clone_to_owned()?, Some(input))?;
    let ending = monitor.run()?;
    if ending.exit_status() != 0 {
        eprintln!("maru-vmm: {ending}");
    }
    Ok(ending.exit_status())
}

fn read_config(path: &Path) -> Result<VmConfig, Box<dyn std::error::Error>> {
    let mut text = Vec::new();
    let read = if path == Path::new("-") {
        std::io::stdin().read_to_end(&mut text)
    } else {
        File::open(path).and_then(|mut file| file.read_to_end(&mut text))
    };
    read.map_err(|error| format!("configuration {}: {error}", path.display()))?;
    Ok(VmConfig::from_json(&text)?)
}

/// Takes a descriptor that the parent left open for us.
fn inherited(number: i32) -> Result<OwnedFd, String> {
    // SAFETY: asks only whether the descriptor is open.
    if number < 3 || unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(format!("--control-fd {number}: there is no such descriptor"));
    }
    // SAFETY: it is open, and nothing in this process has it yet: it comes from the parent, by its number.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
