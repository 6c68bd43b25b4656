//! `maru-guard`: ends the VMs of a host that has lost its lease.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use guard::client::Client;
use guard::protocol::Request;
use guard::{BootTime, Options, serve};
use lexopt::prelude::*;

const HELP: &str = "\
maru-guard: ends the VMs of a host of a cluster before another host may start them

usage: maru-guard --socket PATH --page FILE --vms DIRECTORY [options]
       maru-guard ask --socket PATH status|release|extend LEASE MS

  --socket PATH       listen here for marud
  --page FILE         the file, in memory (below /run), that tells monitors until when VMs may run
  --vms DIRECTORY     the control group (cgroup v2) with all VMs
  --watchdog DEVICE   the watchdog that resets the host if its VMs do not end (/dev/watchdog)
  --watchdog-s N      its timeout in seconds; default 2
  --margin-ms N       from the deadline to the end of the lease; default 1000
  --version           print the version
  --help              print this

`ask` is for who looks for a fault: it asks the guard that listens at PATH how things are, to let go, or to let VMs run for so many
milliseconds more. The answer is JSON.

marud starts it on hosts of a cluster. When it ends, or is killed, VMs go on, and the watchdog resets the host unless another guard is
started in time: that one goes on with what the page says.

Exit status: 1 it could not be started, 2 wrong usage.
";

/// How far ahead a deadline may be. Leases have seconds.
const HORIZON: Duration = Duration::from_secs(60);
/// Above everything that is not the kernel's; below its own threads for migration and watchdogs.
const PRIORITY: i32 = 50;

/// How long a guard may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

enum Command {
    Serve(Options),
    Ask(PathBuf, Request),
}

fn main() -> ExitCode {
    let command = match parse() {
        Ok(Some(command)) => command,
        Ok(None) => return ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("maru-guard: {error} (see maru-guard --help)");
            return ExitCode::from(2);
        }
    };
    let done = match command {
        Command::Serve(options) => serve(&options, come_first).map_err(Into::into),
        Command::Ask(socket, request) => ask(&socket, &request),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("maru-guard: {error}");
            ExitCode::FAILURE
        }
    }
}

fn ask(socket: &Path, request: &Request) -> Result<(), Box<dyn std::error::Error>> {
    let status = Client::connect(socket, PATIENCE)?.call(request)?;
    println!("{}", serde_json::to_string(&status)?);
    Ok(())
}

/// Takes all memory now and goes before other processes, as far as this user may.
fn come_first() {
    let said = |what: &str| eprintln!("maru-guard: {what}: {}; it may be late on a busy host", std::io::Error::last_os_error());
    // SAFETY: it takes no pointers.
    if unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE) } < 0 {
        said("memory cannot be locked");
    }
    let parameters = libc::sched_param { sched_priority: PRIORITY };
    // SAFETY: the parameters live through the call.
    if unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) } < 0 {
        said("no real-time priority");
    }
    // It is the last to go when memory runs out.
    if std::fs::write("/proc/self/oom_score_adj", "-1000").is_err() {
        said("the kernel may end it when memory runs out");
    }
}

fn parse() -> Result<Option<Command>, lexopt::Error> {
    let (mut socket, mut page, mut vms, mut watchdog): (Option<PathBuf>, Option<PathBuf>, Option<PathBuf>, _) =
        (None, None, None, None);
    let (mut watchdog_s, mut margin_ms) = (2u64, 1000u64);
    let mut words: Vec<String> = Vec::new();
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("socket") => socket = Some(parser.value()?.into()),
            Long("page") => page = Some(parser.value()?.into()),
            Long("vms") => vms = Some(parser.value()?.into()),
            Long("watchdog") => watchdog = Some(parser.value()?.into()),
            Long("watchdog-s") => watchdog_s = parser.value()?.parse()?,
            Long("margin-ms") => margin_ms = parser.value()?.parse()?,
            Value(word) => words.push(word.string()?),
            Long("help") => {
                print!("{HELP}");
                return Ok(None);
            }
            Long("version") => {
                println!("maru-guard {}", env!("CARGO_PKG_VERSION"));
                return Ok(None);
            }
            other => return Err(other.unexpected()),
        }
    }
    let needed = |value: Option<PathBuf>, name: &str| value.ok_or_else(|| format!("{name} is missing"));
    let socket = needed(socket, "--socket")?;
    if let Some((first, question)) = words.split_first() {
        let request = match (first.as_str(), question) {
            ("ask", [word]) if word == "status" => Request::Status,
            ("ask", [word]) if word == "release" => Request::Release,
            ("ask", [word, lease, ms]) if word == "extend" => {
                let ahead = Duration::from_millis(ms.parse().map_err(|_| "MS is a number")?);
                let lease = lease.parse().map_err(|_| "LEASE is a number")?;
                Request::Extend { lease, deadline: BootTime::now().after(ahead) }
            }
            _ => return Err(format!("'{}' is nothing that it does", words.join(" ")).into()),
        };
        return Ok(Some(Command::Ask(socket, request)));
    }
    Ok(Some(Command::Serve(Options {
        socket,
        page: needed(page, "--page")?,
        vms: needed(vms, "--vms")?,
        watchdog,
        watchdog_timeout: Duration::from_secs(watchdog_s),
        margin: Duration::from_millis(margin_ms),
        horizon: HORIZON,
    })))
}
