//! The front door of a VM's port: a socket on which one vhost-user front end at a time sets its rings up.
//!
//! Each port has a thread that waits here; a front end that says half a message keeps only its own. The rings themselves are the
//! worker's: it gets them when they are ready, and gives them back when they are stopped.

use std::fs::{File, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use vhost::vhost_user::{BackendReqHandler, VhostUserBackendReqHandlerMut};

use super::session::Session;
use crate::pipeline::PortNumber;
use crate::sandbox::{ThreadKind, confine_thread};
use crate::worker::Handle;

/// A port's socket.
#[derive(Debug)]
pub struct FrontDoor {
    path: PathBuf,
    listener: UnixListener,
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct State {
    closing: AtomicBool,
    /// The front end that is connected.
    connection: Mutex<Option<UnixStream>>,
}

impl State {
    fn set(&self, connection: Option<UnixStream>) {
        *self.connection.lock().unwrap_or_else(PoisonError::into_inner) = connection;
    }
}

impl FrontDoor {
    /// Listens at `path`, with these rights of the file. A socket there that nobody listens to any more is replaced.
    pub fn open(path: &Path, mode: u32, worker: Handle, port: PortNumber, pairs: u16) -> io::Result<FrontDoor> {
        let listener = match UnixListener::bind(path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && UnixStream::connect(path).is_err() => {
                std::fs::remove_file(path)?;
                UnixListener::bind(path)?
            }
            bound => bound?,
        };
        std::fs::set_permissions(path, Permissions::from_mode(mode))?;
        let state = Arc::new(State::default());
        let (theirs, door) = (state.clone(), listener.try_clone()?);
        let thread = std::thread::Builder::new().name(format!("port-{port}")).spawn(move || {
            confine_thread(ThreadKind::FrontDoor);
            while serve_one(&door, &theirs, &worker, port, pairs).is_some() {}
        })?;
        Ok(FrontDoor { path: path.into(), listener, state, thread: Some(thread) })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether a front end is connected.
    pub fn is_connected(&self) -> bool {
        self.state.connection.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }
}

impl Drop for FrontDoor {
    fn drop(&mut self) {
        self.state.closing.store(true, Ordering::SeqCst);
        // Ends a wait for the next front end.
        // SAFETY: plain shutdown of our own socket.
        unsafe { libc::shutdown(self.listener.as_raw_fd(), libc::SHUT_RDWR) };
        if let Some(connection) = &*self.state.connection.lock().unwrap_or_else(PoisonError::into_inner) {
            let _ = connection.shutdown(std::net::Shutdown::Both);
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Serves the next front end until it goes. `None` when there will be no other.
fn serve_one(listener: &UnixListener, state: &State, worker: &Handle, port: PortNumber, pairs: u16) -> Option<()> {
    let connection = match listener.accept() {
        Ok((connection, _)) => connection,
        Err(_) if state.closing.load(Ordering::SeqCst) => return None,
        Err(error) => {
            eprintln!("maru-switch: port {port} takes no front end any more: {error}");
            return None;
        }
    };
    state.set(connection.try_clone().ok());
    let session = Arc::new(Mutex::new(Session::new(worker.clone(), port, pairs)));
    let mut handler = BackendReqHandler::from_stream(connection, session.clone());
    let early = state.connection.lock().unwrap_or_else(PoisonError::into_inner).as_ref().and_then(|own| own.try_clone().ok());
    while !state.closing.load(Ordering::SeqCst) {
        let is_early = !session.lock().unwrap_or_else(PoisonError::into_inner).has_features();
        match early.as_ref().filter(|_| is_early).map_or(Ok(false), |stream| early_enable(stream, &session)) {
            Ok(true) => continue,
            Ok(false) => {}
            Err(error) => {
                eprintln!("maru-switch: port {port} lets its front end go: {error}");
                break;
            }
        }
        match handler.handle_request() {
            Ok(()) => {}
            Err(vhost::vhost_user::Error::Disconnected | vhost::vhost_user::Error::SocketBroken(_)) => break,
            Err(error) => {
                eprintln!("maru-switch: port {port} lets its front end go: {error}");
                break;
            }
        }
    }
    session.lock().unwrap_or_else(PoisonError::into_inner).end();
    state.set(None);
    (!state.closing.load(Ordering::SeqCst)).then_some(())
}

/// Bytes of a message's header: request, flags, bytes that follow.
const HEADER: usize = 12;
const SET_VRING_ENABLE: u32 = 18;
/// Flags: the version, a reply, and that one is wanted.
const VERSION: u32 = 1;
const REPLY: u32 = 4;
const NEED_REPLY: u32 = 8;

/// QEMU says which rings are on before it says which features it has, as soon as it has seen that there are protocol features. The
/// library takes that only afterwards, so it is done here. Returns whether the next message was one of these.
fn early_enable(mut stream: &UnixStream, session: &Mutex<Session>) -> io::Result<bool> {
    let mut message = [0; HEADER + 8];
    // SAFETY: the buffer has room for a header.
    let peeked =
        unsafe { libc::recv(stream.as_raw_fd(), message.as_mut_ptr().cast(), HEADER, libc::MSG_PEEK | libc::MSG_WAITALL) };
    let word = |message: &[u8], at: usize| u32::from_ne_bytes([message[at], message[at + 1], message[at + 2], message[at + 3]]);
    let is_enable = usize::try_from(peeked) == Ok(HEADER) && word(&message, 0) == SET_VRING_ENABLE && word(&message, 8) == 8;
    if !is_enable {
        return Ok(false);
    }
    stream.read_exact(&mut message)?;
    let (ring, on) = (word(&message, HEADER), word(&message, HEADER + 4) == 1);
    let mut session = session.lock().unwrap_or_else(PoisonError::into_inner);
    session.set_vring_enable(ring, on).map_err(io::Error::other)?;
    if word(&message, 4) & NEED_REPLY != 0 {
        message[4..8].copy_from_slice(&(VERSION | REPLY).to_ne_bytes());
        message[HEADER..].fill(0);
        stream.write_all(&message)?;
    }
    Ok(true)
}

/// The descriptor that wakes someone, if there is one.
pub(super) fn raw(file: Option<&File>) -> Option<i32> {
    file.map(AsRawFd::as_raw_fd)
}
