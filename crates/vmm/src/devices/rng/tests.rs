use std::time::{Duration, Instant};

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::Rng;
use super::budget::{BURST_BYTES, BYTES_PER_SECOND, Budget};
use super::queue::REQUEST_BYTES;
use crate::devices::hostile;
use crate::virtio::testing::{Buffer, Harness};
use crate::virtio::{RestoreError, VirtioDevice};

const DATA: u64 = 4 << 20;

fn writable(address: u64, length: u32) -> Buffer {
    Buffer { address, length, device_writes: true }
}

fn active() -> Harness<Rng> {
    let mut harness = Harness::new(Rng::new());
    harness.activate(0).unwrap();
    harness
}

fn bytes(harness: &Harness<Rng>, address: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    harness.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
    bytes
}

#[test]
fn all_buffers_of_a_chain_are_filled_with_different_bytes() {
    let mut harness = active();
    let used = harness.exchange(0, &[writable(DATA, 100), writable(DATA + 0x1000, 28)]);
    assert_eq!(used.length, 128);
    let (first, second) = (bytes(&harness, DATA, 28), bytes(&harness, DATA + 0x1000, 28));
    assert_ne!(first, [0; 28]);
    assert_ne!(second, [0; 28]);
    assert_ne!(first, second);
    assert_eq!(bytes(&harness, DATA + 100, 100), [0; 100]);
}

#[test]
fn a_huge_request_gets_a_bounded_answer() {
    let mut harness = active();
    assert_eq!(harness.exchange(0, &[writable(DATA, 8 << 20)]).length as usize, REQUEST_BYTES);
}

#[test]
fn chains_without_room_are_answered_with_nothing() {
    let mut harness = active();
    assert_eq!(harness.exchange(0, &[Buffer { address: DATA, length: 16, device_writes: false }]).length, 0);
    assert_eq!(harness.exchange(0, &[writable(DATA, 0)]).length, 0);
    assert_eq!(harness.exchange(0, &[writable(64 << 20, 16)]).length, 0);
    assert_eq!(harness.exchange(0, &[writable(DATA, 16)]).length, 16);
    assert_eq!(harness.interrupt.failed(), None);
}

#[test]
fn a_guest_that_spins_is_slowed_down_but_served() {
    let mut harness = active();
    let start = Instant::now();
    let total = 4 * BURST_BYTES;
    let mut got = 0;
    while got < total {
        got += u64::from(harness.exchange(0, &[writable(DATA, REQUEST_BYTES as u32)]).length);
    }
    let least = Duration::from_secs_f64((total - BURST_BYTES) as f64 / BYTES_PER_SECOND as f64);
    assert!(start.elapsed() >= least / 2, "{:?}", start.elapsed());
}

#[test]
fn requests_survive_pause_and_resume() {
    let mut harness = active();
    for round in 0..200 {
        for _ in 0..8 {
            harness.queues[0].push(&[writable(DATA, 4096)]);
        }
        harness.queues[0].kick();
        if round % 2 == 0 {
            harness.pause_and_resume();
        }
        for _ in 0..8 {
            assert!(harness.wait_used(0).length > 0);
        }
    }
}

#[test]
fn requests_made_while_paused_are_served_on_resume_without_a_kick() {
    let mut harness = active();
    let queues = harness.device.quiesce();
    assert!(harness.device.quiesce().is_empty());
    harness.queues[0].push(&[writable(DATA, 16)]);
    harness.activate_with(0, queues).unwrap();
    assert_eq!(harness.wait_used(0).length, 16);
}

#[test]
fn the_state_makes_a_round_trip_and_garbage_is_refused() {
    let mut rng = Rng::new();
    let saved = rng.save();
    rng.restore(&saved).unwrap();
    assert!(matches!(rng.restore(&[0xff; 5]), Err(RestoreError::Malformed { .. })));
}

#[test]
fn a_ring_that_cannot_be_followed_fails_the_device() {
    hostile::impossible_ring(Harness::new(Rng::new()), 0, 0);
}

#[test]
fn the_budget_follows_the_clock() {
    let start = Instant::now();
    let mut budget = Budget::new(start);
    budget.take(u64::MAX);
    assert_eq!(budget.bytes(), 0);
    budget.fill(start + Duration::from_millis(10));
    assert_eq!(budget.bytes(), BYTES_PER_SECOND / 100);
    budget.fill(start);
    assert_eq!(budget.bytes(), BYTES_PER_SECOND / 100);
    budget.fill(start + Duration::from_secs(1000));
    assert_eq!(budget.bytes(), BURST_BYTES);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn hostile_chains_reach_nothing_but_buffers(rounds in hostile::rounds()) {
        hostile::attack(&mut Harness::new(Rng::new()), 0, &rounds);
    }
}
