//! A monitor for tests: a thread that speaks the protocol.

use std::cell::RefCell;
use std::os::fd::OwnedFd;
use std::thread::JoinHandle;

use serde::Serialize;
use vmm::control::{Client, Connection, Event, EventKind, Failure, Message, Reply, Request, pair};

/// The client's side. A panic in the monitor's thread fails the test when this is dropped.
pub struct Monitor {
    connection: RefCell<Option<Connection>>,
    thread: Option<JoinHandle<()>>,
}

/// The monitor's side.
pub struct Service(Connection);

impl Monitor {
    /// Has `serve` answer one client.
    pub fn start(serve: impl FnOnce(&mut Service) + Send + 'static) -> Monitor {
        let (ours, theirs) = pair().unwrap();
        let thread = std::thread::spawn(move || serve(&mut Service(theirs)));
        Monitor { connection: RefCell::new(Some(ours)), thread: Some(thread) }
    }

    /// The client; there is one.
    pub fn client(&self) -> Client {
        Client::new(self.connection.take().unwrap())
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        drop(self.connection.take());
        let result = self.thread.take().map(JoinHandle::join);
        if !std::thread::panicking() {
            result.unwrap().unwrap();
        }
    }
}

impl Service {
    /// The next request and its descriptors.
    pub fn request(&mut self) -> (Request, Vec<OwnedFd>) {
        self.0.receive().unwrap().unwrap()
    }

    /// Sends a packet.
    pub fn send(&mut self, message: &Message) {
        self.0.send(message, &[]).unwrap();
    }

    /// Waits until the client has gone.
    pub fn keep_open(&mut self) {
        let _ = self.0.receive::<Request>();
    }
}

/// Done.
pub fn ok() -> Message {
    Message::Reply(Reply::Ok(serde_json::Value::Null))
}

/// Done, with this.
pub fn ok_with(value: &impl Serialize) -> Message {
    Message::Reply(Reply::Ok(serde_json::to_value(value).unwrap()))
}

/// Not done.
pub fn refused(message: &str) -> Message {
    Message::Reply(Reply::Error(Failure { message: message.into() }))
}

/// Not done yet.
pub fn progress(done: u64, total: u64) -> Message {
    Message::Reply(Reply::Progress { done, total })
}

/// Something happened.
pub fn event(sequence: u64, kind: EventKind) -> Message {
    Message::Event(Event { sequence, kind })
}
