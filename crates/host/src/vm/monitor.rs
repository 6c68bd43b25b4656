//! Talking to a monitor while listening to it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::path::Path;
use std::process::ExitStatus;
use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep, timeout_at};
use vmm::control::{Connection, EventKind, Message, Reply, Request};

use super::process::{self, Process};

/// Between two tries to connect to a monitor that has just been started.
const CONNECT_AGAIN: Duration = Duration::from_millis(5);

/// A running monitor, and the connection to it.
pub struct Monitor {
    process: Process,
    exited: AsyncFd<std::os::fd::OwnedFd>,
    /// Until it is closed.
    connection: Option<AsyncFd<Connection>>,
    events: VecDeque<EventKind>,
    /// Answers that were not waited for long enough: those that come next are to requests before.
    owed: u32,
}

/// What a monitor did.
#[derive(Debug)]
pub enum Happened {
    /// It told something.
    Event(EventKind),
    /// It has ended; with its exit status, if this `marud` started it.
    Exited(Option<ExitStatus>),
}

/// Why a request was not done.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The monitor refused.
    #[error("the VM's monitor refuses: {0}")]
    Refused(String),
    /// It ends, or closed the connection.
    #[error("the VM's monitor is about to end")]
    Gone,
    /// No answer.
    #[error("the VM's monitor has not answered for {} s; if it hangs, stop the VM by force", .0.as_secs())]
    Silent(Duration),
    /// An answer that makes no sense.
    #[error("the VM's monitor answered something unexpected: {0}")]
    Unexpected(String),
}

impl Monitor {
    /// Takes a process over. Without a connection yet: [`Monitor::connect`].
    pub fn new(process: Process) -> io::Result<Monitor> {
        let pidfd = process.pidfd.try_clone()?;
        // SAFETY: the descriptor is owned, and stays open until the `AsyncFd` is dropped.
        let exited = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }?;
        Ok(Monitor { process, exited, connection: None, events: VecDeque::new(), owed: 0 })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid
    }

    /// Connects to its control socket, and subscribes to its events.
    pub async fn connect(&mut self, socket: &Path, limit: Duration) -> Result<(), CallError> {
        let deadline = Instant::now() + limit;
        let connection = loop {
            let path = socket.to_owned();
            // A monitor that was taken over could let us wait here.
            let trying = tokio::task::spawn_blocking(move || {
                let connection = Connection::connect(&path)?;
                connection.set_nonblocking()?;
                Ok::<_, io::Error>(connection)
            });
            match timeout_at(deadline, trying).await {
                Ok(Ok(Ok(connection))) => break connection,
                Ok(_) if self.process.has_ended() => return Err(CallError::Gone),
                Ok(_) if Instant::now() < deadline => sleep(CONNECT_AGAIN).await,
                _ => return Err(CallError::Silent(limit)),
            }
        };
        // SAFETY: the connection owns its one descriptor, which stays open until the `AsyncFd` is dropped.
        let registered = unsafe { AsyncFd::register_with_interest(connection, Interest::READABLE) };
        self.connection = Some(registered.map_err(|error| CallError::Unexpected(io::Error::from(error).to_string()))?);
        self.call::<serde_json::Value>(&Request::Subscribe, limit).await.map(drop)
    }

    /// Sends a request and waits for the answer. Events that come before it are kept.
    pub async fn call<T: DeserializeOwned>(&mut self, request: &Request, limit: Duration) -> Result<T, CallError> {
        self.call_with(request, &[], limit).await
    }

    /// The same with files. A monitor that tells of its progress has `limit` from there on.
    pub async fn call_with<T: DeserializeOwned>(
        &mut self,
        request: &Request,
        files: &[RawFd],
        limit: Duration,
    ) -> Result<T, CallError> {
        let connection = self.connection.as_ref().ok_or(CallError::Gone)?;
        match connection.get_ref().send(request, files) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(CallError::Silent(Duration::ZERO)),
            Err(_) => return Err(CallError::Gone),
            Ok(()) => {}
        }
        let mut deadline = Instant::now() + limit;
        loop {
            let Ok(message) = timeout_at(deadline, self.receive()).await else {
                self.owed += 1;
                return Err(CallError::Silent(limit));
            };
            match message {
                Some(Message::Event(event)) => self.events.push_back(event.kind),
                Some(Message::Reply(Reply::Progress { .. })) => deadline = Instant::now() + limit,
                Some(Message::Reply(_)) if self.owed > 0 => self.owed -= 1,
                Some(Message::Reply(Reply::Error(failure))) => return Err(CallError::Refused(failure.message)),
                Some(Message::Reply(Reply::Ok(value))) => {
                    return serde_json::from_value(value).map_err(|error| CallError::Unexpected(error.to_string()));
                }
                None => return Err(CallError::Gone),
            }
        }
    }

    /// What it does next. Nothing is lost when the waiting is given up.
    pub async fn next(&mut self) -> Happened {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Happened::Event(event);
            }
            // First what it told, then that it has ended.
            if self.connection.is_none() {
                let _ = self.exited.readable().await;
                let status = self.process.child.as_mut().and_then(|child| child.wait().ok());
                return Happened::Exited(status);
            }
            match self.receive().await {
                Some(Message::Event(event)) => return Happened::Event(event.kind),
                Some(Message::Reply(Reply::Progress { .. })) => {}
                // An answer that came too late.
                Some(Message::Reply(_)) => self.owed = self.owed.saturating_sub(1),
                None => self.connection = None,
            }
        }
    }

    /// The next message; `None` when the connection is closed. What is no message is passed over: it may have been taken over.
    async fn receive(&self) -> Option<Message> {
        let connection = self.connection.as_ref()?;
        loop {
            let mut ready = connection.readable().await.ok()?;
            match ready.try_io(|connection| connection.get_ref().receive::<Message>()) {
                Ok(Ok(message)) => return message.map(|(message, _)| message),
                Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidData => {}
                Ok(Err(_)) => return None,
                Err(_would_block) => {}
            }
        }
    }

    /// Ends the process, without asking it.
    pub fn kill(&self) {
        // It can only have ended meanwhile.
        let _ = process::kill(&self.process.pidfd);
    }
}
