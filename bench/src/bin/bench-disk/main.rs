//! `bench-disk`: what an image costs beside a raw file, and beside QEMU's VHDX; without a VM.
//!
//! All that are compared take turns, a short time each, and ratios are taken turn by turn: the speed of a machine changes from
//! minute to minute more than what is measured here.

mod convert;
mod load;
mod ours;
mod qemu;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;
use bench::stats::Summary;
use bench::table::table;
use disk::Format;
use lexopt::prelude::*;
use load::{Ground, Load, loads};

const HELP: &str = "\
bench-disk: VHDX through our engine, a raw file through the same, and QEMU's VHDX, side by side

  --dir DIR      where the disks are made: a file system with direct I/O (.)
  --size-mib N   their size, a power of two (1024)
  --rounds N     (5)
  --only TEXT    only what has a name that contains this: loads, convert, create
";

struct Options {
    dir: PathBuf,
    bytes: u64,
    rounds: usize,
    only: String,
}

fn main() -> ExitCode {
    match parse().and_then(|options| options.map_or(Ok(()), |options| run(&options))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-disk: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn parse() -> anyhow::Result<Option<Options>> {
    let mut options = Options { dir: ".".into(), bytes: 1 << 30, rounds: 5, only: String::new() };
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("dir") => options.dir = parser.value()?.into(),
            Long("size-mib") => options.bytes = parser.value()?.parse::<u64>()? << 20,
            Long("rounds") => options.rounds = parser.value()?.parse()?,
            Long("only") => options.only = parser.value()?.string()?,
            Short('h') | Long("help") => {
                print!("{HELP}");
                return Ok(None);
            }
            other => return Err(other.unexpected().into()),
        }
    }
    anyhow::ensure!(options.bytes.is_power_of_two() && options.bytes >= 64 << 20, "--size-mib: a power of two from 64");
    Ok(Some(options))
}

/// The disks of one contender: one that stays, one that is made anew.
struct Place {
    written: PathBuf,
    fresh: PathBuf,
}

impl Place {
    fn new(dir: &Path, name: &str) -> Place {
        Place { written: dir.join(format!("{name}-written")), fresh: dir.join(format!("{name}-fresh")) }
    }

    /// The disk for a load, made where it has to be new.
    fn disk(&self, ground: Ground, create: impl FnOnce(&Path) -> anyhow::Result<()>) -> anyhow::Result<&Path> {
        if ground == Ground::Written {
            return Ok(&self.written);
        }
        let _ = std::fs::remove_file(&self.fresh);
        create(&self.fresh)?;
        Ok(&self.fresh)
    }
}

const FORMATS: [Format; 2] = [Format::Vhdx, Format::Raw];

fn run(options: &Options) -> anyhow::Result<()> {
    let dir = tempfile::tempdir_in(&options.dir)?;
    let places = ["ours", "raw", "qemu"].map(|name| Place::new(dir.path(), name));
    let loads: Vec<Load> = loads(options.bytes).into_iter().filter(|load| load.name.contains(&options.only)).collect();
    if loads.iter().any(|load| load.ground == Ground::Written) {
        fill(options, &places)?;
    }
    let mut rows = vec![["load", "raw /s", "ours / raw", "processor, ours / raw", "ours / QEMU"].map(String::from).to_vec()];
    for load in &loads {
        // Operations in a second by contender; processor time of ours and raw.
        let (mut speed, mut processor) = ([const { Vec::new() }; 3], [const { Vec::new() }; 2]);
        for round in 0..options.rounds {
            for turn in 0..3 {
                let who = (round + turn) % 3;
                let time = if who < 2 {
                    let path = places[who].disk(load.ground, |path| ours::create(path, options.bytes, FORMATS[who]))?;
                    let taken = ours::run(path, FORMATS[who], load)?;
                    processor[who].push(taken.processor.as_secs_f64());
                    taken.time
                } else {
                    qemu::run(places[2].disk(load.ground, |path| qemu::create(path, options.bytes))?, load)?
                };
                speed[who].push(load.count as f64 / time.as_secs_f64());
            }
        }
        rows.push(vec![
            load.name.to_owned(),
            format!("{:.0}", Summary::of(speed[1].iter().copied()).median),
            Summary::of_ratios(&speed[0], &speed[1]).to_string(),
            Summary::of_ratios(&processor[0], &processor[1]).to_string(),
            Summary::of_ratios(&speed[0], &speed[2]).to_string(),
        ]);
        eprintln!("{}", rows[rows.len() - 1].join("  "));
    }
    if !loads.is_empty() {
        println!("{}", table(&rows));
        println!("median of the ratios of {} rounds (lowest to highest); above 1 is more", options.rounds);
    }
    for place in &places {
        drop((std::fs::remove_file(&place.written), std::fs::remove_file(&place.fresh)));
    }
    if "convert".contains(&options.only) {
        convert::run(dir.path(), options.bytes, options.rounds)?;
    }
    if "create".contains(&options.only) { create_and_open(dir.path()) } else { Ok(()) }
}

fn fill(options: &Options, places: &[Place; 3]) -> anyhow::Result<()> {
    eprintln!("filling the disks");
    let all = Load {
        name: "fill",
        ground: Ground::Written,
        is_write: true,
        bytes: 1 << 20,
        stride: 1 << 20,
        depth: 8,
        count: options.bytes >> 20,
        is_flushed: false,
    };
    for (place, format) in places.iter().zip(FORMATS) {
        ours::create(&place.written, options.bytes, format)?;
        ours::run(&place.written, format, &all)?;
    }
    qemu::create(&places[2].written, options.bytes)?;
    qemu::fill(&places[2].written, options.bytes)
}

const MIB: f64 = (1 << 20) as f64;

/// Bytes of memory that this process has.
fn resident() -> anyhow::Result<f64> {
    let text = std::fs::read_to_string("/proc/self/statm")?;
    let pages: f64 = text.split(' ').nth(1).context("/proc/self/statm")?.parse()?;
    Ok(pages * 4096.0)
}

fn create_and_open(dir: &Path) -> anyhow::Result<()> {
    for (name, bytes) in [("4 GiB", 4u64 << 30), ("1 TiB", 1 << 40), ("64 TiB", 64 << 40)] {
        let path = dir.join("large.vhdx");
        let start = Instant::now();
        ours::create(&path, bytes, Format::Vhdx)?;
        let created = start.elapsed().as_secs_f64() * 1e3;
        let allocated = std::fs::metadata(&path)?.blocks() as f64 * 512.0 / MIB;
        let before = resident()?;
        let start = Instant::now();
        let disk = ours::open(&path, Format::Vhdx)?;
        let opened = start.elapsed().as_secs_f64() * 1e3;
        let memory = (resident()? - before) / MIB;
        drop(disk);
        println!(
            "{name}: created in {created:.1} ms, {allocated:.1} MiB allocated; opened in {opened:.1} ms, {memory:.1} MiB of memory"
        );
        std::fs::remove_file(&path)?;
    }
    Ok(())
}
