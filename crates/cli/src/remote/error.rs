//! Why a command that needs `marud` fails.

use std::io;
use std::path::PathBuf;

use api::client::ClientError;

use super::secret::SecretError;

/// Why a command that needs `marud` fails.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// `marud`, or the way to it.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The token that was to be read.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// Writing the result.
    #[error("cannot write the result")]
    Output(#[from] io::Error),
    /// Putting the result into words.
    #[error("cannot write the result as JSON")]
    Json(#[from] serde_json::Error),
    /// A file.
    #[error("cannot use {}", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file with the contexts.
    #[error("{} is no list of contexts: {source}; mend it, or delete it and add the contexts again", .path.display())]
    Contexts {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// No context of this name.
    #[error("there is no context '{name}'; there are: {known}. `maru context add` makes one")]
    NoContext {
        /// The name.
        name: String,
        /// Those that there are.
        known: String,
    },
    /// The context is of several hosts, and one is meant.
    #[error(
        "the context '{0}' names several hosts, and this is about one: add a context that names that one alone, and use it with --context"
    )]
    NotOneHost(String),
    /// Nobody said which `marud`.
    #[error(
        "there is no marud on this machine whose token this user may read ({}): become root, or name a host with `maru context add`",
        .0.display()
    )]
    NoServer(PathBuf),
    /// What `marud` says of where it listens.
    #[error("{} is to say where marud listens, and says '{text}': start marud anew", .path.display())]
    Address {
        /// The file.
        path: PathBuf,
        /// What is in it.
        text: String,
    },
    /// The terminal, or the connection to the console.
    #[error("the console cannot be used")]
    Console(#[source] io::Error),
    /// Some of several things that were asked for.
    #[error("{failed} of {of} failed, for the reasons above")]
    NotAll {
        /// How many.
        failed: usize,
        /// Of how many.
        of: usize,
    },
    /// No change was named.
    #[error("nothing is to be changed: name what is, see --help")]
    NothingToDo,
    /// The image is not what was sent.
    #[error(
        "marud has an image of other bytes (SHA-256 {found}) than those that were sent ({sent}): delete it, and send the file again"
    )]
    NotWhatWasSent {
        /// Its checksum there.
        found: String,
        /// And here.
        sent: String,
    },
    /// No such device.
    #[error("the VM has no device '{id}' of this kind; it has: {known}")]
    NoDevice {
        /// Its name.
        id: String,
        /// Those that there are.
        known: String,
    },
    /// No home directory.
    #[error("neither XDG_CONFIG_HOME nor HOME is set: there is no place for contexts")]
    NoHome,
}

impl RemoteError {
    /// Whether whoever read the output has seen enough.
    pub fn is_broken_pipe(&self) -> bool {
        matches!(self, RemoteError::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}
