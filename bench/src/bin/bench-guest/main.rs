//! PID 1 of the guests that are measured.
//!
//! | kernel word | meaning |
//! |---|---|
//! | `bench.mode=boot` | wait, then power off (the default) |
//! | `bench.mode=block` | run loads on the disk as they come over the console, until `end` |
//! | `bench.wait_ms=N` | how long to wait |
//! | `bench.nics=N` | how many network cards to wait for (1) |
//! | `bench.log` | print the longest gaps in the kernel's log before the end |
//! | `bench.end=reset` | end with a reset instead of a power-off |

mod load;

use std::fs;
use std::io::{self, BufRead};
use std::thread;
use std::time::Duration;

use bench::protocol::{AT_DEVICES, AT_END, AT_INIT, LINE};
use lab::pid1::{self, PowerAction};

/// Gaps that are printed.
const GAPS: usize = 16;

fn main() {
    mark(AT_INIT);
    let clock_us = monotonic_us();
    let words = match prepare() {
        Ok(words) => words,
        Err(error) => {
            println!("{LINE} failed: {error}");
            String::new()
        }
    };
    mark(AT_DEVICES);
    println!("\n{LINE} clock_us={clock_us}");
    let value = |name: &str| words.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    if value("bench.mode") == Some("block") {
        if let Err(error) = serve_loads() {
            println!("{LINE} failed: {error}");
        }
    } else {
        let wait_ms = value("bench.wait_ms").and_then(|text| text.parse().ok()).unwrap_or(0);
        thread::sleep(Duration::from_millis(wait_ms));
    }
    if words.split_whitespace().any(|word| word == "bench.log") {
        print_slowest();
    }
    mark(AT_END);
    let action = if value("bench.end") == Some("reset") { PowerAction::Reboot } else { PowerAction::Off };
    let error = pid1::power(action);
    println!("{LINE} failed: cannot power off: {error}");
    loop {
        thread::park();
    }
}

/// Loads the drivers and waits for disk and network card. Gives the kernel command line.
fn prepare() -> io::Result<String> {
    if let Some((place, error)) =
        pid1::mount_system().into_iter().find(|(place, _)| matches!(place.as_str(), "/proc" | "/sys" | "/dev"))
    {
        return Err(io::Error::other(format!("{place}: {error}")));
    }
    let words = fs::read_to_string("/proc/cmdline")?;
    if let Some((module, error)) = pid1::load_boot_modules().into_iter().next() {
        return Err(io::Error::other(format!("{module}: {error}")));
    }
    let nics = words.split_whitespace().find_map(|word| word.strip_prefix("bench.nics=")).map_or(1, |n| n.parse().unwrap_or(1));
    for _ in 0..10_000 {
        // `lo` is always there.
        let found = fs::read_dir("/sys/class/net")?.count() > nics;
        if found && fs::metadata("/dev/vda").is_ok() {
            return Ok(words);
        }
        thread::sleep(Duration::from_millis(1));
    }
    Err(io::Error::other("no disk or no network card"))
}

/// Takes loads as JSON lines from the console and answers each with a line.
fn serve_loads() -> io::Result<()> {
    println!("{LINE} ready");
    for line in io::stdin().lock().lines() {
        let line = line?;
        if line.trim() == "end" {
            return Ok(());
        }
        match serde_json::from_str(&line).map_err(io::Error::from).and_then(|load| load::run("/dev/vda", &load)) {
            Ok(result) => println!("{LINE} result {}", serde_json::to_string(&result)?),
            Err(error) => println!("{LINE} failed: {error}: {line}"),
        }
    }
    Ok(())
}

/// Prints the longest gaps between two lines of the kernel's log up to init: what the kernel did in between took that long.
/// The log as a whole would take minutes over a serial port.
fn print_slowest() {
    let mut log = vec![0u8; 4 << 20];
    // SAFETY: the buffer is as long as said; 3 is SYSLOG_ACTION_READ_ALL.
    let length = unsafe { libc::klogctl(3, log.as_mut_ptr().cast(), log.len() as i32) };
    let text = String::from_utf8_lossy(&log[..usize::try_from(length).unwrap_or(0)]).into_owned();
    // `<6>[    0.912345] text`
    let lines: Vec<(f64, &str)> = text
        .lines()
        .filter_map(|line| {
            let (time, text) = line.split_once('[')?.1.split_once("] ")?;
            Some((time.trim().parse().ok()?, text))
        })
        .take_while(|(_, text)| !text.starts_with("Run /init"))
        .collect();
    let mut gaps: Vec<_> = lines.windows(2).map(|pair| (pair[1].0 - pair[0].0, pair[0].0, pair[0].1, pair[1].1)).collect();
    gaps.sort_by(|a, b| b.0.total_cmp(&a.0));
    let short = |text: &str| text.chars().take(70).collect::<String>();
    for (gap, at, before, after) in gaps.into_iter().take(GAPS) {
        println!("{LINE} gap {:.1} ms at {at:.3}: {} -> {}", gap * 1e3, short(before), short(after));
    }
}

fn monotonic_us() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid place for the kernel to write to.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as u64 * 1_000_000 + time.tv_nsec as u64 / 1000
}

/// Sends one byte at once. The serial driver has an idle port send it before the call returns; what one byte costs is the
/// same few exits on every monitor.
fn mark(byte: u8) {
    // Standard output holds back what is no line yet.
    // SAFETY: one byte from a valid place.
    unsafe { libc::write(1, (&raw const byte).cast(), 1) };
}
