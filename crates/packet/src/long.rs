//! Messages that are too long for a packet: they go in a memory file, which a packet brings.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

use serde::Serialize;
use serde::de::DeserializeOwned;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::{Connection, MAX_MESSAGE, MAX_PACKET, check, parse};

/// The packet that brings a message in a file: no JSON begins like this.
const IN_FILE: &[u8] = &[0];

/// What makes a file one that can be read without waiting, and does not change meanwhile.
const SEALS: libc::c_int = libc::F_SEAL_SEAL | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_WRITE;

impl Connection {
    /// Sends one message of at most [`MAX_MESSAGE`] bytes: as a packet if it fits in one.
    pub fn send_message(&self, message: &impl Serialize) -> io::Result<()> {
        let bytes = serde_json::to_vec(message)?;
        let system = |error: vmm_sys_util::errno::Error| io::Error::from_raw_os_error(error.errno());
        if bytes.len() <= MAX_PACKET {
            return self.send_with_fds(&[bytes.as_slice()], &[]).map(drop).map_err(system);
        }
        if bytes.len() > MAX_MESSAGE {
            let text = format!("a message of {} bytes: {MAX_MESSAGE} are possible", bytes.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let file = sealed(&bytes)?;
        self.send_with_fds(&[IN_FILE], &[file.as_raw_fd()]).map(drop).map_err(system)
    }

    /// Receives what [`Connection::send_message`] or [`Connection::send`] sent; `None` when the other end is gone. Descriptors that come
    /// with a packet are closed.
    pub fn receive_message<T: DeserializeOwned>(&self) -> io::Result<Option<T>> {
        let Some((bytes, mut fds)) = self.receive_bytes()? else { return Ok(None) };
        if bytes != IN_FILE {
            return parse(&bytes).map(Some);
        }
        let file = fds.pop().ok_or_else(|| invalid("a message in a file, without the file"))?;
        parse(&read(file)?).map(Some)
    }
}

fn invalid(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

fn sealed(bytes: &[u8]) -> io::Result<File> {
    // SAFETY: the name is a C string; the result is checked.
    let fd = check(unsafe { libc::memfd_create(c"message".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) })?;
    // SAFETY: the descriptor is new and nobody else's.
    let mut file = unsafe { File::from_raw_fd(fd) };
    file.write_all(bytes)?;
    // SAFETY: plain fcntl on our own descriptor.
    check(unsafe { libc::fcntl(fd, libc::F_ADD_SEALS, SEALS) })?;
    Ok(file)
}

/// All of a file of another process. One that is not sealed in memory might change, have no end, or never answer.
fn read(fd: OwnedFd) -> io::Result<Vec<u8>> {
    // SAFETY: plain fcntl on our own descriptor.
    let seals = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GET_SEALS) };
    if seals < 0 || seals & SEALS != SEALS {
        return Err(invalid("a message in a file that is not sealed"));
    }
    let file = File::from(fd);
    let length = file.metadata()?.len();
    if length > MAX_MESSAGE as u64 {
        return Err(invalid("a message that is longer than a message may be"));
    }
    let mut bytes = vec![0; length as usize];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pair;

    #[test]
    fn messages_of_any_length_cross_the_socket() {
        let (a, b) = pair().unwrap();
        for length in [10, MAX_PACKET - 2, MAX_PACKET - 1, 3 * MAX_PACKET] {
            let text = "x".repeat(length);
            a.send_message(&text).unwrap();
            assert_eq!(b.receive_message::<String>().unwrap().unwrap(), text);
        }
        assert_eq!(a.send_message(&"x".repeat(MAX_MESSAGE)).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        drop(a);
        assert!(b.receive_message::<String>().unwrap().is_none());
    }

    #[test]
    fn a_file_that_could_change_or_block_is_refused() {
        let (a, b) = pair().unwrap();
        // SAFETY: the name is a C string; the descriptor is new and nobody else's.
        let open = unsafe { OwnedFd::from_raw_fd(libc::memfd_create(c"test".as_ptr(), libc::MFD_CLOEXEC)) };
        let (pipe, _writer) = io::pipe().unwrap();
        for fd in [open.as_raw_fd(), pipe.as_raw_fd()] {
            a.send_with_fds(&[IN_FILE], &[fd]).unwrap();
            assert_eq!(b.receive_message::<String>().unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
        a.send_with_fds(&[IN_FILE], &[]).unwrap();
        assert_eq!(b.receive_message::<String>().unwrap_err().kind(), io::ErrorKind::InvalidData);
        a.send_message(&7).unwrap();
        assert_eq!(b.receive_message::<i32>().unwrap(), Some(7), "the connection can be used on");
    }
}
