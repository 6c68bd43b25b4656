//! Answers that go on.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use packet::Connection;

use super::{Reply, Streamed};

/// What sends the rest of an answer, on the client's own thread.
pub(crate) type Stream = Box<dyn FnOnce(&Connection) -> io::Result<()> + Send>;

/// How often a client is looked at that has nothing to get.
const LOOK: Duration = Duration::from_millis(100);

/// Sends what comes until there is no more, or the client says something or goes.
pub(crate) fn stream<T>(connection: &Connection, items: &Receiver<T>, form: impl Fn(T) -> Streamed) -> io::Result<()> {
    loop {
        match items.recv_timeout(LOOK) {
            Ok(item) => send(connection, &form(item))?,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
        if is_readable(connection)? {
            return Ok(());
        }
    }
}

pub(crate) fn send(connection: &Connection, item: &Streamed) -> io::Result<()> {
    connection.send_message(&Reply::Ok(serde_json::to_value(item)?))
}

/// Whether the client has sent something, or has gone.
fn is_readable(connection: &Connection) -> io::Result<bool> {
    let mut poll = libc::pollfd { fd: connection.as_raw_fd(), events: libc::POLLIN | libc::POLLRDHUP, revents: 0 };
    // SAFETY: one valid pollfd.
    match unsafe { libc::poll(&raw mut poll, 1, 0) } {
        count if count >= 0 => Ok(count > 0),
        _ => Err(io::Error::last_os_error()),
    }
}
