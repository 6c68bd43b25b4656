//! Moves a disk's data with io_uring, for one thread.
//!
//! A request is started under a *tag* that the caller picks (0 up to the depth, one request each); nothing reaches the kernel
//! until [`Engine::wait`] or [`Engine::poll`], which submit everything started since in one system call. [`Engine::next`] then
//! hands out what completed. A request takes as many steps as it needs (short transfers are continued, unsupported operations
//! replaced); the caller only sees its end.

mod commit;
mod copy;
mod entrance;
mod image;
mod pieces;
mod ring;
mod slot;
mod steps;

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::Ordering;

use io_uring::{opcode, types};
use libc::iovec;

use crate::buffer::AlignedBuffer;
use crate::disk::{Access, Disk};
use crate::error::{EngineError, IoError};
use crate::geometry::Alignment;
use crate::layer::Layer;
use entrance::Entrance;
use image::ImageSide;
use ring::{Reaped, Ring};
use slot::{Fallback, Owner, Phase, Route, Slot};

/// The largest depth of an engine.
pub const MAX_DEPTH: u16 = 1024;

/// What a write has to reach before it counts as done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Whatever makes it visible; a later flush makes it durable.
    Volatile,
    /// Stable storage.
    Durable,
}

/// What zeroing a range may do with the space below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zeroing {
    /// Give it back to the storage.
    Unmap,
    /// Keep it reserved.
    Keep,
}

/// What [`Engine::next`] reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The request with this tag has ended, and its memory is the caller's again.
    Done {
        /// The tag.
        tag: u16,
        /// How it ended.
        result: Result<(), IoError>,
    },
    /// A watched descriptor is readable.
    Ready {
        /// The token it was watched under.
        token: u16,
    },
}

/// See the [crate's page](crate).
pub struct Engine {
    // Dropped first: while the ring exists, the kernel may use what the slots hold.
    ring: Ring,
    disk: Disk,
    /// By layer: the disk's own file, then those of its parents.
    files: Box<[FilePair]>,
    /// By tag; behind them those of parts and steps, as far as they were needed.
    slots: Vec<Slot>,
    depth: u16,
    /// Requests started and not reported.
    in_flight: usize,
    /// Entries of requests that the kernel has, or that wait in the ring to be submitted.
    outstanding: usize,
    /// Slots that wait for a bounce buffer, in order.
    waiting: VecDeque<u32>,
    bounces_in_use: usize,
    spare_bounce: Option<AlignedBuffer>,
    zeros: Option<AlignedBuffer>,
    watched: Vec<RawFd>,
    /// Requests that have ended without the kernel's answer to them, or several by one answer.
    ended: VecDeque<Event>,
    entrance: Entrance,
    /// What only a disk that is an image needs.
    image: Option<Box<ImageSide>>,
}

/// A file as it was opened, and through the page cache. They are not registered with the ring: that would save some
/// nanoseconds for each request, but the kernel takes the ring of a killed process down at leisure (a second later, on a busy
/// machine), and registered files keep the disk locked until then. Requests in flight keep it locked in any case.
#[derive(Clone, Copy)]
struct FilePair {
    plain: types::Fd,
    cached: types::Fd,
    direct: Option<Alignment>,
    has_cached: bool,
}

impl From<&Layer> for FilePair {
    fn from(layer: &Layer) -> FilePair {
        let (file, cached) = (layer.file.as_raw_fd(), layer.cached_fd());
        FilePair {
            plain: types::Fd(file),
            cached: types::Fd(cached.unwrap_or(file)),
            direct: layer.direct,
            has_cached: cached.is_some(),
        }
    }
}

/// Marks the user data of a watched descriptor; that of others is a slot's number.
const WATCH: u64 = 1 << 32;
/// The user data of the descriptor by which other threads tell of a commit, or of what parked requests wait for.
const WAKE: u64 = 1 << 33;
/// Marks the user data of a timer.
const TIMER: u64 = 1 << 34;
/// Bounce buffers are rare (guests align their buffers), so few of a middling size are enough.
const BOUNCE_BYTES: usize = 128 * 1024;
const MAX_BOUNCES: usize = 4;
/// A buffer of zeros to write where the storage cannot zero by itself.
const ZEROS_BYTES: usize = 64 * 1024;
/// Linux transfers at most 2 GiB less a page in one call.
const MAX_TRANSFER: u64 = 1 << 30;
const MAX_VECTORS: usize = 1024;

