//! `maru vm console`: the console of a VM of `marud`, in this terminal.
//!
//! ```text
//!  terminal ◀── Proxy (this thread) ──▶ pair of sockets ◀── Link (a thread) ──▶ WebSocket of marud
//! ```

use std::io::{self, ErrorKind, IsTerminal, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use api::ConsoleEvent;
use api::client::{Client, WebSocket};
use clap::Args;
use tungstenite::{Error, Message};

use super::manage::segment;
use crate::output::print_bytes;
use crate::remote::{Connect, RemoteError};
use crate::terminal::{Input, Proxy, RawMode, StopSignals, Wake, is_mine};

/// `marud` says something at least three times in this time.
const SILENCE: Duration = Duration::from_secs(70);
/// Between two tries to reach a `marud` that is gone.
const AGAIN: Duration = Duration::from_secs(1);
/// Typed bytes in one message.
const PIECE: usize = 4096;

const CONSOLE_HELP: &str = "\
What was printed before comes first. Ctrl-] leaves the console, and the VM goes on. It stays open when the VM ends and is started again, and is
connected again when marud was. Several can look and type at the same time.

EXAMPLES
  maru vm console web
  maru vm console web --read-only
  maru vm console web --log > web.log";

/// `maru vm console`.
#[derive(Debug, Args)]
#[command(after_help = CONSOLE_HELP)]
pub struct ConsoleArgs {
    /// Its name or id
    vm: String,
    /// Only look; all that a viewer's token may do
    #[arg(long)]
    read_only: bool,
    /// Print what the console has shown, and end
    #[arg(long, conflicts_with = "read_only")]
    log: bool,
    #[command(flatten)]
    connect: Connect,
}

/// Joins the console to the terminal until the user leaves it or the VM is deleted.
pub fn run(args: &ConsoleArgs) -> Result<(), RemoteError> {
    let client = args.connect.client()?;
    let path = format!("/vms/{}/console", segment(&args.vm));
    if args.log {
        return Ok(print_bytes(&client.get_bytes(&format!("{path}/log"))?)?);
    }
    let path = format!("{path}?read_only={}", args.read_only);
    let signals = StopSignals::take().map_err(RemoteError::Console)?;
    // What is refused is refused before the terminal is touched.
    let socket = client.open(&path)?;
    let (ours, theirs) = UnixStream::pair().map_err(RemoteError::Console)?;
    let (stdin, stdout) = (io::stdin(), io::stdout());
    let raw = if is_mine(stdin.as_fd()) {
        eprintln!("Ctrl-] leaves the console, the VM goes on");
        Some(RawMode::enter(stdin.as_fd()).map_err(RemoteError::Console)?)
    } else {
        None
    };
    let input = match &raw {
        Some(_) => Input::Terminal(stdin.as_fd()),
        None if stdin.is_terminal() => Input::None,
        None => Input::Bytes(stdin.as_fd()),
    };
    let mut proxy = Proxy::new(input, stdout.as_fd(), ours).map_err(RemoteError::Console)?;
    let link = Link { client, path, user: theirs };
    let link = std::thread::spawn(move || link.run(socket));
    let woken = proxy.wait(&[signals.as_fd()], None).map_err(RemoteError::Console)?;
    drop(raw);
    match woken {
        Wake::Escape => eprintln!("\nleft the console, the VM goes on"),
        Wake::ConsoleClosed => {
            let end = link.join().unwrap_or_else(|_| Err(RemoteError::Console(io::Error::other("its thread has ended"))))?;
            eprintln!("\nthe console is closed: {end}");
        }
        Wake::Other(_) | Wake::Deadline => {}
    }
    Ok(())
}

/// The other side of the proxy.
struct Link {
    client: Client,
    path: String,
    user: UnixStream,
}

/// Why a connection has ended.
enum End {
    /// The user has left.
    Left,
    /// `marud` has closed it, with this reason.
    Closed(String),
    /// It broke.
    Lost(String),
}

impl Link {
    /// Goes on over lost connections. Gives why there is no more to come.
    fn run(mut self, mut socket: WebSocket) -> Result<String, RemoteError> {
        loop {
            match self.pump(&mut socket) {
                End::Left => return Ok("left".into()),
                End::Closed(reason) => return Ok(reason),
                End::Lost(reason) => eprintln!("\n[the connection to marud is lost: {reason}; connecting again, Ctrl-] leaves]"),
            }
            socket = loop {
                // What was printed before was seen, most of it.
                match self.client.open(&format!("{}&scroll_back=false", self.path)) {
                    Ok(socket) => break socket,
                    Err(error) if !error.may_pass() => return Err(error.into()),
                    Err(_) if self.has_left(AGAIN) => return Ok("left".into()),
                    Err(_) => {}
                }
            };
            eprintln!("[connected again; what was printed meanwhile is in `maru vm console --log`]");
        }
    }

    /// Whether the user leaves within this time. What is typed meanwhile is lost.
    fn has_left(&mut self, wait: Duration) -> bool {
        let end = Instant::now() + wait;
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            if poll(&mut [readable(&self.user)], left).is_ok_and(|ready| ready > 0)
                && !matches!(self.user.read(&mut [0; PIECE]), Ok(1..))
            {
                return true;
            }
        }
        false
    }

    /// Carries bytes until one side is gone.
    fn pump(&mut self, socket: &mut WebSocket) -> End {
        let lost = |error: io::Error| End::Lost(error.to_string());
        if let Err(error) = socket.get_ref().sock.set_nonblocking(true) {
            return lost(error);
        }
        let mut heard = Instant::now();
        loop {
            // All that has come, also what TLS has taken in already.
            loop {
                match socket.read() {
                    Ok(Message::Binary(bytes)) => {
                        if self.user.write_all(&bytes).is_err() {
                            return End::Left;
                        }
                    }
                    Ok(Message::Text(text)) => tell(&text),
                    Ok(Message::Close(frame)) => {
                        return End::Closed(frame.map_or_else(|| "marud says no more".into(), |frame| plain(&frame.reason)));
                    }
                    Ok(_) => {}
                    Err(error) if would_block(&error) => break,
                    Err(error) => return End::Lost(error.to_string()),
                }
                heard = Instant::now();
            }
            let flushed = match socket.flush() {
                Ok(()) => true,
                Err(error) if would_block(&error) => false,
                Err(error) => return End::Lost(error.to_string()),
            };
            let mut remote = readable(&socket.get_ref().sock);
            let mut fds = if flushed {
                vec![remote, readable(&self.user)]
            } else {
                // What was typed is not sent yet: no more is taken.
                remote.events |= libc::POLLOUT;
                vec![remote]
            };
            match poll(&mut fds, SILENCE.saturating_sub(heard.elapsed())) {
                Ok(0) => return End::Lost(format!("it has been silent for {} s", SILENCE.as_secs())),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return lost(error),
            }
            if fds.get(1).is_some_and(|user| user.revents != 0) {
                let mut typed = [0; PIECE];
                let Ok(length @ 1..) = self.user.read(&mut typed) else { return End::Left };
                match socket.send(Message::binary(typed[..length].to_vec())) {
                    Ok(()) => {}
                    // It is sent with the next flush.
                    Err(error) if would_block(&error) => {}
                    Err(error) => return End::Lost(error.to_string()),
                }
            }
        }
    }
}

fn tell(text: &str) {
    match serde_json::from_str(text) {
        Ok(ConsoleEvent::On) => {}
        Ok(ConsoleEvent::Off) => eprintln!("\n[the VM is off; this waits until it is started, Ctrl-] leaves]"),
        Ok(ConsoleEvent::Lost { bytes }) => eprintln!("\n[{bytes} bytes are missing here: they came too fast]"),
        // A later marud may tell more.
        Err(_) => {}
    }
}

fn would_block(error: &Error) -> bool {
    matches!(error, Error::Io(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted))
}

fn plain(text: &str) -> String {
    text.chars().filter(|character| !character.is_control()).collect()
}

fn readable(file: &impl AsRawFd) -> libc::pollfd {
    libc::pollfd { fd: file.as_raw_fd(), events: libc::POLLIN, revents: 0 }
}

fn poll(fds: &mut [libc::pollfd], wait: Duration) -> io::Result<i32> {
    let timeout = i32::try_from(wait.as_micros().div_ceil(1000)).unwrap_or(i32::MAX);
    // SAFETY: the slice is valid and as long as said.
    match unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout) } {
        count @ 0.. => Ok(count),
        _ => Err(io::Error::last_os_error()),
    }
}
