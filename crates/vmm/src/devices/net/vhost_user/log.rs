//! The log of pages that a back end wrote, in memory shared with it.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};

use vm_memory::mmap::MmapRegion;
use vm_memory::{Address, FileOffset, GuestMemoryBackend, VolatileMemory};

use crate::virtio::GuestMemory;

/// Bytes for each bit of the log, whatever the page size (`VHOST_LOG_PAGE`).
pub const LOG_PAGE_BYTES: u64 = 4096;

/// Why the log was not started or stopped.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The back end has no log; a VM on it cannot be moved while it runs.
    #[error("the back end does not support a log of dirty pages (VHOST_F_LOG_ALL and LOG_SHMFD)")]
    Unsupported,
    /// No memory for the log.
    #[error("cannot make the shared memory of the log")]
    Memory(#[source] io::Error),
    /// The back end did not take it.
    #[error("the back end did not switch its log: {0}")]
    Backend(String),
}

/// A bitmap of guest pages by guest address, written by the back end, taken by us.
pub(super) struct DirtyLog {
    file: File,
    map: MmapRegion<()>,
}

impl DirtyLog {
    /// A log for all of `memory`, empty.
    pub fn new(memory: &GuestMemory) -> Result<DirtyLog, LogError> {
        let pages = memory.last_addr().raw_value() / LOG_PAGE_BYTES + 1;
        // Whole pages, so that both sides may map it; and so whole words.
        let bytes = pages.div_ceil(8).next_multiple_of(LOG_PAGE_BYTES);
        let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
        // SAFETY: the name is a C string.
        let fd = unsafe { libc::memfd_create(c"vhost-log".as_ptr(), flags) };
        if fd < 0 {
            return Err(LogError::Memory(io::Error::last_os_error()));
        }
        // SAFETY: the descriptor was just opened and nobody else owns it.
        let file = unsafe { File::from_raw_fd(fd) };
        file.set_len(bytes).map_err(LogError::Memory)?;
        // A back end that could shrink the file could kill us when we read it.
        let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
        // SAFETY: F_ADD_SEALS takes a number.
        if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } < 0 {
            return Err(LogError::Memory(io::Error::last_os_error()));
        }
        let shared = file.try_clone().map_err(LogError::Memory)?;
        let map = MmapRegion::from_file(FileOffset::new(shared, 0), bytes as usize)
            .map_err(|error| LogError::Memory(io::Error::other(error)))?;
        Ok(DirtyLog { file, map })
    }

    /// Bytes of the shared memory.
    pub fn size(&self) -> u64 {
        self.map.size() as u64
    }

    /// The shared memory.
    pub fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Takes the bits set since the last time: bit `n % 64` of word `n / 64` is guest page `n`.
    pub fn take(&self) -> Vec<u64> {
        let words = self.map.size() / 8;
        let take = |word: usize| match self.map.get_atomic_ref::<AtomicU64>(word * 8) {
            Ok(bits) => u64::from_le(bits.swap(0, Ordering::AcqRel)),
            Err(error) => unreachable!("word {word} of a log of {words} words: {error}"),
        };
        (0..words).map(take).collect()
    }
}
