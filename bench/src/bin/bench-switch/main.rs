//! `bench-switch`: the virtual switch beside Open vSwitch with DPDK, and beside a Linux bridge with two TAPs; on this machine, without
//! a VM.
//!
//! ```text
//!  core 0                           core 1
//!  maru-switch | ovs-vswitchd  ◀──▶ dpdk-testpmd: two virtio-user ports that send on what they get
//!  maru-switch                 ◀──▶ segments: two ports of our own, frames of 64 KiB
//!  maru-switch                 ◀──▶ flows: two ports of our own, with and without 10,000 rules, each frame of a new flow or not
//!  maru-switch                 ◀──▶ shares: ports of our own that contend for one, each with its limits
//!  kernel: bridge, two TAPs    ◀──▶ writer on core 0, reader on core 1
//! ```
//!
//! What two cores get done depends on how near they are to each other, which changes by the hour on a virtual machine; so contenders
//! take turns within a round, the time that a cache line takes between the cores is printed, and what counts are ratios within rounds
//! and the cycles of the core that switches, of the time in which it had something to do.

mod bridge;
mod flows;
mod headers;
mod maru;
mod ovs;
mod pingpong;
mod segments;
mod testpmd;

use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bench::stats::Summary;
use bench::table::table;
use bench::vswitch::shares::{cases, measure};
use lexopt::prelude::*;
use testpmd::Testpmd;

const HELP: &str = "\
bench-switch: the virtual switch beside Open vSwitch with DPDK and a Linux bridge

usage: bench-switch [options]

  --rounds N     rounds in which all contenders take turns; default 3
  --seconds N    seconds that each is measured; default 3
  --case NAME    only this case: hit, learn, stateful, long, flows, segments, shares, idle
  --help         print this

It needs root (huge pages, TAPs), two cores that have nothing else to do, and the Debian packages that `make bench-switch` installs.
";

/// The core that switches.
const SWITCH_CORE: usize = 0;
/// The core that makes the load.
const LOAD_CORE: usize = 1;
/// What is shared in the case `shares`: bits in a second.
const SHARED_BPS: u64 = 1_000_000_000;
/// Rules in the case `flows`.
const MANY_RULES: u32 = 10_000;
/// Huge pages of 2 MiB for DPDK while it runs.
const HUGE_PAGES: u32 = 1024;

/// What is compared over DPDK's load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Case {
    /// A hundred rules; each flow is known.
    Hit,
    /// Learning, a private VLAN and guards, beside `NORMAL`.
    Learn,
    /// A rule that remembers connections, beside conntrack.
    Stateful,
    /// As the first, with frames of 1518 bytes.
    Long,
}

impl Case {
    const ALL: [Case; 4] = [Case::Hit, Case::Learn, Case::Stateful, Case::Long];

    fn name(self) -> &'static str {
        match self {
            Case::Hit => "hit",
            Case::Learn => "learn",
            Case::Stateful => "stateful",
            Case::Long => "long",
        }
    }

    fn text(self) -> &'static str {
        match self {
            Case::Hit => "64 B, a known flow, 100 rules",
            Case::Learn => "64 B, learning, private VLAN, guards",
            Case::Stateful => "64 B, stateful rule",
            Case::Long => "1518 B, a known flow, 100 rules",
        }
    }

    /// Bytes of a frame, without its checksum.
    fn bytes(self) -> u32 {
        match self {
            Case::Long => 1514,
            _ => 60,
        }
    }
}

/// What a contender did.
#[derive(Clone, Copy, Debug)]
struct Measured {
    /// Frames in a second, both directions together.
    rate: f64,
    /// Cycles of busy time for each.
    cycles: f64,
}

struct Options {
    rounds: usize,
    time: Duration,
    case: Option<String>,
}

fn parse() -> Result<Option<Options>, lexopt::Error> {
    let mut options = Options { rounds: 3, time: Duration::from_secs(3), case: None };
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("rounds") => options.rounds = parser.value()?.parse()?,
            Long("seconds") => options.time = Duration::from_secs(parser.value()?.parse()?),
            Long("case") => options.case = Some(parser.value()?.string()?),
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
        Ok(Some(options)) => run(&options),
        Ok(None) => return ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-switch: {error} (see bench-switch --help)");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-switch: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    let wanted = |name: &str| options.case.as_deref().is_none_or(|case| case == name);
    let names = Case::ALL.map(Case::name).into_iter().chain(["flows", "segments", "shares", "idle"]);
    ensure!(names.into_iter().any(wanted), "there is no case '{}'", options.case.as_deref().unwrap_or_default());
    let directory = tempfile::tempdir()?;
    let cases: Vec<Case> = Case::ALL.into_iter().filter(|case| wanted(case.name())).collect();
    // Only DPDK needs them.
    let _pages = if cases.is_empty() { None } else { Some(HugePages::take(&huge(directory.path()))?) };
    for case in cases {
        compare(case, options, directory.path())?;
    }
    if wanted("flows") {
        flows(options, directory.path())?;
    }
    if wanted("segments") {
        segments(options, directory.path())?;
    }
    if wanted("shares") {
        shares(options, directory.path())?;
    }
    if wanted("idle") {
        let share = maru::idle(directory.path(), 64, Duration::from_secs(10))?;
        println!("idle, 64 ports: {:.2} % of a core", 100.0 * share);
    }
    Ok(())
}

