//! What a queue's thread does.
//!
//! ```text
//!   loop:  sleep in the ring ──▶ answer what completed ──▶ one interrupt ──▶ start what is available ──▶
//! ```
//! Nothing is submitted until it sleeps again, so a batch of any length costs one system call. When the driver tends to have the
//! next request ready soon after the last was answered, it looks out for it for a moment before it sleeps ([`Patience`]).

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use disk::{Durability, Engine, Event, IoError, Zeroing};
use virtio_queue::{Queue, QueueT};
use vm_memory::bitmap::Bitmap;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};
use vmm_sys_util::eventfd::EventFd;

use super::chain::{Buffer, Chain};
use super::counters::{QueueCounters, add};
use super::device::{ErrorPolicy, IoFailure, Shared};
use super::patience::Patience;
use super::request::{self, Operation, Refusal, Request, Status};
use super::thread::{Setup, WriteMode};
use crate::virtio::{GuestMemory, Interrupt};

const KICK: u16 = 0;
const STOP: u16 = 1;

/// More data than this is not taken from the ring until some of it is done: it bounds how long a pause waits, and what the
/// kernel holds for one queue.
const MAX_IN_FLIGHT_BYTES: u64 = 64 << 20;

/// A request under way, by tag.
struct Pending {
    head: u16,
    request: Request,
    /// What the disk writes in guest memory.
    filled: Vec<Buffer>,
}

pub(super) struct Worker {
    index: u16,
    queue: Queue,
    kick: EventFd,
    interrupt: Arc<dyn Interrupt>,
    shared: Arc<Shared>,
    write_mode: WriteMode,
    // Before the memory: dropping the engine waits for what still uses it.
    engine: Engine,
    memory: Arc<GuestMemory>,
    pending: Box<[Pending]>,
    free: Vec<u16>,
    /// Chains to start before any from the ring.
    retry: Vec<u16>,
    /// Chains that failed and wait for the next activation; each keeps its tag, so there are never more than tags.
    held: Vec<u16>,
    in_flight_bytes: u64,
    chain: Chain,
    segments: Vec<libc::iovec>,
    /// Something was put in the used ring that the driver was not told of.
    has_news: bool,
    /// The driver broke the rings; nothing more is taken from them.
    failed: bool,
    patience: Patience,
}

/// The ring cannot be worked on any more.
struct Broken(String);

impl From<virtio_queue::Error> for Broken {
    fn from(error: virtio_queue::Error) -> Broken {
        Broken(error.to_string())
    }
}

/// Why starting requests ended.
#[derive(PartialEq, Eq)]
enum Served {
    /// There is nothing more; the driver kicks when there is.
    All,
    /// There may be more, but something else has to be looked at first.
    Some,
    /// There may be more once something completes.
    Busy,
}

impl Worker {
    pub fn new(setup: Setup, engine: Engine) -> Worker {
        let Setup { index, queue, kick, memory, interrupt, shared, write_mode, held } = setup;
        let depth = engine.depth();
        let idle = || Pending {
            head: 0,
            request: Request { status: GuestAddress(0), operation: Operation::Flush, length: 0 },
            filled: Vec::new(),
        };
        Worker {
            index,
            queue,
            kick,
            interrupt,
            shared,
            write_mode,
            engine,
            memory,
            pending: (0..depth).map(|_| idle()).collect(),
            free: (0..depth).rev().collect(),
            retry: held,
            held: Vec::new(),
            in_flight_bytes: 0,
            chain: Chain::default(),
            segments: Vec::new(),
            has_news: false,
            failed: false,
            patience: Patience::new(),
        }
    }

