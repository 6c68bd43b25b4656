//! Long work, beside the actor: a thread does it while the actor goes on, so that the VM can be stopped, paused, and so on.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use super::super::work::{Progress, WorkError};
use super::Actor;
use crate::records::{Cause, EventRecord, ProgressRecord, TaskRecord};

/// How often it is stored how far it is. Each time waits for the disk.
const LOOK: Duration = Duration::from_secs(1);

/// What long work comes to: an event to tell of, or why it was not done.
type Outcome = Result<Option<EventRecord>, WorkError>;

/// Long work that is being done for a task.
pub(super) struct Work {
    pub(super) task: Uuid,
    if_cancelled: &'static str,
    progress: Arc<Progress>,
    thread: JoinHandle<Outcome>,
    look: Instant,
    told: Option<ProgressRecord>,
}

/// What happened to it.
pub(super) enum Stage {
    /// It is time to see how far it is.
    Look,
    /// It is over.
    Over(Outcome),
}

/// What happens next; never anything without work. Nothing is lost when the waiting is given up.
pub(super) async fn next(work: &mut Option<Work>) -> Stage {
    let Some(work) = work else { return std::future::pending().await };
    match timeout_at(work.look, &mut work.thread).await {
        Err(_late) => Stage::Look,
        Ok(Ok(outcome)) => Stage::Over(outcome),
        Ok(Err(_)) => {
            let cause =
                Cause::new("internal", "marud failed while it did this", "see its log; what was asked for can be tried again");
            Stage::Over(Err(WorkError::Failed(cause)))
        }
    }
}

impl Actor {
    /// Begins long work. It must be done again from its start after `marud` was killed, so it removes first what an earlier try left; if it
    /// fails or is cancelled, it leaves nothing, or what `if_cancelled` says.
    pub(super) fn begin(
        &mut self,
        task: &TaskRecord,
        if_cancelled: &'static str,
        work: impl FnOnce(&Progress) -> Outcome + Send + 'static,
    ) {
        let progress = Arc::new(Progress::default());
        if task.cancel_requested {
            progress.cancel();
        }
        let theirs = progress.clone();
        let thread = tokio::task::spawn_blocking(move || work(&theirs));
        self.work = Some(Work { task: task.id, if_cancelled, progress, thread, look: Instant::now() + LOOK, told: None });
    }

    /// Wants the work of a task to end; gives whether there is any.
    pub(super) fn cancel_work(&self, task: Uuid) -> bool {
        let work = self.work.as_ref().filter(|work| work.task == task);
        work.inspect(|work| work.progress.cancel()).is_some()
    }

    pub(super) async fn worked(&mut self, stage: Stage) {
        match stage {
            Stage::Look => {
                let Some(work) = &mut self.work else { return };
                work.look = Instant::now() + LOOK;
                let (task, told) = (work.task, work.progress.told());
                if told != std::mem::replace(&mut work.told, told) {
                    self.change(Some(task), move |_, record| {
                        record?.progress = told;
                        None
                    })
                    .await;
                }
            }
            Stage::Over(outcome) => {
                let Some(Work { task, if_cancelled, progress, .. }) = self.work.take() else { return };
                match outcome {
                    // It is over when the VM is another host's.
                    Ok(_) if self.leaving == Some(task) => {
                        self.change(Some(task), move |_, record| {
                            record?.progress = progress.told();
                            None
                        })
                        .await;
                    }
                    Err(error) if self.leaving == Some(task) => {
                        self.leaving = None;
                        match error {
                            WorkError::Cancelled => self.cancelled(task, if_cancelled).await,
                            WorkError::Failed(cause) => self.fail(task, cause).await,
                        }
                    }
                    Ok(event) => {
                        let whole = progress.told().map(|told| ProgressRecord { done: told.total, ..told });
                        self.finish_with(task, event, whole).await;
                    }
                    Err(error) if self.vm.record.made_by == Some(task) => self.abandon(task, error).await,
                    Err(WorkError::Cancelled) => self.cancelled(task, if_cancelled).await,
                    Err(WorkError::Failed(cause)) => self.fail(task, cause).await,
                }
            }
        }
    }
}
