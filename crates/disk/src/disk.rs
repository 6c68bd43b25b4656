//! A virtual disk: what it is, how it was opened, how large it is.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::error::{LockError, OpenError, ResizeError};
use crate::geometry::{self, Alignment};
use crate::lock;

/// Whether a disk may be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Access {
    /// Only read.
    ReadOnly,
    /// Read and written.
    #[default]
    ReadWrite,
}

/// Whether the host's page cache lies between the disk and its storage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cache {
    /// Through the page cache. Data reaches the storage with a flush, as with any disk that has a write cache.
    #[default]
    Host,
    /// Around it (`O_DIRECT`): the guest's own cache is enough, and hosts that share the storage see the same data.
    Direct,
}

/// When the disk's lock is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Locking {
    /// On opening.
    #[default]
    Now,
    /// With [`Disk::take_lock`]: the receiving side of a move opens the disk while the sending side still owns it.
    Later,
}

/// The unit in which a disk is addressed by its user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SectorSize {
    /// 512 bytes.
    Bytes512,
    /// 4096 bytes ("4K native").
    Bytes4096,
}

impl SectorSize {
    /// In bytes.
    pub fn bytes(self) -> u32 {
        match self {
            SectorSize::Bytes512 => 512,
            SectorSize::Bytes4096 => 4096,
        }
    }
}

/// How to open a disk. The default is writable, through the host's cache, with the storage's own sector size, locked.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpenOptions {
    /// Whether it may be written.
    pub access: Access,
    /// Whether to use the host's page cache.
    pub cache: Cache,
    /// The sector size; detected when left out: 4096 where the storage can do no less, otherwise 512.
    pub sector_size: Option<SectorSize>,
    /// When to lock it.
    pub locking: Locking,
}

/// An open disk. Clones are the same disk.
///
/// ```
/// # let directory = tempfile::tempdir().unwrap();
/// # let path = directory.path().join("disk.raw");
/// std::fs::File::create(&path).unwrap().set_len(1 << 20).unwrap();
/// let disk = disk::Disk::open(&path, disk::OpenOptions::default()).unwrap();
/// assert_eq!(disk.capacity(), 1 << 20);
/// // A second writer is refused, and told who the first one is.
/// let error = disk::Disk::open(&path, disk::OpenOptions::default()).unwrap_err();
/// assert!(error.to_string().contains(&format!("in use by process {}", std::process::id())));
/// ```
#[derive(Clone)]
pub struct Disk {
    inner: Arc<Inner>,
}

struct Inner {
    file: File,
    /// With direct I/O: the same file through the page cache, for what is smaller than the storage's own sectors.
    cached: Option<File>,
    path: PathBuf,
    kind: Kind,
    access: Access,
    direct: Option<Alignment>,
    sector: SectorSize,
    physical_sector: u32,
    capacity: AtomicU64,
    /// Cleared when the storage turns out not to do it, so that it is asked only once.
    can_punch: AtomicBool,
    can_zero: AtomicBool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    BlockDevice,
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Closing may not do: a descriptor that was passed to us can have copies elsewhere, which share the lock.
        lock::release(&self.file);
    }
}

impl Disk {
    /// Opens the raw disk at `path`.
    pub fn open(path: impl AsRef<Path>, options: OpenOptions) -> Result<Disk, OpenError> {
        let path = path.as_ref();
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
        Disk::from_file(file, path.to_owned(), options)
    }

    /// Takes a descriptor that is already open, for example one that a more privileged process passed. `name` is what error
    /// texts call it. The descriptor must allow what `options` ask for.
    pub fn from_fd(fd: OwnedFd, name: impl Into<PathBuf>, options: OpenOptions) -> Result<Disk, OpenError> {
        let path = name.into();
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
        Disk::from_file(File::from(fd), path, options)
    }

