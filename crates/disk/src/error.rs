//! What can go wrong, one type per operation.

use std::fmt;
use std::io;
use std::path::PathBuf;

use vhdx::MapError;

use crate::format::Format;
use crate::lock::Holder;

/// Why a disk could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is nothing at the path.
    #[error("disk {path}: there is no such file; check the path, or create the disk first", path = .0.display())]
    NotFound(PathBuf),
    /// The file's permissions (or those of a directory above it) forbid it.
    #[error(
        "disk {path}: permission denied for user id {uid}; give it access to the file and search access to the directories above it",
        path = path.display()
    )]
    PermissionDenied {
        /// The disk.
        path: PathBuf,
        /// Who asked.
        uid: u32,
    },
    /// It can only be read, and writing was asked for.
    #[error("disk {path}: it can only be read ({source}); attach it read-only, or make it writable", path = path.display())]
    NotWritable {
        /// The disk.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The path names a directory.
    #[error("disk {path}: this is a directory; name the disk's file in it", path = .0.display())]
    Directory(PathBuf),
    /// The path names a socket, a pipe or a character device.
    #[error("disk {path}: this is {what}; a disk is a regular file or a block device", path = path.display())]
    NotADisk {
        /// The disk.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// The file holds less than one sector.
    #[error(
        "disk {path}: it has {length} bytes, less than one sector of {sector}; create it with its full size (truncate -s SIZE)",
        path = path.display()
    )]
    TooSmall {
        /// The disk.
        path: PathBuf,
        /// Its length.
        length: u64,
        /// The sector size.
        sector: u32,
    },
    /// The file ends in the middle of a sector.
    #[error(
        "disk {path}: its length of {length} bytes is not a multiple of the sector size {sector}; it is damaged or not a raw disk; \
         if it is one, extend it: truncate -s %{sector}",
        path = path.display()
    )]
    PartialSector {
        /// The disk.
        path: PathBuf,
        /// Its length.
        length: u64,
        /// The sector size.
        sector: u32,
    },
    /// A sector size was asked for that the storage below cannot serve.
    #[error(
        "disk {path}: sectors of {asked} bytes on storage with sectors of {required}; leave the sector size out, or use {required}",
        path = path.display()
    )]
    SectorSize {
        /// The disk.
        path: PathBuf,
        /// What was asked for.
        asked: u32,
        /// What the storage needs.
        required: u32,
    },
    /// The file system cannot bypass its cache.
    #[error("disk {path}: its file system cannot do direct I/O; use the host's cache for this disk", path = .0.display())]
    DirectUnsupported(PathBuf),
    /// No file was passed.
    #[error("no open file came for the disk; pass its own, then those of its parents")]
    NoFiles,
    /// A file was passed as a parent's that is none.
    #[error("disk {path}: {} was passed as the file of one of its parents, and is none; pass what the disk is made of now",
        .stray.display(), path = path.display())]
    StrayFile {
        /// The disk.
        path: PathBuf,
        /// The first file too many.
        stray: PathBuf,
    },
    /// Somebody else uses the disk.
    #[error(transparent)]
    Locked(#[from] LockError),
    /// An image on something that has a fixed size.
    #[error("disk {path}: a block device cannot hold a {format} image; attach it as raw, or copy the image to a file", path = path.display())]
    ImageOnDevice {
        /// The disk.
        path: PathBuf,
        /// What it was said to be.
        format: Format,
    },
    /// The file is no image of this format, or a damaged one.
    #[error("disk {path}: as a {format} image: {source}", path = path.display())]
    Image {
        /// The disk.
        path: PathBuf,
        /// What it was said to be.
        format: Format,
        /// What is wrong with it.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Tables are no aligned memory.
    #[error(
        "disk {path}: an image's tables go through the host's page cache even if its data goes around it, and the file cannot be \
         opened a second time here; use the cache for this disk, or attach it when the VM starts",
        path = .0.display()
    )]
    ImageDirect(PathBuf),
    /// VHD's tables and data share pages, which the cache and direct I/O would both write.
    #[error("disk {path}: VHD images cannot go around the host's page cache; use it, or convert the image to VHDX", path = .0.display())]
    VhdDirect(PathBuf),
    /// A differencing image's parent is not where the image says.
    #[error("disk {chain}: its parent is not there (looked for {}); bring it back, or name its new place in the image",
        .tried.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", "))]
    ParentMissing {
        /// The images up to the one whose parent it is.
        chain: Chain,
        /// Where it was looked for; nowhere if the image only names places on other machines.
        tried: Vec<PathBuf>,
    },
    /// What is at the parent's place is another image, or was changed after the child was made.
    #[error(
        "disk {chain}: the last one is not the image that its child was made from, or was changed since;          bring the right one back, or restore both from a backup"
    )]
    ParentChanged {
        /// The images up to the wrong parent.
        chain: Chain,
    },
    /// The parent's sectors are larger than the child's.
    #[error("disk {chain}: the last one has sectors of {parent} bytes, its child of {child}; attach them on their own")]
    ParentSectors {
        /// The images up to the parent.
        chain: Chain,
        /// Its sector size.
        parent: u32,
        /// The child's.
        child: u32,
    },
    /// An image is its own ancestor.
    #[error("disk {chain}: the last one was there before; an image cannot be its own ancestor, name the right parent")]
    ParentCycle {
        /// The images up to the one that is there twice.
        chain: Chain,
    },
    /// Too many parents.
    #[error("disk {path}: more than {limit} images hang on each other; merge some of them", path = path.display())]
    ChainTooLong {
        /// The disk.
        path: PathBuf,
        /// How many there can be.
        limit: usize,
    },
    /// A parent could not be opened.
    #[error("disk {chain}: {source}")]
    Parent {
        /// The images up to the parent.
        chain: Chain,
        /// Why.
        source: Box<OpenError>,
    },
    /// Anything else.
    #[error("disk {path}: {action}: {source}", path = path.display())]
    Io {
        /// The disk.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// Images that hang on each other, the child first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain(pub Vec<PathBuf>);

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let paths: Vec<_> = self.0.iter().map(|path| path.display().to_string()).collect();
        f.write_str(&paths.join(" -> "))
    }
}

