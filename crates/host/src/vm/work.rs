//! How far long work is, and the wish that it end: between the thread that does it and the VM's owner.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use disk::tool::{Job, ToolError};
use guard::page::Lease;

use crate::records::{Cause, ProgressRecord};
use crate::state::StateError;

/// The lease of this host, under which files of VMs may be changed.
static LEASE: OnceLock<Lease> = OnceLock::new();

/// Has all long work look at this page, and end when the lease does: another host may use the files then.
///
/// # Errors
/// When it is no such page.
pub fn under_lease(page: &Path) -> io::Result<()> {
    let lease = Lease::of(&File::open(page)?)?;
    // There is one in a process.
    let _ = LEASE.set(lease);
    Ok(())
}

fn lease_number() -> u64 {
    LEASE.get().map_or(0, Lease::number)
}

/// Whether what was begun under this lease may go on.
fn holds(number: u64) -> bool {
    LEASE.get().is_none_or(|lease| lease.holds() && lease.number() == number)
}

/// How far long work is. Bytes are counted, over all its steps.
#[derive(Debug)]
pub struct Progress {
    inner: Mutex<Inner>,
    /// What it was begun under.
    lease: u64,
}

impl Default for Progress {
    fn default() -> Progress {
        Progress { inner: Mutex::default(), lease: lease_number() }
    }
}

#[derive(Debug, Default)]
struct Inner {
    total: u64,
    /// Of the steps that are over.
    before: u64,
    /// The step that is being done, and its bytes.
    step: Option<(u64, Arc<Job>)>,
    cancelled: bool,
}

/// Why long work ended before it was done. What it had made is gone again.
#[derive(Debug)]
pub enum WorkError {
    /// Someone wanted it to end.
    Cancelled,
    /// It cannot be done.
    Failed(Cause),
}

impl From<Cause> for WorkError {
    fn from(cause: Cause) -> WorkError {
        WorkError::Failed(cause)
    }
}

impl From<ToolError> for WorkError {
    fn from(error: ToolError) -> WorkError {
        match error {
            ToolError::Cancelled => WorkError::Cancelled,
            error => WorkError::Failed(Cause::new("disk", vmm::error_chain(&error), "mend what it says, and try again")),
        }
    }
}

impl From<StateError> for WorkError {
    fn from(error: StateError) -> WorkError {
        WorkError::Failed(Cause::new("store", vmm::error_chain(&error), "see marud's log; try again when that is mended"))
    }
}

impl Progress {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says how many bytes there are to do. Nothing is told before.
    pub fn begin(&self, total: u64) {
        let mut inner = self.lock();
        *inner = Inner { total, cancelled: inner.cancelled, ..Inner::default() };
    }

    /// Does a step of so many bytes with a tool of the disks, whose own progress counts for them.
    pub fn step<T>(&self, bytes: u64, tool: impl FnOnce(&Job) -> Result<T, ToolError>) -> Result<T, WorkError> {
        let lease = self.lease;
        let job = Arc::new(Job::while_allowed(move || holds(lease)));
        if self.is_cancelled() {
            return Err(WorkError::Cancelled);
        }
        {
            let mut inner = self.lock();
            inner.step = Some((bytes, job.clone()));
        }
        let done = tool(&job)?;
        let mut inner = self.lock();
        inner.before += bytes;
        inner.step = None;
        Ok(done)
    }

    /// Wants the work to end. It may still be done before it sees this.
    pub fn cancel(&self) {
        let mut inner = self.lock();
        inner.cancelled = true;
        if let Some((_, job)) = &inner.step {
            job.cancel();
        }
    }

    /// Whether someone wants it to end.
    pub fn is_cancelled(&self) -> bool {
        self.lock().cancelled || !holds(self.lease)
    }

    /// How far it is; nothing before that is known.
    pub fn told(&self) -> Option<ProgressRecord> {
        let inner = self.lock();
        let step = inner.step.as_ref().map_or(0, |(bytes, job)| match job.progress() {
            (_, 0) => 0,
            (done, total) => (u128::from(*bytes) * u128::from(done.min(total)) / u128::from(total)) as u64,
        });
        (inner.total > 0).then(|| ProgressRecord { done: (inner.before + step).min(inner.total), total: inner.total })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_add_up_and_a_wish_to_end_reaches_the_one_that_is_done_and_those_behind_it() {
        let progress = Progress::default();
        assert_eq!(progress.told(), None);
        progress.begin(300);
        progress.step(100, |_| Ok(())).unwrap();
        assert_eq!(progress.told(), Some(ProgressRecord { done: 100, total: 300 }));
        let cancelled = progress.step(200, |_| {
            progress.cancel();
            Err::<(), _>(ToolError::Cancelled)
        });
        assert!(matches!(cancelled, Err(WorkError::Cancelled)));
        assert!(matches!(progress.step(1, |_| Ok(())), Err(WorkError::Cancelled)), "what is behind is not begun");
    }
}
