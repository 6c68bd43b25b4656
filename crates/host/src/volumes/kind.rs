//! What a volume is made of.

use std::ffi::CString;
use std::fmt;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use uuid::Uuid;

/// The file that says which shared volume a directory is.
const MARK: &str = ".maru-volume";

/// A place for files of VMs. Whatever it is made of, its files are below a directory of the host; what differs is how that comes about, and what
/// is known of its space.
pub trait Volume: fmt::Debug + Send + Sync {
    /// What it is made of.
    fn kind(&self) -> api::VolumeKind;

    /// Where its files are on the host, without links in the path.
    fn root(&self) -> &Path;

    /// How much space there is now.
    ///
    /// # Errors
    /// When the host cannot reach it.
    fn space(&self) -> io::Result<Space>;
}

/// How much space there is, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// All of it; 0 if that is not known.
    pub total: u64,
    /// What is free, for whoever is not root.
    pub free: u64,
}

impl Space {
    /// Whether that is known: file systems in memory may not tell.
    pub fn is_known(&self) -> bool {
        self.total > 0
    }

    /// What is used, in per cent.
    pub fn used_percent(&self) -> f64 {
        if !self.is_known() {
            return 0.0;
        }
        (self.total.saturating_sub(self.free)) as f64 * 100.0 / self.total as f64
    }
}

/// A directory of the host, in whatever file system it is.
#[derive(Clone, Debug)]
pub struct Directory(PathBuf);

impl Directory {
    /// One that is there.
    pub fn open(path: &Path) -> io::Result<Directory> {
        let real = path.canonicalize()?;
        if !real.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        Ok(Directory(real))
    }

    /// Whether it is this volume, which all hosts of a cluster see.
    pub fn is_shared(&self, id: Uuid) -> bool {
        std::fs::read_to_string(self.0.join(MARK)).is_ok_and(|mark| mark.trim() == id.to_string())
    }

    /// Makes it one that all hosts of a cluster see, or tells what it is already.
    ///
    /// # Errors
    /// When the mark in it cannot be read or written.
    pub fn share(&self) -> io::Result<Uuid> {
        let mark = self.0.join(MARK);
        if !mark.try_exists()? {
            let id = Uuid::new_v4();
            let half = self.0.join(format!("{MARK}.{id}"));
            std::fs::write(&half, format!("{id}\n"))?;
            std::fs::File::open(&half)?.sync_all()?;
            // Who is second uses what the first has made.
            match std::fs::hard_link(&half, &mark) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => std::fs::rename(&half, &mark)?,
                _ => std::fs::remove_file(&half)?,
            }
        }
        let text = std::fs::read_to_string(&mark)?;
        Uuid::parse_str(text.trim()).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }
}

impl Volume for Directory {
    fn kind(&self) -> api::VolumeKind {
        api::VolumeKind::Directory
    }

    fn root(&self) -> &Path {
        &self.0
    }

    fn space(&self) -> io::Result<Space> {
        let path = CString::new(self.0.as_os_str().as_bytes())?;
        // SAFETY: all zeroes are a valid statvfs.
        let mut space: libc::statvfs = unsafe { std::mem::zeroed() };
        // SAFETY: the path is zero-terminated, and the structure lives through the call.
        if unsafe { libc::statvfs(path.as_ptr(), &mut space) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // What is kept for root is nobody's here: monitors are not root.
        let total = space.f_blocks.saturating_sub(space.f_bfree) + space.f_bavail;
        Ok(Space { total: total * space.f_frsize, free: space.f_bavail * space.f_frsize })
    }
}