/// Has both measured in turns, the other one first in every other round; `show` says what came out. What is ours comes first.
fn in_turns<T>(
    rounds: usize,
    what: &str,
    others: &str,
    show: impl Fn(&T) -> String,
    measure: impl Fn(bool) -> Result<T>,
) -> Result<(Vec<T>, Vec<T>)> {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let pingpong = pingpong::nanoseconds();
        for is_ours in [0, 1].map(|turn| (turn + round) % 2 == 0) {
            let name = if is_ours { "Maru" } else { others };
            let measured = measure(is_ours).with_context(|| format!("{name}, {what}"))?;
            eprintln!("{what}: {name}: {}; a cache line takes {pingpong:.0} ns", show(&measured));
            if is_ours { &mut ours } else { &mut theirs }.push(measured);
        }
    }
    Ok((ours, theirs))
}

fn compare(case: Case, options: &Options, directory: &Path) -> Result<()> {
    let show = |measured: &Measured| format!("{:.2} million frames/s, {:.0} cycles each", measured.rate / 1e6, measured.cycles);
    let (ours, theirs) = in_turns(options.rounds, case.text(), "OVS-DPDK", show, |is_ours| {
        if is_ours { measure_maru(case, options, directory) } else { measure_ovs(case, options, directory) }
    })?;
    let of = |all: &[Measured], value: fn(&Measured) -> f64| all.iter().map(value).collect::<Vec<f64>>();
    let rates = |all: &[Measured]| of(all, |measured| measured.rate / 1e6);
    let row = |name: &str, all: &[Measured]| {
        vec![name.into(), Summary::of(rates(all)).to_string(), Summary::of(of(all, |measured| measured.cycles)).to_string()]
    };
    println!(
        "{}",
        table(&[
            vec![case.text().into(), "million frames/s".into(), "cycles/frame".into()],
            row("Maru", &ours),
            row("OVS-DPDK", &theirs),
            vec!["ratio".into(), Summary::of_ratios(&rates(&ours), &rates(&theirs)).to_string(), String::new()],
        ])
    );
    Ok(())
}

fn measure_maru(case: Case, options: &Options, directory: &Path) -> Result<Measured> {
    let mut switch = maru::start(directory, SWITCH_CORE, case)?;
    let load = Testpmd::start(&huge(directory), &[0, 1].map(|port| switch.sockets()[port].clone()), LOAD_CORE, case.bytes())?;
    let before = (load.frames()?, switch.status()?.work);
    std::thread::sleep(options.time);
    let after = (load.frames()?, switch.status()?.work);
    let packets = after.1.packets - before.1.packets;
    ensure!(packets > 0, "nothing passed the switch");
    eprintln!("frames in a pass: {:.1}", packets as f64 / (after.1.passes - before.1.passes) as f64);
    Ok(Measured {
        rate: (after.0.count - before.0.count) as f64 / (after.0.at - before.0.at).as_secs_f64(),
        cycles: (after.1.busy_cycles - before.1.busy_cycles) as f64 / packets as f64,
    })
}

fn measure_ovs(case: Case, options: &Options, directory: &Path) -> Result<Measured> {
    let switch = ovs::Switch::start(directory, SWITCH_CORE, case)?;
    let load = Testpmd::start(&huge(directory), &switch.sockets(), LOAD_CORE, case.bytes())?;
    switch.clear()?;
    let before = load.frames()?;
    std::thread::sleep(options.time);
    let after = load.frames()?;
    ensure!(after.count > before.count, "nothing passed the switch");
    Ok(Measured { rate: (after.count - before.count) as f64 / (after.at - before.at).as_secs_f64(), cycles: switch.cycles()? })
}

