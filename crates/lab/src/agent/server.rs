//! The agent in the host.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::flow::Window;
use super::frame::{Decoder, ExitStatus, Frame, Kind, MAX_PAYLOAD, PREAMBLE, Request, Stream, TerminalSize};
use super::terminal;
use crate::pid1;

/// Name of the virtio-serial port that the agent listens on.
pub const PORT_NAME: &str = "maru.exec";

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Serves the port for as long as the host runs.
///
/// # Errors
/// When this machine has no such port or it breaks.
pub fn serve() -> io::Result<()> {
    let port = Arc::new(File::options().read(true).write(true).open(find_port()?)?);
    let link = Arc::new(Link { port: port.clone(), writing: Mutex::new(()), session: AtomicU64::new(0) });
    link.send(0, &Frame::new(Kind::Boot, 0, Vec::new()), Preamble::Yes);
    let mut server = Server { link, session: 0, channels: HashMap::new() };
    let mut decoder = Decoder::default();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match (&*port).read(&mut buffer) {
            Ok(0) => {
                // Nobody is connected outside. poll() reports that state at once and for ever instead of waiting for
                // its end, so look again a little later.
                server.end_session();
                decoder.reset();
                thread::sleep(Duration::from_millis(20));
            }
            Ok(count) => {
                decoder.feed(&buffer[..count]);
                while let Some(frame) = decoder.next_frame() {
                    server.receive(frame);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn find_port() -> io::Result<PathBuf> {
    for entry in fs::read_dir("/sys/class/virtio-ports")?.flatten() {
        if fs::read_to_string(entry.path().join("name")).is_ok_and(|name| name.trim() == PORT_NAME) {
            return Ok(PathBuf::from("/dev").join(entry.file_name()));
        }
    }
    Err(io::Error::new(io::ErrorKind::NotFound, format!("there is no virtio-serial port {PORT_NAME}")))
}

#[derive(PartialEq, Eq)]
enum Preamble {
    Yes,
    No,
}

/// The port's writing side. Frames of a session that is over are dropped here, also those whose writers were blocked
/// while nobody was connected.
struct Link {
    port: Arc<File>,
    writing: Mutex<()>,
    session: AtomicU64,
}

impl Link {
    /// Whether the frame was sent.
    fn send(&self, session: u64, frame: &Frame, preamble: Preamble) -> bool {
        let _writing = lock(&self.writing);
        if self.session.load(Ordering::SeqCst) != session {
            return false;
        }
        let mut bytes = if preamble == Preamble::Yes { PREAMBLE.to_vec() } else { Vec::new() };
        bytes.extend(frame.encode());
        (&*self.port).write_all(&bytes).is_ok()
    }
}

/// The program's process group.
enum Group {
    /// Not there yet; these signals are waiting for it.
    Starting(Vec<i32>),
    Running(libc::pid_t),
    Reaped,
}

/// What a channel's threads share.
struct Channel {
    link: Arc<Link>,
    session: u64,
    number: u32,
    out: Window,
    err: Window,
    group: Mutex<Group>,
    terminal: Mutex<Option<File>>,
    /// Set before the input ends when it ends because the client gave up, not because it had sent everything.
    given_up: AtomicBool,
}

impl Channel {
    fn send(&self, kind: Kind, stream: Stream, payload: Vec<u8>) -> bool {
        self.link.send(self.session, &Frame { kind, stream, channel: self.number, payload }, Preamble::No)
    }

    fn window(&self, stream: Stream) -> &Window {
        if stream == Stream::Err { &self.err } else { &self.out }
    }

    fn signal(&self, signal: i32) {
        match &mut *lock(&self.group) {
            Group::Starting(waiting) => waiting.push(signal),
            Group::Running(group) => kill_group(*group, signal),
            Group::Reaped => {}
        }
    }

    fn started(&self, group: libc::pid_t) {
        let before = std::mem::replace(&mut *lock(&self.group), Group::Running(group));
        if let Group::Starting(waiting) = before {
            waiting.into_iter().for_each(|signal| kill_group(group, signal));
        }
    }

    fn close(&self) {
        self.given_up.store(true, Ordering::SeqCst);
        self.signal(libc::SIGKILL);
        self.out.close();
        self.err.close();
    }

    /// Sends everything that `source` gives.
    fn send_all(&self, stream: Stream, mut source: impl Read) -> io::Result<()> {
        let mut buffer = vec![0; MAX_PAYLOAD];
        loop {
            let count = match source.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // What a pseudo-terminal says when its last user has gone.
                Err(error) if error.raw_os_error() == Some(libc::EIO) => break,
                Err(error) => return Err(error),
            };
            let mut rest = &buffer[..count];
            while !rest.is_empty() {
                let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
                let taken = self.window(stream).take(rest.len()).ok_or_else(gone)?;
                if !self.send(Kind::Data, stream, rest[..taken].to_vec()) {
                    return Err(gone());
                }
                rest = &rest[taken..];
            }
        }
        self.send(Kind::End, stream, Vec::new());
        Ok(())
    }
}

/// Only for a group whose leader is not reaped, so that the number cannot mean another.
fn kill_group(group: libc::pid_t, signal: i32) {
    // SAFETY: no pointers.
    unsafe { libc::kill(-group, signal) };
}

/// A channel and where its input goes, until that has ended.
type OpenChannel = (Arc<Channel>, Option<Sender<Vec<u8>>>);

/// The reading side: owns the channels of the current session.
struct Server {
    link: Arc<Link>,
    session: u64,
    channels: HashMap<u32, OpenChannel>,
}

impl Server {
    /// Kills what the last client started. Frames that its threads still send are dropped.
    fn end_session(&mut self) {
        self.session += 1;
        self.link.session.store(self.session, Ordering::SeqCst);
        for (_, (channel, input)) in self.channels.drain() {
            channel.close();
            drop(input);
        }
    }

    fn receive(&mut self, frame: Frame) {
        match frame.kind {
            Kind::Hello => {
                self.end_session();
                self.link.send(self.session, &frame, Preamble::No);
            }
            Kind::Open => self.open(&frame),
            Kind::Close => {
                if let Some((channel, input)) = self.channels.remove(&frame.channel) {
                    channel.close();
                    drop(input);
                }
            }
            kind => {
                let Some((channel, input)) = self.channels.get_mut(&frame.channel) else { return };
                match kind {
                    Kind::Data => {
                        // The receiver ends before the sender when the program has closed its input.
                        if input.as_ref().is_some_and(|input| input.send(frame.payload).is_err()) {
                            *input = None;
                        }
                    }
                    Kind::End => *input = None,
                    Kind::Credit => channel.window(frame.stream).give(frame.number().unwrap_or(0) as usize),
                    Kind::Signal => channel.signal(frame.number().unwrap_or(0) as i32),
                    Kind::Resize => {
                        if let (Some(terminal), Some(size)) = (&*lock(&channel.terminal), TerminalSize::decode(&frame.payload)) {
                            terminal::resize(terminal, size);
                        }
                    }
                    Kind::Hello | Kind::Boot | Kind::Open | Kind::Exit | Kind::Close => {}
                }
            }
        }
    }

    fn open(&mut self, frame: &Frame) {
        let channel = Arc::new(Channel {
            link: self.link.clone(),
            session: self.session,
            number: frame.channel,
            out: Window::default(),
            err: Window::default(),
            group: Mutex::new(Group::Starting(Vec::new())),
            terminal: Mutex::new(None),
            given_up: AtomicBool::new(false),
        });
        let (sender, received) = self::channel();
        let input = Inflow { link: self.link.clone(), session: self.session, number: frame.channel, received };
        self.channels.retain(|_, (channel, _)| Arc::strong_count(channel) > 1);
        self.channels.insert(frame.channel, (channel.clone(), Some(sender)));
        let request = serde_json::from_slice(&frame.payload);
        thread::spawn(move || {
            let status = match request {
                Ok(request) => carry_out(request, &channel, input).unwrap_or_else(|error| ExitStatus::Failed(error.to_string())),
                Err(error) => ExitStatus::Failed(format!("the request cannot be read: {error}")),
            };
            channel.send(Kind::Exit, Stream::In, serde_json::to_vec(&status).unwrap_or_default());
        });
    }
}

fn carry_out(request: Request, channel: &Arc<Channel>, input: Inflow) -> io::Result<ExitStatus> {
    match request {
        Request::Exec { argv, env, cwd, terminal } => {
            let (program, arguments) = argv.split_first().ok_or_else(|| io::Error::other("no program was named"))?;
            let mut command = Command::new(program);
            command.args(arguments).envs(env).current_dir(cwd.as_deref().unwrap_or("/"));
            match terminal {
                Some(size) => run_on_terminal(command, size, channel, input),
                None => run(command, channel, input),
            }
            .map_err(|error| io::Error::new(error.kind(), format!("cannot run {program}: {error}")))
        }
        Request::Push { path, mode } => receive_file(&path, mode, channel, &input)
            .map_err(|error| io::Error::new(error.kind(), format!("cannot write {path}: {error}"))),
        Request::Pull { path } => File::open(&path)
            .and_then(|file| channel.send_all(Stream::Out, file))
            .map(|()| ExitStatus::Code(0))
            .map_err(|error| io::Error::new(error.kind(), format!("cannot read {path}: {error}"))),
        Request::LoadModule { name, parameters } => {
            pid1::load_module(&name, &parameters)?;
            Ok(ExitStatus::Code(0))
        }
        Request::Sync => {
            // SAFETY: sync takes no arguments and touches no memory of this process.
            unsafe { libc::sync() };
            Ok(ExitStatus::Code(0))
        }
        Request::PowerOff => {
            // PID 1 shuts down in order on this signal, as other inits do.
            // SAFETY: no pointers; PID 1 always exists.
            unsafe { libc::kill(1, libc::SIGUSR2) };
            Ok(ExitStatus::Code(0))
        }
    }
}

/// What comes in for a program or a file. It does not keep the channel: a program that has ended takes nothing any more, and then the
/// channel goes, and with it the other end of `received`.
struct Inflow {
    link: Arc<Link>,
    session: u64,
    number: u32,
    received: Receiver<Vec<u8>>,
}

impl Inflow {
    /// Hands received bytes to `sink`, opening the window again as they are taken.
    fn drain(&self, sink: &mut impl Write) -> io::Result<()> {
        while let Ok(bytes) = self.received.recv() {
            sink.write_all(&bytes)?;
            self.link.send(self.session, &Frame::credit(self.number, Stream::In, bytes.len()), Preamble::No);
        }
        Ok(())
    }
}

fn run_on_terminal(command: Command, size: TerminalSize, channel: &Arc<Channel>, input: Inflow) -> io::Result<ExitStatus> {
    let (mut child, terminal) = terminal::spawn(command, size)?;
    channel.started(child.id() as libc::pid_t);
    *lock(&channel.terminal) = Some(terminal.try_clone()?);
    let mut keyboard = terminal.try_clone()?;
    thread::spawn(move || input.drain(&mut keyboard));
    if channel.send_all(Stream::Out, terminal).is_err() {
        channel.signal(libc::SIGKILL);
    }
    wait(&mut child, channel)
}

fn run(mut command: Command, channel: &Arc<Channel>, input: Inflow) -> io::Result<ExitStatus> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn()?;
    channel.started(child.id() as libc::pid_t);
    if let Some(mut stdin) = child.stdin.take() {
        // Not joined: it ends when the client ends the stream or goes away, or after the program.
        thread::spawn(move || input.drain(&mut stdin));
    }
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let errors = channel.clone();
    let errors = thread::spawn(move || err.map(|err| errors.send_all(Stream::Err, err)));
    if let Some(out) = out
        && channel.send_all(Stream::Out, out).is_err()
    {
        channel.signal(libc::SIGKILL);
    }
    let _ = errors.join();
    wait(&mut child, channel)
}

/// Waits for the program and forgets its group before its number can be given to another.
fn wait(child: &mut Child, channel: &Channel) -> io::Result<ExitStatus> {
    loop {
        // SAFETY: siginfo_t is plain data; the kernel writes it.
        let result = unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            libc::waitid(libc::P_PID, child.id(), &mut info, libc::WEXITED | libc::WNOWAIT)
        };
        if result == 0 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            break;
        }
    }
    *lock(&channel.group) = Group::Reaped;
    let status = child.wait()?;
    Ok(match (status.code(), status.signal()) {
        (Some(code), _) => ExitStatus::Code(code),
        (None, signal) => ExitStatus::Signal(signal.unwrap_or(0)),
    })
}

/// Writes beside the file and renames, so that a running program can be replaced and a cut leaves the old file.
fn receive_file(path: &str, mode: u32, channel: &Channel, input: &Inflow) -> io::Result<ExitStatus> {
    let partial = format!("{path}.{}.partial", channel.number);
    let mut file = File::options().write(true).create(true).truncate(true).mode(mode).open(&partial)?;
    let received = input.drain(&mut file).and_then(|()| file.set_permissions(fs::Permissions::from_mode(mode))).and_then(|()| {
        if channel.given_up.load(Ordering::SeqCst) {
            return Err(io::Error::new(io::ErrorKind::BrokenPipe, "the sender went away"));
        }
        fs::rename(&partial, path)
    });
    if received.is_err() {
        let _ = fs::remove_file(&partial);
    }
    received.map(|()| ExitStatus::Code(0))
}
