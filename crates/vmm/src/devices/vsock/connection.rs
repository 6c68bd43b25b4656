//! One connection: a unix socket on one side, packets on the other.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::net::Shutdown;
use std::num::Wrapping;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::command::{BadCommand, Command};
use super::credit::{CREDIT_BYTES, Credit};
use super::packet::{HEADER_BYTES, HOST_CID, Header, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM, op};
use crate::devices::net::buffers::{self, IoVectors, Segment};
use crate::virtio::GuestMemory;

/// Data in one packet to the guest; more would let one connection delay the others.
const MAX_DATA_BYTES: usize = 64 * 1024;
/// How long a program on the host may take to say where it wants to go.
pub(super) const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// How long the guest may take to answer.
pub(super) const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// See the drawing on the module's page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Handshake,
    Requested,
    Open,
    Closing,
    Draining,
}

/// What is to be told to the guest, besides data.
#[derive(Default)]
struct Pending {
    request: bool,
    response: bool,
    credit_update: bool,
    credit_request: bool,
    shutdown: u32,
}

/// What a connection became.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Lives,
    /// It ends, and the guest must be told.
    Reset,
    /// It ends, and there is nobody to tell.
    Ends,
}

/// What `produce` made of a buffer.
pub(super) enum Produced {
    /// A packet of this many bytes.
    Packet(usize),
    Nothing,
}

/// A connection.
pub(super) struct Connection {
    socket: UnixStream,
    pub phase: Phase,
    pub guest_port: u32,
    pub host_port: u32,
    /// Whether it waits for its turn to send to the guest.
    pub queued: bool,
    pub deadline: Option<Instant>,
    command: Command,
    pending: Pending,
    credit: Credit,
    /// From the guest, for the unix socket.
    outgoing: VecDeque<u8>,
    readable: bool,
    writable: bool,
    guest_receives: bool,
    guest_sends: bool,
    host_sends: bool,
    /// The host closed its end for both directions.
    hung_up: bool,
}

impl Connection {
    fn new(socket: UnixStream, phase: Phase) -> Connection {
        Connection {
            socket,
            phase,
            guest_port: 0,
            host_port: 0,
            queued: false,
            deadline: None,
            command: Command::default(),
            pending: Pending::default(),
            credit: Credit::default(),
            outgoing: VecDeque::new(),
            readable: true,
            writable: true,
            guest_receives: true,
            guest_sends: true,
            host_sends: true,
            hung_up: false,
        }
    }

    /// A program on the host connected; it has not said yet where to.
    pub fn from_host(socket: UnixStream) -> Connection {
        let mut connection = Connection::new(socket, Phase::Handshake);
        connection.deadline = Some(Instant::now() + HANDSHAKE_LIMIT);
        connection
    }

    /// The guest connected, and `socket` leads to who serves it.
    pub fn from_guest(socket: UnixStream, request: &Header) -> Connection {
        let mut connection = Connection::new(socket, Phase::Open);
        connection.guest_port = request.src_port;
        connection.host_port = request.dst_port;
        connection.pending.response = true;
        connection.note_credit(request);
        connection
    }

    pub fn socket(&self) -> &UnixStream {
        &self.socket
    }

    /// Notes what `epoll` said.
    pub fn became_ready(&mut self, readable: bool, writable: bool, hung_up: bool) {
        self.readable |= readable | hung_up;
        self.writable |= writable;
        self.hung_up |= hung_up;
    }

    /// Reads the command of a program on the host: the guest's port, once it is there.
    pub fn read_command(&mut self) -> Result<Option<u32>, BadCommand> {
        self.command.read(&self.socket)
    }

    /// Asks the guest to take the connection.
    pub fn request(&mut self, guest_port: u32, host_port: u32) {
        self.phase = Phase::Requested;
        self.guest_port = guest_port;
        self.host_port = host_port;
        self.pending.request = true;
        self.deadline = Some(Instant::now() + ANSWER_LIMIT);
    }

