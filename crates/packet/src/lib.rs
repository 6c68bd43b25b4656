//! Packets over `SOCK_SEQPACKET` Unix sockets, with file descriptors: what the control sockets of monitor and switch are made of.
//!
//! Each packet is one JSON object; one that is too long for a packet can be sent in a memory file. Blocking, without threads. Errors are
//! those of the system; a packet that is not what was expected is `InvalidData`, after which the connection can be used on.

mod long;

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

/// The longest packet in bytes.
pub const MAX_PACKET: usize = 128 * 1024;
/// The longest message in a memory file, in bytes.
pub const MAX_MESSAGE: usize = 64 * 1024 * 1024;
/// The most descriptors with one packet: what Linux passes at once (`SCM_MAX_FD`).
pub const MAX_FDS: usize = 253;

/// One end of a connection.
pub struct Connection(OwnedFd);

impl ScmSocket for Connection {
    fn socket_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsRawFd for Connection {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl From<OwnedFd> for Connection {
    fn from(fd: OwnedFd) -> Connection {
        Connection(fd)
    }
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn socket() -> io::Result<OwnedFd> {
    // SAFETY: no pointers; the result is checked.
    let fd = check(unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn address(path: &Path) -> io::Result<(libc::sockaddr_un, u32)> {
    // SAFETY: all zeroes are a valid address structure.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as u16;
    let bytes = path.as_os_str().as_bytes();
    if bytes.len() >= address.sun_path.len() {
        let limit = address.sun_path.len() - 1;
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("socket paths have at most {limit} bytes")));
    }
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = *from as libc::c_char;
    }
    let length = std::mem::offset_of!(libc::sockaddr_un, sun_path) + bytes.len() + 1;
    Ok((address, length as u32))
}

/// A connected pair, for parents that hand one end to the monitor.
pub fn pair() -> io::Result<(Connection, Connection)> {
    let mut fds = [0; 2];
    // SAFETY: room for two descriptors, and the result is checked.
    check(unsafe { libc::socketpair(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0, fds.as_mut_ptr()) })?;
    // SAFETY: both descriptors are new and nobody else's.
    let ends = unsafe { (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) };
    Ok((Connection(ends.0), Connection(ends.1)))
}

impl Connection {
    /// Connects to the socket at `path`.
    pub fn connect(path: &Path) -> io::Result<Connection> {
        let fd = socket()?;
        let (address, length) = address(path)?;
        // SAFETY: the address is valid and as long as said.
        check(unsafe { libc::connect(fd.as_raw_fd(), std::ptr::from_ref(&address).cast(), length) })?;
        Ok(Connection(fd))
    }

    /// Calls on this end fail with `WouldBlock` instead of waiting.
    pub fn set_nonblocking(&self) -> io::Result<()> {
        // SAFETY: plain fcntl on our own descriptor.
        check(unsafe { libc::fcntl(self.0.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) }).map(drop)
    }

    /// How long calls on this end may wait; then they fail with `WouldBlock`.
    pub fn set_patience(&self, patience: Duration) -> io::Result<()> {
        let time =
            libc::timeval { tv_sec: patience.as_secs() as libc::time_t, tv_usec: patience.subsec_micros() as libc::suseconds_t };
        for option in [libc::SO_RCVTIMEO, libc::SO_SNDTIMEO] {
            let size = size_of_val(&time) as libc::socklen_t;
            // SAFETY: the value is a timeval of that size, which lives through the call.
            check(unsafe { libc::setsockopt(self.0.as_raw_fd(), libc::SOL_SOCKET, option, (&raw const time).cast(), size) })?;
        }
        Ok(())
    }

    /// Sends one packet.
    pub fn send(&self, message: &impl Serialize, fds: &[RawFd]) -> io::Result<()> {
        let bytes = serde_json::to_vec(message)?;
        if bytes.len() > MAX_PACKET {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the message is too long for one packet"));
        }
        // A peer that went away is an error to handle, not a signal: Rust's runtime ignores SIGPIPE.
        self.send_with_fds(&[bytes.as_slice()], fds).map(drop).map_err(|e| io::Error::from_raw_os_error(e.errno()))
    }

    /// Receives one packet; `None` when the other end is gone. A packet that is not what was expected is an `InvalidData` error, and the
    /// connection can be used on.
    pub fn receive<T: DeserializeOwned>(&self) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        let Some((bytes, fds)) = self.receive_bytes()? else { return Ok(None) };
        Ok(Some((parse(&bytes)?, fds)))
    }

    fn receive_bytes(&self) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
        let mut buffer = vec![0u8; MAX_PACKET];
        let mut raw = [0; MAX_FDS];
        let mut iovec = [libc::iovec { iov_base: buffer.as_mut_ptr().cast::<c_void>(), iov_len: buffer.len() }];
        // SAFETY: the one iovec points to the live buffer.
        let (length, count) =
            unsafe { self.recv_with_fds(&mut iovec, &mut raw) }.map_err(|e| io::Error::from_raw_os_error(e.errno()))?;
        // SAFETY: the kernel has just made these descriptors for us.
        let fds: Vec<OwnedFd> = raw[..count].iter().map(|fd| unsafe { OwnedFd::from_raw_fd(*fd) }).collect();
        if length == 0 {
            return Ok(None);
        }
        buffer.truncate(length);
        Ok(Some((buffer, fds)))
    }
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> io::Result<T> {
    serde_json::from_slice(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))
}