/// Why a disk's lock was not taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody else has it.
    #[error("disk {path}: in use by {holder}; stop that first, or attach the disk read-only everywhere", path = path.display())]
    Held {
        /// The disk.
        path: PathBuf,
        /// Who.
        holder: Holder,
    },
    /// The file system has no locks.
    #[error(
        "disk {path}: its file system has no file locks ({source}), so nothing keeps two machines from writing to it; \
         mount it with locks (NFS: without nolock)",
        path = path.display()
    )]
    Unsupported {
        /// The disk.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Why a disk did not get another size.
#[derive(Debug, thiserror::Error)]
pub enum ResizeError {
    /// Data would be cut off.
    #[error("disk {path}: {asked} bytes is less than its {now}; a disk in use only grows", path = path.display())]
    Shrink {
        /// The disk.
        path: PathBuf,
        /// The size now.
        now: u64,
        /// The size asked for.
        asked: u64,
    },
    /// Not whole sectors.
    #[error("disk {path}: {asked} bytes is not a multiple of its sector size {sector}", path = path.display())]
    PartialSector {
        /// The disk.
        path: PathBuf,
        /// The size asked for.
        asked: u64,
        /// The sector size.
        sector: u32,
    },
    /// The block device is smaller than what was asked for.
    #[error("disk {path}: the block device has {now} bytes; grow it to {asked} first", path = path.display())]
    DeviceTooSmall {
        /// The disk.
        path: PathBuf,
        /// The device's size.
        now: u64,
        /// The size asked for.
        asked: u64,
    },
    /// The disk is attached read-only.
    #[error("disk {path}: it is attached read-only", path = .0.display())]
    ReadOnly(PathBuf),
    /// Dirty maps are on, or a mirror is being made.
    #[error("disk {path}: a mirror or dirty maps are for the size it has; end the mirror, or grow the disk while nobody uses it",
        path = .0.display())]
    Tracked(PathBuf),
    /// The image refused.
    #[error("disk {path}: cannot be grown to {asked} bytes: {source}", path = path.display())]
    Image {
        /// The disk.
        path: PathBuf,
        /// The size asked for.
        asked: u64,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The system refused.
    #[error("disk {path}: cannot be grown to {asked} bytes: {source}", path = path.display())]
    Io {
        /// The disk.
        path: PathBuf,
        /// The size asked for.
        asked: u64,
        /// What the system said.
        source: io::Error,
    },
}

