//! What can go wrong.

use std::io;
use std::path::PathBuf;

use crate::error::{EngineError, IoError};

/// Why a disk did not become a block device.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The kernel has no such devices.
    #[error("this kernel has no network block devices now; load their module: modprobe nbd")]
    NoModule,
    /// Not root.
    #[error("making {} a disk needs root (CAP_SYS_ADMIN); use sudo", .0.display())]
    NotPermitted(PathBuf),
    /// All are taken.
    #[error(
        "all {0} network block devices are in use; detach one (maru disk detach), or load the module with more of them: \
         modprobe -r nbd && modprobe nbd nbds_max=64"
    )]
    NoFreeDevice(usize),
    /// The system refused.
    #[error("{}: {action}", .device.display())]
    Io {
        /// The device.
        device: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// It was a block device, and ended by itself.
    #[error("{}: the disk is no block device any more", .device.display())]
    Serve {
        /// The device.
        device: PathBuf,
        /// Why.
        source: ServeError,
    },
}

/// Why requests are not served any more.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// There is no io_uring.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The socket.
    #[error("talking to the kernel's network block device")]
    Socket(#[from] io::Error),
    /// What should be a request is none.
    #[error("the kernel's network block device sent what is no request: {0:02x?}")]
    NoRequest([u8; super::protocol::REQUEST_BYTES]),
    /// More data than the protocol allows.
    #[error("the kernel's network block device sent a request with {0} bytes of data, more than {max}", max = super::server::MAX_DATA)]
    TooLong(u32),
    /// What was written may not be durable.
    #[error("the last flush failed: {0}")]
    Flush(IoError),
}

/// Why a block device was not detached.
#[derive(Debug, thiserror::Error)]
pub enum DetachError {
    /// Not the name of one.
    #[error("{} is no network block device; `maru disk attach` said its name, /dev/nbd and a number", .0.display())]
    NoDevice(PathBuf),
    /// Nothing is attached there.
    #[error("nothing is attached at {}", .0.display())]
    NotAttached(PathBuf),
    /// Not ours.
    #[error("{} belongs to process {pid} ({name}), which is no maru; end it by that program's own means", .device.display())]
    Foreign {
        /// The device.
        device: PathBuf,
        /// Whose it is.
        pid: u32,
        /// Its program's name.
        name: String,
    },
    /// Not root.
    #[error("detaching {} needs root (CAP_SYS_ADMIN); use sudo", .0.display())]
    NotPermitted(PathBuf),
    /// Mounted, or part of something else.
    #[error("{} is in use: unmount it, or take it out of what it is part of, first", .0.display())]
    InUse(PathBuf),
    /// The system refused.
    #[error("{}: {action}", .device.display())]
    Io {
        /// The device.
        device: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
}
