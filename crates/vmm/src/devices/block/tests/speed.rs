//! How fast the device is, against the same reads without it: `cargo test --release -p maru-vmm -- --ignored --nocapture speed`.

use std::hint::spin_loop;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::*;

const BYTES: u64 = 256 << 20;
const ROUND: Duration = Duration::from_millis(500);

fn sector(n: u64, bytes: u64) -> u64 {
    n.wrapping_mul(0x9E37_79B9_7F4A_7C15) % (bytes / 4096) * 8
}

/// Kicks when the device wants to know of requests after `before`, up to `started` (virtio 1.2 §2.7.10).
fn kick_if_wanted(machine: &Machine, before: u64, started: u64) {
    let queue = &machine.harness.queues[0];
    std::sync::atomic::fence(Ordering::SeqCst);
    let event: u16 = queue.memory.load(GuestAddress(queue.used + 4 + 8 * u64::from(queue.size)), Ordering::Relaxed).unwrap();
    let new: u16 = queue.memory.load(GuestAddress(queue.avail + 2), Ordering::Relaxed).unwrap();
    let old = new.wrapping_sub((started - before) as u16);
    if new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old) {
        queue.kick();
    }
}

/// Reads per second of `depth` 4 KiB reads at a time, by a driver that spins as a busy vCPU does.
fn through_the_device(machine: &mut Machine, depth: u64) -> f64 {
    let bytes = machine.harness.device.disk().capacity();
    let (start, mut started, mut ended) = (Instant::now(), 0u64, 0u64);
    while start.elapsed() < ROUND {
        let before = started;
        while started < ended + depth {
            let slot = started % depth;
            let chain =
                [machine.header(slot, READ, sector(started, bytes)), writable(DATA + slot * 4096, 4096), machine.status(slot)];
            machine.harness.queues[0].push(&chain);
            started += 1;
        }
        kick_if_wanted(machine, before, started);
        while machine.harness.queues[0].pop_used().is_none() {
            spin_loop();
        }
        ended += 1;
        while machine.harness.queues[0].pop_used().is_some() {
            ended += 1;
        }
    }
    while ended < started {
        ended += u64::from(machine.harness.queues[0].pop_used().is_some());
    }
    ended as f64 / start.elapsed().as_secs_f64()
}

fn by_pread(path: &std::path::Path, flags: i32) -> f64 {
    let file = File::options().read(true).custom_flags(flags).open(path).unwrap();
    let mut memory = vec![0u8; 8192];
    let from = memory.as_ptr().align_offset(4096);
    let (start, mut count) = (Instant::now(), 0u64);
    while start.elapsed() < ROUND {
        file.read_exact_at(&mut memory[from..from + 4096], sector(count, BYTES) * 512).unwrap();
        count += 1;
    }
    count as f64 / start.elapsed().as_secs_f64()
}

#[test]
#[ignore = "a measurement"]
fn speed_of_small_reads() {
    for (cache, flags) in [(Cache::Host, 0), (Cache::Direct, libc::O_DIRECT)] {
        let mut machine = Machine::new(Options { bytes: BYTES, cache, ..Options::default() });
        let path = machine.directory.path().join("disk.raw");
        File::open(&path).unwrap().sync_all().unwrap();
        for round in 0..5 {
            let pread = by_pread(&path, flags);
            let one = through_the_device(&mut machine, 1);
            let many = through_the_device(&mut machine, 32);
            println!("{cache:?} round {round}: pread {pread:.0}/s, device depth 1 {one:.0}/s, depth 32 {many:.0}/s");
        }
        println!("{:?}", machine.harness.device.counters().read());
    }
}

/// Memory of this process in KiB: what is resident, without the guest's own.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
#[ignore = "a measurement"]
fn speed_is_not_bought_with_memory() {
    let mut machine = Machine::new(Options::default());
    // The guest's pages and the allocator's first ones are not the device's.
    machine.harness.memory.write_slice(&vec![1; 8 << 20], GuestAddress(DATA)).unwrap();
    through_the_device(&mut machine, 32);
    let queues = machine.harness.device.quiesce();
    let before = resident();
    machine.harness.activate_with(VERSION_1 | FLUSH | EVENT_IDX, queues).unwrap();
    for _ in 0..8 {
        assert_eq!(machine.request(READ, 0, &[writable(DATA, 4096)]), OK);
    }
    println!("an active queue of 256 takes {} KiB", resident() - before);
}