impl Engine {
    /// Makes an engine for `disk` in which up to `depth` requests can be under way. It stays on this thread.
    pub fn new(disk: &Disk, depth: u16) -> Result<Engine, EngineError> {
        let depth = depth.clamp(1, MAX_DEPTH);
        let entrance = Entrance::new(disk)?;
        let image = ImageSide::new(disk, depth, entrance.seat.wake.clone())?;
        let own_tags = image.as_ref().map_or(0, ImageSide::own_tags);
        let extra = if image.is_some() { image::EXTRA_SLOTS + u32::from(own_tags) } else { 0 };
        let mut engine = Engine {
            ring: Ring::new(u32::from(depth) + extra)?,
            disk: disk.clone(),
            files: disk.layers().map(FilePair::from).collect(),
            slots: (0..depth + own_tags).map(|_| Slot::idle()).collect(),
            depth,
            in_flight: 0,
            outstanding: 0,
            waiting: VecDeque::new(),
            bounces_in_use: 0,
            spare_bounce: None,
            zeros: None,
            watched: Vec::new(),
            ended: VecDeque::new(),
            entrance,
            image: image.map(Box::new),
        };
        engine.arm_wake();
        Ok(engine)
    }

    /// Finds out whether engines can be made here at all, to say so before a VM starts.
    pub fn probe() -> Result<(), EngineError> {
        Ring::new(1).map(drop)
    }

    /// How many requests can be under way; tags are below it.
    pub fn depth(&self) -> u16 {
        self.depth
    }

    /// How many requests were started and not yet reported, with those that copy what was read ([`OpenOptions::copy_on_read`](crate::OpenOptions)).
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Starts to read from `offset` into `segments`. A request that is refused at once is not under way.
    ///
    /// # Panics
    /// If `tag` is not below the depth, or in use.
    ///
    /// # Safety
    /// The segments point to memory that may be written, by the kernel and by this engine, until [`Event::Done`] with this tag was
    /// returned or the engine was dropped. Others may access it meanwhile as they may access memory of a guest.
    pub unsafe fn read(&mut self, tag: u16, offset: u64, segments: &[iovec]) -> Result<(), IoError> {
        self.transfer(tag, offset, segments, Phase::Read, Durability::Volatile)
    }

    /// Starts to write `segments` at `offset`. A request that is refused at once is not under way.
    ///
    /// # Panics
    /// If `tag` is not below the depth, or in use.
    ///
    /// # Safety
    /// The segments point to memory that may be read, by the kernel and by this engine, until [`Event::Done`] with this tag was
    /// returned or the engine was dropped.
    pub unsafe fn write(&mut self, tag: u16, offset: u64, segments: &[iovec], durability: Durability) -> Result<(), IoError> {
        self.writable()?;
        self.transfer(tag, offset, segments, Phase::Write, durability)
    }

    /// Starts to make everything durable that was written (by requests that have ended).
    pub fn flush(&mut self, tag: u16) {
        self.claim(tag).phase = Phase::Sync;
        // A flush is refused by nobody.
        let _ = self.enter(tag);
    }

    /// Starts to give a range back to the storage. What it reads as afterwards is undefined. Storage that cannot do it ignores it.
    pub fn discard(&mut self, tag: u16, offset: u64, length: u64, durability: Durability) -> Result<(), IoError> {
        self.clear_range(tag, offset, length, Phase::Punch { fallback: Fallback::Nothing }, durability)
    }

    /// Starts to zero a range.
    pub fn write_zeroes(
        &mut self,
        tag: u16,
        offset: u64,
        length: u64,
        zeroing: Zeroing,
        durability: Durability,
    ) -> Result<(), IoError> {
        let phase = match zeroing {
            Zeroing::Unmap => Phase::Punch { fallback: Fallback::Zero },
            Zeroing::Keep => Phase::ZeroRange,
        };
        self.clear_range(tag, offset, length, phase, durability)
    }

    /// Reports [`Event::Ready`] with `token` once for every time that `fd` is signalled. What is in it need not be read: an eventfd
    /// counts as signalled by each write. The descriptor stays open as long as the engine.
    pub fn watch(&mut self, fd: RawFd, token: u16) {
        let index = usize::from(token);
        if self.watched.len() <= index {
            self.watched.resize(index + 1, -1);
        }
        self.watched[index] = fd;
        self.arm(token);
    }

    fn arm_wake(&mut self) {
        let fd = types::Fd(self.entrance.seat.wake.fd());
        let entry = opcode::PollAdd::new(fd, libc::POLLIN as u32).multi(true).build().user_data(WAKE);
        // SAFETY: the entry points to no memory.
        unsafe { self.ring.push(&entry) };
    }

    /// Another thread has news.
    fn woken(&mut self, is_armed: bool) {
        if !is_armed {
            self.arm_wake();
        }
        self.look_at_commits();
        self.look_at_parked();
    }

    fn arm(&mut self, token: u16) {
        let fd = types::Fd(self.watched[usize::from(token)]);
        let entry = opcode::PollAdd::new(fd, libc::POLLIN as u32).multi(true).build().user_data(WATCH | u64::from(token));
        // SAFETY: the entry points to no memory.
        unsafe { self.ring.push(&entry) };
    }

