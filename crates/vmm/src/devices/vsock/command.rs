//! The line with which a program on the host says which port of the guest it wants.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

/// `CONNECT 4294967295\n` and some room for blanks.
const MAX_BYTES: usize = 32;

/// The line is not a command, or the program went away.
#[derive(Debug, thiserror::Error)]
#[error("not `CONNECT <port>`")]
pub(super) struct BadCommand;

/// What came of the line so far.
#[derive(Default)]
pub(super) struct Command(Vec<u8>);

impl Command {
    /// Reads what is there: the port, once the line is complete.
    pub fn read(&mut self, socket: &UnixStream) -> Result<Option<u32>, BadCommand> {
        let mut bytes = [0u8; MAX_BYTES];
        loop {
            let room = MAX_BYTES - self.0.len();
            if room == 0 {
                return Err(BadCommand);
            }
            // What follows the line belongs to the stream and must stay in the socket, so the line is looked at first.
            let seen = match receive(socket, &mut bytes[..room], libc::MSG_PEEK) {
                Ok(0) => return Err(BadCommand),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return Err(BadCommand),
            };
            let end = bytes[..seen].iter().position(|byte| *byte == b'\n');
            let taken = end.map_or(seen, |end| end + 1);
            let taken = receive(socket, &mut bytes[..taken], 0).map_err(|_| BadCommand)?;
            self.0.extend_from_slice(&bytes[..taken]);
            if end.is_some() {
                return parse(&self.0).map(Some);
            }
        }
    }
}

fn parse(line: &[u8]) -> Result<u32, BadCommand> {
    let line = std::str::from_utf8(line).map_err(|_| BadCommand)?;
    let mut words = line.split_whitespace();
    match (words.next(), words.next().map(str::parse), words.next()) {
        (Some("CONNECT"), Some(Ok(port)), None) => Ok(port),
        _ => Err(BadCommand),
    }
}

fn receive(socket: &UnixStream, data: &mut [u8], flags: libc::c_int) -> io::Result<usize> {
    // SAFETY: the buffer is borrowed exclusively for the call, with its length.
    let count = unsafe { libc::recv(socket.as_raw_fd(), data.as_mut_ptr().cast(), data.len(), flags) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}
