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
use super::frame::{Decoder, ExitStatus, Frame, Kind, MAX_PAYLOAD, PREAMBLE, Request, Stream, TerminalSize, WINDOW};

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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A program to run in a host.
#[derive(Debug, Clone, Default)]
pub struct Exec {
    argv: Vec<String>,
    env: Vec<(String, String)>,
    cwd: Option<String>,
    terminal: Option<TerminalSize>,
}

impl Exec {
    /// The program and its arguments.
    pub fn new<I: IntoIterator<Item: Into<String>>>(argv: I) -> Self {
        Exec { argv: argv.into_iter().map(Into::into).collect(), ..Exec::default() }
    }

    /// Sets a variable of its environment.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Sets its working directory.
    #[must_use]
    pub fn cwd(mut self, dir: impl Into<String>) -> Self {
        self.cwd = Some(dir.into());
        self
    }

    /// Runs it on a terminal.
    #[must_use]
    pub fn terminal(mut self, size: TerminalSize) -> Self {
        self.terminal = Some(size);
        self
    }
}

/// What a finished program left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: Vec<u8>,
}

impl Output {
    /// Whether it ended with code 0.
    pub fn success(&self) -> bool {
        self.status == ExitStatus::Code(0)
    }

    /// Its standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Its standard error as text.
    pub fn error_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
}

/// Something that happened to a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// It wrote to its standard output.
    Stdout(Vec<u8>),
    /// It wrote to its standard error.
    Stderr(Vec<u8>),
    /// It ended; nothing follows.
    Exit(ExitStatus),
}

/// A session with a host's agent. Programs it started are killed when it is dropped.
#[derive(Debug)]
pub struct Client {
    session: Arc<Session>,
}

#[derive(Debug)]
struct Session {
    socket: UnixStream,
    writing: Mutex<()>,
    channels: Mutex<HashMap<u32, Arc<Inbox>>>,
    next_channel: AtomicU32,
    /// Why the session is over.
    ended: Mutex<Option<String>>,
}

#[derive(Debug, Default)]
struct Inbox {
    events: Mutex<VecDeque<Result<Event, String>>>,
    changed: Condvar,
    window: Window,
}

impl Inbox {
    fn push(&self, event: Result<Event, String>) {
        lock(&self.events).push_back(event);
        self.changed.notify_all();
    }
}

impl Session {
    fn send(&self, frame: &Frame) -> Result<(), AgentError> {
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

    /// Starts a program.
    ///
    /// # Errors
    /// When the session is over. A program that cannot be started ends with [`ExitStatus::Failed`].
    pub fn spawn(&self, exec: Exec) -> Result<Process, AgentError> {
        let Exec { argv, env, cwd, terminal } = exec;
        self.open(&Request::Exec { argv, env, cwd, terminal })
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
            let count = source
                .read(&mut buffer)
                .map_err(|source| AgentError::Local { path: format!("the source of {path}"), source })?;
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
        Ok(Process { session: self.session.clone(), inbox, channel, unacknowledged: [0; 2], exit: None })
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.session.end("the session was closed");
    }
}

fn random_nonce() -> io::Result<[u8; 16]> {
    let mut nonce = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut nonce)?;
    Ok(nonce)
}

/// A program running in a host. It is killed when this is dropped before it has ended.
#[derive(Debug)]
pub struct Process {
    session: Arc<Session>,
    inbox: Arc<Inbox>,
    channel: u32,
    /// Bytes of standard output and error that were taken but not yet given back to the window.
    unacknowledged: [usize; 2],
    exit: Option<ExitStatus>,
}