    fn from_file(file: File, path: PathBuf, options: OpenOptions) -> Result<Disk, OpenError> {
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
        let (length, required, physical) = match kind {
            Kind::File => {
                let required = direct.map_or(512, |alignment| if alignment.offset > 512 { 4096 } else { 512 });
                (metadata.len(), required, 4096)
            }
            Kind::BlockDevice => {
                let (logical, physical) = geometry::device_sectors(&file).map_err(io("reading its sector size", &path))?;
                (geometry::device_size(&file).map_err(io("reading its size", &path))?, logical, physical)
            }
        };
        let detected = if required > 512 { SectorSize::Bytes4096 } else { SectorSize::Bytes512 };
        let sector = options.sector_size.unwrap_or(detected);
        if kind == Kind::BlockDevice && (sector.bytes() < required || required > 4096) {
            return Err(OpenError::SectorSize { path, asked: sector.bytes(), required });
        }
        if length < u64::from(sector.bytes()) {
            return Err(OpenError::TooSmall { path, length, sector: sector.bytes() });
        }
        if !length.is_multiple_of(u64::from(sector.bytes())) {
            return Err(OpenError::PartialSector { path, length, sector: sector.bytes() });
        }
        // Only where a request can be smaller than direct I/O allows; where the file cannot be opened again (a sandbox), such
        // requests fail.
        let cached = match direct {
            Some(alignment) if alignment.offset > 512 => fs::OpenOptions::new()
                .read(true)
                .write(options.access == Access::ReadWrite)
                .open(format!("/proc/self/fd/{}", file.as_raw_fd()))
                .ok(),
            _ => None,
        };
        let inner = Inner {
            file,
            cached,
            path,
            kind,
            access: options.access,
            direct,
            sector,
            physical_sector: physical.max(sector.bytes()),
            capacity: AtomicU64::new(length),
            can_punch: AtomicBool::new(true),
            can_zero: AtomicBool::new(true),
        };
        Ok(Disk { inner: Arc::new(inner) })
    }

    /// The disk's size in bytes, a multiple of the sector size.
    pub fn capacity(&self) -> u64 {
        self.inner.capacity.load(Ordering::Acquire)
    }

    /// The unit in which the disk is addressed.
    pub fn sector_size(&self) -> SectorSize {
        self.inner.sector
    }

    /// The size in bytes below which writes cost a read: a power of two, at least the sector size.
    pub fn physical_sector_size(&self) -> u32 {
        self.inner.physical_sector
    }

    /// Whether it may be written.
    pub fn access(&self) -> Access {
        self.inner.access
    }

    /// Where the disk was opened, or what it was called.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// Grows the disk to `bytes`. A file is extended (with a hole); a block device must have grown already. The disk may be in
    /// use meanwhile; requests see the new capacity at once.
    pub fn resize(&self, bytes: u64) -> Result<(), ResizeError> {
        let inner = &*self.inner;
        let (path, now) = (inner.path.clone(), self.capacity());
        if inner.access == Access::ReadOnly {
            return Err(ResizeError::ReadOnly(path));
        }
        if bytes < now {
            return Err(ResizeError::Shrink { path, now, asked: bytes });
        }
        if !bytes.is_multiple_of(u64::from(inner.sector.bytes())) {
            return Err(ResizeError::PartialSector { path, asked: bytes, sector: inner.sector.bytes() });
        }
        let io = |source| ResizeError::Io { path: path.clone(), asked: bytes, source };
        match inner.kind {
            Kind::File => {
                if inner.file.metadata().map_err(io)?.size() < bytes {
                    inner.file.set_len(bytes).map_err(io)?;
                }
            }
            Kind::BlockDevice => {
                let now = geometry::device_size(&inner.file).map_err(io)?;
                if now < bytes {
                    return Err(ResizeError::DeviceTooSmall { path, now, asked: bytes });
                }
            }
        }
        inner.capacity.store(bytes, Ordering::Release);
        Ok(())
    }

    /// Takes the disk's lock: exclusive if the disk may be written, otherwise shared with other readers. Taking it twice is fine.
    pub fn take_lock(&self) -> Result<(), LockError> {
        lock::take(&self.inner.file, self.inner.access, &self.inner.path)
    }

    /// Gives the lock up, so that the receiving side of a move can take it. The caller has stopped all I/O and flushed.
    pub fn release_lock(&self) {
        lock::release(&self.inner.file);
    }

    pub(crate) fn file(&self) -> &File {
        &self.inner.file
    }

    pub(crate) fn cached_fd(&self) -> Option<RawFd> {
        self.inner.cached.as_ref().map(AsRawFd::as_raw_fd)
    }

    pub(crate) fn kind(&self) -> Kind {
        self.inner.kind
    }

    pub(crate) fn direct(&self) -> Option<Alignment> {
        self.inner.direct
    }

    pub(crate) fn can_punch(&self) -> &AtomicBool {
        &self.inner.can_punch
    }

    pub(crate) fn can_zero(&self) -> &AtomicBool {
        &self.inner.can_zero
    }
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Disk").field("path", &self.inner.path).field("capacity", &self.capacity()).finish_non_exhaustive()
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
