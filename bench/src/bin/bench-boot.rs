//! `make bench-boot`: how fast a stock guest boots, and what its monitor costs in memory, beside QEMU.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bench::contender::{Caching, Contender, Vm};
use bench::protocol::{Boot, BootOrder, Order, Phases};
use bench::stage;
use bench::stats::Summary;
use bench::table::table;
use lab::Lab;
use lexopt::prelude::*;
use serde_json::json;

const HELP: &str = "\
bench-boot: boots the same kernel on our monitor and on QEMU, side by side in one virtual host

  --rounds N     rounds per number of vCPUs, after one that does not count (5)
  --cpus A,B     numbers of vCPUs to try (1,4)
  --explain      instead: one boot of each with every exit of the VM recorded: where the time goes
  --shared-memory
                 QEMU's guest memory in a shared memfd, as ours always is, not private as it is by default
  --prepare CMD  a shell command for the virtual host before anything is measured
  --limit S      start no round that would not end within so many seconds (210)
  -o json        print the results as JSON
";

const CONTENDERS: [Contender; 3] = [Contender::Maru, Contender::QemuMicrovm, Contender::QemuQ35];
const MEMORY_MIB: u32 = 256;
/// From the guest's devices to the look at the monitor's memory, and then to the power-off.
const SETTLE_MS: u64 = 1000;
const WAIT_MS: u64 = 1200;

struct Options {
    rounds: u32,
    cpus: Vec<u32>,
    explain: bool,
    shared_memory: bool,
    prepare: String,
    limit: Duration,
    json: bool,
}

