//! Memory that is shared with the kernel.

use std::io;
use std::os::fd::RawFd;
use std::ptr::{self, NonNull};

/// A mapping of this process, until it is dropped.
#[derive(Debug)]
pub(super) struct Mapping {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: memory of the process, which nothing binds to a thread.
unsafe impl Send for Mapping {}

impl Mapping {
    /// New memory, all zero.
    pub fn memory(bytes: usize) -> io::Result<Mapping> {
        Mapping::map(bytes, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE, -1, 0)
    }

    /// A part of a descriptor.
    pub fn shared(fd: RawFd, offset: libc::off_t, bytes: usize) -> io::Result<Mapping> {
        Mapping::map(bytes, libc::MAP_SHARED | libc::MAP_POPULATE, fd, offset)
    }

    fn map(bytes: usize, flags: libc::c_int, fd: RawFd, offset: libc::off_t) -> io::Result<Mapping> {
        // SAFETY: a new mapping where the kernel likes, which touches no other.
        let start = unsafe { libc::mmap(ptr::null_mut(), bytes, libc::PROT_READ | libc::PROT_WRITE, flags, fd, offset) };
        match NonNull::new(start.cast()).filter(|_| start != libc::MAP_FAILED) {
            Some(start) => Ok(Mapping { start, bytes }),
            None => Err(io::Error::last_os_error()),
        }
    }

    /// Its first byte.
    pub fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// How long it is.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Where `length` bytes at `offset` begin, if they are all within.
    pub fn at(&self, offset: u64, length: usize) -> Option<NonNull<u8>> {
        let offset = usize::try_from(offset).ok()?;
        let is_within = offset.checked_add(length)? <= self.bytes;
        // SAFETY: within the mapping.
        is_within.then(|| unsafe { self.start.add(offset) })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: it was mapped here, and who has pointers into it goes before or with it.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}
