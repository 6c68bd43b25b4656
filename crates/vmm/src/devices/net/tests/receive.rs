use std::sync::atomic::Ordering;

use vm_memory::GuestMemoryBackend;
use vm_memory::bitmap::Bitmap;

use super::*;
use crate::virtio::VirtioDevice;

const MERGEABLE: u64 = MODERN | 1 << MRG_RXBUF;

#[test]
fn a_frame_reaches_the_guest_with_one_buffer_in_its_header() {
    for features in [MODERN, MERGEABLE] {
        let mut bench = Bench::active(features);
        bench.post(0, 1, 2048);
        bench.arrive(&body(1, 60));
        let used = bench.harness.wait_used(0);
        assert_eq!(bench.received(0, used), (1, body(1, 60)));
        let counters = bench.harness.device.handle();
        bench.harness.interrupt.wait_until("not counted", || counters.counters().rx_packets.load(Ordering::Relaxed) == 1);
        assert_eq!(counters.counters().rx_bytes.load(Ordering::Relaxed), 60);
    }
}

#[test]
fn frames_wait_on_the_host_while_the_guest_has_no_buffers() {
    let mut bench = Bench::active(MODERN);
    for n in 0..20 {
        bench.arrive(&body(n, 100 + n));
    }
    for n in 0..20 {
        bench.post(n, 1, 2048);
        let used = bench.harness.wait_used(0);
        assert_eq!(bench.received(n, used), (1, body(n as usize, 100 + n as usize)));
    }
}

#[test]
fn a_large_frame_is_spread_over_merged_buffers() {
    let mut bench = Bench::active(MERGEABLE | 1 << GUEST_TSO4);
    bench.post(0, 8, 1000);
    bench.arrive(&body(3, 4500));
    let mut data = Vec::new();
    for n in 0..5 {
        let used = bench.harness.wait_used(0);
        let mut part = vec![0; used.length as usize];
        bench.harness.memory.read_slice(&mut part, GuestAddress(BUFFERS + n * 0x1_0000)).unwrap();
        data.extend(part);
    }
    assert_eq!(u16::from_le_bytes([data[10], data[11]]), 5);
    assert_eq!(data[HEADER_BYTES..], body(3, 4500));
    assert!(bench.harness.queues[0].pop_used().is_none());
}

#[test]
fn a_frame_larger_than_all_buffers_waits_for_more_of_them() {
    let mut bench = Bench::active(MERGEABLE);
    bench.post(0, 2, 1000);
    bench.arrive(&body(4, 5000));
    bench.arrive(&body(5, 200));
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert!(bench.harness.queues[0].pop_used().is_none(), "half a frame must not be seen");
    bench.post(2, 5, 1000);
    let mut data = Vec::new();
    for n in 0..6 {
        let used = bench.harness.wait_used(0);
        let mut part = vec![0; used.length as usize];
        bench.harness.memory.read_slice(&mut part, GuestAddress(BUFFERS + n * 0x1_0000)).unwrap();
        data.extend(part);
    }
    assert_eq!(u16::from_le_bytes([data[10], data[11]]), 6);
    assert_eq!(data[HEADER_BYTES..], body(4, 5000));
    let used = bench.harness.wait_used(0);
    assert_eq!(bench.received(6, used), (1, body(5, 200)));
}

#[test]
fn a_frame_too_large_for_a_buffer_that_cannot_merge_is_dropped() {
    let mut bench = Bench::active(MODERN);
    bench.post(0, 2, 500);
    bench.arrive(&body(1, 1400));
    bench.arrive(&body(2, 100));
    let used = bench.harness.wait_used(0);
    assert_eq!(bench.received(0, used), (1, body(2, 100)));
    let handle = bench.harness.device.handle();
    bench.harness.interrupt.wait_until("not counted", || handle.counters().rx_drops.load(Ordering::Relaxed) == 1);
}

#[test]
fn pages_that_the_host_wrote_are_dirty() {
    let mut bench = Bench::active(MODERN);
    let memory = bench.harness.memory.clone();
    memory.iter().for_each(|region| region.bitmap().reset());
    bench.post(0, 1, 0x3000);
    bench.arrive(&body(1, 0x1800));
    bench.harness.wait_used(0);
    let region = memory.iter().next().unwrap();
    let dirty: Vec<bool> = (0..3).map(|page| region.bitmap().dirty_at(BUFFERS as usize + page * 0x1000)).collect();
    assert_eq!(dirty, [true, true, false]);
}

#[test]
fn buffers_that_make_no_sense_are_returned_empty() {
    let mut bench = Bench::active(MERGEABLE);
    let read_only = Buffer { address: BUFFERS, length: 2000, device_writes: false };
    let outside = Buffer { address: 1 << 40, length: 2000, device_writes: true };
    bench.harness.queues[0].push(&[read_only]);
    bench.harness.queues[0].push(&[outside]);
    bench.post(1, 1, 2000);
    assert_eq!(bench.harness.wait_used(0).length, 0);
    assert_eq!(bench.harness.wait_used(0).length, 0);
    bench.arrive(&body(9, 90));
    let used = bench.harness.wait_used(0);
    assert_eq!(bench.received(1, used), (1, body(9, 90)));
}

#[test]
fn frames_that_arrive_while_the_link_is_down_are_dropped() {
    let mut bench = Bench::active(MODERN | 1 << STATUS);
    let handle = bench.harness.device.handle();
    bench.post(0, 1, 2000);
    handle.set_link(false);
    assert_eq!(bench.harness.interrupt.config_changes(), 1);
    bench.arrive(&body(1, 100));
    bench.harness.interrupt.wait_until("not dropped", || handle.counters().rx_drops.load(Ordering::Relaxed) == 1);
    handle.set_link(true);
    bench.arrive(&body(2, 100));
    let used = bench.harness.wait_used(0);
    assert_eq!(bench.received(0, used), (1, body(2, 100)));
}

#[test]
fn a_host_side_that_goes_away_takes_the_link_down() {
    let mut bench = Bench::active(MODERN | 1 << STATUS);
    bench.post(0, 1, 2000);
    bench.wires.clear();
    let handle = bench.harness.device.handle();
    bench.harness.interrupt.wait_until("the link is up", || !handle.is_link_up());
    assert_eq!(bench.harness.device.quiesce().len(), 3);
}
