//! How far an operation is, and the wish that it end.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use super::ToolError;

/// Shared between the threads of an operation and whoever watches it.
#[derive(Debug, Default)]
pub struct Job {
    total: AtomicU64,
    done: AtomicU64,
    cancelled: AtomicBool,
}

impl Job {
    /// Bytes of the virtual disk that are dealt with, and how many there are; 0 of 0 before it is known.
    pub fn progress(&self) -> (u64, u64) {
        (self.done.load(Relaxed), self.total.load(Relaxed))
    }

    /// Ends the operation soon, with [`ToolError::Cancelled`].
    pub fn cancel(&self) {
        self.cancelled.store(true, Relaxed);
    }

    /// Says how much there is to do. For operations that are not in this crate, too.
    pub fn begin(&self, total: u64) {
        self.done.store(0, Relaxed);
        self.total.store(total, Relaxed);
    }

    /// Everything before `position` is dealt with, or in the hands of a thread.
    ///
    /// # Errors
    /// [`ToolError::Cancelled`], if that is wished.
    pub fn reach(&self, position: u64) -> Result<(), ToolError> {
        self.done.fetch_max(position, Relaxed);
        if self.cancelled.load(Relaxed) { Err(ToolError::Cancelled) } else { Ok(()) }
    }
}
