//! The worker of the socket device: moves packets between the rings and the connections.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::timerfd::TimerFd;

use super::packet::{HEADER_BYTES, Header};
use super::table::{FIRST_TOKEN, Table};
use crate::devices::net::buffers::{self, Direction, Segment};
use crate::devices::net::ring::{Ring, RingError};
use crate::virtio::worker::{Handler, Sources};
use crate::virtio::{GuestMemory, Interrupt};

pub(super) const RX: u16 = 0;
pub(super) const TX: u16 = 1;
pub(super) const EVENT: u16 = 2;
const TIMER: u64 = 3;
const LISTENER: u64 = 4;

/// Packets of each direction before other work gets its turn.
const BATCH: usize = 64;
/// Programs accepted before other work gets its turn.
const ACCEPT_BATCH: usize = 16;
/// Deadlines are seconds, so they need not be looked at more often.
const TICK: Duration = Duration::from_secs(1);
/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET` (virtio 1.2 §5.10.6.7).
const TRANSPORT_RESET: u32 = 0;

/// One of the three queues.
pub(super) struct RingWithKick {
    pub ring: Ring,
    pub kick: EventFd,
}

/// What outlives a pause.
pub(super) struct Engine {
    pub table: Table,
    pub listener: UnixListener,
    /// The guest has to be told that its connections are gone.
    pub reset_due: bool,
}

/// See the module's page.
pub(super) struct VsockWorker {
    pub memory: Arc<GuestMemory>,
    pub interrupt: Arc<dyn Interrupt>,
    pub engine: Engine,
    pub rings: [RingWithKick; 3],
    pub timer: TimerFd,
    pub ticking: bool,
    pub failed: bool,
    /// The listener is left alone until the next tick.
    pub deaf: bool,
    pub segments: VecDeque<Segment>,
}

impl VsockWorker {
    /// Moves packets in both directions, at most `give` to the guest, and comes back if there are more.
    fn pump(&mut self, sources: &Sources, give: usize) -> Result<(), RingError> {
        let more_sent = self.take_packets(sources)?;
        let more_received = self.give_packets(give)?;
        self.tell_reset()?;
        for index in [RX, TX, EVENT] {
            if self.rings[usize::from(index)].ring.needs_interrupt(&self.memory)? {
                self.interrupt.used(index);
            }
        }
        if more_sent || more_received {
            // An eventfd that is too full to write is readable.
            let _ = self.rings[usize::from(TX)].kick.write(1);
        }
        if !self.ticking && (self.deaf || self.engine.table.has_deadlines()) {
            self.ticking = self.timer.reset(TICK, None).is_ok();
        }
        Ok(())
    }

    /// Takes packets from the guest. `true` when there may be more to take now.
    fn take_packets(&mut self, sources: &Sources) -> Result<bool, RingError> {
        let memory = &*self.memory;
        let ring = &mut self.rings[usize::from(TX)].ring;
        for _ in 0..BATCH {
            if !self.engine.table.has_room() {
                // The guest gets the answers that it has coming before it may ask for more.
                return Ok(false);
            }
            let Some(chain) = ring.pop(memory)? else {
                if ring.enable_kicks(memory)? {
                    continue;
                }
                return Ok(false);
            };
            let head = chain.head_index();
            self.segments.clear();
            let room = buffers::collect(chain, memory, Direction::DeviceReads, &mut self.segments).map_or(0, |(_, bytes)| bytes);
            let mut header = [0; HEADER_BYTES];
            if room < HEADER_BYTES {
                self.engine.table.drop_one();
            } else {
                buffers::copy_out(memory, self.segments.iter(), &mut header);
                let header = Header::decode(&header);
                self.engine.table.packet(memory, &header, &self.segments, room - HEADER_BYTES, sources);
            }
            ring.add_used(memory, head, 0)?;
        }
        Ok(true)
    }

    /// Gives packets to the guest. `true` when there are more to give now.
    fn give_packets(&mut self, batch: usize) -> Result<bool, RingError> {
        let memory = &*self.memory;
        let ring = &mut self.rings[usize::from(RX)].ring;
        let table = &mut self.engine.table;
        let was_full = !table.has_room();
        for _ in 0..batch {
            if !table.has_something() {
                // Packets of the guest wait if there was no room for answers.
                return Ok(was_full);
            }
            let Some(chain) = ring.pop(memory)? else {
                if ring.enable_kicks(memory)? {
                    continue;
                }
                return Ok(was_full && table.has_room());
            };
            let head = chain.head_index();
            self.segments.clear();
            let room = buffers::collect(chain, memory, Direction::DeviceWrites, &mut self.segments).map_or(0, |(_, bytes)| bytes);
            // A buffer for a header alone could not take any data, now or later.
            if room <= HEADER_BYTES {
                table.drop_one();
                ring.add_used(memory, head, 0)?;
                continue;
            }
            match table.produce(memory, &self.segments, room) {
                // A header and at most 64 KiB.
                Some(bytes) => ring.add_used(memory, head, bytes as u32)?,
                None => ring.undo_pop(1),
            }
        }
        Ok(table.has_something() || was_full)
    }

    /// Tells the guest that its connections are gone, once it has a buffer for that.
    fn tell_reset(&mut self) -> Result<(), RingError> {
        let memory = &*self.memory;
        let ring = &mut self.rings[usize::from(EVENT)].ring;
        for _ in 0..BATCH {
            if !self.engine.reset_due {
                return Ok(());
            }
            let Some(chain) = ring.pop(memory)? else {
                if ring.enable_kicks(memory)? {
                    continue;
                }
                return Ok(());
            };
            let head = chain.head_index();
            self.segments.clear();
            let event = TRANSPORT_RESET.to_le_bytes();
            let room = buffers::collect(chain, memory, Direction::DeviceWrites, &mut self.segments).map_or(0, |(_, bytes)| bytes);
            if room < event.len() {
                self.engine.table.drop_one();
                ring.add_used(memory, head, 0)?;
                continue;
            }
            buffers::copy_into(memory, self.segments.iter(), 0, &event);
            ring.add_used(memory, head, event.len() as u32)?;
            self.engine.reset_due = false;
        }
        Ok(())
    }

    fn accept(&mut self, sources: &Sources) {
        for _ in 0..ACCEPT_BATCH {
            match self.engine.listener.accept() {
                Ok((socket, _)) => {
                    if socket.set_nonblocking(true).is_ok() {
                        self.engine.table.accept(socket, sources);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                // It went away, or a signal came.
                Err(error) if matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::Interrupted) => {}
                Err(error) => {
                    // No descriptors left, most likely: who waits must not keep the worker awake meanwhile.
                    tracing::warn!(%error, "the socket device cannot accept connections for a while");
                    let _ = sources.modify(self.engine.listener.as_raw_fd(), LISTENER, EventSet::empty());
                    self.deaf = true;
                    return;
                }
            }
        }
    }

    fn finish(&mut self, result: Result<(), RingError>, sources: &Sources) {
        if let Err(error) = result {
            self.fail(format!("queues of the socket device: {error}"), sources);
        }
    }

    fn fail(&mut self, reason: String, sources: &Sources) {
        self.failed = true;
        for ring in &self.rings {
            let _ = sources.remove(ring.kick.as_raw_fd());
        }
        let _ = sources.remove(self.engine.listener.as_raw_fd());
        self.interrupt.fail(reason);
    }

    fn listen(&mut self, sources: &Sources) -> std::io::Result<()> {
        for (token, ring) in (0u64..).zip(&self.rings) {
            sources.add(ring.kick.as_raw_fd(), token, EventSet::IN)?;
        }
        sources.add(self.timer.as_raw_fd(), TIMER, EventSet::IN)?;
        sources.add(self.engine.listener.as_raw_fd(), LISTENER, EventSet::IN)?;
        self.engine.table.listen(sources)
    }
}

impl Handler for VsockWorker {
    fn start(&mut self, sources: &Sources) {
        if let Err(error) = self.listen(sources) {
            self.fail(format!("cannot listen to the queues of the socket device: {error}"), sources);
            return;
        }
        let result = self.pump(sources, BATCH);
        self.finish(result, sources);
    }

    fn ready(&mut self, token: u64, events: EventSet, sources: &Sources) {
        if self.failed {
            return;
        }
        match token {
            TIMER => {
                let _ = self.timer.clear();
                self.ticking = false;
                self.engine.table.expire(Instant::now());
                if std::mem::take(&mut self.deaf) {
                    let _ = sources.modify(self.engine.listener.as_raw_fd(), LISTENER, EventSet::IN);
                }
            }
            LISTENER => self.accept(sources),
            queue if queue < TIMER => {
                let _ = self.rings[queue as usize].kick.read();
            }
            connection => self.engine.table.socket_ready(connection, events),
        }
        // A socket that is ready gets one packet through at once; the rest follows when all that are ready have been seen,
        // so that they take turns.
        let give = if token < FIRST_TOKEN { BATCH } else { 1 };
        let result = self.pump(sources, give);
        self.finish(result, sources);
    }
}