fn main() -> ExitCode {
    match parse().and_then(|options| options.map_or(Ok(()), |options| run(&options))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-boot: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn parse() -> anyhow::Result<Option<Options>> {
    let mut options = Options {
        rounds: 5,
        cpus: vec![1, 4],
        explain: false,
        shared_memory: false,
        prepare: String::new(),
        limit: Duration::from_secs(210),
        json: false,
    };
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("rounds") => options.rounds = parser.value()?.parse()?,
            Long("cpus") => {
                let list = parser.value()?.string()?;
                options.cpus = list.split(',').map(str::parse).collect::<Result<_, _>>().context("--cpus")?;
            }
            Long("explain") => options.explain = true,
            Long("prepare") => options.prepare = parser.value()?.string()?,
            Long("shared-memory") => options.shared_memory = true,
            Long("limit") => options.limit = Duration::from_secs(parser.value()?.parse()?),
            Short('o') | Long("output") => {
                options.json = parser.value()?.parse_with(|text| match text {
                    "json" => Ok(true),
                    "text" => Ok(false),
                    _ => Err("only json and text are known"),
                })?
            }
            Short('h') | Long("help") => {
                print!("{HELP}");
                return Ok(None);
            }
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(Some(options))
}

fn run(options: &Options) -> anyhow::Result<()> {
    stage::build_programs()?;
    eprintln!("starting the virtual host");
    let lab = stage::host()?.start()?;
    stage::shell(
        &lab,
        "/bin/maru-init modprobe tun && busybox tunctl -t tap0 >/dev/null && ip link set tap0 up \
         && dd if=/dev/zero of=/bench/disk.raw bs=1M count=64 2>/dev/null",
    )?;
    stage::shell(&lab, &options.prepare)?;
    let mut report = Vec::new();
    for &cpus in &options.cpus {
        if options.explain {
            for contender in CONTENDERS {
                let boot = boot(&lab, options, contender, cpus)?;
                explain(contender, cpus, &boot);
                report.push(json!({ "cpus": cpus, "contender": contender.name(), "boot": boot }));
            }
        } else {
            let boots = rounds(&lab, options, cpus)?;
            if !options.json {
                println!(
                    "\n{cpus} vCPU{}, {MEMORY_MIB} MiB, one disk, one network card; {} rounds\n",
                    plural(cpus),
                    boots[0].len()
                );
                println!("{}", comparison(&boots));
            }
            report.push(json!({ "cpus": cpus, "boots": boots.iter().map(|b| results_json(b)).collect::<Vec<_>>() }));
        }
    }
    if options.json {
        let results = json!({ "qemu": stage::qemu_version()?, "memory_mib": MEMORY_MIB, "results": report });
        println!("{}", serde_json::to_string_pretty(&results)?);
    } else if !options.explain {
        println!(
            "times: median (lowest to highest) in ms from the start of the process; ratio: median of QEMU / ours, round by round"
        );
        println!(
            "memory: the monitor's without the guest's, {SETTLE_MS} ms after the devices were there; {}",
            stage::qemu_version()?
        );
    }
    Ok(())
}

fn plural(count: u32) -> &'static str {
    if count == 1 { "" } else { "s" }
}

/// Boots of each contender, in the order of [`CONTENDERS`].
fn rounds(lab: &Lab, options: &Options, cpus: u32) -> anyhow::Result<Vec<Vec<Boot>>> {
    let mut boots = vec![Vec::new(); CONTENDERS.len()];
    let limit = options.limit / options.cpus.len() as u32;
    let start = Instant::now();
    let mut longest = Duration::ZERO;
    for round in 0..=options.rounds {
        let round_start = Instant::now();
        if round > 1 && start.elapsed() + longest > limit {
            eprintln!("no time for more than {} rounds of {}: this machine is slow or busy", round - 1, options.rounds);
            break;
        }
        for turn in 0..CONTENDERS.len() {
            let number = (turn + round as usize) % CONTENDERS.len();
            let boot = boot(lab, options, CONTENDERS[number], cpus)?;
            let name = if round == 0 { "warm-up".to_owned() } else { format!("round {round} of {}", options.rounds) };
            eprintln!(
                "{cpus} vCPU{}, {name}: {:12} init {:7.1} ms, devices {:7.1} ms, own memory {:6} KiB",
                plural(cpus),
                CONTENDERS[number].name(),
                boot.init_ms,
                boot.devices_ms,
                boot.memory.rss_kib,
            );
            if round > 0 {
                boots[number].push(boot);
            }
        }
        longest = longest.max(round_start.elapsed());
    }
    Ok(boots)
}

fn boot(lab: &Lab, options: &Options, contender: Contender, cpus: u32) -> anyhow::Result<Boot> {
    let log = if options.explain { "bench.log initcall_debug log_buf_len=2M" } else { "" };
    let vm = Vm {
        cpus,
        memory_mib: MEMORY_MIB,
        command_line: format!("console=ttyS0 quiet panic=-1 bench.wait_ms={WAIT_MS} {log}"),
        disk: "/bench/disk.raw".into(),
        caching: Caching::Buffered,
        queues: cpus,
        tap: Some("tap0".into()),
        qemu_iothread: false,
        qemu_shared_memory: options.shared_memory,
    };
    lab.host(0).agent()?.push_from(vm.maru_config().as_bytes(), &vm.maru_config_path(), 0o644)?;
    let order = BootOrder { argv: vm.argv(contender), memory_mib: MEMORY_MIB, settle_ms: SETTLE_MS, explain: options.explain };
    let order = serde_json::to_string(&Order::Boot(order))?;
    let output = lab.host(0).exec(["/bin/bench-host".to_owned(), order])?;
    if !output.success() {
        bail!("{} with {cpus} vCPU{}: {}", contender.name(), plural(cpus), output.error_text().trim());
    }
    let boot: Boot = serde_json::from_slice(&output.stdout).context("the answer of bench-host")?;
    if let Some(line) = boot.console.lines().find(|line| line.starts_with("bench: failed")) {
        bail!("{}: the guest says: {line}", contender.name());
    }
    if boot.exit_code != 0 {
        bail!("{} ended with {}: {}", contender.name(), boot.exit_code, output.error_text().trim());
    }
    Ok(boot)
}

/// A measured value: its name, how to get it, digits behind the point.
type Measure = (&'static str, fn(&Boot) -> f64, usize);

const MEASURES: [Measure; 8] = [
    ("init, ms", |boot| boot.init_ms, 1),
    ("devices, ms", |boot| boot.devices_ms, 1),
    ("guest's clock at init, ms", |boot| boot.guest_clock_ms, 1),
    ("power-off to end, ms", |boot| boot.end_ms, 1),
    ("processor time, ms", |boot| boot.cpu_ms, 0),
    ("own memory (RSS), KiB", |boot| boot.memory.rss_kib as f64, 0),
    ("own memory (private), KiB", |boot| boot.memory.private_kib as f64, 0),
    ("threads", |boot| boot.memory.threads as f64, 0),
];

fn comparison(boots: &[Vec<Boot>]) -> String {
    let mut rows = vec![vec![String::new()]];
    for (number, contender) in CONTENDERS.iter().enumerate() {
        rows[0].push(contender.name().into());
        if number > 0 {
            rows[0].push("ratio".into());
        }
    }
    for (name, value, digits) in MEASURES {
        let values: Vec<Vec<f64>> = boots.iter().map(|boots| boots.iter().map(value).collect()).collect();
        let mut row = vec![name.to_owned()];
        for (number, values_of_one) in values.iter().enumerate() {
            let Summary { median, min, max } = Summary::of(values_of_one.iter().copied());
            row.push(format!("{median:.digits$} ({min:.digits$} to {max:.digits$})"));
            if number > 0 {
                row.push(format!("{:.2}", Summary::of_ratios(values_of_one, &values[0]).median));
            }
        }
        rows.push(row);
    }
    table(&rows)
}

fn results_json(boots: &[Boot]) -> serde_json::Value {
    let summaries = MEASURES.iter().map(|(name, value, _)| ((*name).to_owned(), json!(Summary::of(boots.iter().map(value)))));
    json!({ "summary": serde_json::Map::from_iter(summaries), "boots": boots })
}

fn explain(contender: Contender, cpus: u32, boot: &Boot) {
    let Phases { before_guest_ms, in_guest_ms, halted_ms, exits, accesses, lost } = boot.phases.clone().unwrap_or_default();
    println!("\n== {}, {cpus} vCPU{} (recording slows it down)", contender.name(), plural(cpus));
    println!("init {:.1} ms; guest's clock then {:.1} ms", boot.init_ms, boot.guest_clock_ms);
    println!("before the first instruction {before_guest_ms:.1} ms; in the guest {in_guest_ms:.1} ms; halted {halted_ms:.1} ms");
    let total: u64 = exits.iter().map(|(_, count, _)| count).sum();
    println!("{total} exits until init{}", if lost > 0 { format!(" ({lost} events lost)") } else { String::new() });
    for (reason, count, ms) in exits {
        println!("  {reason:28} {count:7} {ms:9.1} ms");
    }
    println!("accesses handled outside of KVM's fast paths");
    for (place, count) in accesses {
        println!("  {place:28} {count:7}");
    }
    println!("slowest parts of the guest's kernel, from its log");
    for line in boot.console.lines().filter_map(|line| line.strip_prefix("bench: gap ")) {
        println!("  {line}");
    }
    println!("largest mappings of the monitor, KiB resident");
    for (name, kib) in &boot.memory.largest {
        println!("  {kib:7}  {name}");
    }
}