    /// The guest took the connection.
    pub fn accepted(&mut self) -> Fate {
        if self.phase != Phase::Requested {
            return Fate::Reset;
        }
        self.phase = Phase::Open;
        self.deadline = None;
        let line = format!("OK {}\n", self.host_port);
        // Nothing was written before, so there is room, or nobody to read it.
        match (&self.socket).write(line.as_bytes()) {
            Ok(count) if count == line.len() => Fate::Lives,
            _ => Fate::Reset,
        }
    }

    /// Notes what a packet of the guest says of its buffer.
    pub fn note_credit(&mut self, header: &Header) {
        self.credit.peer_alloc = header.buf_alloc;
        self.credit.peer_forwarded = Wrapping(header.fwd_cnt);
        if self.credit.available() > 0 {
            self.pending.credit_request = false;
        }
    }

    /// The guest wants to know its credit.
    pub fn credit_requested(&mut self) {
        self.pending.credit_update = true;
    }

    /// Takes data from the guest.
    pub fn data(&mut self, memory: &GuestMemory, vectors: &mut IoVectors, data: &VecDeque<Segment>, length: usize) -> Fate {
        match self.phase {
            Phase::Open if self.guest_sends => {}
            // It was told that nobody listens, but may not have known when it sent this.
            Phase::Closing => return Fate::Lives,
            _ => return Fate::Reset,
        }
        if self.outgoing.len() + length > CREDIT_BYTES as usize {
            return Fate::Reset;
        }
        if self.hung_up {
            return Fate::Lives;
        }
        let mut written = 0;
        if self.outgoing.is_empty() && self.writable && length > 0 {
            match vectors.write(memory, self.socket.as_fd(), data.iter()) {
                Ok(count) => written = count,
                Err(error) => self.write_failed(&error),
            }
            self.credit.forwarded += written as u32;
        }
        if written < length && !self.hung_up {
            let mut rest = vec![0; length - written];
            buffers::copy_out(memory, buffers::cut(data, written, length - written).iter(), &mut rest);
            self.outgoing.extend(rest);
            if written > 0 {
                // Written in part: it is full.
                self.flush();
            }
        }
        self.note_forwarded();
        Fate::Lives
    }

    fn write_failed(&mut self, error: &io::Error) {
        match error.kind() {
            io::ErrorKind::WouldBlock => self.writable = false,
            io::ErrorKind::Interrupted => {}
            _ => {
                // What the host already sent is still read.
                self.hung_up = true;
                self.readable = true;
                self.outgoing.clear();
            }
        }
    }

    /// Writes to the unix socket what was kept for it.
    fn flush(&mut self) {
        while self.writable && !self.outgoing.is_empty() {
            let (front, _) = self.outgoing.as_slices();
            match (&self.socket).write(front) {
                Ok(count) => {
                    self.outgoing.drain(..count);
                    self.credit.forwarded += count as u32;
                }
                Err(error) => self.write_failed(&error),
            }
        }
        self.note_forwarded();
    }

    fn note_forwarded(&mut self) {
        self.pending.credit_update |= self.credit.is_update_due();
    }

    /// The guest closed one or both of its directions.
    pub fn guest_shut_down(&mut self, flags: u32) -> Fate {
        match self.phase {
            Phase::Open => {}
            Phase::Closing if flags & (SHUTDOWN_RECEIVE | SHUTDOWN_SEND) == SHUTDOWN_RECEIVE | SHUTDOWN_SEND => {
                return Fate::Reset;
            }
            Phase::Closing => return Fate::Lives,
            _ => return Fate::Reset,
        }
        if flags & SHUTDOWN_RECEIVE != 0 && self.guest_receives {
            self.guest_receives = false;
            // The host learns of it when it writes. A socket that is closed already needs no closing.
            let _ = self.socket.shutdown(Shutdown::Read);
        }
        if flags & SHUTDOWN_SEND != 0 {
            self.guest_sends = false;
        }
        Fate::Lives
    }

    /// Whether the guest is done with the connection in both directions.
    pub fn is_closed_by_guest(&self) -> bool {
        self.phase == Phase::Open && !self.guest_receives && !self.guest_sends
    }

