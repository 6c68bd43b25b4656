//! How far an operation is, and the wish that it end.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use super::ToolError;

/// Shared between the threads of an operation and whoever watches it.
#[derive(Default)]
pub struct Job {
    /// Whether it may go on, beside the wish that it end.
    may_go_on: Option<Box<dyn Fn() -> bool + Send + Sync>>,
    total: AtomicU64,
    done: AtomicU64,
    cancelled: AtomicBool,
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Job").field("progress", &self.progress()).finish_non_exhaustive()
    }
}

impl Job {
    /// A job that is cancelled as soon as this says no. It is asked before each step.
    pub fn while_allowed(may_go_on: impl Fn() -> bool + Send + Sync + 'static) -> Job {
        Job { may_go_on: Some(Box::new(may_go_on)), ..Job::default() }
    }

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
        let stops = self.cancelled.load(Relaxed) || self.may_go_on.as_ref().is_some_and(|may_go_on| !may_go_on());
        if stops { Err(ToolError::Cancelled) } else { Ok(()) }
    }
}