    pub fn run(mut self, stop: EventFd) -> (Queue, Vec<u16>) {
        self.engine.watch(self.kick.as_raw_fd(), KICK);
        self.engine.watch(stop.as_raw_fd(), STOP);
        let mut stopping = false;
        while !stopping {
            let served = self.serve();
            // Requests that were answered at once, without the disk.
            self.tell_driver();
            match served {
                Served::Some => self.engine.poll(),
                Served::All | Served::Busy => self.engine.wait(),
            }
            stopping = self.take_events();
            self.tell_driver();
        }
        // What waits for a limit could keep a pause waiting for minutes.
        self.engine.cancel_parked();
        while self.engine.in_flight() > 0 {
            self.engine.wait();
            self.take_events();
        }
        self.tell_driver();
        self.held.append(&mut self.retry);
        (self.queue, self.held)
    }

    /// Answers what completed. Whether it is time to stop.
    fn take_events(&mut self) -> bool {
        let mut stopping = false;
        while let Some(event) = self.engine.next() {
            match event {
                Event::Done { tag, result } => self.finish(tag, result),
                Event::Ready { token } => stopping |= token == STOP,
            }
        }
        stopping
    }

    /// Starts what is available.
    fn serve(&mut self) -> Served {
        if self.failed {
            return Served::All;
        }
        self.try_serve().unwrap_or_else(|Broken(reason)| {
            self.fail(reason);
            Served::All
        })
    }

    fn try_serve(&mut self) -> Result<Served, Broken> {
        // A driver that refills the ring as fast as it is emptied must not keep us from completions and from stopping.
        let mut budget = 2 * u32::from(self.queue.size());
        while let Some(head) = self.retry.first().copied() {
            if self.is_full() {
                return Ok(Served::Busy);
            }
            self.retry.remove(0);
            self.start(head)?;
        }
        loop {
            self.queue.disable_notification(&*self.memory)?;
            let available = self.queue.avail_idx(&*self.memory, Ordering::Acquire)?.0;
            let mut count = available.wrapping_sub(self.queue.next_avail());
            if count > self.queue.size() {
                return Err(Broken(format!("{count} new entries in an avail ring of {}", self.queue.size())));
            }
            while count > 0 {
                if self.is_full() {
                    return Ok(Served::Busy);
                }
                if budget == 0 {
                    return Ok(Served::Some);
                }
                let next = self.queue.next_avail();
                let slot = self.queue.avail_ring() + 4 + 2 * u64::from(next % self.queue.size());
                let head: u16 = self.memory.read_obj(GuestAddress(slot)).map_err(|error| Broken(error.to_string()))?;
                self.queue.set_next_avail(next.wrapping_add(1));
                self.start(u16::from_le(head))?;
                budget -= 1;
                count -= 1;
            }
            if self.look_out() {
                continue;
            }
            if !self.queue.enable_notification(&*self.memory)? {
                return Ok(Served::All);
            }
        }
    }

    /// Looks out for the next request while the driver need not kick. Only when nothing else is there to be done: completions do
    /// not show themselves meanwhile.
    fn look_out(&mut self) -> bool {
        if self.engine.in_flight() > 0 || self.has_news {
            return false;
        }
        let (queue, memory) = (&self.queue, &*self.memory);
        let next = queue.next_avail();
        self.patience.look_out(|| queue.avail_idx(memory, Ordering::Relaxed).is_ok_and(|index| index.0 != next))
    }

    fn is_full(&self) -> bool {
        self.free.is_empty() || self.in_flight_bytes >= MAX_IN_FLIGHT_BYTES
    }

    /// Starts one chain, or answers it if there is nothing to start. There is a free tag.
    fn start(&mut self, head: u16) -> Result<(), Broken> {
        let mut chain = std::mem::take(&mut self.chain);
        let result = self.start_chain(head, &mut chain);
        self.chain = chain;
        result
    }

