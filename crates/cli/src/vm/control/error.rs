//! Why `maru vm control` fails.

use std::io;
use std::path::PathBuf;

use vmm::control::{ClientError, MAX_FDS};

use vmm::tap::TapError;

/// Why a running VM was not told, or did not do, what was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// There is nobody at the socket.
    #[error("cannot reach a VM at {}: does it run, and was it started with --control {}?", .path.display(), .path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The monitor refused, or ended.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The saved VM has a place that is taken.
    #[error("{} exists already: choose another name, or replace it with --force", .0.display())]
    Exists(PathBuf),
    /// Somebody else writes the same file.
    #[error("{} is being written by another save: wait for it, or choose another name", .0.display())]
    Busy(PathBuf),
    /// A path without a file's name.
    #[error("{} is not the name of a file", .0.display())]
    NoFileName(PathBuf),
    /// A file.
    #[error("{what} {}", .path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A disk that cannot be opened.
    #[error(transparent)]
    Disk(#[from] disk::OpenError),
    /// A disk with more files than can be handed over at once.
    #[error(
        "disk {}: it is made of {files} files, and a running VM can be given {MAX_FDS}; merge some of them (maru disk merge), or attach \
         it when the VM starts",
        .path.display()
    )]
    ChainTooLong {
        /// The disk.
        path: PathBuf,
        /// How many there are.
        files: usize,
    },
    /// A new layer's file.
    #[error(transparent)]
    Layer(#[from] disk::tool::ToolError),
    /// A disk that is not there.
    #[error("the VM has no disk '{0}'; `status` lists them")]
    NoDisk(String),
    /// A TAP.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// A virtual switch.
    #[error("cannot reach a virtual switch at {}: does it run and listen there?", .path.display())]
    Switch {
        /// Its socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The terminal.
    #[error("{what}")]
    Terminal {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// Standard output.
    #[error("writing to standard output")]
    Output(#[source] io::Error),
}

impl ControlError {
    /// Whether nobody reads what is printed: nothing that the user needs to be told.
    pub fn is_broken_pipe(&self) -> bool {
        matches!(self, ControlError::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}