impl Process {
    /// What happens next, or `None` when nothing did until `deadline`. After the exit, the exit again.
    ///
    /// # Errors
    /// When the session ends.
    pub fn next_event(&mut self, deadline: Option<Instant>) -> Result<Option<Event>, AgentError> {
        if let Some(status) = &self.exit {
            return Ok(Some(Event::Exit(status.clone())));
        }
        let mut events = lock(&self.inbox.events);
        let event = loop {
            if let Some(event) = events.pop_front() {
                break event;
            }
            events = match deadline {
                None => self.inbox.changed.wait(events).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let rest = deadline.saturating_duration_since(Instant::now());
                    if rest.is_zero() {
                        return Ok(None);
                    }
                    self.inbox.changed.wait_timeout(events, rest).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        };
        drop(events);
        let event = event.map_err(|reason| {
            // Whoever asks again gets the same answer.
            self.inbox.push(Err(reason.clone()));
            AgentError::Ended(reason)
        })?;
        match &event {
            Event::Stdout(bytes) => self.acknowledge(Stream::Out, bytes.len())?,
            Event::Stderr(bytes) => self.acknowledge(Stream::Err, bytes.len())?,
            Event::Exit(status) => self.exit = Some(status.clone()),
        }
        Ok(Some(event))
    }

    fn acknowledge(&mut self, stream: Stream, count: usize) -> Result<(), AgentError> {
        let pending = &mut self.unacknowledged[usize::from(stream == Stream::Err)];
        *pending += count;
        if *pending >= WINDOW / 4 {
            let count = std::mem::take(pending);
            self.session.send(&Frame::credit(self.channel, stream, count))?;
        }
        Ok(())
    }

    /// Reads until `found` accepts everything the program has written so far (standard output and error in the order of
    /// arrival), or the limit has passed. Gives that text.
    ///
    /// # Errors
    /// [`AgentError::Timeout`] with the text so far, also when the program ends first.
    pub fn wait_for(&mut self, what: &str, limit: Duration, mut found: impl FnMut(&str) -> bool) -> Result<String, AgentError> {
        let start = Instant::now();
        let mut seen = Vec::new();
        loop {
            match self.next_event(Some(start + limit))? {
                Some(Event::Stdout(bytes) | Event::Stderr(bytes)) => seen.extend(bytes),
                Some(Event::Exit(status)) => {
                    let what = format!("{what} (the program has ended: {status:?})");
                    let seen = String::from_utf8_lossy(&seen).into_owned();
                    return Err(AgentError::Timeout { what, waited: start.elapsed(), seen });
                }
                None => {
                    let seen = String::from_utf8_lossy(&seen).into_owned();
                    return Err(AgentError::Timeout { what: what.to_owned(), waited: limit, seen });
                }
            }
            let text = String::from_utf8_lossy(&seen);
            if found(&text) {
                return Ok(text.into_owned());
            }
        }
    }

    /// Waits for the end and collects all output.
    ///
    /// # Errors
    /// When the session ends first.
    pub fn wait_with_output(mut self) -> Result<Output, AgentError> {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        loop {
            match self.next_event(None)? {
                Some(Event::Stdout(bytes)) => stdout.extend(bytes),
                Some(Event::Stderr(bytes)) => stderr.extend(bytes),
                Some(Event::Exit(status)) => return Ok(Output { status, stdout, stderr }),
                None => {}
            }
        }
    }

    /// Like [`Process::wait_with_output`], with a request that failed as an error.
    fn finish(self) -> Result<Output, AgentError> {
        match self.wait_with_output()? {
            Output { status: ExitStatus::Failed(reason), .. } => Err(AgentError::Refused(reason)),
            output => Ok(output),
        }
    }

    /// Writes to the program's standard input, waiting while it does not read.
    ///
    /// # Errors
    /// When the program or the session has ended.
    pub fn write_stdin(&self, mut bytes: &[u8]) -> Result<(), AgentError> {
        while !bytes.is_empty() {
            let ended = || AgentError::Ended("the program has ended".into());
            let count = self.inbox.window.take(bytes.len().min(MAX_PAYLOAD)).ok_or_else(ended)?;
            let payload = bytes[..count].to_vec();
            self.session.send(&Frame { kind: Kind::Data, stream: Stream::In, channel: self.channel, payload })?;
            bytes = &bytes[count..];
        }
        Ok(())
    }

    /// Ends the program's standard input.
    ///
    /// # Errors
    /// When the session has ended.
    pub fn close_stdin(&self) -> Result<(), AgentError> {
        self.session.send(&Frame::new(Kind::End, self.channel, Vec::new()))
    }

    /// Sends a signal to the program and what it started.
    ///
    /// # Errors
    /// When the session has ended.
    pub fn signal(&self, signal: i32) -> Result<(), AgentError> {
        self.session.send(&Frame::new(Kind::Signal, self.channel, signal.to_le_bytes().to_vec()))
    }

    /// Kills the program and what it started.
    ///
    /// # Errors
    /// When the session has ended.
    pub fn kill(&self) -> Result<(), AgentError> {
        self.signal(libc::SIGKILL)
    }

    /// Tells the program's terminal its new size.
    ///
    /// # Errors
    /// When the session has ended.
    pub fn resize(&self, size: TerminalSize) -> Result<(), AgentError> {
        let payload = [size.columns.to_le_bytes(), size.rows.to_le_bytes()].concat();
        self.session.send(&Frame::new(Kind::Resize, self.channel, payload))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.exit.is_none() {
            lock(&self.session.channels).remove(&self.channel);
            let _ = self.session.send(&Frame::new(Kind::Close, self.channel, Vec::new()));
        }
    }
}
