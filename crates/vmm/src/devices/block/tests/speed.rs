//! How fast the device is, against the same reads without it: `cargo test --release -p maru-vmm -- --ignored --nocapture speed`.

use std::hint::spin_loop;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::time::{Duration, Instant};

use super::*;

const BYTES: u64 = 256 << 20;
const ROUND: Duration = Duration::from_millis(500);

fn sector(n: u64) -> u64 {
    n.wrapping_mul(0x9E37_79B9_7F4A_7C15) % (BYTES / 4096) * 8
}

/// Reads per second of `depth` 4 KiB reads at a time, by a driver that spins as a busy vCPU does.
fn through_the_device(machine: &mut Machine, depth: u64) -> f64 {
    let (start, mut started, mut ended) = (Instant::now(), 0u64, 0u64);
    while start.elapsed() < ROUND {
        while started < ended + depth {
            let slot = started % depth;
            let chain = [machine.header(slot, READ, sector(started)), writable(DATA + slot * 4096, 4096), machine.status(slot)];
            machine.harness.queues[0].push(&chain);
            started += 1;
        }
        machine.harness.queues[0].kick();
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
        file.read_exact_at(&mut memory[from..from + 4096], sector(count) * 512).unwrap();
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
