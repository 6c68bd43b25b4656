//! A driver that means harm: whatever it puts in its rings, the device answers or fails, stops when told to, and touches nothing
//! that it was not given.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::*;
use crate::virtio::testing::DriverQueue;

/// Small and repeatable (xorshift).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }
}

const MEMORY: u64 = 16 << 20;
/// Never given to the device to write.
const PRECIOUS: u64 = 12 << 20;
/// Indirect tables.
const TABLES: u64 = 5 << 20;
const ALL: u64 = VERSION_1 | FLUSH | EVENT_IDX | CONFIG_WCE;

/// Writes one descriptor that may be anything, except writable in the precious part.
fn write_descriptor(machine: &Machine, random: &mut Random, at: u64, entries: u64) {
    let mut flags = random.pick(&[0u16, 1, 1, 1, 2, 2, 3, 3, 4, 5, 6, 7, 0xFFFF]);
    if random.below(3) == 0 {
        flags |= 1;
    }
    let address = match random.below(10) {
        0 => random.next(),
        1 => u64::MAX - random.below(64),
        2 => MEMORY - random.below(1024),
        3 => MEMORY + random.below(1 << 30),
        _ if flags & 4 != 0 => TABLES + random.below(64) * 16,
        _ if flags & 2 != 0 => DATA + random.below(PRECIOUS - DATA - (1 << 20)),
        4 => PRECIOUS + random.below(1 << 20),
        _ => HEADERS + random.below(32) * 64,
    };
    let length = match random.below(10) {
        0 => random.next() as u32,
        1 => 0,
        2 => u32::MAX - random.below(32) as u32,
        3 | 4 => (random.below(64) * 512) as u32,
        5 => 1,
        6 => (random.below(20) * 16) as u32,
        _ => 16,
    };
    // A length must not carry a writable buffer from the allowed part into the precious one.
    let length = if flags & 2 != 0 && address < PRECIOUS && address.saturating_add(u64::from(length)) > PRECIOUS {
        (PRECIOUS - address) as u32
    } else {
        length
    };
    let flags = if flags & 2 != 0 && (PRECIOUS..MEMORY).contains(&address) { flags & !2 } else { flags };
    let next = if random.below(10) == 0 { random.next() as u16 } else { random.below(entries) as u16 };
    let memory = &machine.harness.memory;
    memory.write_obj(address, GuestAddress(at)).unwrap();
    memory.write_obj(length, GuestAddress(at + 8)).unwrap();
    memory.write_obj(flags, GuestAddress(at + 12)).unwrap();
    memory.write_obj(next, GuestAddress(at + 14)).unwrap();
}

fn write_headers(machine: &Machine, random: &mut Random) {
    for slot in 0..32 {
        let kind = random.pick(&[READ, WRITE, FLUSH_REQUEST, GET_ID, DISCARD, WRITE_ZEROES, 2, 99]);
        let sector = random.pick(&[0, 1, 2047, 2048, u64::MAX, u64::MAX / 512, 1 << 40, 7]);
        machine.header(slot, kind, sector);
    }
}

/// A fresh start after the device was reset, as a driver does it.
fn restart(machine: &mut Machine) {
    machine.harness.device.reset();
    machine.harness.interrupt = Default::default();
    for index in 0..machine.harness.queues.len() {
        let queue = DriverQueue::new(&machine.harness.memory, 0x10_0000 + index as u64 * 0x1_0000, 64);
        machine.harness.memory.write_slice(&[0; 0x1_0000], GuestAddress(queue.descriptors)).unwrap();
        machine.harness.queues[index] = queue;
    }
    machine.harness.activate(ALL).unwrap();
}

fn quiesce_in_time(machine: &mut Machine, what: &str) {
    let start = Instant::now();
    assert_eq!(machine.harness.device.quiesce().len(), machine.harness.queues.len(), "a thread died: {what}");
    assert!(start.elapsed() < Duration::from_secs(5), "quiesce took {:?}: {what}", start.elapsed());
}

#[test]
fn random_rings_neither_kill_nor_hang_the_device_nor_reach_other_memory() {
    let mut machine = Machine::new(Options { features: ALL, ..Options::default() });
    let precious: Vec<u8> = (0..MEMORY - PRECIOUS).map(|n| (n % 249) as u8).collect();
    machine.harness.memory.write_slice(&precious, GuestAddress(PRECIOUS)).unwrap();
    let (mut failed, mut answered) = (0, 0);
    machine.harness.device.quiesce();
    for seed in 1..=3000u64 {
        restart(&mut machine);
        let random = &mut Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        write_headers(&machine, random);
        for entry in 0..64 {
            let at = machine.harness.queues[0].descriptors + 16 * entry;
            write_descriptor(&machine, random, at, 64);
            write_descriptor(&machine, random, TABLES + 16 * entry, 16);
        }
        for _ in 0..1 + random.below(20) {
            let head = if random.below(20) == 0 { random.next() as u16 } else { random.below(64) as u16 };
            machine.harness.queues[0].push_head(head);
        }
        if random.below(10) == 0 {
            machine.harness.queues[0].set_avail_index(random.next() as u16);
        }
        machine.harness.queues[0].kick();
        quiesce_in_time(&mut machine, &format!("seed {seed}"));
        failed += u32::from(machine.harness.interrupt.failed().is_some());
        answered += u32::from(machine.harness.queues[0].pop_used().is_some());
    }
    let mut now = vec![0; precious.len()];
    machine.harness.memory.read_slice(&mut now, GuestAddress(PRECIOUS)).unwrap();
    assert!(now == precious, "memory was written that no descriptor allowed");
    assert!(failed > 100 && answered > 100, "the test tests little: {failed} failed, {answered} answered");
    // And it still works.
    restart(&mut machine);
    assert_eq!(machine.request(FLUSH_REQUEST, 0, &[]), OK);
}

