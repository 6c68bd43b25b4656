//! `make bench-block`: what a disk does in the guest, beside QEMU's virtio-blk on the same file.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, bail};
use bench::contender::{Caching, Contender, Vm};
use bench::protocol::{BlockEvent, BlockOrder, Load, LoadResult, Order};
use bench::stage;
use bench::stats::Summary;
use bench::table::table;
use lab::Lab;
use lab::agent::{Event, Exec, ExitStatus};
use lexopt::prelude::*;
use serde_json::json;

const HELP: &str = "\
bench-block: the same loads on the same raw file through our monitor and through QEMU, side by side in one virtual host

  --rounds N     rounds per way to the file (12)
  --cpus N       vCPUs of each guest, and queues of its disk (1)
  --run-ms N     how long each load counts, in ms (250): many short turns are fairer than few long ones
  --limit S      start no round that would not end within so many seconds (260)
  -o json        print the results as JSON
";

/// Size of the file, and of the file system around it.
const FILE_MIB: u64 = 512;
const DISK_MIB: u64 = 640;
/// How long a load runs before it counts.
const WARM_MS: u64 = 80;
const NAMES: [&str; 3] = ["maru-vmm", "QEMU", "QEMU iothread"];

struct Options {
    rounds: u32,
    cpus: u32,
    run_ms: u64,
    limit_s: u64,
    json: bool,
}

fn main() -> ExitCode {
    match parse().and_then(|options| options.map_or(Ok(()), |options| run(&options))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-block: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn parse() -> anyhow::Result<Option<Options>> {
    let mut options = Options { rounds: 12, cpus: 1, run_ms: 250, limit_s: 260, json: false };
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("rounds") => options.rounds = parser.value()?.parse()?,
            Long("cpus") => options.cpus = parser.value()?.parse()?,
            Long("run-ms") => options.run_ms = parser.value()?.parse()?,
            Long("limit") => options.limit_s = parser.value()?.parse()?,
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
    let lab = stage::host()?.disk_mib(DISK_MIB).prepare(&mut |_| {})?;
    fill(&lab.host(0).spec().disks[0].path)?;
    lab.host(0).power_on()?;
    stage::shell(&lab, "mkdir -p /data && mount -t ext4 -o noatime /dev/vda /data && ls -l /data/disk.raw")?;
    let mut report = Vec::new();
    for caching in [Caching::Direct, Caching::Buffered] {
        if caching == Caching::Buffered {
            // All start with the whole file in the cache, not whoever comes after the one that had to fetch it.
            stage::shell(&lab, "cat /data/disk.raw > /dev/null")?;
        }
        let loads = loads(options.run_ms);
        let results = compare(&lab, options, caching, &loads)?;
        if !options.json {
            println!(
                "\n{}, {} vCPU{}, {} rounds\n",
                describe(caching),
                options.cpus,
                if options.cpus == 1 { "" } else { "s" },
                results[0][0].len()
            );
            println!("{}", comparison(&loads, &results));
        }
        for (load, results) in loads.iter().zip(&results) {
            report.push(json!({ "caching": describe(caching), "load": load, "contenders": NAMES, "results": results }));
        }
    }
    if options.json {
        let results = json!({ "qemu": stage::qemu_version()?, "cpus": options.cpus, "results": report });
        println!("{}", serde_json::to_string_pretty(&results)?);
    } else {
        println!("median (lowest to highest); ratio: median of ours / QEMU, round by round (above 1: ours is faster)");
        println!("{}", stage::qemu_version()?);
    }
    Ok(())
}

fn describe(caching: Caching) -> &'static str {
    match caching {
        Caching::Direct => "around the host's page cache (O_DIRECT)",
        Caching::Buffered => "through the host's page cache",
    }
}

fn loads(run_ms: u64) -> Vec<Load> {
    let load = |name: &str, write, random, block_bytes, depth| Load {
        name: name.into(),
        write,
        random,
        block_bytes,
        depth,
        warm_ms: WARM_MS,
        run_ms,
    };
    vec![
        load("sequential read, 64 KiB, depth 8", false, false, 64 << 10, 8),
        load("sequential write, 64 KiB, depth 8", true, false, 64 << 10, 8),
        load("sequential read, 1 MiB, depth 4", false, false, 1 << 20, 4),
        load("sequential write, 1 MiB, depth 4", true, false, 1 << 20, 4),
        load("random read, 4 KiB, depth 1", false, true, 4096, 1),
        load("random write, 4 KiB, depth 1", true, true, 4096, 1),
        load("random read, 4 KiB, depth 32", false, true, 4096, 32),
        load("random write, 4 KiB, depth 32", true, true, 4096, 32),
    ]
}

/// Makes an ext4 on the host's disk with a file of random bytes in it: on this machine, where that takes a second.
fn fill(disk: &Path) -> anyhow::Result<()> {
    eprintln!("filling the disk");
    let dir = tempfile::tempdir_in(disk.parent().context("a disk without a directory")?)?;
    let mut file = BufWriter::with_capacity(1 << 20, File::create(dir.path().join("disk.raw"))?);
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    for _ in 0..(FILE_MIB << 20) / 8 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        file.write_all(&state.to_le_bytes())?;
    }
    file.into_inner().map_err(|error| error.into_error())?.sync_all()?;
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new("mkfs.ext4");
    command.env("PATH", format!("{path}:/usr/sbin:/sbin")).args(["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"]);
    let output = command.arg("-d").arg(dir.path()).arg(disk).output().context("running mkfs.ext4 (Debian: e2fsprogs)")?;
    if !output.status.success() {
        bail!("mkfs.ext4: {}", String::from_utf8_lossy(&output.stderr));
    }
    fs::remove_file(dir.path().join("disk.raw"))?;
    Ok(())
}

