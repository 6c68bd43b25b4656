//! Guest memory in a saved VM: runs of pages that are not zero, each with its guest address in front.

use std::io::Write;
use std::os::fd::{AsRawFd, RawFd};

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::{StateError, Writer};
use crate::memory::Memory;
use crate::memory::layout::PAGE;

/// Kind of the sections with memory in them.
pub const KIND: &str = "memory";
/// Version of their content.
pub const VERSION: u32 = 1;
/// The longest run in one section.
const CHUNK: u64 = 1 << 20;

/// Writes all pages that are not zero. `progress` is told bytes looked at, and bytes in all.
///
/// Nobody may change memory meanwhile: vCPUs and devices are paused.
pub fn save_memory<W: Write>(
    memory: &Memory,
    writer: &mut Writer<W>,
    mut progress: impl FnMut(u64, u64),
) -> Result<(), StateError> {
    let total: u64 = memory.guest.iter().map(|region| region.len()).sum();
    let mut seen = 0;
    for region in memory.guest.iter() {
        let base = region.start_addr().0;
        let data = match region.file_offset() {
            Some(file) => allocated(file.file().as_raw_fd(), file.start(), region.len()),
            None => vec![(0, region.len())],
        };
        for (start, end) in data {
            let mut at = start;
            while at < end {
                let length = CHUNK.min(end - at);
                // SAFETY: the region is mapped for its whole length, `at + length` lies within it, and nobody writes it while the VM is paused;
                // the slice does not outlive this iteration.
                let bytes = unsafe { std::slice::from_raw_parts(region.as_ptr().add(at as usize), length as usize) };
                write_runs(writer, base + at, bytes)?;
                at += length;
                progress(seen + at, total);
            }
        }
        seen += region.len();
        progress(seen, total);
    }
    Ok(())
}

/// Writes the runs of pages that are not zero.
fn write_runs<W: Write>(writer: &mut Writer<W>, base: u64, bytes: &[u8]) -> Result<(), StateError> {
    let mut run_start = None;
    let pages = bytes.chunks(PAGE as usize);
    let count = pages.len();
    for (index, page) in pages.enumerate() {
        let zero = is_zero(page);
        match (zero, run_start) {
            (false, None) => run_start = Some(index),
            (true, Some(start)) => {
                write_run(writer, base, bytes, start, index)?;
                run_start = None;
            }
            _ => {}
        }
    }
    match run_start {
        Some(start) => write_run(writer, base, bytes, start, count),
        None => Ok(()),
    }
}

fn write_run<W: Write>(writer: &mut Writer<W>, base: u64, bytes: &[u8], start: usize, end: usize) -> Result<(), StateError> {
    let (from, to) = (start * PAGE as usize, (end * PAGE as usize).min(bytes.len()));
    writer.parts(KIND, VERSION, &[&(base + from as u64).to_le_bytes(), &bytes[from..to]])
}

fn is_zero(page: &[u8]) -> bool {
    // SAFETY: any bytes are valid u64s; `align_to` only splits where the alignment allows it.
    let (head, words, tail) = unsafe { page.align_to::<u64>() };
    words.iter().all(|word| *word == 0) && head.iter().chain(tail).all(|byte| *byte == 0)
}

/// Ranges of the file (relative to `start`) that hold data: reading a hole of a memfd would fill it with pages.
fn allocated(fd: RawFd, start: u64, length: u64) -> Vec<(u64, u64)> {
    let seek = |offset: u64, whence: i32| {
        // SAFETY: lseek on an open descriptor; guest memory is never read through the file position.
        let position = unsafe { libc::lseek(fd, offset as libc::off_t, whence) };
        u64::try_from(position).ok()
    };
    let end = start + length;
    let mut ranges = Vec::new();
    let mut at = start;
    while at < end {
        // No more data: ENXIO.
        let Some(data) = seek(at, libc::SEEK_DATA).filter(|data| *data < end) else { break };
        let hole = seek(data, libc::SEEK_HOLE).unwrap_or(end).min(end);
        ranges.push((data - start, hole - start));
        at = hole;
    }
    ranges
}

/// Puts one section's content where it belongs.
pub fn load_memory_chunk(memory: &Memory, payload: &[u8]) -> Result<(), StateError> {
    let malformed = |reason: &str| StateError::malformed(KIND, reason);
    let (address, bytes) = payload.split_first_chunk::<8>().ok_or_else(|| malformed("too short"))?;
    let address = GuestAddress(u64::from_le_bytes(*address));
    if !memory.guest.check_range(address, bytes.len()) {
        return Err(malformed("it holds memory that this VM does not have"));
    }
    memory.guest.write_slice(bytes, address).map_err(|e| StateError::malformed(KIND, e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MemoryConfig;
    use crate::state::Reader;

    fn memory() -> Memory {
        Memory::new(&MemoryConfig { size: 64 << 20, hotplug_size: 0, huge_pages: false }).unwrap()
    }

    #[test]
    fn memory_comes_back_and_zero_pages_cost_nothing() {
        let source = memory();
        let write = |address: u64, value: u8| source.guest.write_slice(&[value; 5000], GuestAddress(address)).unwrap();
        for (address, value) in [(0, 1), (4096 * 3, 2), ((1 << 20) - 100, 3), ((64 << 20) - 5000, 4), (32 << 20, 0)] {
            write(address, value);
        }
        let mut writer = Writer::new(Vec::new()).unwrap();
        let mut last = (0, 0);
        save_memory(&source, &mut writer, |done, total| last = (done, total)).unwrap();
        assert_eq!(last, (64 << 20, 64 << 20));
        let (bytes, _) = writer.finish().unwrap();
        assert!(bytes.len() < 12 * 4096, "{} bytes for 9 pages", bytes.len());

        let target = memory();
        let mut reader = Reader::new(bytes.as_slice()).unwrap();
        while let Some(section) = reader.next_section().unwrap() {
            load_memory_chunk(&target, &section.payload).unwrap();
        }
        let content = |memory: &Memory| {
            let mut bytes = vec![0; 64 << 20];
            memory.guest.read_slice(&mut bytes, GuestAddress(0)).unwrap();
            bytes
        };
        assert!(content(&source) == content(&target));
    }

    #[test]
    fn memory_outside_the_vm_is_refused() {
        let target = memory();
        for address in [(64u64 << 20) - 8, u64::MAX, 3 << 30] {
            let payload = [&address.to_le_bytes()[..], &[1; 16]].concat();
            assert!(matches!(load_memory_chunk(&target, &payload), Err(StateError::Malformed { .. })));
        }
        assert!(load_memory_chunk(&target, &[1; 7]).is_err());
    }
}
