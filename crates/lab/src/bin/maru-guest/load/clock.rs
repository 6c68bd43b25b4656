//! `CLOCK_MONOTONIC` never goes back, on whatever processor it is read.

use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use super::Progress;

const PAUSE: Duration = Duration::from_millis(1);

/// The monotonic clock. `Instant` would not do: it hides a clock that goes back.
pub fn monotonic() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Watches for ever.
pub fn run(progress: &Progress) {
    let mut last = monotonic();
    loop {
        let now = monotonic();
        match now.checked_sub(last) {
            Some(gap) => progress.gap_ms.fetch_max(gap.as_millis() as u64, Ordering::SeqCst),
            None => return progress.fail(format!("the monotonic clock went back from {last:?} to {now:?}")),
        };
        last = now;
        thread::sleep(PAUSE);
    }
}
