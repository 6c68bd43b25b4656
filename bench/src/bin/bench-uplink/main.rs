//! `bench-uplink`: uplinks of the virtual switch by AF_XDP beside those by AF_PACKET, over veth pairs of this machine.
//!
//! ```text
//!  core 1        core 0                       core 1
//!  sender ─ w0 ═ v0 ─ maru-switch ─ v1 ═ w1 ─ counter, receiver of a TCP stream
//! ```
//!
//! The contenders take turns within a round. The cycles are those of the core that switches, of the time in which it had something to do,
//! with the kernel's part of it: system calls, and frames that the kernel takes over on this core.

mod ends;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bench::stats::Summary;
use bench::table::table;
use bench::vswitch::Switch;
use ends::{End, ip};
use lexopt::prelude::*;
use switch::control::Backend;
use switch::team::config::{Datapath, TeamConfig};

const HELP: &str = "\
bench-uplink: uplinks by AF_XDP beside AF_PACKET, over veth

usage: bench-uplink [options]

  --rounds N     rounds in which all contenders take turns; default 3
  --seconds N    seconds that each is measured; default 3
  --help         print this

It needs root, and two cores that have nothing else to do. It runs in a network namespace of its own.
";

/// The core that switches.
const SWITCH_CORE: usize = 0;
/// The core that makes the load.
const LOAD_CORE: usize = 1;
const INSIDE: &str = "MARU_BENCH_NAMESPACE";

struct Options {
    rounds: usize,
    time: Duration,
}

/// What is sent.
#[derive(Clone, Copy)]
enum Load {
    /// Frames of so many bytes, as fast as one core can.
    Frames(usize),
    /// A TCP stream between two stacks of the kernel.
    Stream,
}

const LOADS: [(&str, Load); 3] =
    [("frames of 60 bytes", Load::Frames(60)), ("frames of 1514 bytes", Load::Frames(1514)), ("a TCP stream", Load::Stream)];

/// What is compared. Of AF_PACKET once with what neighbours on one machine leave undone, and once with frames as they are on a wire.
const CONTENDERS: [(&str, Datapath, bool); 3] = [
    ("AF_PACKET", Datapath::AfPacket, true),
    ("AF_PACKET, whole frames", Datapath::AfPacket, false),
    ("AF_XDP with copies, whole frames", Datapath::AfXdp, false),
];

/// What a contender did: frames in a second that arrived, or of a stream Gbit/s; cycles for each frame, or for each kilobyte.
#[derive(Clone, Copy, Debug)]
struct Measured {
    rate: f64,
    cycles: f64,
}

fn parse() -> Result<Option<Options>, lexopt::Error> {
    let mut options = Options { rounds: 3, time: Duration::from_secs(3) };
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("rounds") => options.rounds = parser.value()?.parse()?,
            Long("seconds") => options.time = Duration::from_secs(parser.value()?.parse()?),
            Long("help") | Short('h') => {
                print!("{HELP}");
                return Ok(None);
            }
            other => return Err(other.unexpected()),
        }
    }
    Ok(Some(options))
}

fn main() -> ExitCode {
    let result = match parse() {
        Ok(Some(_)) if std::env::var_os(INSIDE).is_none() => in_namespace(),
        Ok(Some(options)) => run(&options).map(|()| ExitCode::SUCCESS),
        Ok(None) => return ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-uplink: {error} (see bench-uplink --help)");
            return ExitCode::from(2);
        }
    };
    result.unwrap_or_else(|error| {
        eprintln!("bench-uplink: {error:#}");
        ExitCode::FAILURE
    })
}

