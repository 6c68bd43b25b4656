//! How near the two cores are.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use crate::{LOAD_CORE, SWITCH_CORE};

const TURNS: u32 = 200_000;

/// Binds this thread to a core.
pub fn pin(core: usize) {
    // SAFETY: all zeroes are an empty set; the set is valid for the call.
    let result = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(core, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set)
    };
    assert_eq!(result, 0, "core {core}: {}", std::io::Error::last_os_error());
}

/// Nanoseconds for a cache line to go from one core to the other and back.
pub fn nanoseconds() -> f64 {
    let turn = AtomicU32::new(0);
    let wait = |value| {
        while turn.load(Ordering::Acquire) != value {
            std::hint::spin_loop();
        }
    };
    let time = std::thread::scope(|scope| {
        scope.spawn(|| {
            pin(SWITCH_CORE);
            for number in 0..TURNS {
                wait(2 * number + 1);
                turn.store(2 * number + 2, Ordering::Release);
            }
        });
        let other = scope.spawn(|| {
            pin(LOAD_CORE);
            let start = Instant::now();
            for number in 0..TURNS {
                turn.store(2 * number + 1, Ordering::Release);
                wait(2 * number + 2);
            }
            start.elapsed()
        });
        other.join().expect("the other core")
    });
    time.as_nanos() as f64 / f64::from(TURNS)
}