/// By load, by contender, by round.
type Results = Vec<Vec<Vec<LoadResult>>>;

fn compare(lab: &Lab, options: &Options, caching: Caching, loads: &[Load]) -> anyhow::Result<Results> {
    let vm = Vm {
        cpus: options.cpus,
        memory_mib: 256,
        command_line: "console=ttyS0 quiet panic=-1 bench.mode=block bench.nics=0".into(),
        disk: "/data/disk.raw".into(),
        caching,
        queues: options.cpus,
        tap: None,
        qemu_iothread: false,
        qemu_shared_memory: false,
    };
    let with_iothread = Vm { qemu_iothread: true, ..vm.clone() };
    lab.host(0).agent()?.push_from(vm.maru_config().as_bytes(), &vm.maru_config_path(), 0o644)?;
    let argvs = [vm.argv(Contender::Maru), vm.argv(Contender::QemuQ35), with_iothread.argv(Contender::QemuQ35)];
    let contenders = NAMES.iter().map(|name| (*name).to_owned()).zip(argvs).collect();
    let order = BlockOrder {
        contenders,
        loads: loads.to_vec(),
        rounds: options.rounds,
        limit_ms: options.limit_s * 500,
        sync: caching == Caching::Buffered,
    };
    let order = serde_json::to_string(&Order::Block(order))?;
    let mut process = lab.host(0).spawn(Exec::new(["/bin/bench-host".to_owned(), order]))?;

    let mut results: Results = vec![vec![Vec::new(); NAMES.len()]; loads.len()];
    let (mut output, mut errors) = (Vec::new(), Vec::new());
    while let Some(event) = process.next_event(None)? {
        match event {
            Event::Stdout(bytes) => output.extend(bytes),
            Event::Stderr(bytes) => errors.extend(bytes),
            Event::Exit(ExitStatus::Code(0)) => return Ok(results),
            Event::Exit(status) => bail!("{status:?}: {}", String::from_utf8_lossy(&errors).trim()),
        }
        while let Some(end) = output.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = output.drain(..=end).collect();
            match serde_json::from_slice(&line).context("the answer of bench-host")? {
                BlockEvent::Ready(name) => eprintln!("{name} is up"),
                BlockEvent::Result { round, load, contender, result } => {
                    let name = &loads[load].name;
                    eprintln!(
                        "round {} of {}: {name:34} {:13} {:>9.0} /s",
                        round + 1,
                        options.rounds,
                        NAMES[contender],
                        result.per_second()
                    );
                    results[load][contender].push(result);
                }
            }
        }
    }
    bail!("bench-host ended without a word")
}

fn comparison(loads: &[Load], results: &Results) -> String {
    let mut rows =
        vec![["load", "", NAMES[0], NAMES[1], "ratio", NAMES[2], "ratio", "median latency, us"].map(String::from).to_vec()];
    for (load, results) in loads.iter().zip(results) {
        // Small requests are counted, large ones weighed.
        let (unit, factor) =
            if load.block_bytes > 4096 { ("MiB/s", f64::from(load.block_bytes) / 1048576.0) } else { ("IO/s", 1.0) };
        let values: Vec<Vec<f64>> =
            results.iter().map(|results| results.iter().map(|result| result.per_second() * factor).collect()).collect();
        let mut row = vec![load.name.clone(), unit.to_owned()];
        for (number, values_of_one) in values.iter().enumerate() {
            let Summary { median, min, max } = Summary::of(values_of_one.iter().copied());
            row.push(format!("{median:.0} ({min:.0} to {max:.0})"));
            if number > 0 {
                row.push(format!("{:.2}", Summary::of_ratios(&values[0], values_of_one).median));
            }
        }
        let latency = |results: &[LoadResult]| Summary::of(results.iter().map(|result| result.median_ns as f64 / 1e3)).median;
        row.push(results.iter().map(|results| format!("{:.0}", latency(results))).collect::<Vec<_>>().join(" / "));
        rows.push(row);
    }
    table(&rows)
}
