//! The io_uring below an engine: setting it up on kernels of different age, and waiting in it.

use std::collections::VecDeque;

use io_uring::{EnterFlags, IoUring, cqueue, squeue};

use crate::error::EngineError;

/// One completion as the kernel reported it.
#[derive(Clone, Copy)]
pub(super) struct Reaped {
    pub user_data: u64,
    pub result: i32,
    pub more: bool,
}

impl From<cqueue::Entry> for Reaped {
    fn from(entry: cqueue::Entry) -> Reaped {
        Reaped { user_data: entry.user_data(), result: entry.result(), more: cqueue::more(entry.flags()) }
    }
}

pub(super) struct Ring {
    pub uring: IoUring,
    /// Completions taken out of the ring to make room while submitting; empty but for rare overloads.
    backlog: VecDeque<Reaped>,
}

/// A page of submission entries is enough: a longer batch is submitted in parts.
const MAX_ENTRIES: u32 = 64;

impl Ring {
    /// Makes a ring in which `depth` requests can be under way. It belongs to the calling thread.
    pub fn new(depth: u32) -> Result<Ring, EngineError> {
        let entries = depth.clamp(2, MAX_ENTRIES).next_power_of_two();
        // Each request has one entry in flight; the rest is room for watched descriptors.
        let completions = (depth + 16).max(2 * entries).next_power_of_two();
        let build = |defer: bool| {
            let mut builder = IoUring::builder();
            builder.dontfork().setup_cqsize(completions).setup_submit_all();
            if defer {
                // Linux 6.1: completions are worked off by this thread when it waits, never by interrupting it.
                builder.setup_single_issuer().setup_defer_taskrun();
            } else {
                builder.setup_coop_taskrun();
            }
            builder.build(entries)
        };
        let uring = match build(true) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => build(false),
            other => other,
        };
        let uring = uring.map_err(|error| match error.raw_os_error() {
            Some(libc::ENOSYS) => EngineError::Missing,
            Some(libc::EPERM | libc::EACCES) => EngineError::Forbidden,
            _ => EngineError::Io(error),
        })?;
        Ok(Ring { uring, backlog: VecDeque::new() })
    }

    /// Queues an entry; submits what is queued first if there is no room.
    ///
    /// # Safety
    /// What the entry points to stays valid until its completion was taken with `pop`.
    pub unsafe fn push(&mut self, entry: &squeue::Entry) {
        loop {
            // SAFETY: the caller's promise.
            if unsafe { self.uring.submission().push(entry) }.is_ok() {
                return;
            }
            self.enter(0);
        }
    }

    /// Submits what is queued and waits until at least `want` completions are there.
    pub fn enter(&mut self, want: usize) {
        loop {
            let queued = self.uring.submission().len();
            // GETEVENTS even when nothing is waited for: with DEFER_TASKRUN, completions only appear inside such a call.
            // SAFETY: no argument is passed; the number of entries is the number queued.
            let result = unsafe {
                self.uring.submitter().enter::<libc::sigset_t>(queued as u32, want as u32, EnterFlags::GETEVENTS.bits(), None)
            };
            let Err(error) = result else { return };
            match error.raw_os_error() {
                Some(libc::EINTR) if want == 0 => return,
                Some(libc::EINTR) => {}
                // Too many completions that nobody took, or too little memory for a moment.
                Some(libc::EBUSY | libc::EAGAIN | libc::ENOMEM) => {
                    let backlog = &mut self.backlog;
                    backlog.extend(self.uring.completion().map(Reaped::from));
                    if !backlog.is_empty() && want > 0 {
                        return;
                    }
                    std::thread::sleep(std::time::Duration::from_millis(1));
                }
                // The ring is ours and set up; nothing but a bug here leads to this place. Requests may be in flight that
                // read and write memory of others, and there is no other way to learn when they end.
                _ => {
                    eprintln!("io_uring_enter: {error}");
                    std::process::abort();
                }
            }
        }
    }

    /// Submits what is queued, and sleeps until there is a completion.
    pub fn wait(&mut self) {
        if !self.has_completions() {
            self.enter(1);
        } else if self.has_queued() {
            self.enter(0);
        }
    }

    /// The next completion, without a system call.
    pub fn pop(&mut self) -> Option<Reaped> {
        if let Some(reaped) = self.backlog.pop_front() {
            return Some(reaped);
        }
        self.uring.completion().next().map(Reaped::from)
    }

    /// Whether `pop` would return something.
    pub fn has_completions(&mut self) -> bool {
        !self.backlog.is_empty() || !self.uring.completion().is_empty()
    }

    /// Whether entries are queued that the kernel has not seen.
    pub fn has_queued(&mut self) -> bool {
        !self.uring.submission().is_empty()
    }
}
