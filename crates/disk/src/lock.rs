//! The lock that keeps a disk from being written by two machines.
//!
//! It is an *open file description* lock: it belongs to the open file, not to the process, so closing some other
//! descriptor of the same file does not drop it (as POSIX locks would), and it works over NFS and SMB, between hosts.
//!
//! ```text
//!   bytes 0 ..................... MERGE ...... one for each child that there can be .......... end
//!   writer                 exclusive, all of them
//!   reader                 shared, all of them
//!   reader of a parent     shared, all but MERGE and that of the child through which it reads     all of them while it opens the file
//!   merge of a child       exclusive, MERGE and that of the child; of the child's own file, MERGE
//! ```
//! So a merge of a child into its parent goes on beside all who read the parent through that child, and beside nobody else: see
//! `tool::merge_in_use`. A byte stands for a child by what its own children know it by.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::disk::Access;
use crate::error::LockError;
use crate::format::Identity;

/// Who holds a disk's lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// A process of this machine.
    Process {
        /// Its id.
        pid: u32,
        /// Its program's name.
        name: String,
    },
    /// Not found: on another machine, in another container, or of a user whose processes we cannot see.
    Unknown,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Holder::Process { pid, name } => write!(f, "process {pid} ({name})"),
            Holder::Unknown => f.write_str("another machine, or a process that cannot be seen from here"),
        }
    }
}

/// A process that was killed keeps its locks until its last requests have ended, which may be a moment after the process is
/// gone (and is as it should be: they may still write). A lock that no process seems to hold is therefore asked for again for this
/// long before it counts as held elsewhere.
const ORPHAN_PATIENCE: Duration = Duration::from_secs(1);

/// Takes the lock of `file` without waiting for its holder: exclusive to write, shared to read.
pub(crate) fn take(file: &File, access: Access, path: &Path) -> Result<(), LockError> {
    let kind = match access {
        Access::ReadWrite => libc::F_WRLCK,
        Access::ReadOnly => libc::F_RDLCK,
    };
    take_range(file, kind, ALL, path)
}

/// All bytes that a lock can be on.
const ALL: (i64, i64) = (0, 0);
/// The byte that every merge has.
const MERGE: (i64, i64) = ((1 << 62) - 1, 1);

/// The byte of a child. It is one of so many that two children of a parent do not meet.
fn byte_of(child: Identity) -> (i64, i64) {
    let number = u64::from_le_bytes(std::array::from_fn(|index| child.bytes()[index]));
    (1 << 62 | (number & ((1 << 62) - 1)) as i64, 1)
}

/// Lets the child through which a shared lock's holder reads be merged into the file, and the file into its own parent.
pub(crate) fn admit_merges(file: &File, child: Option<Identity>) {
    for range in std::iter::once(MERGE).chain(child.map(byte_of)) {
        // As in `release`.
        let _ = set(file, libc::F_UNLCK, range);
    }
}

/// Takes the lock of a file for a merge, without waiting for those who forbid it: of the child that is merged, or of the parent that
/// it is merged into.
#[cfg(feature = "tool")]
pub(crate) fn take_for_merge(file: &File, into_from: Option<Identity>, path: &Path) -> Result<(), LockError> {
    std::iter::once(MERGE).chain(into_from.map(byte_of)).try_for_each(|range| take_range(file, libc::F_WRLCK, range, path))
}

fn take_range(file: &File, kind: libc::c_int, range: (i64, i64), path: &Path) -> Result<(), LockError> {
    let start = Instant::now();
    loop {
        let error = match set(file, kind, range) {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        match error.raw_os_error() {
            Some(libc::EAGAIN | libc::EACCES) => {
                let holder = find_holder(file);
                if holder == Holder::Unknown && start.elapsed() < ORPHAN_PATIENCE {
                    std::thread::sleep(Duration::from_millis(10));
                    continue;
                }
                return Err(LockError::Held { path: path.to_owned(), holder });
            }
            Some(libc::EINTR) => {}
            _ => return Err(LockError::Unsupported { path: path.to_owned(), source: error }),
        }
    }
}

/// Gives the lock up.
pub(crate) fn release(file: &File) {
    // Unlocking what is ours (or not locked at all) has no way to fail that anybody could act on.
    let _ = set(file, libc::F_UNLCK, ALL);
}

/// How others use the file now, and who one of them is. It may be out of date when it is read.
#[cfg(feature = "tool")]
pub(crate) fn user(file: &File) -> io::Result<Option<(Access, Holder)>> {
    let mut lock = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    // SAFETY: F_OFD_GETLK reads and writes one flock; l_pid is zero as it demands.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &mut lock) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let access = match libc::c_int::from(lock.l_type) {
        libc::F_UNLCK => return Ok(None),
        libc::F_WRLCK => Access::ReadWrite,
        _ => Access::ReadOnly,
    };
    Ok(Some((access, find_holder(file))))
}

fn set(file: &File, kind: libc::c_int, (l_start, l_len): (i64, i64)) -> io::Result<()> {
    let (l_type, l_whence) = (kind as libc::c_short, libc::SEEK_SET as libc::c_short);
    let lock = libc::flock { l_type, l_whence, l_start, l_len, l_pid: 0 };
    // SAFETY: F_OFD_SETLK reads one flock; l_pid is zero as it demands.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &lock) };
    if result != 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Looks through `/proc` for the process that holds a lock on the same file. The kernel does not tell who holds an open
/// file description lock, but a descriptor's `fdinfo` lists the locks of the open file behind it.
fn find_holder(file: &File) -> Holder {
    search_proc(file).unwrap_or(Holder::Unknown)
}

fn search_proc(file: &File) -> Option<Holder> {
    let ours = file.metadata().ok()?;
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let Ok(descriptors) = fs::read_dir(process.path().join("fd")) else { continue };
        for descriptor in descriptors.flatten() {
            let same = fs::metadata(descriptor.path()).is_ok_and(|it| it.ino() == ours.ino() && it.dev() == ours.dev());
            if !same {
                continue;
            }
            let info = process.path().join("fdinfo").join(descriptor.file_name());
            let locked = fs::read_to_string(info).is_ok_and(|info| info.lines().any(|line| line.starts_with("lock:")));
            if locked {
                let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
                return Some(Holder::Process { pid, name: name.trim_end().to_owned() });
            }
        }
    }
    None
}