/// Why an engine could not be made.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The kernel was built without io_uring.
    #[error("this kernel has no io_uring; Maru needs Linux 6.1 or later with CONFIG_IO_URING")]
    Missing,
    /// io_uring is switched off.
    #[error(
        "io_uring is forbidden here: allow it with `sysctl kernel.io_uring_disabled=0`, or with 1 and this user in the group \
         kernel.io_uring_group; in a container, allow the io_uring_* system calls in its seccomp profile"
    )]
    Forbidden,
    /// The disk is an image whose lock is not held, so what its tables say is not certain.
    #[error("disk {path}: its lock was given up or not yet taken; take it first", path = .0.display())]
    Unlocked(PathBuf),
    /// Too little memory, descriptors, or anything else.
    #[error("io_uring cannot be set up: {0}")]
    Io(#[source] io::Error),
}

/// How a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoError {
    /// The storage is full (or a quota is used up). What was asked for can be done once there is room.
    NoSpace,
    /// The request does not lie within the disk.
    OutOfRange,
    /// The disk is read-only.
    ReadOnly,
    /// The file is shorter than the disk: somebody cut it.
    UnexpectedEnd,
    /// A mirror has taken the disk's place: the request is to be made there.
    Moved,
    /// It had to wait, and was taken back before it began ([`Engine::cancel_parked`](crate::Engine::cancel_parked)).
    Canceled,
    /// A table of the image is damaged where the request needs it.
    Damaged,
    /// The system said this (an errno).
    Os(i32),
}

impl From<&MapError> for IoError {
    fn from(error: &MapError) -> IoError {
        match error {
            MapError::Range { .. } => IoError::OutOfRange,
            MapError::ReadOnly => IoError::ReadOnly,
            MapError::CommitFirst => IoError::Os(libc::EBUSY),
            MapError::Damaged { .. } => IoError::Damaged,
            MapError::Io { source, .. } => IoError::from(source),
        }
    }
}

impl From<&io::Error> for IoError {
    fn from(error: &io::Error) -> IoError {
        match (error.raw_os_error(), error.kind()) {
            (Some(errno), _) => IoError::from_errno(errno),
            (None, io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => IoError::NoSpace,
            (None, io::ErrorKind::UnexpectedEof) => IoError::UnexpectedEnd,
            (None, _) => IoError::Os(libc::EIO),
        }
    }
}

impl IoError {
    /// As a mapping wants to hear it.
    pub(crate) fn kind(self) -> io::ErrorKind {
        match self {
            IoError::NoSpace => io::ErrorKind::StorageFull,
            IoError::OutOfRange => io::ErrorKind::InvalidInput,
            IoError::ReadOnly => io::ErrorKind::ReadOnlyFilesystem,
            IoError::UnexpectedEnd => io::ErrorKind::UnexpectedEof,
            IoError::Moved => io::ErrorKind::StaleNetworkFileHandle,
            IoError::Canceled => io::ErrorKind::Interrupted,
            IoError::Damaged => io::ErrorKind::InvalidData,
            IoError::Os(errno) => io::Error::from_raw_os_error(errno).kind(),
        }
    }

    pub(crate) fn from_errno(errno: i32) -> IoError {
        match errno {
            libc::ENOSPC | libc::EDQUOT => IoError::NoSpace,
            other => IoError::Os(other),
        }
    }
}

impl std::error::Error for IoError {}

impl fmt::Display for IoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            IoError::NoSpace => f.write_str("no space left for the disk's data"),
            IoError::OutOfRange => f.write_str("past the end of the disk"),
            IoError::ReadOnly => f.write_str("the disk is read-only"),
            IoError::UnexpectedEnd => f.write_str("the disk's file is shorter than the disk"),
            IoError::Canceled => f.write_str("the request was taken back before it began"),
            IoError::Moved => f.write_str("the disk was handed over to its mirror"),
            IoError::Damaged => f.write_str("the image's tables are damaged; check it with 'maru disk check'"),
            IoError::Os(errno) => io::Error::from_raw_os_error(*errno).fmt(f),
        }
    }
}
