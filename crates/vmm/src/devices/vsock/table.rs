//! All connections of a device: what packets and sockets do to them. Knows nothing of rings.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use vmm_sys_util::epoll::EventSet;

use super::connection::{Connection, Fate, Phase, Produced};
use super::packet::{HEADER_BYTES, HOST_CID, Header, TYPE_STREAM, op};
use crate::devices::net::buffers::{self, IoVectors, Segment};
use crate::devices::net::unix;
use crate::virtio::GuestMemory;
use crate::virtio::worker::Sources;

/// The most connections at a time, those still being made included.
pub const MAX_CONNECTIONS: usize = 1024;
/// The most answers kept for packets that belong to no connection; with more, the guest's packets wait in its ring.
const MAX_RESETS: usize = 256;
/// Ports of the host for connections that it makes start here, as in Firecracker.
const FIRST_HOST_PORT: u32 = 1 << 30;
/// Tokens below are the worker's.
pub(super) const FIRST_TOKEN: u64 = 1 << 8;

/// A device's counters since it was created.
#[derive(Debug, Default)]
#[allow(missing_docs)]
pub struct Counters {
    /// Connections that exist now.
    pub connections: AtomicU64,
    /// Bytes to the guest.
    pub rx_bytes: AtomicU64,
    /// Bytes from the guest.
    pub tx_bytes: AtomicU64,
    /// Buffers and packets that made no sense.
    pub drops: AtomicU64,
}

/// Which connection a packet belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Ports {
    guest: u32,
    host: u32,
}

/// The connections of a device.
pub(super) struct Table {
    guest_cid: u64,
    base_path: PathBuf,
    pub counters: Arc<Counters>,
    connections: HashMap<u64, Connection>,
    by_ports: HashMap<Ports, u64>,
    next_token: u64,
    next_port: u32,
    /// Who has something for the guest, in order of turns.
    turns: VecDeque<u64>,
    /// Answers to packets without a connection.
    resets: VecDeque<Ports>,
    vectors: IoVectors,
    /// A deadline was set since the last look at all of them.
    watches: bool,
}

impl Table {
    pub fn new(guest_cid: u64, base_path: PathBuf) -> Table {
        Table {
            guest_cid,
            base_path,
            counters: Arc::default(),
            connections: HashMap::new(),
            by_ports: HashMap::new(),
            next_token: FIRST_TOKEN,
            next_port: FIRST_HOST_PORT,
            turns: VecDeque::new(),
            resets: VecDeque::new(),
            vectors: IoVectors::default(),
            watches: false,
        }
    }

    /// Ends all connections.
    pub fn clear(&mut self) {
        self.connections.clear();
        self.by_ports.clear();
        self.turns.clear();
        self.resets.clear();
        self.count();
    }

    fn count(&self) {
        self.counters.connections.store(self.connections.len() as u64, Ordering::Relaxed);
    }

    /// Listens to all sockets again, after a pause.
    pub fn listen(&mut self, sources: &Sources) -> io::Result<()> {
        self.connections.iter().try_for_each(|(token, connection)| add(sources, connection.socket(), *token))
    }

    /// Whether more packets of the guest can be taken.
    pub fn has_room(&self) -> bool {
        self.resets.len() < MAX_RESETS
    }

    /// Whether the guest should get packets.
    pub fn has_something(&self) -> bool {
        !self.resets.is_empty() || !self.turns.is_empty()
    }

    /// Whether a connection may wait for something that may never come.
    pub fn has_deadlines(&self) -> bool {
        self.watches
    }

    /// Ends what waited too long.
    pub fn expire(&mut self, now: Instant) {
        let late = |connection: &Connection| connection.deadline.is_some_and(|deadline| deadline <= now);
        let late: Vec<u64> = self.connections.iter().filter(|(_, c)| late(c)).map(|(token, _)| *token).collect();
        for token in late {
            self.settle(token, Fate::Reset);
        }
        self.watches = self.connections.values().any(|connection| connection.deadline.is_some());
    }

    /// A program on the host connected. One too many is closed again.
    pub fn accept(&mut self, socket: UnixStream, sources: &Sources) {
        let token = self.insert(Connection::from_host(socket), sources);
        if let Some(token) = token {
            self.read_command(token);
        }
    }

    fn insert(&mut self, connection: Connection, sources: &Sources) -> Option<u64> {
        if self.connections.len() >= MAX_CONNECTIONS {
            return None;
        }
        let token = self.next_token;
        add(sources, connection.socket(), token).ok()?;
        self.next_token += 1;
        self.watches |= connection.deadline.is_some();
        self.connections.insert(token, connection);
        self.count();
        Some(token)
    }

