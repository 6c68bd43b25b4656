//! One file of a disk: the only one of a raw disk, one of several of a differencing image.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::disk::{Access, Cache, Locking, OpenOptions};
use crate::error::OpenError;
use crate::geometry::{self, Alignment};
use crate::lock;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    BlockDevice,
}

/// An open file, with its lock.
pub(crate) struct Layer {
    pub file: Arc<File>,
    /// With direct I/O: the same file through the page cache, for what direct I/O does not take.
    cached: Option<Arc<File>>,
    pub path: PathBuf,
    pub kind: Kind,
    pub direct: Option<Alignment>,
    /// Device and inode: what makes two paths the same file.
    pub identity: (u64, u64),
    /// Cleared when the storage turns out not to do it, so that it is asked only once.
    pub can_punch: AtomicBool,
    pub can_zero: AtomicBool,
}

impl Drop for Layer {
    fn drop(&mut self) {
        // Closing may not do: a descriptor that was passed to us can have copies elsewhere, which share the lock.
        lock::release(&self.file);
    }
}

impl Layer {
    /// Opens the file at `path`.
    pub fn open(path: &Path, options: OpenOptions) -> Result<Layer, OpenError> {
        // Looked at before it is opened: opening a pipe waits for its other end, opening a tape rewinds it.
        let metadata = fs::metadata(path).map_err(|error| open_error(path, error))?;
        kind_of(&metadata, path)?;
        let file = fs::OpenOptions::new()
            .read(true)
            .write(options.access == Access::ReadWrite)
            .custom_flags(match options.cache {
                Cache::Host => 0,
                Cache::Direct => libc::O_DIRECT,
            })
            .open(path);
        let file = file.map_err(|error| match error.raw_os_error() {
            Some(libc::EINVAL) if options.cache == Cache::Direct => OpenError::DirectUnsupported(path.to_owned()),
            _ => open_error(path, error),
        })?;
        Layer::from_file(file, path.to_owned(), options)
    }

    /// Takes a descriptor that is already open.
    pub fn from_fd(fd: OwnedFd, path: PathBuf, options: OpenOptions) -> Result<Layer, OpenError> {
        let fail = |action| {
            let path = path.clone();
            move |source| OpenError::Io { path, action, source }
        };
        // SAFETY: F_GETFL on a descriptor that we own.
        let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) };
        if flags < 0 {
            return Err(fail("reading the descriptor's flags")(io::Error::last_os_error()));
        }
        if options.access == Access::ReadWrite && flags & libc::O_ACCMODE != libc::O_RDWR {
            return Err(OpenError::NotWritable { path, source: io::Error::from_raw_os_error(libc::EBADF) });
        }
        let direct = match options.cache {
            Cache::Host => 0,
            Cache::Direct => libc::O_DIRECT,
        };
        // O_NONBLOCK would make io_uring give up where it should wait.
        let wanted = (flags & !(libc::O_DIRECT | libc::O_NONBLOCK)) | direct;
        // SAFETY: F_SETFL on a descriptor that we own.
        if wanted != flags && unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, wanted) } != 0 {
            let error = io::Error::last_os_error();
            if options.cache == Cache::Direct && error.raw_os_error() == Some(libc::EINVAL) {
                return Err(OpenError::DirectUnsupported(path));
            }
            return Err(fail("setting the descriptor's flags")(error));
        }
        Layer::from_file(File::from(fd), path, options)
    }

    fn from_file(file: File, path: PathBuf, options: OpenOptions) -> Result<Layer, OpenError> {
        let io = |action, path: &Path| {
            let path = path.to_owned();
            move |source| OpenError::Io { path, action, source }
        };
        let metadata = file.metadata().map_err(io("reading its attributes", &path))?;
        let kind = kind_of(&metadata, &path)?;
        // Before anything is read from it: what it says is only certain while nobody else writes it.
        if options.locking == Locking::Now {
            lock::take(&file, options.access, &path)?;
        }
        let direct = match options.cache {
            Cache::Host => None,
            Cache::Direct => match geometry::direct_alignment(&file).map_err(io("reading its alignment", &path))? {
                Some(alignment) => Some(alignment),
                None => return Err(OpenError::DirectUnsupported(path)),
            },
        };
        // Where a request can be smaller than direct I/O allows; where the file cannot be opened again (a sandbox), such requests
        // fail. The tables of an image are no aligned memory.
        let cached = match direct {
            Some(alignment) if alignment.offset > 512 || options.format.is_image() => fs::OpenOptions::new()
                .read(true)
                .write(options.access == Access::ReadWrite)
                .open(format!("/proc/self/fd/{}", file.as_raw_fd()))
                .ok()
                .map(Arc::new),
            _ => None,
        };
        Ok(Layer {
            file: Arc::new(file),
            cached,
            path,
            kind,
            direct,
            identity: (metadata.dev(), metadata.ino()),
            can_punch: AtomicBool::new(true),
            can_zero: AtomicBool::new(true),
        })
    }

    pub fn cached_fd(&self) -> Option<RawFd> {
        self.cached.as_ref().map(|file| file.as_raw_fd())
    }

    /// The file through the page cache; none where it cannot be opened again.
    pub fn through_cache(&self) -> Option<Arc<File>> {
        if self.direct.is_some() { self.cached.clone() } else { Some(self.file.clone()) }
    }
}

fn kind_of(metadata: &fs::Metadata, path: &Path) -> Result<Kind, OpenError> {
    let kind = metadata.file_type();
    let what = match () {
        () if kind.is_file() => return Ok(Kind::File),
        () if kind.is_block_device() => return Ok(Kind::BlockDevice),
        () if kind.is_dir() => return Err(OpenError::Directory(path.to_owned())),
        () if kind.is_fifo() => "a pipe",
        () if kind.is_socket() => "a socket",
        () => "a character device",
    };
    Err(OpenError::NotADisk { path: path.to_owned(), what })
}

pub(crate) fn open_error(path: &Path, source: io::Error) -> OpenError {
    let path = path.to_owned();
    match source.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR) => OpenError::NotFound(path),
        // SAFETY: geteuid always succeeds.
        Some(libc::EACCES) => OpenError::PermissionDenied { path, uid: unsafe { libc::geteuid() } },
        Some(libc::EROFS | libc::EPERM | libc::ETXTBSY) => OpenError::NotWritable { path, source },
        Some(libc::EISDIR) => OpenError::Directory(path),
        _ => OpenError::Io { path, action: "opening it", source },
    }
}