#[test]
fn rings_that_change_while_they_are_read_do_no_harm() {
    let mut machine = Machine::new(Options { features: ALL, queues: 2, ..Options::default() });
    machine.harness.device.quiesce();
    for seed in 1..=60u64 {
        restart(&mut machine);
        let memory = machine.harness.memory.clone();
        let kicks: Vec<_> = machine.harness.queues.iter().map(|queue| queue.kick.try_clone().unwrap()).collect();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let random = &mut Random(seed);
                while !done.load(Ordering::Relaxed) {
                    // Descriptors, rings, tables and headers alike, all of both queues.
                    let at = random.pick(&[0x10_0000, 0x10_5000, 0x11_0000, 0x11_5000, TABLES, HEADERS]) + random.below(128) * 8;
                    memory.write_obj(random.next() & random.next() & 0xFFFF_00FF_FFFF, GuestAddress(at)).unwrap();
                    kicks.iter().for_each(|kick| kick.write(1).unwrap());
                }
            });
            std::thread::sleep(Duration::from_millis(5));
            quiesce_in_time(&mut machine, &format!("race with seed {seed}"));
            done.store(true, Ordering::Relaxed);
        });
    }
}

#[test]
fn a_driver_that_never_stops_asking_cannot_delay_a_pause() {
    let mut machine = Machine::new(Options { features: ALL, ..Options::default() });
    // Unknown requests are answered at once, without the disk: the ring never runs empty.
    machine.header(0, 99, 0);
    let status = machine.status(0);
    let mut driver = DriverQueue::new(&machine.harness.memory, 0x10_0000, 256);
    driver.write_descriptor(0, HEADERS, 16, 1, 1);
    driver.write_descriptor(1, status.address, 1, 2, 0);
    // Every entry of the ring is that request; making more available is one store, which no device can outrun.
    (0..256).for_each(|_| driver.push_head(0));
    let (memory, kick) = (driver.memory.clone(), machine.harness.queues[0].kick.try_clone().unwrap());
    let (available, used) = (GuestAddress(driver.avail + 2), GuestAddress(driver.used + 2));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut before = 0;
            while !done.load(Ordering::Relaxed) {
                let answered: u16 = memory.load(used, Ordering::Acquire).unwrap();
                memory.store(answered.wrapping_add(200), available, Ordering::Release).unwrap();
                // It went to sleep while this thread did not run.
                if std::mem::replace(&mut before, answered) == answered {
                    kick.write(1).unwrap();
                }
            }
        });
        std::thread::sleep(Duration::from_millis(100));
        quiesce_in_time(&mut machine, "while the driver keeps asking");
        done.store(true, Ordering::Relaxed);
    });
    assert!(machine.harness.device.counters().read().errors > 1000);
    assert_eq!(machine.harness.interrupt.failed(), None);
}

fn fails_with(prepare: impl FnOnce(&mut Machine), reason: &str) {
    let mut machine = Machine::new(Options { features: ALL, ..Options::default() });
    prepare(&mut machine);
    machine.harness.queues[0].kick();
    let said = machine.harness.interrupt.wait_failed();
    assert!(said.contains(reason), "{said}");
    quiesce_in_time(&mut machine, reason);
}

#[test]
fn a_chain_without_a_status_byte_fails_the_device() {
    fails_with(
        |machine| {
            let header = machine.header(0, READ, 0);
            machine.harness.queues[0].push(&[header]);
        },
        "without a place for its status",
    );
    fails_with(
        |machine| {
            let header = machine.header(0, READ, 0);
            machine.harness.queues[0].push(&[header, writable(1 << 50, 1)]);
        },
        "without a place for its status",
    );
}

#[test]
fn chains_and_rings_that_lead_nowhere_fail_the_device() {
    let descriptor = |flags, next, address, length| {
        move |machine: &mut Machine| {
            machine.harness.queues[0].write_descriptor(0, address, length, flags, next);
            machine.harness.queues[0].push_head(0);
        }
    };
    fails_with(descriptor(1, 0, HEADERS, 16), "loop");
    fails_with(descriptor(1, 999, HEADERS, 16), "past the end of its table");
    fails_with(descriptor(4, 0, 1 << 50, 64), "not in guest memory");
    fails_with(descriptor(4, 0, u64::MAX - 3, 64), "table");
    fails_with(descriptor(4, 0, TABLES, 15), "an indirect table of 15 bytes");
    fails_with(descriptor(4, 0, TABLES, 0), "an indirect table of 0 bytes");
    fails_with(descriptor(5, 0, TABLES, 16), "indirect");
    fails_with(
        |machine| {
            machine.harness.queues[0].write_descriptor(0, 0x10_0000, 64, 4, 0);
            machine.harness.queues[0].push_head(0);
        },
        "indirect",
    );
    fails_with(|machine| machine.harness.queues[0].push_head(9999), "past the end of its table");
    fails_with(|machine| machine.harness.queues[0].set_avail_index(5000), "new entries in an avail ring");
}
