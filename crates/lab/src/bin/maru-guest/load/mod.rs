//! A load that notices anything lost: on disks, on connections, in memory, on the clocks.
//!
//! Each part is a thread that counts what it has verified. The first thing that is wrong is remembered for ever.

mod clock;
mod disk;
mod memory;
mod net;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use lab::pid1::CommandLine;

const HEARTBEAT: Duration = Duration::from_millis(500);

/// What all parts share.
#[derive(Default)]
pub struct Progress {
    failure: Mutex<Option<String>>,
    /// Blocks verified.
    pub disk: AtomicU64,
    /// Bytes that came back right.
    pub net: AtomicU64,
    /// Longest time in which nothing came back on a connection, since the last heartbeat, in ms.
    pub net_gap_ms: AtomicU64,
    /// Pages verified.
    pub memory: AtomicU64,
    /// Longest time in which the clock thread did not run, since the last heartbeat, in ms.
    pub gap_ms: AtomicU64,
}

impl Progress {
    /// Something was lost.
    pub fn fail(&self, what: String) {
        println!("maru-guest: FAIL {what}");
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(what);
    }

    fn failure(&self) -> Option<String> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn option(line: &CommandLine, key: &str, default: u64) -> u64 {
    line.get(key).and_then(|value| value.parse().ok()).unwrap_or(default)
}

fn disks(line: &CommandLine) -> Vec<disk::Region> {
    let (mib, seed) = (option(line, "maru.disk_mib", 64), option(line, "maru.seed", 1));
    line.all("maru.disk").map(|name| disk::Region { path: format!("/dev/{name}"), mib, seed }).collect()
}

/// Runs until `maru.seconds` have passed, or for ever.
pub fn run(line: &CommandLine) {
    let progress = Arc::new(Progress::default());
    let pace = Duration::from_micros(option(line, "maru.pace_us", 1000));
    let mut flushed = Vec::new();
    for region in disks(line) {
        let (progress, counter) = (progress.clone(), Arc::new(AtomicU64::new(0)));
        flushed.push(counter.clone());
        thread::spawn(move || {
            if let Err(error) = disk::run(&region, &progress, &counter, pace) {
                progress.fail(format!("{}: {error}", region.path));
            }
        });
    }
    for peer in line.all("maru.echo").map(str::to_owned) {
        let progress = progress.clone();
        thread::spawn(move || {
            if let Err(error) = net::run(&peer, &progress, pace) {
                progress.fail(format!("connection to {peer}: {error}"));
            }
        });
    }
    let mib = option(line, "maru.mem", 8);
    let shared = progress.clone();
    thread::spawn(move || memory::run(mib as usize, &shared, pace));
    let shared = progress.clone();
    thread::spawn(move || clock::run(&shared));
    let start = Instant::now();
    let limit = line.get("maru.seconds").and_then(|seconds| seconds.parse().ok()).map(Duration::from_secs);
    while limit.is_none_or(|limit| start.elapsed() < limit) {
        thread::sleep(HEARTBEAT);
        heartbeat(&progress, &flushed);
    }
    println!("maru-guest: done");
}

fn heartbeat(progress: &Progress, flushed: &[Arc<AtomicU64>]) {
    if let Some(what) = progress.failure() {
        return println!("maru-guest: FAIL {what}");
    }
    let get = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let flushed: Vec<String> = flushed.iter().map(|counter| get(counter).to_string()).collect();
    println!(
        "maru-guest: ok disk={} flushed={} net={} net_gap_ms={} mem={} gap_ms={} mono={:.3} t={:.3}",
        get(&progress.disk),
        flushed.join(","),
        get(&progress.net),
        progress.net_gap_ms.swap(0, Ordering::SeqCst),
        get(&progress.memory),
        progress.gap_ms.swap(0, Ordering::SeqCst),
        clock::monotonic().as_secs_f64(),
        now.as_secs_f64(),
    );
}

/// Checks what an earlier load left on the disks.
pub fn verify_disks(line: &CommandLine) {
    let flushed: Vec<u64> =
        line.get("maru.flushed").unwrap_or_default().split(',').filter_map(|number| number.parse().ok()).collect();
    for (n, region) in disks(line).iter().enumerate() {
        match disk::verify(region, flushed.get(n).copied().unwrap_or(0)) {
            Ok(found) => println!("maru-guest: disk-verify ok {} blocks={} last={}", region.path, found.blocks, found.last),
            Err(error) => println!("maru-guest: FAIL {}: {error}", region.path),
        }
    }
    println!("maru-guest: done");
}

/// A fast generator whose output depends on every bit of its seed (splitmix64).
#[derive(Clone)]
pub struct Random(pub u64);

impl Random {
    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
