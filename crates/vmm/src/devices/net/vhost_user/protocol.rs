//! One connection to a back end: requests and replies, each with a time limit.

use std::io::{self, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use vhost::vhost_user::message::FrontendReq;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::devices::net::unix;

/// How long the back end may take for one request. Long for a switch that is busy, short for a VM that is to be paused.
const REQUEST_LIMIT: Duration = Duration::from_secs(1);
/// How long it may take for all requests of one set-up.
const SETUP_LIMIT: Duration = Duration::from_secs(3);

/// Protocol version 1, in the two lowest bits of a message's flags.
const VERSION: u32 = 1;
const VERSION_MASK: u32 = 3;
const FLAG_REPLY: u32 = 1 << 2;
const FLAG_NEED_REPLY: u32 = 1 << 3;
const HEADER_BYTES: usize = 12;
/// The largest body of a reply that we read.
const MAX_REPLY_BYTES: usize = 64;

/// Why a back end cannot be worked with.
#[derive(Debug, thiserror::Error)]
pub enum ProtocolError {
    /// Nobody listens there.
    #[error("cannot connect to the back end's socket {path}: is it running?")]
    Connect {
        /// The socket.
        path: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The path does not fit in a socket address.
    #[error("the path of the back end's socket is longer than 107 bytes: {0}")]
    PathTooLong(String),
    /// It did not answer, or did not take what we sent.
    #[error("the back end did not answer {request} in time")]
    Timeout {
        /// What it was asked.
        request: &'static str,
    },
    /// It closed the connection.
    #[error("the back end closed the connection at {request}")]
    Closed {
        /// What it was asked.
        request: &'static str,
    },
    /// The socket failed.
    #[error("the connection to the back end failed at {request}")]
    Io {
        /// What it was asked.
        request: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Its reply is no reply to what it was asked.
    #[error("the back end's reply to {request} makes no sense: {reason}")]
    Malformed {
        /// What it was asked.
        request: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// It said no.
    #[error("the back end refused {request} with {code}")]
    Refused {
        /// What it was asked.
        request: &'static str,
        /// What it answered.
        code: u64,
    },
    /// It lacks something that we cannot do without.
    #[error("the back end does not support {0}")]
    Unsupported(&'static str),
    /// It lacks features that the driver has already agreed on with its predecessor.
    #[error("the back end lacks features {0:#x}, which the driver already uses: start one that has them, or restart the VM")]
    LostFeatures(u64),
    /// Something of ours cannot be given to a back end.
    #[error("{0}")]
    Local(String),
}

/// A connection to a back end.
#[derive(Debug)]
pub(super) struct Connection {
    socket: UnixStream,
    /// Whether the back end confirms every request (`VHOST_USER_PROTOCOL_F_REPLY_ACK`).
    pub confirms: bool,
    /// No request lasts longer than this.
    deadline: Option<Instant>,
}

impl Connection {
    /// Connects without ever waiting: a listener whose queue is full counts as absent.
    pub fn open(path: &Path) -> Result<Connection, ProtocolError> {
        if path.as_os_str().len() > unix::MAX_PATH_BYTES {
            return Err(ProtocolError::PathTooLong(path.display().to_string()));
        }
        let error = |source| ProtocolError::Connect { path: path.display().to_string(), source };
        let socket = unix::connect(path).map_err(error)?;
        socket.set_nonblocking(false).map_err(error)?;
        Ok(Connection { socket, confirms: false, deadline: None })
    }

    /// Limits all requests until `end_limit` together.
    pub fn limit_setup(&mut self) {
        self.deadline = Some(Instant::now() + SETUP_LIMIT);
    }

    /// Back to a limit for each request.
    pub fn end_limit(&mut self) {
        self.deadline = None;
    }

    /// Sends a request that changes something, and waits for its confirmation if the back end gives any.
    pub fn set(&self, request: FrontendReq, body: &[u8], fds: &[RawFd]) -> Result<(), ProtocolError> {
        let limit = self.limit();
        let flags = if self.confirms { FLAG_NEED_REPLY } else { 0 };
        self.send(request, flags, body, fds, limit)?;
        if !self.confirms {
            return Ok(());
        }
        let reply = self.receive(request, limit)?;
        match <[u8; 8]>::try_from(&reply[..]).map(u64::from_le_bytes) {
            Ok(0) => Ok(()),
            Ok(code) => Err(ProtocolError::Refused { request: name(request), code }),
            Err(_) => Err(malformed(request, format!("a confirmation of {} bytes", reply.len()))),
        }
    }

    /// Sends a request and returns the body of its reply, which must have `N` bytes.
    pub fn get<const N: usize>(&self, request: FrontendReq, body: &[u8]) -> Result<[u8; N], ProtocolError> {
        let reply = self.get_any(request, body, &[])?;
        <[u8; N]>::try_from(&reply[..]).map_err(|_| malformed(request, format!("a body of {} bytes instead of {N}", reply.len())))
    }

    /// Sends a request and returns the body of its reply, however long it is.
    pub fn get_any(&self, request: FrontendReq, body: &[u8], fds: &[RawFd]) -> Result<Vec<u8>, ProtocolError> {
        let limit = self.limit();
        self.send(request, 0, body, fds, limit)?;
        self.receive(request, limit)
    }

    fn limit(&self) -> Instant {
        let limit = Instant::now() + REQUEST_LIMIT;
        self.deadline.map_or(limit, |deadline| deadline.min(limit))
    }

    fn send(&self, request: FrontendReq, flags: u32, body: &[u8], fds: &[RawFd], limit: Instant) -> Result<(), ProtocolError> {
        let mut message = Vec::with_capacity(HEADER_BYTES + body.len());
        for word in [request as u32, VERSION | flags, body.len() as u32] {
            message.extend_from_slice(&word.to_le_bytes());
        }
        message.extend_from_slice(body);
        let mut sent = 0;
        while sent < message.len() {
            self.socket
                .set_write_timeout(Some(left(limit, request)?))
                .map_err(|source| ProtocolError::Io { request: name(request), source })?;
            // The descriptors go with the first byte.
            let fds = if sent == 0 { fds } else { &[] };
            match self.socket.send_with_fds(&[&message[sent..]], fds) {
                Ok(count) => sent += count,
                Err(error) => self.check(request, io::Error::from(error))?,
            }
        }
        Ok(())
    }

    fn receive(&self, request: FrontendReq, limit: Instant) -> Result<Vec<u8>, ProtocolError> {
        let mut header = [0; HEADER_BYTES];
        self.read(request, &mut header, limit)?;
        let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let (code, flags, size) = (word(0), word(4), word(8) as usize);
        if code != request as u32 || flags & VERSION_MASK != VERSION || flags & FLAG_REPLY == 0 || size > MAX_REPLY_BYTES {
            return Err(malformed(request, format!("code {code}, flags {flags:#x}, {size} bytes")));
        }
        let mut body = vec![0; size];
        self.read(request, &mut body, limit)?;
        Ok(body)
    }

    /// Reads with `read`, not `recvmsg`: descriptors that a back end sends unasked are closed by the kernel.
    fn read(&self, request: FrontendReq, data: &mut [u8], limit: Instant) -> Result<(), ProtocolError> {
        let mut done = 0;
        while done < data.len() {
            self.socket
                .set_read_timeout(Some(left(limit, request)?))
                .map_err(|source| ProtocolError::Io { request: name(request), source })?;
            match (&self.socket).read(&mut data[done..]) {
                Ok(0) => return Err(ProtocolError::Closed { request: name(request) }),
                Ok(count) => done += count,
                Err(error) => self.check(request, error)?,
            }
        }
        Ok(())
    }

    /// What an error of the socket means; nothing if the same call may be tried again.
    fn check(&self, request: FrontendReq, error: io::Error) -> Result<(), ProtocolError> {
        let request = name(request);
        match error.kind() {
            // Both are checked against the limit before the next call.
            io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock => Ok(()),
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Err(ProtocolError::Closed { request }),
            _ => Err(ProtocolError::Io { request, source: error }),
        }
    }
}

impl AsRawFd for Connection {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

fn left(limit: Instant, request: FrontendReq) -> Result<Duration, ProtocolError> {
    let left = limit.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(ProtocolError::Timeout { request: name(request) }) } else { Ok(left) }
}

fn malformed(request: FrontendReq, reason: String) -> ProtocolError {
    ProtocolError::Malformed { request: name(request), reason }
}

/// The request's name in the standard, for people.
fn name(request: FrontendReq) -> &'static str {
    match request {
        FrontendReq::GET_FEATURES => "GET_FEATURES",
        FrontendReq::SET_FEATURES => "SET_FEATURES",
        FrontendReq::SET_OWNER => "SET_OWNER",
        FrontendReq::SET_MEM_TABLE => "SET_MEM_TABLE",
        FrontendReq::SET_LOG_BASE => "SET_LOG_BASE",
        FrontendReq::SET_VRING_NUM => "SET_VRING_NUM",
        FrontendReq::SET_VRING_ADDR => "SET_VRING_ADDR",
        FrontendReq::SET_VRING_BASE => "SET_VRING_BASE",
        FrontendReq::GET_VRING_BASE => "GET_VRING_BASE",
        FrontendReq::SET_VRING_KICK => "SET_VRING_KICK",
        FrontendReq::SET_VRING_CALL => "SET_VRING_CALL",
        FrontendReq::GET_PROTOCOL_FEATURES => "GET_PROTOCOL_FEATURES",
        FrontendReq::SET_PROTOCOL_FEATURES => "SET_PROTOCOL_FEATURES",
        FrontendReq::GET_QUEUE_NUM => "GET_QUEUE_NUM",
        FrontendReq::SET_VRING_ENABLE => "SET_VRING_ENABLE",
        FrontendReq::SEND_RARP => "SEND_RARP",
        FrontendReq::NET_SET_MTU => "NET_SET_MTU",
        FrontendReq::SET_STATUS => "SET_STATUS",
        _ => "a request",
    }
}