/// The same once more, where nothing of the machine's network is in the way.
fn in_namespace() -> Result<ExitCode> {
    let mut again = std::process::Command::new("unshare");
    again.arg("--net").arg(std::env::current_exe()?).args(std::env::args_os().skip(1)).env(INSIDE, "1");
    let status = again.status().context("unshare, of util-linux")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn run(options: &Options) -> Result<()> {
    ensure!(std::thread::available_parallelism()?.get() > 1, "this needs two cores");
    for (what, load) in LOADS {
        let mut measured: Vec<Vec<Measured>> = vec![Vec::new(); CONTENDERS.len()];
        for round in 0..options.rounds {
            for turn in 0..CONTENDERS.len() {
                let number = (round + turn) % CONTENDERS.len();
                let (name, datapath, leaves_work) = CONTENDERS[number];
                let result = measure(load, datapath, leaves_work, options.time).with_context(|| format!("{name}, {what}"))?;
                measured[number].push(result);
            }
        }
        print(what, load, &measured);
    }
    Ok(())
}

fn print(what: &str, load: Load, measured: &[Vec<Measured>]) {
    let (rate, cycles) = match load {
        Load::Frames(_) => ("frames/s", "cycles for each"),
        Load::Stream => ("Gbit/s", "cycles for each KiB"),
    };
    let mut rows = vec![vec![what.to_string(), rate.into(), cycles.into(), "rate beside the first".into()]];
    let rates = |number: usize| -> Vec<f64> { measured[number].iter().map(|one| one.rate).collect() };
    for (number, (name, ..)) in CONTENDERS.iter().enumerate() {
        let rate = Summary::of(rates(number)).median;
        let shown = if matches!(load, Load::Stream) { format!("{rate:.2}") } else { format!("{rate:.0}") };
        let cycles = Summary::of(measured[number].iter().map(|one| one.cycles)).median;
        let ratio = Summary::of_ratios(&rates(number), &rates(0));
        rows.push(vec![name.to_string(), shown, format!("{cycles:.0}"), ratio.to_string()]);
    }
    println!("{}", table(&rows));
}

/// A switch with two uplinks of one kind, and what passes from the one to the other.
fn measure(load: Load, datapath: Datapath, leaves_work: bool, time: Duration) -> Result<Measured> {
    let directory = tempfile::tempdir()?;
    let ends = [End::start()?, End::start()?];
    for (number, end) in ends.iter().enumerate() {
        ip(&format!("link add v{number} type veth peer name w{number} netns {}", end.thread()))?;
        ip(&format!("link set v{number} arp off up"))?;
        end.run(move || {
            ip(&format!("addr add 10.9.0.{}/24 dev w{number}", number + 1))?;
            if !leaves_work {
                ends::whole_frames(&format!("w{number}"))?;
            }
            ip(&format!("link set w{number} up"))
        })?;
    }
    let mut switch = Switch::start(directory.path(), Some(SWITCH_CORE), &[])?;
    for number in 0..2 {
        let team = TeamConfig { datapath, ..TeamConfig::single(&format!("v{number}")) };
        switch.add(&format!("wire{number}"), Backend::from(team))?;
    }
    let [sender, receiver] = &ends;
    // The switch learns who is where.
    receiver.run(|| ends::send("w1", 60, [2, 1], Duration::ZERO))?;
    let before = (switch.status()?.work, receiver.run(|| ends::received("w1"))?, Instant::now());
    let bytes = match load {
        Load::Frames(bytes) => sender.run(move || ends::send("w0", bytes, [1, 2], time)).map(|()| 0)?,
        Load::Stream => ends::stream(sender, receiver, time)?,
    };
    let seconds = before.2.elapsed().as_secs_f64();
    let (work, received) = (switch.status()?.work, receiver.run(|| ends::received("w1"))?);
    // The names are for the next contender; by themselves the cables go some time after their ends.
    drop(switch);
    (0..2).try_for_each(|number| ip(&format!("link del v{number}")))?;
    let busy = (work.busy_cycles - before.0.busy_cycles) as f64;
    Ok(match load {
        Load::Frames(_) => {
            let arrived = (received - before.1) as f64;
            Measured { rate: arrived / seconds, cycles: busy / (work.packets - before.0.packets) as f64 }
        }
        Load::Stream => Measured { rate: bytes as f64 * 8.0 / 1e9 / seconds, cycles: busy / (bytes as f64 / 1024.0) },
    })
}
