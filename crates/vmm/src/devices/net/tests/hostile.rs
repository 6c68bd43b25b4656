//! Drivers that write anything into the rings. Used by the socket device's tests too.

use std::time::{Duration, Instant};

use super::*;
use crate::virtio::VirtioDevice;
use crate::virtio::testing::DriverQueue;

/// A small generator (xorshift64*): a failing round is repeated by its seed.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// Fills the rings of `queue` with what `random` says, and rings the bell.
pub fn scramble(queue: &mut DriverQueue, random: &mut Random) {
    for index in 0..queue.size {
        let address = match random.below(8) {
            0 => random.next(),
            1 => queue.descriptors + random.below(0x1_0000),
            2 => (16 << 20) - random.below(64),
            3 => u64::MAX - random.below(64),
            _ => BUFFERS + random.below(8 << 20),
        };
        let length = match random.below(8) {
            0 => random.next() as u32,
            1 => 0,
            2 => u32::MAX,
            3 => 16 * random.below(300) as u32,
            _ => random.below(2048) as u32,
        };
        let flags = if random.below(16) == 0 { random.next() as u16 } else { random.below(8) as u16 };
        let next = if random.below(16) == 0 { random.next() as u16 } else { random.below(u64::from(queue.size)) as u16 };
        queue.write_descriptor(index, address, length, flags, next);
    }
    for _ in 0..random.below(u64::from(queue.size)) {
        let head = if random.below(200) == 0 { random.next() as u16 } else { random.below(u64::from(queue.size)) as u16 };
        queue.push_head(head);
    }
    if random.below(8) == 0 {
        queue.set_avail_index(random.next() as u16);
    }
    queue.kick();
}

/// Activates the device with scrambled queues again and again. `disturb` makes the other side talk meanwhile.
pub fn survives<D: VirtioDevice>(
    harness: &mut Harness<D>,
    features: u64,
    rounds: u64,
    queues: &[usize],
    mut disturb: impl FnMut(u64),
) {
    for seed in 0..rounds {
        let mut random = Random::new(seed);
        for (n, queue) in harness.queues.iter_mut().enumerate() {
            *queue = DriverQueue::new(&harness.memory, 0x10_0000 + n as u64 * 0x1_0000, queue.size);
            harness.memory.write_slice(&[0; 0x1_0000], GuestAddress(0x10_0000 + n as u64 * 0x1_0000)).unwrap();
        }
        // Half of the rounds find the rings scrambled at the start, the others while active.
        let (before, after) = if seed % 2 == 0 { (queues, &[][..]) } else { (&[][..], queues) };
        before.iter().for_each(|queue| scramble(&mut harness.queues[*queue], &mut random));
        harness.activate(features ^ (u64::from(seed % 4 < 2) << 29)).unwrap();
        after.iter().for_each(|queue| scramble(&mut harness.queues[*queue], &mut random));
        disturb(seed);
        if seed % 8 == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        let start = Instant::now();
        let count = harness.device.quiesce().len();
        assert!(start.elapsed() < Duration::from_secs(5), "seed {seed}: quiesce took {:?}", start.elapsed());
        assert_eq!(count, harness.queues.len(), "seed {seed}: a queue was lost, so a worker panicked");
        harness.device.reset();
    }
}

const ALL: u64 = MODERN | bits(&[CTRL_VQ, CTRL_RX, CTRL_MAC_ADDR, CTRL_GUEST_OFFLOADS, GUEST_ANNOUNCE, STATUS]) | GUEST_OFFLOADS;

fn scrambled(queues: &[usize], features: u64) {
    let Bench { mut harness, mut wires } = Bench::idle(1);
    survives(&mut harness, features, 3000, queues, |seed| {
        let _ = wires[0].write(&vec![seed as u8; 100 + seed as usize % 3000]);
        let mut frame = [0; 4096];
        while wires[0].read(&mut frame).is_ok() {}
    });
}

#[test]
fn scrambled_receive_queues_never_hurt() {
    scrambled(&[0], ALL);
    scrambled(&[0], ALL | 1 << MRG_RXBUF);
}

#[test]
fn scrambled_transmit_queues_never_hurt() {
    scrambled(&[1], ALL);
}

#[test]
fn scrambled_control_queues_never_hurt() {
    scrambled(&[2], ALL);
}

#[test]
fn all_queues_scrambled_at_once_never_hurt() {
    scrambled(&[0, 1, 2], ALL | 1 << MRG_RXBUF);
}

#[test]
fn an_avail_index_too_far_ahead_fails_the_device_instead_of_spinning() {
    let mut bench = Bench::active(MODERN);
    bench.harness.queues[1].set_avail_index(1000);
    bench.harness.queues[1].kick();
    assert!(bench.harness.interrupt.wait_failed().contains("queue pair 0"));
    assert_eq!(bench.harness.device.quiesce().len(), 3);
}
