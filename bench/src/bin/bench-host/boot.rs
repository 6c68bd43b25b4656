//! One boot, measured.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use bench::console::Console;
use bench::protocol::{AT_DEVICES, AT_END, AT_INIT, Boot, BootOrder, LINE};

use crate::memory;
use crate::trace::Trace;

/// How long a boot may take.
const LIMIT: Duration = Duration::from_secs(60);

/// A monitor; killed when dropped.
struct Monitor(Child);

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Boots, measures, prints the result.
pub fn run(order: &BootOrder) -> anyhow::Result<()> {
    let (program, arguments) = order.argv.split_first().context("no command line")?;
    let trace = order.explain.then(Trace::start).transpose().context("tracing")?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped());
    let started_us = monotonic_us();
    let start = Instant::now();
    let mut monitor = Monitor(command.spawn().with_context(|| format!("starting {program}"))?);
    let pipe = monitor.0.stdout.take().context("no pipe")?;
    let mut console = Console::new(File::from(OwnedFd::from(pipe)));
    let deadline = start + LIMIT;

    let at_init = console.wait_for(AT_INIT, deadline)?;
    if let Some(trace) = &trace {
        trace.stop()?;
    }
    let at_devices = console.wait_for(AT_DEVICES, deadline)?;
    thread::sleep(Duration::from_millis(order.settle_ms));
    let memory = memory::own(monitor.0.id(), u64::from(order.memory_mib) << 20).context("reading the monitor's memory")?;
    let at_end = console.wait_for(AT_END, deadline)?;
    while console.more(deadline)? > 0 {}
    let status = monitor.0.wait()?;
    let ended = Instant::now();

    let ms = |to: Instant, from: Instant| (to - from).as_secs_f64() * 1e3;
    let text = console.text();
    let clock = text.lines().find_map(|line| line.split_once(&format!("{LINE} clock_us="))).map(|(_, clock)| clock.trim());
    let result = Boot {
        init_ms: ms(at_init, start),
        devices_ms: ms(at_devices, start),
        guest_clock_ms: clock.and_then(|clock| clock.parse::<f64>().ok()).unwrap_or(0.0) / 1e3,
        end_ms: ms(ended, at_end),
        cpu_ms: children_cpu_ms(),
        exit_code: status.code().or(status.signal().map(|signal| 128 + signal)).unwrap_or(-1),
        memory,
        console: text,
        phases: trace.map(|trace| trace.phases(started_us)).transpose().context("reading the trace")?,
    };
    println!("{}", serde_json::to_string(&result)?);
    Ok(())
}

/// The clock that KVM's trace is set to.
fn monotonic_us() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid place for the kernel to write to.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as f64 * 1e6 + time.tv_nsec as f64 / 1e3
}

/// Processor time of the monitor, which is the only child that was waited for.
fn children_cpu_ms() -> f64 {
    // SAFETY: an all-zero rusage is valid.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: `usage` is a valid place for the kernel to write to.
    unsafe { libc::getrusage(libc::RUSAGE_CHILDREN, &mut usage) };
    let ms = |time: libc::timeval| time.tv_sec as f64 * 1e3 + time.tv_usec as f64 / 1e3;
    ms(usage.ru_utime) + ms(usage.ru_stime)
}
