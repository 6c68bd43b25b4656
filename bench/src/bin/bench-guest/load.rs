//! A load on a disk: so many requests under way at any time, each replaced when it ends.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use bench::protocol::{Load, LoadResult};
use io_uring::{IoUring, opcode, types};

/// What O_DIRECT asks of buffers.
const ALIGNMENT: usize = 4096;

/// Runs it.
pub fn run(path: &str, load: &Load) -> io::Result<LoadResult> {
    let mut disk = File::options().read(true).write(load.write).custom_flags(libc::O_DIRECT).open(path)?;
    let blocks = disk.seek(SeekFrom::End(0))? / u64::from(load.block_bytes);
    if blocks == 0 || load.depth == 0 {
        return Err(io::Error::other("the disk is smaller than a block, or the depth is 0"));
    }
    let mut generator = Generator(0x9e37_79b9_7f4a_7c15 ^ monotonic_seed());
    let size = load.block_bytes as usize;
    // Not zeros, which layers below might handle in a way of their own.
    let mut memory: Vec<u8> = (0..size * load.depth as usize + ALIGNMENT).map(|n| (n >> 3) as u8 ^ n as u8 | 1).collect();
    let aligned = memory.as_ptr().align_offset(ALIGNMENT);
    let buffers = memory[aligned..].as_mut_ptr();

    let mut ring = IoUring::new(load.depth.next_power_of_two())?;
    let file = types::Fd(disk.as_raw_fd());
    let start = Instant::now();
    let warm = start + Duration::from_millis(load.warm_ms);
    let end = warm + Duration::from_millis(load.run_ms);
    let mut issued = vec![start; load.depth as usize];
    let mut latencies = Vec::with_capacity(1 << 16);
    // A sequential load starts at a place of its own, so that a cache below does not know it from the one before.
    let mut position = generator.below(blocks);
    let mut free: Vec<usize> = (0..issued.len()).collect();
    let mut last = start;
    let mut requests = 0;
    loop {
        let stop = last >= end;
        if stop && free.len() == issued.len() {
            break;
        }
        while !stop && let Some(slot) = free.pop() {
            position = if load.random { generator.below(blocks) } else { (position + 1) % blocks };
            let offset = position * u64::from(load.block_bytes);
            // SAFETY: slots are below the depth, for which the buffer has room behind its aligned start.
            let buffer = unsafe { buffers.add(slot * size) };
            let entry = if load.write {
                opcode::Write::new(file, buffer, load.block_bytes).offset(offset).build()
            } else {
                opcode::Read::new(file, buffer, load.block_bytes).offset(offset).build()
            };
            issued[slot] = Instant::now();
            // SAFETY: buffer and file outlive the request: this function only returns early with an error, after which the
            // ring is closed, and otherwise when no request is under way.
            unsafe { ring.submission().push(&entry.user_data(slot as u64)) }.map_err(io::Error::other)?;
        }
        ring.submit_and_wait(1)?;
        last = Instant::now();
        for completion in ring.completion() {
            let slot = completion.user_data() as usize;
            free.push(slot);
            if completion.result() != load.block_bytes as i32 {
                return Err(io::Error::other(format!("a request ended with {}", completion.result())));
            }
            if last >= warm && last < end {
                requests += 1;
                latencies.push((last - issued[slot]).as_nanos() as u64);
            }
        }
    }
    drop(ring);
    drop(memory);
    latencies.sort_unstable();
    let quantile =
        |part: f64| latencies.get(((latencies.len() as f64 * part) as usize).min(latencies.len().wrapping_sub(1))).copied();
    Ok(LoadResult {
        requests,
        elapsed_ns: (end - warm).as_nanos() as u64,
        median_ns: quantile(0.5).unwrap_or(0),
        p99_ns: quantile(0.99).unwrap_or(0),
    })
}

fn monotonic_seed() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(1, |time| time.as_nanos() as u64)
}

/// xorshift64*: cheap, and random enough for a disk.
struct Generator(u64);

impl Generator {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let product = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d);
        ((u128::from(product) * u128::from(limit)) >> 64) as u64
    }
}
