//! How much may pass.

use std::num::NonZeroU64;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::*;
use crate::config::{NetLimits, RateConfig};

const FRAME: usize = 1000;

fn rate(per_second: u64) -> Option<RateConfig> {
    Some(RateConfig { per_second: NonZeroU64::new(per_second).unwrap(), burst: None })
}

/// What the limit promises for a time: the rate, what may be caught up on, a frame, and the one that is counted when it has passed.
fn most(per_second: u64, time: Duration) -> u64 {
    (per_second as f64 * (time + disk::limits::SLACK).as_secs_f64()) as u64 + 2 * FRAME as u64
}

#[test]
fn what_the_guest_sends_leaves_at_the_rate_and_all_of_it_does() {
    let mut bench = Bench::active(MODERN);
    let handle = bench.harness.device.handle();
    handle.set_limits(NetLimits { transmit: rate(200_000), receive: None });
    let start = Instant::now();
    for n in 0..100u64 {
        bench.offer(n * 0x4000, &body(n as usize, FRAME));
    }
    bench.harness.queues[1].kick();
    for n in 0..100 {
        assert_eq!(bench.leave(), body(n, FRAME));
        let (passed, allowed) = ((n as u64 + 1) * FRAME as u64, most(200_000, start.elapsed()));
        assert!(passed <= allowed, "{passed} bytes after {:?}", start.elapsed());
    }
    // Half a second's worth, and no more than a busy machine makes of it.
    assert!(start.elapsed() >= Duration::from_millis(480), "{:?}", start.elapsed());
}

#[test]
fn what_the_host_sends_waits_there_and_comes_at_the_rate() {
    let mut bench = Bench::active(MODERN);
    let handle = bench.harness.device.handle();
    handle.set_limits(NetLimits { receive: rate(200_000), transmit: None });
    bench.post(0, 64, 2048);
    let start = Instant::now();
    for n in 0..50 {
        bench.arrive(&body(n, FRAME));
    }
    for n in 0..50 {
        let used = bench.harness.wait_used(0);
        assert_eq!(bench.received(n, used).1, body(n as usize, FRAME));
        assert!((n + 1) * FRAME as u64 <= most(200_000, start.elapsed()));
    }
    assert!(start.elapsed() >= Duration::from_millis(230), "{:?}", start.elapsed());
    assert_eq!(handle.counters().rx_drops.load(Ordering::Relaxed), 0);
}

#[test]
fn a_limit_that_is_taken_away_lets_what_waits_pass_at_once() {
    let mut bench = Bench::active(MODERN);
    let handle = bench.harness.device.handle();
    // The second frame would take a quarter of an hour.
    handle.set_limits(NetLimits { transmit: rate(1), receive: rate(1) });
    bench.post(0, 4, 2048);
    for n in 0..2u64 {
        bench.arrive(&body(n as usize, FRAME));
        bench.offer(n * 0x4000, &body(n as usize, FRAME));
    }
    bench.harness.queues[1].kick();
    assert_eq!(bench.leave(), body(0, FRAME));
    bench.harness.wait_used(0);
    handle.set_limits(NetLimits::default());
    assert_eq!(bench.leave(), body(1, FRAME));
    bench.harness.wait_used(0);
}
