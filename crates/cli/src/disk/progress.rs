//! A progress bar for what takes a while, and Ctrl-C that ends it in order.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use disk::tool::{Job, ToolError};
use indicatif::ProgressBar;

use crate::output::new_bar;
use crate::terminal::StopSignals;

/// What is over sooner shows no progress.
const QUIET_TIME: Duration = Duration::from_millis(500);
/// How often the bar moves.
const TICK_MS: i32 = 100;

/// Does `work` while a thread shows how far it is. A signal that asks the process to end cancels it; a second one ends the process.
pub fn with_progress<T>(work: impl FnOnce(&Job) -> Result<T, ToolError>) -> anyhow::Result<T> {
    let job = Job::default();
    let signals = StopSignals::take()?;
    let over = AtomicBool::new(false);
    let result = std::thread::scope(|scope| {
        scope.spawn(|| watch(&job, &signals, &over));
        let result = work(&job);
        over.store(true, Relaxed);
        result
    });
    Ok(result?)
}

fn watch(job: &Job, signals: &StopSignals, over: &AtomicBool) {
    let start = Instant::now();
    let mut bar: Option<ProgressBar> = None;
    let mut cancelled = false;
    while !over.load(Relaxed) {
        let mut poll = libc::pollfd { fd: signals.as_fd().as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid pollfd.
        unsafe { libc::poll(&mut poll, 1, if start.elapsed() < QUIET_TIME { 5 } else { TICK_MS }) };
        if let Some(signal) = signals.next() {
            if cancelled {
                std::process::exit(128 + signal);
            }
            cancelled = true;
            job.cancel();
        }
        let (done, total) = job.progress();
        if total > 0 && start.elapsed() >= QUIET_TIME {
            let bar = bar.get_or_insert_with(|| new_bar(total));
            bar.set_length(total);
            bar.set_position(done);
        }
    }
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
}
