//! Bytes between the user and a VM's console.
//!
//! ```text
//!  input ──(Ctrl-] leaves)──> to_guest ──> console socket
//!  output <── to_user <────────────────── console socket
//! ```
//!
//! One thread, one `poll`. Each direction has one small buffer and reads no more while it is not empty: a guest that does not
//! read, or a terminal that is stopped, holds up its own direction only. The user's descriptors stay blocking, since they are
//! shared with the shell; they are touched only when `poll` says that they can be.

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use super::ESCAPE_KEY;

/// A pipe that `poll` calls writable takes this much without blocking (`PIPE_BUF`).
const CHUNK: usize = 4096;

/// Where the user's bytes come from.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// A terminal in raw mode, in which [`ESCAPE_KEY`] leaves the console.
    Terminal(BorrowedFd<'a>),
    /// Something else; every byte is the guest's.
    Bytes(BorrowedFd<'a>),
    /// Nothing.
    None,
}

/// Why [`Proxy::wait`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// The user pressed the escape key.
    Escape,
    /// The console's other end is gone; all its output is with the user.
    ConsoleClosed,
    /// This one of the other descriptors is readable or hung up.
    Other(usize),
    /// The deadline has passed.
    Deadline,
}

/// The bytes on their way.
pub struct Proxy<'a> {
    input: Option<BorrowedFd<'a>>,
    has_escape: bool,
    output: Option<BorrowedFd<'a>>,
    console: Option<UnixStream>,
    to_guest: Vec<u8>,
    to_user: Vec<u8>,
    escape_pressed: bool,
}