    /// Submits what was started, and sleeps until [`Engine::next`] has something to return. One system call, or none if
    /// something is there and nothing has to be submitted.
    pub fn wait(&mut self) {
        if self.ended.is_empty() {
            self.ring.wait();
        } else if self.ring.has_queued() {
            self.ring.enter(0);
        }
    }

    /// Submits what was started and looks for completions, without sleeping.
    ///
    /// There is no descriptor to sleep on elsewhere: polling the descriptor of a ring with deferred task work from the ring's own
    /// thread was seen to miss completions (Linux 6.18). Sleep in [`Engine::wait`], and have it watch the rest.
    pub fn poll(&mut self) {
        self.ring.enter(0);
    }

    /// What happened next. `None` when there is nothing until the next `wait` or `poll`.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Option<Event> {
        loop {
            while let Some(event) = self.ended.pop_front() {
                if let Some(event) = self.report(event) {
                    return Some(event);
                }
            }
            let reaped = self.ring.pop()?;
            if reaped.user_data & WAKE != 0 {
                self.woken(reaped.more);
                continue;
            }
            if reaped.user_data & TIMER != 0 {
                self.timer_fired(reaped.user_data as u32 as usize);
                continue;
            }
            if reaped.user_data & WATCH != 0 {
                let token = reaped.user_data as u16;
                if !reaped.more {
                    self.arm(token);
                }
                return Some(Event::Ready { token });
            }
            if let Some(event) = self.completed(reaped).and_then(|event| self.report(event)) {
                return Some(event);
            }
        }
    }

    /// A request has ended. What is not the caller's is dealt with here.
    fn report(&mut self, event: Event) -> Option<Event> {
        self.in_flight -= 1;
        match event {
            Event::Done { tag, result } if tag >= self.depth => {
                self.copy_ended(tag, result);
                None
            }
            event => Some(event),
        }
    }

    /// Ends all requests with [`IoError::Canceled`] that wait for their turn, for writes not to be held, or to be noted, and have
    /// not begun: who wants to drain the engine soon makes them again later, here or elsewhere.
    pub fn cancel_parked(&mut self) {
        for tag in self.take_parked() {
            let event = self.end(tag, Err(IoError::Canceled));
            self.ended.push_back(event);
        }
    }

    /// Waits for everything under way and reports it to `done`. Watched descriptors are not reported.
    pub fn drain(&mut self, mut done: impl FnMut(u16, Result<(), IoError>)) {
        while self.in_flight > 0 {
            self.wait();
            while let Some(event) = self.next() {
                if let Event::Done { tag, result } = event {
                    done(tag, result);
                }
            }
        }
    }

    fn writable(&self) -> Result<(), IoError> {
        if self.disk.access() == Access::ReadOnly { Err(IoError::ReadOnly) } else { Ok(()) }
    }

    fn in_range(&self, offset: u64, length: u64) -> Result<(), IoError> {
        match offset.checked_add(length) {
            Some(end) if end <= self.disk.capacity() => Ok(()),
            _ => Err(IoError::OutOfRange),
        }
    }

    fn claim(&mut self, tag: u16) -> &mut Slot {
        assert!(tag < self.depth, "tag {tag} is not below the depth {}", self.depth);
        let slot = &mut self.slots[usize::from(tag)];
        assert!(slot.phase == Phase::Idle, "tag {tag} is in use");
        self.in_flight += 1;
        slot.durable = false;
        slot.route = Route::Plain;
        slot.left = 0;
        slot
    }

    fn transfer(
        &mut self,
        tag: u16,
        offset: u64,
        segments: &[iovec],
        phase: Phase,
        durability: Durability,
    ) -> Result<(), IoError> {
        let length = segments.iter().fold(0u64, |sum, segment| sum.saturating_add(segment.iov_len as u64));
        self.in_range(offset, length)?;
        let slot = self.claim(tag);
        slot.set_segments(segments);
        slot.durable = durability == Durability::Durable;
        (slot.offset, slot.left) = (offset, length);
        slot.phase = phase;
        self.enter(tag)
    }

    fn clear_range(&mut self, tag: u16, offset: u64, length: u64, phase: Phase, durability: Durability) -> Result<(), IoError> {
        self.writable()?;
        self.in_range(offset, length)?;
        let slot = self.claim(tag);
        slot.durable = durability == Durability::Durable;
        (slot.offset, slot.left) = (offset, length);
        slot.phase = phase;
        self.enter(tag)
    }
}

impl Drop for Engine {
    /// Waits for everything that the kernel still does with the callers' memory, and ends a commit that this engine does for all.
    fn drop(&mut self) {
        self.close_image();
        while self.outstanding > 0 {
            self.ring.wait();
            while let Some(Reaped { user_data, .. }) = self.ring.pop() {
                if user_data & (WATCH | WAKE | TIMER) == 0 {
                    self.outstanding -= 1;
                }
            }
        }
        self.close_entrance();
    }
}