    fn start_chain(&mut self, head: u16, chain: &mut Chain) -> Result<(), Broken> {
        chain.follow(&self.memory, &self.queue, head).map_err(|error| Broken(error.to_string()))?;
        let request = match request::parse(&self.memory, chain) {
            Ok(request) => request,
            Err(Refusal::NoStatus) => return Err(Broken("a request without a place for its status".to_owned())),
            Err(Refusal::Answer(at, status)) => {
                add(&self.counters().errors, 1);
                return self.answer(head, at, status, u32::from(chain.writable.is_empty()));
            }
        };
        let data = match request.operation {
            Operation::Read { .. } => &mut chain.writable,
            Operation::Write { .. } => &mut chain.readable,
            Operation::GetId => return self.answer_id(head, &request, &chain.writable),
            _ => &mut Vec::new(),
        };
        if request::host_segments(&self.memory, data, &mut self.segments).is_none() {
            add(&self.counters().errors, 1);
            return self.answer(head, request.status, Status::IoError, u32::from(chain.writable.is_empty()));
        }
        let Some(tag) = self.free.pop() else { return Err(Broken("no free tag".to_owned())) };
        let pending = &mut self.pending[usize::from(tag)];
        (pending.head, pending.request) = (head, request);
        pending.filled.clear();
        if let Operation::Read { .. } = request.operation {
            pending.filled.extend_from_slice(data);
        }
        self.in_flight_bytes += request.length;
        if let Err(error) = self.start_operation(tag, request.operation) {
            self.finish(tag, Err(error));
        }
        Ok(())
    }

    fn start_operation(&mut self, tag: u16, operation: Operation) -> Result<(), IoError> {
        let durability = self.durability();
        if !matches!(operation, Operation::Read { .. }) {
            crate::lease::check();
        }
        match operation {
            // SAFETY: the segments are slices of guest memory, which lives at least until the engine is dropped (`memory` is
            // declared after `engine`). The guest may access it at any time, and nobody in this process holds references to it.
            Operation::Read { offset } => unsafe { self.engine.read(tag, offset, &self.segments) },
            // SAFETY: as above.
            Operation::Write { offset } => unsafe { self.engine.write(tag, offset, &self.segments, durability) },
            Operation::Flush | Operation::GetId => {
                self.engine.flush(tag);
                Ok(())
            }
            Operation::Discard { offset, length } => self.engine.discard(tag, offset, length, durability),
            Operation::WriteZeroes { offset, length, unmap } => {
                let zeroing = if unmap { Zeroing::Unmap } else { Zeroing::Keep };
                self.engine.write_zeroes(tag, offset, length, zeroing, durability)
            }
        }
    }

    fn durability(&self) -> Durability {
        let cached = match self.write_mode {
            WriteMode::Through => false,
            WriteMode::Back => true,
            WriteMode::Configured => self.shared.writeback.load(Ordering::Relaxed),
        };
        if cached { Durability::Volatile } else { Durability::Durable }
    }

    /// Ends a request that was started.
    fn finish(&mut self, tag: u16, result: Result<(), IoError>) {
        let pending = &self.pending[usize::from(tag)];
        let (head, request) = (pending.head, pending.request);
        // Whatever came of it, the kernel may have written there.
        mark_dirty(&self.memory, &pending.filled);
        self.in_flight_bytes -= request.length;
        let status = match result {
            Ok(()) => Status::Ok,
            Err(error) => {
                if self.hold(error) {
                    self.held.push(head);
                    return;
                }
                add(&self.counters().errors, 1);
                Status::IoError
            }
        };
        self.free.push(tag);
        if result.is_ok() {
            self.count(&request);
        }
        let written = match request.operation {
            // At most MAX_REQUEST_BYTES, which fits.
            Operation::Read { .. } if result.is_ok() => request.length as u32 + 1,
            Operation::Read { .. } if request.length > 0 => 0,
            _ => 1,
        };
        if let Err(Broken(reason)) = self.answer(head, request.status, status, written) {
            self.fail(reason);
        }
    }