/// A socket that waits for clients. Its file goes when it is dropped.
pub struct Listener {
    fd: OwnedFd,
    path: PathBuf,
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl Listener {
    /// Listens at `path`, for this user only. A socket there that nobody listens to any more is replaced.
    pub fn bind(path: &Path) -> io::Result<Listener> {
        let fd = socket()?;
        let (address, length) = address(path)?;
        // SAFETY: the address is valid and as long as said.
        let bind = || check(unsafe { libc::bind(fd.as_raw_fd(), std::ptr::from_ref(&address).cast(), length) });
        // The file must never be there for others, not even for a moment.
        // SAFETY: umask cannot fail. Nothing else makes files at this point of a monitor's start.
        let old = unsafe { libc::umask(0o177) };
        let bound = match bind() {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Connection::connect(path).is_err() => {
                std::fs::remove_file(path).and_then(|()| bind())
            }
            other => other,
        };
        // SAFETY: as above.
        unsafe { libc::umask(old) };
        bound?;
        // SAFETY: plain listen on our own descriptor.
        check(unsafe { libc::listen(fd.as_raw_fd(), 16) })?;
        Ok(Listener { fd, path: path.into() })
    }

    /// The next client.
    pub fn accept(&self) -> io::Result<Connection> {
        let flags = libc::SOCK_CLOEXEC;
        // SAFETY: no address is asked for; the result is checked.
        let fd = check(unsafe { libc::accept4(self.fd.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut(), flags) })?;
        // SAFETY: the descriptor is new and nobody else's.
        Ok(Connection(unsafe { OwnedFd::from_raw_fd(fd) }))
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn requests_and_descriptors_cross_the_socket() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control");
        let listener = Listener::bind(&path).unwrap();
        let client = Connection::connect(&path).unwrap();
        let server = listener.accept().unwrap();
        let file = File::open("/dev/null").unwrap();
        client.send(&"save", &[file.as_raw_fd()]).unwrap();
        let (request, fds) = server.receive::<String>().unwrap().unwrap();
        assert_eq!((request.as_str(), fds.len()), ("save", 1));
        client.send(&7, &[]).unwrap();
        assert_eq!(server.receive::<String>().unwrap_err().kind(), io::ErrorKind::InvalidData);
        client.send(&"status", &[]).unwrap();
        assert_eq!(server.receive::<String>().unwrap().unwrap().0, "status");
        drop(client);
        assert!(server.receive::<String>().unwrap().is_none());
    }

    #[test]
    fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control");
        let listener = Listener::bind(&path).unwrap();
        assert_eq!(Listener::bind(&path).err().unwrap().kind(), io::ErrorKind::AddrInUse);
        // As after a kill: the file stays, nobody listens.
        let moved = dir.path().join("moved");
        std::fs::rename(&path, &moved).unwrap();
        drop(listener);
        std::fs::rename(&moved, &path).unwrap();
        drop(Listener::bind(&path).unwrap());
        assert!(!path.exists());
    }
}
