//! The client's side of the control socket.

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::path::Path;

use serde::de::DeserializeOwned;

use super::{Connection, Event, Failure, Message, Reply, Request};

/// A connection to a monitor. Blocking.
pub struct Client {
    connection: Connection,
    events: VecDeque<Event>,
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The socket.
    #[error("talking to the VM's monitor")]
    Io(#[from] io::Error),
    /// The monitor ended.
    #[error("the VM's monitor has ended")]
    Gone,
    /// The monitor refused.
    #[error(transparent)]
    Refused(#[from] Failure),
    /// An answer of another form.
    #[error("the VM's monitor answered something unexpected: {0}")]
    Unexpected(#[from] serde_json::Error),
}

impl Client {
    /// Connects to the monitor that listens at `path`.
    pub fn connect(path: &Path) -> io::Result<Client> {
        Ok(Client::new(Connection::connect(path)?))
    }

    /// Uses a connection that is there already.
    pub fn new(connection: Connection) -> Client {
        Client { connection, events: VecDeque::new() }
    }

    /// Sends a request and waits for its answer.
    pub fn call<T: DeserializeOwned>(&mut self, request: &Request, fds: &[RawFd]) -> Result<T, ClientError> {
        self.call_with_progress(request, fds, |_, _| {})
    }

    /// Sends a request and waits for its answer; `progress` gets how far it is, and the whole.
    pub fn call_with_progress<T: DeserializeOwned>(
        &mut self,
        request: &Request,
        fds: &[RawFd],
        mut progress: impl FnMut(u64, u64),
    ) -> Result<T, ClientError> {
        self.connection.send(request, fds)?;
        loop {
            match self.receive()? {
                Message::Event(event) => self.events.push_back(event),
                Message::Reply(Reply::Progress { done, total }) => progress(done, total),
                Message::Reply(Reply::Ok(value)) => return Ok(serde_json::from_value(value)?),
                Message::Reply(Reply::Error(failure)) => return Err(failure.into()),
            }
        }
    }

    /// The next event (after `subscribe`); waits for it.
    pub fn next_event(&mut self) -> Result<Event, ClientError> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(event);
            }
            if let Message::Event(event) = self.receive()? {
                return Ok(event);
            }
        }
    }

    fn receive(&self) -> Result<Message, ClientError> {
        match self.connection.receive() {
            Ok(Some((message, _))) => Ok(message),
            Ok(None) => Err(ClientError::Gone),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Err(ClientError::Gone),
            Err(error) => Err(error.into()),
        }
    }
}
