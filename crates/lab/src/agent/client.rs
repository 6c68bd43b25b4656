//! The client on this machine.

use std::collections::{HashMap, VecDeque};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::flow::Window;
use super::frame::{Decoder, ExitStatus, Frame, Kind, MAX_PAYLOAD, PREAMBLE, Request, Stream};
use super::process::{Event, Exec, Process};

/// Why something in a host did not work.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The agent did not answer in time.
    #[error("the host's agent did not answer within {0:?}")]
    NoAnswer(Duration),
    /// The connection ended: the host was switched off, reset or frozen too long.
    #[error("the connection to the host ended: {0}")]
    Ended(String),
    /// The host could not do what was asked.
    #[error("{0}")]
    Refused(String),
    /// A condition was not met in time.
    #[error("after {waited:?} still waiting for {what}; output so far:\n{seen}")]
    Timeout {
        /// What was waited for.
        what: String,
        /// How long.
        waited: Duration,
        /// The program's output until then.
        seen: String,
    },
    /// A file on this machine.
    #[error("cannot use {path} on this machine")]
    Local {
        /// The file.
        path: String,
        /// The cause.
        source: io::Error,
    },
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A session with a host's agent. Programs it started are killed when it is dropped.
#[derive(Debug)]
pub struct Client {
    session: Arc<Session>,
}

#[derive(Debug)]
pub(super) struct Session {
    socket: UnixStream,
    writing: Mutex<()>,
    pub(super) channels: Mutex<HashMap<u32, Arc<Inbox>>>,
    next_channel: AtomicU32,
    /// Why the session is over.
    ended: Mutex<Option<String>>,
}

#[derive(Debug, Default)]
pub(super) struct Inbox {
    pub(super) events: Mutex<VecDeque<Result<Event, String>>>,
    pub(super) changed: Condvar,
    pub(super) window: Window,
}

impl Inbox {
    pub(super) fn push(&self, event: Result<Event, String>) {
        lock(&self.events).push_back(event);
        self.changed.notify_all();
    }
}

impl Session {
    pub(super) fn send(&self, frame: &Frame) -> Result<(), AgentError> {
        let _writing = lock(&self.writing);
        (&self.socket).write_all(&frame.encode()).map_err(|error| {
            let reason = lock(&self.ended).clone();
            AgentError::Ended(reason.unwrap_or_else(|| error.to_string()))
        })
    }

    fn end(&self, reason: &str) {
        lock(&self.ended).get_or_insert_with(|| reason.to_owned());
        let _ = self.socket.shutdown(Shutdown::Both);
        for (_, inbox) in lock(&self.channels).drain() {
            inbox.window.close();
            inbox.push(Err(reason.to_owned()));
        }
    }

    fn read(&self, mut decoder: Decoder) {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            while let Some(frame) = decoder.next_frame() {
                if frame.kind == Kind::Boot {
                    return self.end("the host was restarted");
                }
                self.receive(frame);
            }
            match (&self.socket).read(&mut buffer) {
                Ok(0) => return self.end("the host was switched off"),
                Ok(count) => decoder.feed(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return self.end(&error.to_string()),
            }
        }
    }

    fn receive(&self, frame: Frame) {
        let mut channels = lock(&self.channels);
        let Some(inbox) = channels.get(&frame.channel) else { return };
        match frame.kind {
            Kind::Data if frame.stream == Stream::Err => inbox.push(Ok(Event::Stderr(frame.payload))),
            Kind::Data => inbox.push(Ok(Event::Stdout(frame.payload))),
            Kind::Credit => inbox.window.give(frame.number().unwrap_or(0) as usize),
            Kind::Exit => {
                let failed = |error| ExitStatus::Failed(format!("the agent's answer cannot be read: {error}"));
                inbox.push(Ok(Event::Exit(serde_json::from_slice(&frame.payload).unwrap_or_else(failed))));
                inbox.window.close();
                channels.remove(&frame.channel);
            }
            _ => {}
        }
    }
}

