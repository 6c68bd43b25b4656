//! The client's side of the control socket.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use packet::Connection;
use serde::de::DeserializeOwned;

use super::{Failure, Reply, Request};

/// A connection to a switch. Blocking.
pub struct Client(Connection);

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there.
    #[error("cannot connect to the switch at {path}: is maru-switch running, with --control {path}?")]
    Connect {
        /// The socket.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The socket.
    #[error("talking to the switch")]
    Io(#[from] io::Error),
    /// The switch ended.
    #[error("the switch has ended")]
    Gone,
    /// The switch refused.
    #[error(transparent)]
    Refused(#[from] Failure),
    /// An answer of another form.
    #[error("the switch answered something unexpected")]
    Unexpected(#[from] serde_json::Error),
}

/// Ends what follows an answer, from another thread.
#[derive(Debug)]
pub struct Stopper(OwnedFd);

impl Stopper {
    /// Says to the switch that nothing more is asked for; the last thing that it sends still comes.
    pub fn stop(&self) {
        // SAFETY: plain shutdown on our own descriptor. It fails if the switch has ended, and then all has come.
        unsafe { libc::shutdown(self.0.as_raw_fd(), libc::SHUT_WR) };
    }
}

impl Client {
    /// What ends a stream of answers from another thread.
    pub fn stopper(&self) -> io::Result<Stopper> {
        // SAFETY: the descriptor is open as long as `self`.
        let fd = unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) };
        Ok(Stopper(fd.try_clone_to_owned()?))
    }

    /// Connects to the switch that listens at `path`.
    pub fn connect(path: &Path) -> Result<Client, ClientError> {
        let connection = Connection::connect(path);
        Ok(Client(connection.map_err(|source| ClientError::Connect { path: path.display().to_string(), source })?))
    }

    /// How long each request may take from now on. After one that took longer, the connection is of no use any more.
    pub fn set_patience(&self, patience: Duration) -> io::Result<()> {
        self.0.set_patience(patience)
    }

    /// Sends a request and waits for its answer.
    pub fn call<T: DeserializeOwned>(&mut self, request: &Request) -> Result<T, ClientError> {
        self.0.send_message(request)?;
        self.receive()
    }

    /// Waits for what follows the answer to a request that asks for more than one thing.
    pub fn receive<T: DeserializeOwned>(&mut self) -> Result<T, ClientError> {
        match self.0.receive_message()?.ok_or(ClientError::Gone)? {
            Reply::Ok(value) => Ok(serde_json::from_value(value)?),
            Reply::Error(failure) => Err(failure.into()),
        }
    }
}
