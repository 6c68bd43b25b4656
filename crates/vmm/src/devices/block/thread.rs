//! A queue's thread: how it starts and ends.

use std::io;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;

use disk::Engine;
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::device::{Shared, as_io_error};
use super::queue::Worker;
use crate::sandbox::{ThreadKind, confine_thread};
use crate::virtio::{GuestMemory, Interrupt};

/// When a write counts as done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WriteMode {
    /// Once it is on stable storage.
    Through,
    /// At once; the driver flushes.
    Back,
    /// As the driver set it in the configuration space.
    Configured,
}

/// What a thread starts with.
pub(super) struct Setup {
    pub index: u16,
    pub queue: Queue,
    pub kick: EventFd,
    pub memory: Arc<GuestMemory>,
    pub interrupt: Arc<dyn Interrupt>,
    pub shared: Arc<Shared>,
    pub write_mode: WriteMode,
    /// Chains taken by an earlier thread and not answered.
    pub held: Vec<u16>,
}

/// A running thread.
pub(super) struct QueueThread {
    index: u16,
    stop: EventFd,
    thread: JoinHandle<(Queue, Vec<u16>)>,
}

/// Only touched pages cost memory.
const STACK_BYTES: usize = 256 * 1024;

impl QueueThread {
    /// Starts a thread and waits until it is ready to work.
    pub fn spawn(name: String, setup: Setup) -> io::Result<QueueThread> {
        let stop = EventFd::new(EFD_NONBLOCK)?;
        let thread_stop = stop.try_clone()?;
        let index = setup.index;
        let (ready, is_ready) = mpsc::sync_channel(1);
        let thread = std::thread::Builder::new().name(name).stack_size(STACK_BYTES).spawn(move || {
            // An engine belongs to its thread; it is made before the thread loses the right to make one.
            let engine = match Engine::new(&setup.shared.disk, setup.queue.size()) {
                Ok(engine) => engine,
                Err(error) => {
                    let _ = ready.send(Err(as_io_error(error)));
                    return (setup.queue, setup.held);
                }
            };
            let _ = ready.send(Ok(()));
            confine_thread(ThreadKind::Block);
            Worker::new(setup, engine).run(thread_stop)
        })?;
        // The channel is only closed unused if the thread panicked.
        is_ready.recv().unwrap_or_else(|_| Err(io::Error::other("the thread ended")))?;
        Ok(QueueThread { index, stop, thread })
    }

    /// Has it finish what is in flight and end.
    pub fn tell_to_stop(&self) {
        // An eventfd of ours that nobody reads cannot be full.
        let _ = self.stop.write(1);
    }

    /// Waits for its end. `None` when it panicked.
    pub fn join(self) -> Option<(u16, Queue, Vec<u16>)> {
        self.tell_to_stop();
        let (queue, held) = self.thread.join().ok()?;
        Some((self.index, queue, held))
    }
}