impl Client {
    /// Connects to the agent behind the socket at `path` and waits up to `limit` for its answer. The host may still be
    /// starting.
    ///
    /// # Errors
    /// When there is no such socket or no answer in time.
    pub fn connect(path: &Path, limit: Duration) -> Result<Self, AgentError> {
        let deadline = Instant::now() + limit;
        let io_error = |error: io::Error| match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => AgentError::NoAnswer(limit),
            _ => AgentError::Ended(error.to_string()),
        };
        let mut socket = UnixStream::connect(path).map_err(io_error)?;
        let nonce = random_nonce().map_err(io_error)?;
        let hello = Frame::hello(nonce);
        socket.set_write_timeout(Some(limit)).map_err(io_error)?;
        socket.write_all(&PREAMBLE).and_then(|()| socket.write_all(&hello.encode())).map_err(io_error)?;
        let mut decoder = Decoder::waiting_for_hello();
        let mut buffer = vec![0; 64 * 1024];
        loop {
            match decoder.next_frame() {
                Some(frame) if frame == hello => break,
                Some(_) => {
                    decoder.lose();
                    continue;
                }
                None => {}
            }
            let rest = deadline.saturating_duration_since(Instant::now());
            socket.set_read_timeout(Some(rest.max(Duration::from_millis(1)))).map_err(io_error)?;
            match socket.read(&mut buffer).map_err(io_error)? {
                0 => return Err(AgentError::Ended("the host was switched off".into())),
                count => decoder.feed(&buffer[..count]),
            }
        }
        socket.set_read_timeout(None).and_then(|()| socket.set_write_timeout(None)).map_err(io_error)?;
        let session = Arc::new(Session {
            socket,
            writing: Mutex::new(()),
            channels: Mutex::new(HashMap::new()),
            next_channel: AtomicU32::new(1),
            ended: Mutex::new(None),
        });
        let reader = session.clone();
        thread::spawn(move || reader.read(decoder));
        Ok(Client { session })
    }

    /// Whether the session can still be used.
    pub fn is_alive(&self) -> bool {
        lock(&self.session.ended).is_none()
    }

    /// Ends the session; whoever waits for something of it gets an error.
    pub fn close(&self) {
        self.session.end("the session was closed");
    }

    /// Starts a program.
    ///
    /// # Errors
    /// When the session is over. A program that cannot be started ends with [`ExitStatus::Failed`].
    pub fn spawn(&self, exec: Exec) -> Result<Process, AgentError> {
        self.open(&exec.into_request())
    }

    /// Copies a file of this machine to the host with the same permission bits.
    ///
    /// # Errors
    /// When either side cannot use its file.
    pub fn push(&self, local: &Path, path: &str) -> Result<(), AgentError> {
        let failed = |source| AgentError::Local { path: local.display().to_string(), source };
        let mode = fs::metadata(local).map_err(failed)?.permissions().mode() & 0o7777;
        self.push_from(File::open(local).map_err(failed)?, path, mode)
    }

    /// Writes everything that `source` gives to a file in the host.
    ///
    /// # Errors
    /// When the source fails or the host cannot write the file.
    pub fn push_from(&self, mut source: impl Read, path: &str, mode: u32) -> Result<(), AgentError> {
        let process = self.open(&Request::Push { path: path.to_owned(), mode })?;
        let mut buffer = vec![0; MAX_PAYLOAD];
        loop {
            let count =
                source.read(&mut buffer).map_err(|source| AgentError::Local { path: format!("the source of {path}"), source })?;
            if count == 0 || process.write_stdin(&buffer[..count]).is_err() {
                break;
            }
        }
        let _ = process.close_stdin();
        process.finish().map(|_| ())
    }

    /// Copies a file of the host to this machine.
    ///
    /// # Errors
    /// When either side cannot use its file.
    pub fn pull(&self, path: &str, local: &Path) -> Result<(), AgentError> {
        let failed = |source| AgentError::Local { path: local.display().to_string(), source };
        let mut file = File::create(local).map_err(failed)?;
        let mut process = self.open(&Request::Pull { path: path.to_owned() })?;
        loop {
            match process.next_event(None)? {
                Some(Event::Stdout(bytes)) => file.write_all(&bytes).map_err(failed)?,
                Some(Event::Exit(ExitStatus::Failed(reason))) => return Err(AgentError::Refused(reason)),
                Some(Event::Exit(_)) => return Ok(()),
                Some(Event::Stderr(_)) | None => {}
            }
        }
    }

    /// The content of a file of the host.
    ///
    /// # Errors
    /// When the host cannot read it.
    pub fn read(&self, path: &str) -> Result<Vec<u8>, AgentError> {
        self.open(&Request::Pull { path: path.to_owned() })?.finish().map(|output| output.stdout)
    }

    /// Loads a kernel module of the appliance with what it needs.
    ///
    /// # Errors
    /// When the appliance has no such module or the kernel refuses it.
    pub fn load_module(&self, name: &str, parameters: &str) -> Result<(), AgentError> {
        let request = Request::LoadModule { name: name.to_owned(), parameters: parameters.to_owned() };
        self.open(&request)?.finish().map(|_| ())
    }

    /// Writes everything that the host's kernel has cached to its disks.
    ///
    /// # Errors
    /// When the session ends meanwhile.
    pub fn sync(&self) -> Result<(), AgentError> {
        self.open(&Request::Sync)?.finish().map(|_| ())
    }

    /// Asks the host to shut down in order.
    ///
    /// # Errors
    /// When the session is over before it could be asked.
    pub fn power_off(&self) -> Result<(), AgentError> {
        self.open(&Request::PowerOff)?.finish().map(|_| ())
    }

    fn open(&self, request: &Request) -> Result<Process, AgentError> {
        let channel = self.session.next_channel.fetch_add(1, Ordering::Relaxed);
        let inbox = Arc::new(Inbox::default());
        lock(&self.session.channels).insert(channel, inbox.clone());
        if let Some(reason) = lock(&self.session.ended).clone() {
            lock(&self.session.channels).remove(&channel);
            return Err(AgentError::Ended(reason));
        }
        let payload = serde_json::to_vec(request).map_err(|error| AgentError::Refused(error.to_string()))?;
        if payload.len() > MAX_PAYLOAD {
            return Err(AgentError::Refused(format!("the request has {} bytes, more than {MAX_PAYLOAD}", payload.len())));
        }
        self.session.send(&Frame::new(Kind::Open, channel, payload))?;
        Ok(Process::new(self.session.clone(), inbox, channel))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.close();
    }
}

fn random_nonce() -> io::Result<[u8; 16]> {
    let mut nonce = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut nonce)?;
    Ok(nonce)
}