    fn read_command(&mut self, token: u64) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        match connection.read_command() {
            Ok(None) => {}
            Ok(Some(guest)) => {
                // There are fewer connections than ports, so one is free.
                let host = loop {
                    let port = self.next_port;
                    self.next_port = self.next_port.checked_add(1).filter(|next| *next < u32::MAX).unwrap_or(FIRST_HOST_PORT);
                    if !self.by_ports.contains_key(&Ports { guest, host: port }) {
                        break port;
                    }
                };
                connection.request(guest, host);
                self.by_ports.insert(Ports { guest, host }, token);
                self.settle(token, Fate::Lives);
            }
            Err(_) => self.settle(token, Fate::Ends),
        }
    }

    /// A connection's socket is ready.
    pub fn socket_ready(&mut self, token: u64, events: EventSet) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        let hung_up = events.intersects(EventSet::HANG_UP | EventSet::ERROR);
        let readable = events.intersects(EventSet::IN | EventSet::READ_HANG_UP);
        connection.became_ready(readable, events.contains(EventSet::OUT), hung_up);
        if connection.phase == Phase::Handshake {
            self.read_command(token);
        } else {
            let fate = connection.advance();
            self.settle(token, fate);
        }
    }

    /// A packet of the guest, with the buffers behind its header.
    pub fn packet(&mut self, memory: &GuestMemory, header: &Header, data: &VecDeque<Segment>, room: usize, sources: &Sources) {
        if header.src_cid != self.guest_cid || header.dst_cid != HOST_CID {
            self.drop_one();
            return;
        }
        let ports = Ports { guest: header.src_port, host: header.dst_port };
        let token = self.by_ports.get(&ports).copied();
        let connection = token.and_then(|token| Some((token, self.connections.get_mut(&token)?)));
        let Some((token, connection)) = connection else {
            match header.op {
                op::RST => {}
                op::REQUEST if header.kind == TYPE_STREAM => self.connect(header, ports, sources),
                _ => self.resets.push_back(ports),
            }
            return;
        };
        let length = header.length as usize;
        if header.kind != TYPE_STREAM || length > room {
            self.drop_one();
            self.settle(token, Fate::Reset);
            return;
        }
        connection.note_credit(header);
        let mut fate = match header.op {
            op::RESPONSE => connection.accepted(),
            op::RST => Fate::Ends,
            op::SHUTDOWN => connection.guest_shut_down(header.flags),
            op::RW => {
                let data = buffers::cut(data, HEADER_BYTES, length);
                self.counters.tx_bytes.fetch_add(length as u64, Ordering::Relaxed);
                connection.data(memory, &mut self.vectors, &data, length)
            }
            op::CREDIT_UPDATE => Fate::Lives,
            op::CREDIT_REQUEST => {
                connection.credit_requested();
                Fate::Lives
            }
            _ => Fate::Reset,
        };
        if fate == Fate::Lives {
            fate = connection.advance();
        }
        if fate == Fate::Lives && connection.is_closed_by_guest() {
            // The guest is done and may use its port again; what it sent still goes to the host.
            connection.phase = Phase::Draining;
            fate = connection.advance();
            self.by_ports.remove(&ports);
            self.resets.push_back(ports);
        }
        self.settle(token, fate);
    }

    fn connect(&mut self, header: &Header, ports: Ports, sources: &Sources) {
        let mut path = self.base_path.clone().into_os_string();
        path.push(format!("_{}", header.dst_port));
        let connected = unix::connect(path.as_ref()).ok();
        let token = connected.and_then(|socket| self.insert(Connection::from_guest(socket, header), sources));
        match token {
            None => self.resets.push_back(ports),
            Some(token) => {
                self.by_ports.insert(ports, token);
                self.settle(token, Fate::Lives);
            }
        }
    }

    /// Gives a connection its turn, or its end.
    fn settle(&mut self, token: u64, fate: Fate) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        if fate == Fate::Lives {
            self.watches |= connection.deadline.is_some();
            if !connection.queued && connection.has_something() {
                connection.queued = true;
                self.turns.push_back(token);
            }
            return;
        }
        let known = connection.phase != Phase::Handshake && connection.phase != Phase::Draining;
        let ports = Ports { guest: connection.guest_port, host: connection.host_port };
        self.connections.remove(&token);
        self.count();
        if known {
            self.by_ports.remove(&ports);
            if fate == Fate::Reset {
                self.resets.push_back(ports);
            }
        }
    }

    pub fn drop_one(&self) {
        self.counters.drops.fetch_add(1, Ordering::Relaxed);
    }

    /// Makes the next packet for the guest in `segments`, whose `room` is more than a header. `None` when nobody has any.
    pub fn produce(&mut self, memory: &GuestMemory, segments: &VecDeque<Segment>, room: usize) -> Option<usize> {
        if let Some(ports) = self.resets.pop_front() {
            let header = Header {
                src_cid: HOST_CID,
                dst_cid: self.guest_cid,
                src_port: ports.host,
                dst_port: ports.guest,
                kind: TYPE_STREAM,
                op: op::RST,
                ..Header::default()
            };
            buffers::copy_into(memory, segments.iter(), 0, &header.encode());
            return Some(HEADER_BYTES);
        }
        // Each turn that gives nothing takes a connection off the list, or it had a turn already.
        for _ in 0..self.turns.len() {
            let token = self.turns.pop_front()?;
            let Some(connection) = self.connections.get_mut(&token) else { continue };
            connection.queued = false;
            let produced = connection.produce(self.guest_cid, memory, &mut self.vectors, segments, room);
            self.settle(token, Fate::Lives);
            if let Produced::Packet(bytes) = produced {
                self.counters.rx_bytes.fetch_add((bytes - HEADER_BYTES) as u64, Ordering::Relaxed);
                return Some(bytes);
            }
        }
        None
    }
}

fn add(sources: &Sources, socket: &UnixStream, token: u64) -> io::Result<()> {
    // Edges: a socket that nobody can act on for now must not keep the worker awake.
    let events = EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
    sources.add(socket.as_raw_fd(), token, events)
}