    /// Whether a request that failed is to be kept. Tells the listener of failures of the storage, not of the guest's own.
    fn hold(&self, error: IoError) -> bool {
        let policy = match error {
            IoError::NoSpace => self.shared.on_no_space,
            IoError::UnexpectedEnd | IoError::Damaged | IoError::Os(_) => self.shared.on_error,
            // It has not begun, and does when the device is activated anew, where the disk is then.
            IoError::Moved | IoError::Canceled => return true,
            IoError::OutOfRange | IoError::ReadOnly => return false,
        };
        let Some(listener) = &self.shared.listener else { return false };
        if policy == ErrorPolicy::Pause {
            add(&self.counters().held, 1);
        }
        listener(IoFailure { queue: self.index, error, policy });
        policy == ErrorPolicy::Pause
    }

    fn count(&self, request: &Request) {
        let counters = self.counters();
        match request.operation {
            Operation::Read { .. } => {
                add(&counters.reads, 1);
                add(&counters.read_bytes, request.length);
            }
            Operation::Write { .. } => {
                add(&counters.writes, 1);
                add(&counters.written_bytes, request.length);
            }
            Operation::Flush => add(&counters.flushes, 1),
            Operation::Discard { .. } => add(&counters.discards, 1),
            Operation::WriteZeroes { .. } => add(&counters.zeroings, 1),
            Operation::GetId => {}
        }
    }

    fn counters(&self) -> &QueueCounters {
        self.shared.counters.queue(self.index)
    }

    /// Puts the serial number in the data buffers, as much of it as there is room for.
    fn answer_id(&mut self, head: u16, request: &Request, buffers: &[Buffer]) -> Result<(), Broken> {
        let serial = self.shared.serial;
        let mut rest = &serial[..];
        for buffer in buffers {
            let (now, later) = rest.split_at(rest.len().min(buffer.length as usize));
            if self.memory.write_slice(now, GuestAddress(buffer.address)).is_err() {
                add(&self.counters().errors, 1);
                return self.answer(head, request.status, Status::IoError, 0);
            }
            rest = later;
        }
        self.answer(head, request.status, Status::Ok, (serial.len() - rest.len()) as u32 + 1)
    }

    /// Puts the status and the used entry. `written` counts from the first writable byte without a gap (virtio 1.2 §2.7.8.2):
    /// the status byte only counts if all of the data before it was written.
    fn answer(&mut self, head: u16, at: GuestAddress, status: Status, written: u32) -> Result<(), Broken> {
        self.memory.write_obj(status as u8, at).map_err(|error| Broken(error.to_string()))?;
        self.queue.add_used(&*self.memory, head, written)?;
        self.has_news = true;
        Ok(())
    }

    /// Interrupts the driver if there is news and it wants to hear of it.
    fn tell_driver(&mut self) {
        if !std::mem::take(&mut self.has_news) {
            return;
        }
        match self.wants_interrupt() {
            Ok(true) => {
                add(&self.counters().interrupts, 1);
                self.interrupt.used(self.index);
            }
            Ok(false) => {}
            Err(Broken(reason)) => self.fail(reason),
        }
    }

    fn wants_interrupt(&mut self) -> Result<bool, Broken> {
        if self.queue.event_idx_enabled() {
            return Ok(self.queue.needs_notification(&*self.memory)?);
        }
        // The used ring before the driver's wish (virtio 1.2 §2.7.7.2).
        fence(Ordering::SeqCst);
        let flags: u16 = self
            .memory
            .load(GuestAddress(self.queue.avail_ring()), Ordering::Relaxed)
            .map_err(|error| Broken(error.to_string()))?;
        Ok(u16::from_le(flags) & 1 == 0)
    }

    fn fail(&mut self, reason: String) {
        if !std::mem::replace(&mut self.failed, true) {
            self.interrupt.fail(format!("queue {}: {reason}", self.index));
        }
    }
}

/// Notes what the kernel wrote in guest memory: unlike writes of ours, it does not pass through the bitmap.
fn mark_dirty(memory: &GuestMemory, buffers: &[Buffer]) {
    for buffer in buffers {
        let slices = GuestMemoryBackend::get_slices(memory, GuestAddress(buffer.address), buffer.length as usize);
        for slice in slices.flatten() {
            slice.bitmap().mark_dirty(0, slice.len());
        }
    }
}
