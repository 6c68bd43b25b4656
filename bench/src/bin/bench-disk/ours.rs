//! A load through our own engine, on one thread.

use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use disk::{Cache, Disk, Durability, Engine, Event, Format, OpenOptions};
use libc::iovec;

use crate::load::Load;

/// What a run took.
#[derive(Clone, Copy, Debug)]
pub struct Taken {
    pub time: Duration,
    /// Of this thread, user and system.
    pub processor: Duration,
}

/// Makes an empty disk.
pub fn create(path: &Path, bytes: u64, format: Format) -> anyhow::Result<()> {
    let file = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
    match format {
        Format::Raw => file.set_len(bytes)?,
        _ => vhdx::vhdx::create(&file, &vhdx::vhdx::CreateOptions::new(bytes))?,
    }
    Ok(())
}

/// Opens a disk around the page cache.
pub fn open(path: &Path, format: Format) -> anyhow::Result<Disk> {
    let options = OpenOptions { format, cache: Cache::Direct, ..OpenOptions::default() };
    Disk::open(path, options).with_context(|| path.display().to_string())
}

/// Does a load.
pub fn run(path: &Path, format: Format, load: &Load) -> anyhow::Result<Taken> {
    let disk = open(path, format)?;
    let mut engine = Engine::new(&disk, load.depth)?;
    let mut memory = Memory::new(usize::from(load.depth) * load.bytes as usize);
    let (mut next, mut offset) = (0, 0);
    let (start, processor) = (Instant::now(), processor_time());
    let mut is_flush = false;
    for tag in 0..load.depth.min(load.count as u16) {
        begin(&mut engine, &mut memory, load, tag, &mut offset, disk.capacity());
        next += 1;
    }
    while engine.in_flight() > 0 {
        engine.wait();
        while let Some(event) = engine.next() {
            let Event::Done { tag, result } = event else { continue };
            result?;
            // A write and a flush in turn, at depth 1.
            is_flush = load.is_flushed && !is_flush;
            if is_flush {
                engine.flush(tag);
            } else if next < load.count {
                begin(&mut engine, &mut memory, load, tag, &mut offset, disk.capacity());
                next += 1;
            }
        }
    }
    Ok(Taken { time: start.elapsed(), processor: processor_time() - processor })
}

fn begin(engine: &mut Engine, memory: &mut Memory, load: &Load, tag: u16, offset: &mut u64, capacity: u64) {
    let segment = [iovec { iov_base: memory.at(usize::from(tag) * load.bytes as usize), iov_len: load.bytes as usize }];
    let at = *offset;
    *offset = (*offset + load.stride) % capacity;
    // SAFETY: the memory is dropped after the engine has ended all requests, and each tag has a part of its own.
    let started = unsafe {
        match load.is_write {
            true => engine.write(tag, at, &segment, Durability::Volatile),
            false => engine.read(tag, at, &segment),
        }
    };
    started.expect("loads are inside the disk");
}

/// Page-aligned memory.
struct Memory(Vec<[u64; 512]>);

impl Memory {
    fn new(bytes: usize) -> Memory {
        // Not zeros: storage may treat them in its own way.
        Memory(vec![[0x5a5a_a5a5_1234_5678; 512]; bytes.div_ceil(4096) + 1])
    }

    fn at(&mut self, offset: usize) -> *mut libc::c_void {
        let start = self.0.as_mut_ptr().cast::<u8>();
        start.wrapping_add(start.align_offset(4096) + offset).cast()
    }
}

fn processor_time() -> Duration {
    // SAFETY: all zeros is a valid rusage, which the call fills.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_THREAD, &mut usage);
        usage
    };
    let duration = |time: libc::timeval| Duration::from_micros(time.tv_sec as u64 * 1_000_000 + time.tv_usec as u64);
    duration(usage.ru_utime) + duration(usage.ru_stime)
}
