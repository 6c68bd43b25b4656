use std::sync::atomic::Ordering;

use super::*;

#[test]
fn a_frame_leaves_in_pieces_as_the_driver_laid_it_out() {
    let mut bench = Bench::active(MODERN);
    let memory = bench.harness.memory.clone();
    memory.write_slice(&body(1, 300), GuestAddress(BUFFERS + 0x1000)).unwrap();
    let piece = |at, length| Buffer { address: BUFFERS + at, length, device_writes: false };
    let used = bench.harness.exchange(1, &[piece(0, 12), piece(0x1000, 100), piece(0x1064, 0), piece(0x1064, 200)]);
    assert_eq!(used.length, 0);
    assert_eq!(bench.leave(), body(1, 300));
}

#[test]
fn frames_wait_in_the_ring_while_the_host_is_full_and_none_is_lost() {
    let mut bench = Bench::active(MODERN);
    // More than a socket takes: each frame is accounted with its overhead.
    for n in 0..250u64 {
        bench.offer(n * 0x4000, &body(n as usize, 8000));
    }
    bench.harness.queues[1].kick();
    std::thread::sleep(std::time::Duration::from_millis(50));
    for n in 0..250 {
        assert_eq!(bench.leave(), body(n, 8000));
    }
    for _ in 0..250 {
        bench.harness.wait_used(1);
    }
    let handle = bench.harness.device.handle();
    bench.harness.interrupt.wait_until("not counted", || handle.counters().tx_packets.load(Ordering::Relaxed) == 250);
    assert_eq!(handle.counters().tx_drops.load(Ordering::Relaxed), 0);
}

#[test]
fn frames_that_make_no_sense_are_dropped_and_counted() {
    let mut bench = Bench::active(MODERN);
    let buffer = |address, length, device_writes| Buffer { address, length, device_writes };
    let bad =
        [buffer(BUFFERS, 5, false), buffer(BUFFERS, 100, true), buffer(1 << 40, 100, false), buffer(BUFFERS, 1 << 20, false)];
    for chain in bad {
        bench.harness.exchange(1, &[chain]);
    }
    bench.offer(0, &body(1, 60));
    bench.harness.queues[1].kick();
    assert_eq!(bench.leave(), body(1, 60));
    let handle = bench.harness.device.handle();
    bench.harness.interrupt.wait_until("not counted", || handle.counters().tx_packets.load(Ordering::Relaxed) == 1);
    assert_eq!(handle.counters().tx_drops.load(Ordering::Relaxed), 4);
}

#[test]
fn frames_sent_while_the_link_is_down_are_dropped() {
    let mut bench = Bench::active(MODERN | 1 << STATUS);
    bench.harness.device.handle().set_link(false);
    bench.offer(0, &body(1, 60));
    bench.harness.queues[1].kick();
    bench.harness.wait_used(1);
    bench.harness.device.handle().set_link(true);
    bench.offer(0x1000, &body(2, 60));
    bench.harness.queues[1].kick();
    assert_eq!(bench.leave(), body(2, 60));
}
