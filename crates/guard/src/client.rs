//! Asking a guard.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use packet::Connection;

use crate::protocol::{Reply, Request, Status};

/// Why a guard did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there.
    #[error("cannot connect to the guard at {}: is maru-guard running?", .path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The socket, or the guard takes too long.
    #[error("talking to the guard")]
    Io(#[from] io::Error),
    /// The guard ended.
    #[error("the guard has ended")]
    Gone,
    /// The guard refused.
    #[error("the guard refuses: {0}")]
    Refused(String),
}

/// A connection to a guard. Blocking.
pub struct Client(Connection);

impl Client {
    /// Connects to the guard at `path`, which may take so long for each answer. After one that took longer, the connection is of no use.
    pub fn connect(path: &Path, patience: Duration) -> Result<Client, ClientError> {
        let connected = Connection::connect(path);
        let connection = connected.map_err(|source| ClientError::Connect { path: path.into(), source })?;
        connection.set_patience(patience)?;
        Ok(Client(connection))
    }

    /// Asks for something.
    pub fn call(&self, request: &Request) -> Result<Status, ClientError> {
        self.0.send(request, &[])?;
        match self.0.receive()?.ok_or(ClientError::Gone)?.0 {
            Reply::Ok(status) => Ok(status),
            Reply::Error(reason) => Err(ClientError::Refused(reason)),
        }
    }
}
