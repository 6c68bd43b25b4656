//! What it takes to convert a disk: to VHDX and back, beside raw to raw, by the same tool and by QEMU's.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, ensure};
use bench::stats::Summary;
use bench::table::table;
use disk::Format;
use disk::tool::{AnyFormat, Existing, Job, NewDisk, compare, convert};

const MIB: u64 = 1 << 20;

/// What is converted into what.
#[derive(Clone, Copy)]
struct Way {
    name: &'static str,
    from: Format,
    to: Format,
}

const WAYS: [Way; 3] = [
    Way { name: "raw to raw", from: Format::Raw, to: Format::Raw },
    Way { name: "raw to vhdx", from: Format::Raw, to: Format::Vhdx },
    Way { name: "vhdx to raw", from: Format::Vhdx, to: Format::Raw },
];

fn extension(format: Format) -> &'static str {
    match format {
        Format::Raw => "raw",
        Format::Vhdx => "vhdx",
        Format::Vhd => "vhd",
    }
}

/// Converts disks that are full of data, and such that have a MiB of it in every 8, in turns; prints what it took.
pub fn run(dir: &Path, bytes: u64, rounds: usize) -> anyhow::Result<()> {
    let mut rows =
        vec![["convert", "seconds", "speed, to ours raw to raw", "to qemu-img", "space taken, MiB"].map(String::from).to_vec()];
    for (kind, every) in [("dense", 1), ("sparse", 8)] {
        eprintln!("converting: {kind}");
        let sources = WAYS.map(|way| dir.join(format!("{kind}.{}", extension(way.from))));
        fill(&sources[0], bytes, every)?;
        ours(&sources[0], &sources[2], Way { from: Format::Raw, to: Format::Vhdx, ..WAYS[2] })?;
        let (mut our_times, mut their_times) = ([const { Vec::new() }; 3], [const { Vec::new() }; 3]);
        let mut space = [0; 3];
        for round in 0..rounds {
            for turn in 0..WAYS.len() {
                let which = (round + turn) % WAYS.len();
                let (way, source) = (WAYS[which], &sources[which]);
                let target = dir.join(format!("target.{}", extension(way.to)));
                our_times[which].push(ours(source, &target, way)?);
                space[which] = std::fs::metadata(&target)?.blocks() * 512 / MIB;
                if round == 0 {
                    let (one, other) = ((&*sources[0], AnyFormat::Own(Format::Raw)), (&*target, AnyFormat::Own(way.to)));
                    ensure!(compare(one, other, &Job::default())?.is_none(), "{} is not the same", target.display());
                }
                their_times[which].push(qemu(source, &target, way)?);
                std::fs::remove_file(&target)?;
            }
        }
        for (which, way) in WAYS.iter().enumerate() {
            rows.push(vec![
                format!("{kind}, {}", way.name),
                format!("{:.2}", Summary::of(our_times[which].iter().copied()).median),
                // The shorter the time, the higher the speed.
                Summary::of_ratios(&our_times[0], &our_times[which]).to_string(),
                Summary::of_ratios(&their_times[which], &our_times[which]).to_string(),
                space[which].to_string(),
            ]);
        }
        sources.iter().for_each(|source| drop(std::fs::remove_file(source)));
    }
    println!("{}", table(&rows));
    Ok(())
}

/// A raw disk with a MiB of data that does not repeat in every `every`.
fn fill(path: &Path, bytes: u64, every: u64) -> anyhow::Result<()> {
    let file = File::create(path)?;
    file.set_len(bytes)?;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for offset in (0..bytes).step_by((every * MIB) as usize) {
        let data: Vec<u8> = std::iter::repeat_with(|| {
            // xorshift64
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_ne_bytes()
        })
        .take(MIB as usize / 8)
        .flatten()
        .collect();
        file.write_all_at(&data, offset)?;
    }
    file.sync_all()?;
    Ok(())
}

/// Seconds until all of it is on storage.
fn ours(from: &Path, to: &Path, way: Way) -> anyhow::Result<f64> {
    forget(from)?;
    let disk = NewDisk { format: way.to, ..NewDisk::default() };
    let start = Instant::now();
    convert((from, AnyFormat::Own(way.from)), to, &disk, Existing::Replace, &Job::default())?;
    Ok(start.elapsed().as_secs_f64())
}

fn qemu(from: &Path, to: &Path, way: Way) -> anyhow::Result<f64> {
    forget(from)?;
    let mut command = Command::new("qemu-img");
    command.args(["convert", "-m", "16", "-W", "-f", extension(way.from), "-O", extension(way.to)]);
    if way.to == Format::Vhdx {
        command.args(["-o", "block_size=2M"]);
    }
    let start = Instant::now();
    let status = command.arg(from).arg(to).status().context("running qemu-img (Debian: qemu-utils)")?;
    ensure!(status.success(), "qemu-img convert: {status}");
    File::open(to)?.sync_all()?;
    Ok(start.elapsed().as_secs_f64())
}

/// Has the page cache forget a file, so that all read it from storage.
fn forget(path: &Path) -> anyhow::Result<()> {
    let file = File::open(path)?;
    file.sync_all()?;
    // SAFETY: the call is about a file that is open, and touches no memory.
    let result = unsafe { libc::posix_fadvise(std::os::fd::AsRawFd::as_raw_fd(&file), 0, 0, libc::POSIX_FADV_DONTNEED) };
    ensure!(result == 0, "posix_fadvise: {}", std::io::Error::from_raw_os_error(result));
    Ok(())
}
