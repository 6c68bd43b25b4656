//! Programs in a host, as this machine sees them.

use std::fmt;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::client::{AgentError, Inbox, Session, lock};
use super::frame::{ExitStatus, Frame, Kind, MAX_PAYLOAD, Request, Stream, TerminalSize, WINDOW};

/// A program to run in a host.
#[derive(Debug, Clone, Default)]
pub struct Exec {
    argv: Vec<String>,
    env: Vec<(String, String)>,
    cwd: Option<String>,
    terminal: Option<TerminalSize>,
}

impl Exec {
    pub(super) fn into_request(self) -> Request {
        let Exec { argv, env, cwd, terminal } = self;
        Request::Exec { argv, env, cwd, terminal }
    }

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
#[derive(Clone, PartialEq, Eq)]
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

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut output = f.debug_struct("Output");
        output.field("status", &self.status).field("stdout", &self.text()).field("stderr", &self.error_text()).finish()
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
    pub(super) fn new(session: Arc<Session>, inbox: Arc<Inbox>, channel: u32) -> Self {
        Process { session, inbox, channel, unacknowledged: [0; 2], exit: None }
    }

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
    pub fn wait_with_output(self) -> Result<Output, AgentError> {
        self.collect(None)
    }

    /// Like [`Process::wait_with_output`], but kills the program when it has not ended after `limit`.
    ///
    /// # Errors
    /// [`AgentError::Timeout`] with the output so far.
    pub fn wait_within(self, limit: Duration) -> Result<Output, AgentError> {
        self.collect(Some(limit))
    }

    fn collect(mut self, limit: Option<Duration>) -> Result<Output, AgentError> {
        let deadline = limit.map(|limit| Instant::now() + limit);
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        loop {
            match self.next_event(deadline)? {
                Some(Event::Stdout(bytes)) => stdout.extend(bytes),
                Some(Event::Stderr(bytes)) => stderr.extend(bytes),
                Some(Event::Exit(status)) => return Ok(Output { status, stdout, stderr }),
                None => {
                    stdout.extend(stderr);
                    let seen = String::from_utf8_lossy(&stdout).into_owned();
                    let what = "the program to end".to_owned();
                    return Err(AgentError::Timeout { what, waited: limit.unwrap_or_default(), seen });
                }
            }
        }
    }

    /// Like [`Process::wait_with_output`], with a request that failed as an error.
    pub(super) fn finish(self) -> Result<Output, AgentError> {
        match self.wait_with_output()? {
            Output { status: ExitStatus::Failed(reason), .. } => Err(AgentError::Refused(reason)),
            output => Ok(output),
        }
    }

    /// The program's other side, for use while somebody waits for its output.
    pub fn input(&self) -> Input {
        Input { session: self.session.clone(), inbox: self.inbox.clone(), channel: self.channel }
    }

    /// As [`Input::write`].
    ///
    /// # Errors
    /// When the program or the session has ended.
    pub fn write_stdin(&self, bytes: &[u8]) -> Result<(), AgentError> {
        self.input().write(bytes)
    }

    /// As [`Input::close`].
    ///
    /// # Errors
    /// When the session has ended.
    pub fn close_stdin(&self) -> Result<(), AgentError> {
        self.input().close()
    }

    /// As [`Input::signal`].
    ///
    /// # Errors
    /// When the session has ended.
    pub fn signal(&self, signal: i32) -> Result<(), AgentError> {
        self.input().signal(signal)
    }

    /// Kills the program and what it started.
    ///
    /// # Errors
    /// When the session has ended.
    pub fn kill(&self) -> Result<(), AgentError> {
        self.signal(libc::SIGKILL)
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

/// What goes to a program: its standard input, signals, the size of its terminal.
#[derive(Debug, Clone)]
pub struct Input {
    session: Arc<Session>,
    inbox: Arc<Inbox>,
    channel: u32,
}

impl Input {
    /// Writes to the program's standard input, waiting while it does not read.
    ///
    /// # Errors
    /// When the program or the session has ended.
    pub fn write(&self, mut bytes: &[u8]) -> Result<(), AgentError> {
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
    pub fn close(&self) -> Result<(), AgentError> {
        self.session.send(&Frame::new(Kind::End, self.channel, Vec::new()))
    }

    /// Sends a signal to the program and what it started.
    ///
    /// # Errors
    /// When the session has ended.
    pub fn signal(&self, signal: i32) -> Result<(), AgentError> {
        self.session.send(&Frame::new(Kind::Signal, self.channel, signal.to_le_bytes().to_vec()))
    }

    /// Tells the program's terminal its new size.
    ///
    /// # Errors
    /// When the session has ended.
    pub fn resize(&self, size: TerminalSize) -> Result<(), AgentError> {
        self.session.send(&Frame::new(Kind::Resize, self.channel, size.encode()))
    }
}
