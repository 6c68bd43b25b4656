//! `maru-switch`: the virtual switch of a host.

use std::num::NonZero;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use lexopt::prelude::*;
use packet::Listener;
use switch::control::serve;
use switch::error_chain;
use switch::host::Host;
use switch::identity::become_user;
use switch::ring::bus_error;
use switch::sandbox::{self, Places, ThreadKind, confine_thread, directory_of};
use switch::worker::Pool;

const HELP: &str = "\
maru-switch: the virtual switch of a host

usage: maru-switch --control PATH [options]

  --control PATH  listen for control clients at this socket (`maru switch`, `maru port`)
  --state FILE    keep the ports in this file, and begin with those that are in it
  --user ID       become this user (as root)
  --allow DIR     let ports have their sockets in or below this directory; can be given several times; by default
                  the directory of the control socket
  --unconfined    do not confine the switch: for debugging only
  --workers N     move frames with so many threads, 64 at most; each switch has one of them; by default as
                  many as there are processors, 16 at most
  --poll-us N     look for more frames for so many microseconds before sleeping; default 50
  --version       print the version
  --help          print this

Of root's rights, the switch keeps what TAPs and NICs need. Files and system calls that it does not need, it gives up.

Exit status: 1 the switch could not be started, 2 wrong usage, 4 the switch failed.
";

/// The most threads that move frames if nothing else is said.
const MOST_BY_DEFAULT: usize = 16;
/// The exit status of a switch that failed.
const FAILED: i32 = 4;

struct Options {
    control: PathBuf,
    state: Option<PathBuf>,
    user: Option<u32>,
    allow: Vec<PathBuf>,
    unconfined: bool,
    workers: usize,
    poll: Duration,
}

fn main() -> ExitCode {
    end_on_panic();
    let options = match parse() {
        Ok(Some(options)) => options,
        Ok(None) => return ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("maru-switch: {error} (see maru-switch --help)");
            return ExitCode::from(2);
        }
    };
    match run(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("maru-switch: {}", error_chain(&*error));
            ExitCode::FAILURE
        }
    }
}

/// A bug in one thread must not leave a switch behind that answers and moves nothing: who started it starts it again, which VMs notice as
/// a short gap.
fn end_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        eprintln!("maru-switch: a bug in the switch, it ends: thread '{}' {panic}", thread.name().unwrap_or("?"));
        // SAFETY: ends the process at once, without running anything of it.
        unsafe { libc::_exit(FAILED) };
    }));
}

fn parse() -> Result<Option<Options>, lexopt::Error> {
    let (mut control, mut state, mut user, mut poll) = (None, None, None, 50u64);
    let (mut allow, mut unconfined) = (Vec::new(), false);
    let mut workers = std::thread::available_parallelism().map_or(1, NonZero::get).min(MOST_BY_DEFAULT);
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("control") => control = Some(parser.value()?.into()),
            Long("state") => state = Some(parser.value()?.into()),
            Long("user") => user = Some(parser.value()?.parse()?),
            Long("allow") => allow.push(parser.value()?.into()),
            Long("unconfined") => unconfined = true,
            Long("workers") => workers = parser.value()?.parse_with(a_number_of_workers)?,
            Long("poll-us") => poll = parser.value()?.parse()?,
            Long("version") => {
                println!("maru-switch {}", env!("CARGO_PKG_VERSION"));
                return Ok(None);
            }
            Long("help") | Short('h') => {
                print!("{HELP}");
                return Ok(None);
            }
            other => return Err(other.unexpected()),
        }
    }
    let control = control.ok_or("--control is needed")?;
    Ok(Some(Options { control, state, user, allow, unconfined, workers, poll: Duration::from_micros(poll) }))
}

fn a_number_of_workers(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| (1..=Pool::MOST).contains(number));
    number.ok_or_else(|| format!("there can be 1 to {} workers", Pool::MOST))
}

fn run(options: Options) -> Result<(), Box<dyn std::error::Error>> {
    let Options { control, state, user, allow, unconfined, workers, poll } = options;
    if let Some(user) = user {
        become_user(user).map_err(|error| format!("cannot become user {user}: {error}"))?;
    }
    let listener = Listener::bind(&control).map_err(|error| format!("control socket {}: {error}", control.display()))?;
    bus_error::install()?;
    if unconfined {
        eprintln!(
            "maru-switch: WARNING: running unconfined: a VM that breaks into the switch gets everything that this user has"
        );
    } else {
        let sockets = if allow.is_empty() { vec![directory_of(&control)] } else { allow };
        sandbox::begin(&Places { sockets, state: state.clone() })?;
        confine_thread(ThreadKind::Control);
    }
    let name = state.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
    let host = Host::new(Pool::new(workers, poll), state).map_err(|error| format!("the ports in {name}: {error}"))?;
    serve(listener, host)?;
    Ok(())
}