    /// Does what can be done towards the host, and says what the connection became.
    pub fn advance(&mut self) -> Fate {
        match self.phase {
            Phase::Handshake => return Fate::Lives,
            Phase::Requested => return if self.hung_up { Fate::Reset } else { Fate::Lives },
            Phase::Open | Phase::Closing | Phase::Draining => {}
        }
        self.flush();
        if self.outgoing.is_empty() && !self.guest_sends {
            let _ = self.socket.shutdown(Shutdown::Write);
        }
        if self.phase == Phase::Draining && (self.outgoing.is_empty() || self.hung_up) {
            return Fate::Ends;
        }
        // With data of the host left to read, the end is found when it was read.
        if self.phase == Phase::Open && self.hung_up && !(self.host_sends && self.guest_receives) {
            self.close();
        }
        Fate::Lives
    }

    /// The host is gone: tells the guest, and waits for it.
    fn close(&mut self) {
        self.phase = Phase::Closing;
        self.pending.shutdown = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;
        self.outgoing.clear();
        self.deadline = Some(Instant::now() + ANSWER_LIMIT);
    }

    fn may_send_data(&self) -> bool {
        self.phase == Phase::Open && self.readable && self.host_sends && self.guest_receives
    }

    /// Whether there is something for the guest.
    pub fn has_something(&self) -> bool {
        if matches!(self.phase, Phase::Handshake | Phase::Draining) {
            return false;
        }
        let pending = &self.pending;
        pending.request
            || pending.response
            || pending.credit_update
            || pending.shutdown != 0
            || (self.may_send_data() && (self.credit.available() > 0 || !pending.credit_request))
    }

    /// Makes the next packet for the guest in `segments`, whose `room` is more than a header.
    pub fn produce(
        &mut self,
        guest_cid: u64,
        memory: &GuestMemory,
        vectors: &mut IoVectors,
        segments: &VecDeque<Segment>,
        room: usize,
    ) -> Produced {
        let mut header = self.header(guest_cid, op::CREDIT_UPDATE);
        if std::mem::take(&mut self.pending.request) {
            header.op = op::REQUEST;
        } else if std::mem::take(&mut self.pending.response) {
            header.op = op::RESPONSE;
        } else if self.pending.shutdown != 0 {
            header.op = op::SHUTDOWN;
            header.flags = std::mem::take(&mut self.pending.shutdown);
        } else if !self.may_send_data() {
            if !self.pending.credit_update {
                return Produced::Nothing;
            }
        } else if self.credit.available() == 0 {
            if !std::mem::replace(&mut self.pending.credit_request, true) {
                header.op = op::CREDIT_REQUEST;
            } else if !self.pending.credit_update {
                return Produced::Nothing;
            }
        } else {
            let limit = self.credit.available().min(MAX_DATA_BYTES).min(room - HEADER_BYTES);
            let data = buffers::cut(segments, HEADER_BYTES, limit);
            match vectors.read_stream(memory, self.socket.as_fd(), data.iter()) {
                Ok(0) => {
                    self.host_sends = false;
                    header.op = op::SHUTDOWN;
                    header.flags = SHUTDOWN_SEND;
                    if self.hung_up {
                        self.close();
                        header.flags = std::mem::take(&mut self.pending.shutdown);
                    }
                }
                Ok(count) => {
                    header.op = op::RW;
                    // At most 64 KiB.
                    header.length = count as u32;
                    self.credit.sent += count as u32;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => return Produced::Nothing,
                Err(error) => {
                    self.readable = false;
                    if error.kind() != io::ErrorKind::WouldBlock {
                        self.hung_up = true;
                        self.close();
                    }
                    if !self.pending.credit_update {
                        return Produced::Nothing;
                    }
                }
            }
        }
        // Every packet tells the credit.
        self.pending.credit_update = false;
        self.credit.told = self.credit.forwarded;
        buffers::copy_into(memory, segments.iter(), 0, &header.encode());
        Produced::Packet(HEADER_BYTES + header.length as usize)
    }

    fn header(&self, guest_cid: u64, op: u16) -> Header {
        Header {
            src_cid: HOST_CID,
            dst_cid: guest_cid,
            src_port: self.host_port,
            dst_port: self.guest_port,
            kind: TYPE_STREAM,
            op,
            buf_alloc: CREDIT_BYTES,
            fwd_cnt: self.credit.forwarded.0,
            ..Header::default()
        }
    }
}
