//! The thread of an active device: it sleeps in `epoll` on the kicks of its queues and on what else its handler listens to.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::thread::JoinHandle;
use std::time::Instant;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::sandbox::{ThreadKind, confine_thread};

/// What a worker does. Tokens are the handler's own numbers; [`Handler::STOP`] is taken.
pub trait Handler: Send + 'static {
    /// Registers everything that the handler listens to, and serves what is already there. Called once, on the worker's thread.
    fn start(&mut self, sources: &Sources);

    /// One of the sources is ready. `events` tells how.
    fn ready(&mut self, token: u64, events: EventSet, sources: &Sources);

    /// When [`Handler::deadline_passed`] is to be called, if nothing is ready before.
    fn deadline(&self) -> Option<Instant> {
        None
    }

    /// The deadline has passed.
    fn deadline_passed(&mut self, _sources: &Sources) {}

    /// Called on the worker's thread before it ends: wait for what is in flight.
    fn stop(&mut self) {}

    /// The token of the stop event.
    const STOP: u64 = u64::MAX;
}

/// What a worker listens to.
pub struct Sources {
    epoll: Epoll,
}

impl Sources {
    /// Listens to `fd`. It must stay open until it is removed or the worker has ended.
    pub fn add(&self, fd: RawFd, token: u64, events: EventSet) -> io::Result<()> {
        self.epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(events, token))
    }

    /// Changes what to listen for.
    pub fn modify(&self, fd: RawFd, token: u64, events: EventSet) -> io::Result<()> {
        self.epoll.ctl(ControlOperation::Modify, fd, EpollEvent::new(events, token))
    }

    /// Stops listening to `fd`.
    pub fn remove(&self, fd: RawFd) -> io::Result<()> {
        self.epoll.ctl(ControlOperation::Delete, fd, EpollEvent::default())
    }
}

/// A running worker. Dropping it stops it.
pub struct Worker<H: Handler> {
    stop: EventFd,
    thread: Option<JoinHandle<H>>,
}

impl<H: Handler> Worker<H> {
    /// Starts a thread called `name` (at most 15 bytes are kept by the kernel), confined as its kind says.
    pub fn spawn(kind: ThreadKind, name: String, mut handler: H) -> io::Result<Worker<H>> {
        let stop = EventFd::new(EFD_NONBLOCK)?;
        let sources = Sources { epoll: Epoll::new()? };
        sources.add(stop.as_raw_fd(), H::STOP, EventSet::IN)?;
        let thread = std::thread::Builder::new().name(name).stack_size(STACK_BYTES).spawn(move || {
            confine_thread(kind);
            handler.start(&sources);
            let mut events = [EpollEvent::default(); 16];
            loop {
                let count = match sources.epoll.wait(wait_ms(handler.deadline()), &mut events) {
                    Ok(count) => count,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    // The descriptor is ours and valid: nothing but a bug here gets us to this place.
                    Err(error) => unreachable!("epoll_wait: {error}"),
                };
                if handler.deadline().is_some_and(|deadline| deadline <= Instant::now()) {
                    handler.deadline_passed(&sources);
                }
                // Everything else first: a stop leaves no kick behind unserved that came before it.
                let mut stopping = false;
                for event in &events[..count] {
                    if event.data() == H::STOP {
                        stopping = true;
                    } else {
                        handler.ready(event.data(), event.event_set(), &sources);
                    }
                }
                if stopping {
                    handler.stop();
                    return handler;
                }
            }
        })?;
        Ok(Worker { stop, thread: Some(thread) })
    }

    /// Stops the worker, waits for it and returns its handler. `None` when the worker panicked.
    pub fn stop(mut self) -> Option<H> {
        self.join()
    }

    fn join(&mut self) -> Option<H> {
        let thread = self.thread.take()?;
        // An eventfd of ours that nobody reads cannot be full.
        let _ = self.stop.write(1);
        thread.join().ok()
    }
}

impl<H: Handler> Drop for Worker<H> {
    fn drop(&mut self) {
        self.join();
    }
}

/// How long to wait in `epoll`, which counts in milliseconds: rounded up, so that nobody comes back too early over and over.
fn wait_ms(deadline: Option<Instant>) -> i32 {
    let Some(deadline) = deadline else { return -1 };
    let left = deadline.saturating_duration_since(Instant::now());
    i32::try_from(left.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX)
}

/// Workers keep their buffers on the heap: a small stack is enough, and only touched pages cost memory.
const STACK_BYTES: usize = 256 * 1024;