/// What rules cost, and what the first packet of a flow costs.
fn flows(options: &Options, directory: &Path) -> Result<()> {
    let cases = [(false, 0), (false, MANY_RULES), (true, 0), (true, MANY_RULES)];
    let mut measured = cases.map(|_| Vec::new());
    for _ in 0..options.rounds {
        for (all, (new, rules)) in measured.iter_mut().zip(cases) {
            let mut switch = maru::start_with_rules(directory, SWITCH_CORE, rules)?;
            all.push(flows::measure(&mut switch, LOAD_CORE, options.time, new)?);
        }
    }
    let mut rows = vec![["60 B, a load of our own", "million frames/s", "cycles/frame", "ns/frame"].map(String::from).to_vec()];
    for (all, (new, rules)) in measured.iter().zip(cases) {
        let of = |value: fn(&flows::Cost) -> f64| Summary::of(all.iter().map(value)).to_string();
        let what = if new { "each frame of a new flow" } else { "known flows" };
        rows.push(vec![
            format!("{what}, {rules} rules"),
            of(|cost| cost.rate / 1e6),
            of(|cost| cost.cycles),
            of(|cost| cost.nanoseconds),
        ]);
    }
    let cycles = |all: &[flows::Cost]| all.iter().map(|cost| cost.cycles).collect::<Vec<_>>();
    let ratio = Summary::of_ratios(&cycles(&measured[1]), &cycles(&measured[0])).to_string();
    rows.push(vec!["what the rules cost known flows, times".into(), String::new(), ratio, String::new()]);
    println!("{}", table(&rows));
    Ok(())
}

fn segments(options: &Options, directory: &Path) -> Result<()> {
    let show = |gigabits: &f64| format!("{gigabits:.1} Gbit/s");
    let (ours, theirs) = in_turns(options.rounds, "segments of 64 KiB", "bridge and TAPs", show, |is_ours| {
        let rate = if is_ours {
            let switch = maru::start(directory, SWITCH_CORE, Case::Hit)?;
            segments::measure(switch.sockets(), LOAD_CORE, options.time)?
        } else {
            bridge::measure(SWITCH_CORE, LOAD_CORE, options.time)?
        };
        Ok(rate * 8e-9)
    })?;
    println!(
        "{}",
        table(&[
            vec!["segments of 64 KiB".into(), "Gbit/s".into()],
            vec!["Maru, one core and the load's".into(), Summary::of(ours.iter().copied()).to_string()],
            vec!["bridge and TAPs, two cores".into(), Summary::of(theirs.iter().copied()).to_string()],
            vec!["ratio".into(), Summary::of_ratios(&ours, &theirs).to_string()],
        ])
    );
    Ok(())
}

fn shares(options: &Options, directory: &Path) -> Result<()> {
    let mut rows =
        vec![["shares of 1 Gbit/s, frames of 1514 B", "expected ‰", "measured ‰", "off by at most"].map(String::from).to_vec()];
    for case in cases(SHARED_BPS) {
        let measure = || {
            pingpong::pin(LOAD_CORE);
            measure(&case, directory, Some(SWITCH_CORE), Duration::ZERO, options.time)
        };
        let measured = std::thread::scope(|scope| scope.spawn(measure).join().expect("the load"))?;
        let parts: Vec<f64> = measured.iter().map(|bytes| bytes * 8000.0 / SHARED_BPS as f64).collect();
        let off =
            parts.iter().zip(&case.expected).map(|(part, expected)| (part / *expected as f64 - 1.0).abs()).fold(0.0, f64::max);
        rows.push(vec![
            case.name.into(),
            format!("{:?}", case.expected),
            format!("{parts:.1?}"),
            format!("{:.1} %", 100.0 * off),
        ]);
    }
    println!("{}", table(&rows));
    Ok(())
}

/// Where DPDK finds its huge pages.
fn huge(directory: &Path) -> PathBuf {
    directory.join("huge")
}

/// Huge pages, given back at the end.
struct HugePages {
    before: String,
    mounted: CString,
}

impl HugePages {
    const FILE: &str = "/proc/sys/vm/nr_hugepages";

    fn take(directory: &Path) -> Result<HugePages> {
        let before = std::fs::read_to_string(HugePages::FILE)?;
        std::fs::write(HugePages::FILE, HUGE_PAGES.to_string()).context("huge pages: are you root?")?;
        let got: u32 = std::fs::read_to_string(HugePages::FILE)?.trim().parse()?;
        ensure!(got >= HUGE_PAGES, "the kernel gave {got} of {HUGE_PAGES} huge pages: is there too little free memory?");
        std::fs::create_dir(directory)?;
        let mounted = CString::new(directory.as_os_str().as_encoded_bytes())?;
        // SAFETY: C strings, and no data.
        let result = unsafe { libc::mount(c"none".as_ptr(), mounted.as_ptr(), c"hugetlbfs".as_ptr(), 0, std::ptr::null()) };
        ensure!(result == 0, "cannot mount huge pages: {}", std::io::Error::last_os_error());
        Ok(HugePages { before, mounted })
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        // SAFETY: a C string.
        unsafe { libc::umount2(self.mounted.as_ptr(), libc::MNT_DETACH) };
        let _ = std::fs::write(HugePages::FILE, self.before.trim());
    }
}
