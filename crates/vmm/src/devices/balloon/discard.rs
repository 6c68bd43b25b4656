//! Giving guest memory back to the host.

use std::io;

use vm_memory::bitmap::Bitmap;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap};
use vmm_sys_util::fallocate::{FallocateMode, fallocate};

use crate::virtio::GuestMemory;

/// Discards the whole host pages of `page_size` bytes (a power of two) that lie in `address..address + length`; they read as zero
/// afterwards and are marked dirty. What is not guest memory is left out. Returns how many bytes were discarded.
pub(crate) fn discard(memory: &GuestMemory, address: u64, length: u64, page_size: u64) -> io::Result<u64> {
    let end = address.saturating_add(length);
    let mut discarded = 0;
    for region in memory.iter() {
        let start = region.start_addr().raw_value();
        let (first, last) = (address.max(start), end.min(start + region.len()));
        if first < last {
            discarded += discard_in_region(region, first - start, last - start, page_size)?;
        }
    }
    Ok(discarded)
}

type Region = GuestRegionMmap<vm_memory::bitmap::AtomicBitmap>;

/// Discards what is whole in `first..last`, offsets into the region.
fn discard_in_region(region: &Region, first: u64, last: u64, page_size: u64) -> io::Result<u64> {
    // Pages are those of the file, where there is one: a region need not start on a huge page of it.
    let file_start = region.file_offset().map_or(0, |file| file.start());
    let first = (file_start + first).next_multiple_of(page_size) - file_start;
    let last = (file_start + last) & !(page_size - 1);
    let Some(length) = last.checked_sub(file_start + first).filter(|length| *length > 0) else { return Ok(0) };

    if let Some(file) = region.file_offset() {
        // Takes the pages away from the file and from every shared mapping of it.
        punch(file.file(), file_start + first, length)?;
    }
    if region.flags() & libc::MAP_PRIVATE != 0 {
        // A private mapping has copies of its own.
        advise(region, first, length, libc::MADV_DONTNEED)?;
    } else if region.file_offset().is_none() {
        advise(region, first, length, libc::MADV_REMOVE)?;
    }
    // After the change: a move that clears the mark and then reads the page must read the zeros, or find the mark again.
    region.bitmap().mark_dirty(first as usize, length as usize);
    Ok(length)
}

fn punch(file: &std::fs::File, offset: u64, length: u64) -> io::Result<()> {
    loop {
        match fallocate(file, FallocateMode::PunchHole, true, offset, length) {
            Ok(()) => return Ok(()),
            Err(error) if error.errno() == libc::EINTR => {}
            Err(error) => return Err(io::Error::from_raw_os_error(error.errno())),
        }
    }
}

fn advise(region: &Region, offset: u64, length: u64, advice: libc::c_int) -> io::Result<()> {
    let address = region.as_ptr().wrapping_add(offset as usize);
    // SAFETY: `offset..offset + length` was cut to the region, whose mapping lives as long as `region`. Its content is the guest's,
    // reached only through volatile accesses that expect it to change at any time, so no reference sees it become zero.
    if unsafe { libc::madvise(address.cast(), length as usize, advice) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
