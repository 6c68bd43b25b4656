//! The deadline where every monitor of the host can read it.
//!
//! One page of a file in memory (tmpfs) holds it, so that looking costs two loads and the clock. The file outlives the guard: one that is started
//! again reads there what the other one had promised.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::BootTime;

/// The file's length in bytes.
const SIZE: usize = 4096;
/// No lease is needed.
const FREE: u64 = u64::MAX;
/// VMs must not run.
const OVER: u64 = 0;

/// What the page says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Says {
    /// VMs may run: there is no lease that they need.
    Free,
    /// VMs may run until then.
    Until(BootTime),
    /// VMs must not run.
    Over,
}

impl From<u64> for Says {
    fn from(value: u64) -> Says {
        match value {
            FREE => Says::Free,
            OVER => Says::Over,
            deadline => Says::Until(BootTime(deadline)),
        }
    }
}

impl From<Says> for u64 {
    fn from(says: Says) -> u64 {
        match says {
            Says::Free => FREE,
            Says::Over => OVER,
            Says::Until(deadline) => deadline.0,
        }
    }
}

/// What the page holds; the rest of it is zeros.
#[repr(C)]
#[derive(Debug)]
struct Words {
    deadline: AtomicU64,
    /// The lease that the deadline belongs to, for the next guard and the next `marud`.
    lease: AtomicU64,
}

/// The mapped page.
#[derive(Debug)]
struct Mapping(NonNull<Words>);

// SAFETY: the mapping is memory of the process until it is dropped, and is only used through atomics.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(file: &File, protection: ProtFlags) -> io::Result<Mapping> {
        if file.metadata()?.len() < SIZE as u64 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it is shorter than a page"));
        }
        // SAFETY: a new mapping at a place that the kernel chooses touches no memory that is in use.
        let address = unsafe { mmap(std::ptr::null_mut(), SIZE, protection, MapFlags::SHARED, file.as_fd(), 0) }?;
        NonNull::new(address.cast()).map(Mapping).ok_or_else(|| io::Error::other("a page at the address 0"))
    }

    fn words(&self) -> &Words {
        // SAFETY: the mapping is a page, aligned and alive as long as `self`; all who write there do so with atomics, and any bits are right.
        unsafe { self.0.as_ref() }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: it is our own mapping, of this size, and nobody refers to it any more. It cannot fail.
        let _ = unsafe { munmap(self.0.as_ptr().cast(), SIZE) };
    }
}

/// The guard's side.
#[derive(Debug)]
pub struct Page(Mapping);

impl Page {
    /// Opens the page at `path`, or makes one that says that no lease is needed; gives what it says, and the lease. Only one guard may have
    /// it: the file is locked.
    ///
    /// # Errors
    /// `WouldBlock` if another guard has it, and whatever the file system says.
    pub fn open(path: &Path) -> io::Result<(Page, Says, u64)> {
        let file = make(path)?;
        file.try_lock()?;
        let page = Page(Mapping::new(&file, ProtFlags::READ | ProtFlags::WRITE)?);
        let says = page.0.words().deadline.load(Ordering::Acquire).into();
        let lease = page.0.words().lease.load(Ordering::Relaxed);
        // The lock is held as long as the process lives.
        std::mem::forget(file);
        Ok((page, says, lease))
    }

    /// What is said from now on, of this lease.
    pub fn say(&self, says: Says, lease: u64) {
        self.0.words().lease.store(lease, Ordering::Relaxed);
        self.0.words().deadline.store(says.into(), Ordering::Release);
    }
}

/// Makes a page that says that no lease is needed, if there is none: for monitors that may run before there is a guard, and under it later.
///
/// # Errors
/// Whatever the file system says.
pub fn make(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o644).open(path)?;
    if file.metadata()?.len() < SIZE as u64 {
        // First what it says, then its length: a file that is long enough always says something.
        file.write_all_at(&FREE.to_ne_bytes(), 0)?;
        file.set_len(SIZE as u64)?;
    }
    Ok(file)
}

/// A monitor's side.
#[derive(Debug)]
pub struct Lease(Mapping);

impl Lease {
    /// Reads the page in this file.
    pub fn of(file: &File) -> io::Result<Lease> {
        Mapping::new(file, ProtFlags::READ).map(Lease)
    }

    /// What the page says.
    pub fn says(&self) -> Says {
        self.0.words().deadline.load(Ordering::Acquire).into()
    }

    /// The lease that this is about; 0 before the first.
    pub fn number(&self) -> u64 {
        self.0.words().lease.load(Ordering::Relaxed)
    }

    /// Whether VMs may run at this moment.
    pub fn holds(&self) -> bool {
        match self.says() {
            Says::Free => true,
            Says::Over => false,
            Says::Until(deadline) => BootTime::now() < deadline,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_the_guard_says_is_read_at_once_and_by_the_next_guard() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deadline");
        let (page, says, lease) = Page::open(&path).unwrap();
        assert_eq!((says, lease), (Says::Free, 0));
        let reader = Lease::of(&File::open(&path).unwrap()).unwrap();
        assert!(reader.holds());
        let deadline = BootTime::now().after(Duration::from_secs(600));
        page.say(Says::Until(deadline), 7);
        assert_eq!((reader.says(), reader.holds()), (Says::Until(deadline), true));
        page.say(Says::Until(BootTime::now()), 7);
        assert!(!reader.holds(), "at the deadline it is over");
        page.say(Says::Over, 7);
        assert!(!reader.holds());
        assert_eq!(Page::open(&path).unwrap_err().kind(), io::ErrorKind::WouldBlock, "the other guard lives");
    }

    #[test]
    fn what_is_no_page_is_refused() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(Lease::of(&file).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