impl<'a> Proxy<'a> {
    /// Joins the user's `input` and `output` to the console.
    pub fn new(input: Input<'a>, output: BorrowedFd<'a>, console: UnixStream) -> io::Result<Proxy<'a>> {
        console.set_nonblocking(true)?;
        let (input, has_escape) = match input {
            Input::Terminal(fd) => (Some(fd), true),
            Input::Bytes(fd) => (Some(fd), false),
            Input::None => (None, false),
        };
        Ok(Proxy {
            input,
            has_escape,
            output: Some(output),
            console: Some(console),
            to_guest: Vec::new(),
            to_user: Vec::new(),
            escape_pressed: false,
        })
    }

    /// Carries bytes until something else happens. The escape key is told when what was typed before it is on its way, the
    /// console's end when the user has all its output.
    pub fn wait(&mut self, others: &[BorrowedFd<'_>], deadline: Option<Instant>) -> io::Result<Wake> {
        loop {
            if std::mem::take(&mut self.escape_pressed) {
                // The user may leave for good now; a guest that does not read must not keep them here.
                self.write_console();
                return Ok(Wake::Escape);
            }
            let mut fds: Vec<libc::pollfd> = self.own_fds().map(|(fd, events)| libc::pollfd { fd, events, revents: 0 }).collect();
            fds.extend(others.iter().map(|fd| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 }));
            if poll(&mut fds, deadline)? == 0 {
                if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                    return Ok(Wake::Deadline);
                }
                continue;
            }
            let [input, console, output] = [fds[0].revents, fds[1].revents, fds[2].revents];
            if output != 0 {
                self.write_output();
            }
            if console != 0 && self.pump_console(console)? {
                return Ok(Wake::ConsoleClosed);
            }
            if input != 0 {
                self.read_input();
            }
            if let Some(index) = fds[3..].iter().position(|fd| fd.revents != 0) {
                return Ok(Wake::Other(index));
            }
        }
    }

    /// Whether the console's other end is gone and all its output is with the user.
    pub fn is_closed(&self) -> bool {
        self.console.is_none()
    }

    /// What to wait for: input, console, output. A negative descriptor is skipped by `poll`.
    fn own_fds(&self) -> impl Iterator<Item = (RawFd, libc::c_short)> {
        let mut console_events = 0;
        if self.to_user.is_empty() {
            console_events |= libc::POLLIN;
        }
        if !self.to_guest.is_empty() {
            console_events |= libc::POLLOUT;
        }
        let input = self.input.filter(|_| self.to_guest.is_empty() && self.console.is_some());
        let output = self.output.filter(|_| !self.to_user.is_empty());
        // A console that is neither read nor written now would wake us with its hang-up again and again.
        let console = self.console.as_ref().filter(|_| console_events != 0);
        [
            (input.map_or(-1, |fd| fd.as_raw_fd()), libc::POLLIN),
            (console.map_or(-1, AsRawFd::as_raw_fd), console_events),
            (output.map_or(-1, |fd| fd.as_raw_fd()), libc::POLLOUT),
        ]
        .into_iter()
    }

    /// Returns whether the console has closed.
    fn pump_console(&mut self, events: libc::c_short) -> io::Result<bool> {
        if events & libc::POLLOUT != 0 {
            self.write_console();
        }
        if self.to_user.is_empty() && events & (libc::POLLIN | libc::POLLHUP | libc::POLLERR) != 0 {
            self.read_console()?;
            if self.output.is_none() {
                self.to_user.clear();
            }
        }
        Ok(self.console.is_none())
    }

    fn read_console(&mut self) -> io::Result<()> {
        let Some(console) = &mut self.console else { return Ok(()) };
        let mut buffer = [0; CHUNK];
        match console.read(&mut buffer) {
            Ok(0) => self.console = None,
            Ok(length) => self.to_user.extend_from_slice(&buffer[..length]),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            // The other end went without reading all that was sent to it.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => self.console = None,
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn write_console(&mut self) {
        let Some(console) = &mut self.console else { return };
        match console.write(&self.to_guest) {
            Ok(length) => drop(self.to_guest.drain(..length)),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            // Nobody reads any more; that the console has closed is noticed by reading.
            Err(_) => self.to_guest.clear(),
        }
    }

    fn read_input(&mut self) {
        let Some(input) = self.input else { return };
        let mut buffer = [0; CHUNK];
        // SAFETY: there is room for as many bytes as are asked for.
        let length = unsafe { libc::read(input.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
        let Ok(length) = usize::try_from(length) else {
            if io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
                self.input = None;
            }
            return;
        };
        let mut bytes = &buffer[..length];
        if length == 0 {
            // The end of the input is not the end of the VM: `maru vm run < commands` runs on.
            self.input = None;
        }
        if self.has_escape
            && let Some(position) = bytes.iter().position(|byte| *byte == ESCAPE_KEY)
        {
            bytes = &bytes[..position];
            self.escape_pressed = true;
        }
        self.to_guest.extend_from_slice(bytes);
    }

    fn write_output(&mut self) {
        let Some(output) = self.output else { return };
        let chunk = &self.to_user[..self.to_user.len().min(CHUNK)];
        // SAFETY: the buffer is as long as said.
        let length = unsafe { libc::write(output.as_raw_fd(), chunk.as_ptr().cast(), chunk.len()) };
        match usize::try_from(length) {
            Ok(length) => drop(self.to_user.drain(..length)),
            Err(_) if retry_later() => {}
            // Nobody looks any more (`| head`). The VM goes on without being looked at.
            Err(_) => {
                self.output = None;
                self.to_user.clear();
            }
        }
    }
}

fn retry_later() -> bool {
    matches!(io::Error::last_os_error().kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// Waits, and returns how many descriptors have something; 0 at the deadline or when a signal came.
fn poll(fds: &mut [libc::pollfd], deadline: Option<Instant>) -> io::Result<usize> {
    // Rounded up: rounding down would poll without waiting in the last millisecond.
    let timeout = deadline.map_or(-1, |deadline| {
        let left = deadline.saturating_duration_since(Instant::now());
        i32::try_from(left.as_micros().div_ceil(1000)).unwrap_or(i32::MAX)
    });
    // SAFETY: the slice is valid and as long as said.
    match unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout) } {
        count @ 0.. => Ok(count as usize),
        _ => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::Interrupted => {
                fds.iter_mut().for_each(|fd| fd.revents = 0);
                Ok(0)
            }
            error => Err(error),
        },
    }
}

#[cfg(test)]
#[path = "proxy_tests.rs"]
mod tests;
