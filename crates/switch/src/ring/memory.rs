//! A VM's memory, as its front end shares it.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use super::bus_error::Guarded;

/// Bytes for each bit of the log, whatever the page size (`VHOST_LOG_PAGE`).
const LOG_PAGE: u64 = 4096;

/// Why memory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// No bytes, or an end beyond all addresses.
    #[error("a memory region of {length:#x} bytes at {guest:#x}")]
    Region {
        /// Guest address.
        guest: u64,
        /// Length.
        length: u64,
    },
    /// The file is shorter than the region.
    #[error("a memory region ends at byte {end:#x} of a file with {length:#x}")]
    Short {
        /// The region's end.
        end: u64,
        /// The file's length.
        length: u64,
    },
    /// More mappings than the switch can guard.
    #[error("too many memory regions of all ports together")]
    TooMany,
    /// The kernel refused.
    #[error("cannot map a memory region")]
    Map(#[from] io::Error),
}

/// A file that is mapped.
#[derive(Debug)]
struct Mapping {
    start: *mut u8,
    length: usize,
    _guard: Guarded,
}

impl Mapping {
    /// Maps the file up to `end`.
    fn new(file: &File, end: u64) -> Result<Mapping, MemoryError> {
        let length = file.metadata()?.len();
        if end > length {
            return Err(MemoryError::Short { end, length });
        }
        let length = usize::try_from(end).map_err(|_| MemoryError::Short { end, length })?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_NORESERVE;
        // SAFETY: a new mapping, anywhere; the result is checked.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), length, protection, flags, file.as_raw_fd(), 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error().into());
        }
        let start = start.cast::<u8>();
        match Guarded::new(start as usize, length) {
            Some(guard) => Ok(Mapping { start, length, _guard: guard }),
            None => {
                // SAFETY: it was just made, and nobody knows it.
                unsafe { libc::munmap(start.cast(), length) };
                Err(MemoryError::TooMany)
            }
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and who has pointers into it has the memory that owns it.
        unsafe { libc::munmap(self.start.cast(), self.length) };
    }
}

#[derive(Debug)]
struct Region {
    guest: u64,
    user: u64,
    length: u64,
    host: *mut u8,
    _mapping: Mapping,
}

/// Where a region is, for the front end and in its file.
#[derive(Clone, Copy, Debug)]
pub struct RegionPlace {
    /// Address in the guest.
    pub guest: u64,
    /// Address in the front end, in which it gives the rings' addresses.
    pub user: u64,
    /// Bytes.
    pub length: u64,
    /// Offset in the file.
    pub offset: u64,
}

/// A VM's memory.
#[derive(Debug)]
pub struct Memory {
    regions: Vec<Region>,
}

// SAFETY: the pointers are to shared mappings that live as long as the memory; all access goes through raw pointers and is of plain
// bytes, which other processes change at any time anyway.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// Maps regions.
    pub fn new(regions: impl IntoIterator<Item = (RegionPlace, File)>) -> Result<Memory, MemoryError> {
        let map = |(place, file): (RegionPlace, File)| {
            let RegionPlace { guest, user, length, offset } = place;
            let ends = [guest, user, offset].map(|start| start.checked_add(length));
            let [Some(_), Some(_), Some(end)] = ends else { return Err(MemoryError::Region { guest, length }) };
            if length == 0 {
                return Err(MemoryError::Region { guest, length });
            }
            let mapping = Mapping::new(&file, end)?;
            // SAFETY: the mapping reaches from 0 to `end`, and `offset` is less.
            let host = unsafe { mapping.start.add(offset as usize) };
            Ok(Region { guest, user, length, host, _mapping: mapping })
        };
        Ok(Memory { regions: regions.into_iter().map(map).collect::<Result<_, _>>()? })
    }

    /// `length` bytes at a guest address, if they all are in one region.
    #[inline]
    pub(super) fn at(&self, guest: u64, length: u64) -> Option<*mut u8> {
        self.regions.iter().find_map(|region| {
            let offset = guest.wrapping_sub(region.guest);
            // SAFETY: `offset` lies in the region, and so in the mapping.
            (offset < region.length && length <= region.length - offset).then(|| unsafe { region.host.add(offset as usize) })
        })
    }

    /// The guest address of an address in the front end.
    pub fn guest_address(&self, user: u64) -> Option<u64> {
        self.regions.iter().find_map(|region| {
            let offset = user.wrapping_sub(region.user);
            (offset < region.length).then(|| region.guest + offset)
        })
    }
}

/// The log of pages that were written, shared with the front end that moves the VM.
#[derive(Debug)]
pub struct DirtyLog {
    bits: *mut u8,
    length: u64,
    _mapping: Mapping,
}

// SAFETY: as of `Memory`; the bits are only changed atomically.
unsafe impl Send for DirtyLog {}
// SAFETY: as above.
unsafe impl Sync for DirtyLog {}

impl DirtyLog {
    /// Maps a log of `length` bytes.
    pub fn new(file: &File, offset: u64, length: u64) -> Result<Arc<DirtyLog>, MemoryError> {
        let end = offset.checked_add(length).ok_or(MemoryError::Region { guest: 0, length })?;
        let mapping = Mapping::new(file, end)?;
        // SAFETY: the mapping reaches from 0 to `end`.
        let bits = unsafe { mapping.start.add(offset as usize) };
        Ok(Arc::new(DirtyLog { bits, length, _mapping: mapping }))
    }

    /// Notes that bytes were written. What the log has no bits for is not the front end's to move.
    pub fn mark(&self, guest: u64, length: u64) {
        if length == 0 {
            return;
        }
        for page in guest / LOG_PAGE..=guest.saturating_add(length - 1) / LOG_PAGE {
            if page / 8 >= self.length {
                return;
            }
            // SAFETY: the byte is in the mapping, and bytes are always aligned.
            let byte = unsafe { AtomicU8::from_ptr(self.bits.add((page / 8) as usize)) };
            byte.fetch_or(1 << (page % 8), Ordering::Relaxed);
        }
    }
}
