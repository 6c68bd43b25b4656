//! The guest's serial port, as `bench-host` reads it.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::time::Instant;

/// Reads what a guest prints, with a limit to the patience.
#[derive(Debug)]
pub struct Console {
    pipe: File,
    /// Everything so far.
    pub bytes: Vec<u8>,
}

impl Console {
    /// Reads from `pipe`.
    pub fn new(pipe: File) -> Console {
        Console { pipe, bytes: Vec::new() }
    }

    /// Takes more bytes; gives how many, 0 when the other end is closed.
    ///
    /// # Errors
    /// When nothing comes until `deadline`.
    pub fn more(&mut self, deadline: Instant) -> io::Result<usize> {
        let patience = deadline.saturating_duration_since(Instant::now());
        let mut poll = libc::pollfd { fd: self.pipe.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid pollfd, and the count says one.
        match unsafe { libc::poll(&mut poll, 1, patience.as_millis() as i32) } {
            0 => Err(io::ErrorKind::TimedOut.into()),
            ..0 => Err(io::Error::last_os_error()),
            _ => {
                let mut chunk = [0; 4096];
                let count = self.pipe.read(&mut chunk)?;
                self.bytes.extend_from_slice(&chunk[..count]);
                Ok(count)
            }
        }
    }

    /// Waits for a byte and gives the moment when it came.
    ///
    /// # Errors
    /// When it does not come until `deadline`, with what came instead.
    pub fn wait_for(&mut self, byte: u8, deadline: Instant) -> io::Result<Instant> {
        let mut seen = 0;
        loop {
            if self.bytes[seen..].contains(&byte) {
                return Ok(Instant::now());
            }
            seen = self.bytes.len();
            match self.more(deadline) {
                Ok(1..) => {}
                Ok(0) => return Err(self.missing(&format!("byte {byte:#04x}"), "the monitor closed the console")),
                Err(error) => return Err(self.missing(&format!("byte {byte:#04x}"), &error.to_string())),
            }
        }
    }

    /// Waits for a line that starts with `start` at or behind byte `from`; gives what follows in it.
    ///
    /// # Errors
    /// When it does not come until `deadline`, with what came instead.
    pub fn wait_for_line(&mut self, start: &str, from: usize, deadline: Instant) -> io::Result<String> {
        loop {
            let text = String::from_utf8_lossy(&self.bytes[from..]).into_owned();
            let found =
                text.split_inclusive('\n').filter(|line| line.ends_with('\n')).find_map(|line| Some(line.split_once(start)?.1));
            if let Some(rest) = found {
                return Ok(rest.trim().to_owned());
            }
            match self.more(deadline) {
                Ok(1..) => {}
                Ok(0) => return Err(self.missing(start, "the monitor closed the console")),
                Err(error) => return Err(self.missing(start, &error.to_string())),
            }
        }
    }

    /// Everything so far, as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }

    fn tail(&self) -> String {
        String::from_utf8_lossy(&self.bytes[self.bytes.len().saturating_sub(3000)..]).into_owned()
    }

    fn missing(&self, what: &str, why: &str) -> io::Error {
        io::Error::other(format!("no {what} from the guest: {why}; the end of its console:\n{}", self.tail()))
    }
}
