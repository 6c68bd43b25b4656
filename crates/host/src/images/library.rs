//! Whoever makes images: tasks that are no VM's, a few at a time.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use store::{Outcome, Transaction};
use time::OffsetDateTime;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use super::{check_space, import};
use crate::records::{Cause, EventKind, EventRecord, ImportImageRecord, OperationRecord, TaskRecord, TaskStateRecord};
use crate::state::{Records, State, StateError};
use crate::vm::Surroundings;
use crate::vm::work::{Progress, WorkError};

/// Images that are made at once: each reads and writes as fast as the disks go.
const AT_ONCE: usize = 2;
/// How often it is stored how far one is, and looked whether there is space.
const LOOK: Duration = Duration::from_secs(1);
/// Between two tries to write to a store that cannot be written.
const STORE_AGAIN: Duration = Duration::from_secs(2);

/// Makes images.
pub struct Library {
    state: State,
    surroundings: Arc<Surroundings>,
    runtime: Handle,
    turns: Semaphore,
    /// Tasks that wait for their turn, or are done.
    works: Mutex<HashMap<Uuid, Arc<Progress>>>,
}

impl Library {
    /// One that makes none yet.
    pub fn new(state: State, surroundings: Arc<Surroundings>, runtime: Handle) -> Arc<Library> {
        Arc::new(Library { state, surroundings, runtime, turns: Semaphore::new(AT_ONCE), works: Mutex::default() })
    }

    fn works(&self) -> MutexGuard<'_, HashMap<Uuid, Arc<Progress>>> {
        self.works.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins with a task, or goes on with one of an earlier `marud`. One that was begun already is not begun again.
    pub fn begin(self: &Arc<Library>, task: Uuid) {
        let progress = match self.works().entry(task) {
            Entry::Occupied(_) => return,
            Entry::Vacant(free) => free.insert(Arc::default()).clone(),
        };
        let library = self.clone();
        self.runtime.spawn(async move {
            library.perform(task, progress).await;
            library.works().remove(&task);
        });
    }

    /// Wants a task to end.
    pub fn cancel(&self, task: Uuid) {
        if let Some(progress) = self.works().get(&task) {
            progress.cancel();
        }
    }

    async fn perform(&self, task: Uuid, progress: Arc<Progress>) {
        // It is never closed.
        let Ok(_turn) = self.turns.acquire().await else { return };
        let Some(task) = self
            .change(task, |task| {
                if task.state == TaskStateRecord::Queued {
                    task.state = TaskStateRecord::Running;
                    task.started_at = Some(OffsetDateTime::now_utc());
                }
                None
            })
            .await
        else {
            return;
        };
        let OperationRecord::ImportImage(wanted) = task.operation.clone() else { return };
        if task.is_unfinished() {
            if task.cancel_requested {
                progress.cancel();
            }
            let id = task.id;
            if let Err(error) = self.make(task, &wanted, progress).await {
                let error = Arc::new(error);
                self.change(id, move |task| end(task, &error)).await;
            }
        }
        let surroundings = self.surroundings.clone();
        // Only the end of the program ends it.
        let _ = tokio::task::spawn_blocking(move || import::clean_up(&surroundings, &wanted)).await;
    }

    /// Has a thread make the image, and looks after it.
    async fn make(&self, task: TaskRecord, wanted: &ImportImageRecord, progress: Arc<Progress>) -> Result<(), WorkError> {
        let id = task.id;
        let (state, surroundings, image, theirs) =
            (self.state.clone(), self.surroundings.clone(), wanted.clone(), progress.clone());
        let mut thread = tokio::task::spawn_blocking(move || import::import(&state, &surroundings, &task, &image, &theirs));
        let (mut short, mut told) = (None, None);
        loop {
            match timeout(LOOK, &mut thread).await {
                Ok(Ok(Err(WorkError::Cancelled))) => return Err(short.map_or(WorkError::Cancelled, WorkError::Failed)),
                Ok(Ok(outcome)) => return outcome,
                Ok(Err(_)) => {
                    let way_out = "see its log; what was asked for can be tried again";
                    return Err(Cause::new("internal", "marud failed while it did this", way_out).into());
                }
                Err(_late) => {}
            }
            let (volumes, volume) = (self.surroundings.volumes.clone(), wanted.volume.clone());
            // A file server may let us wait.
            if let Ok(Err(cause)) = tokio::task::spawn_blocking(move || check_space(&volumes, &volume, 0)).await {
                short = Some(cause);
                progress.cancel();
            }
            let now = progress.told();
            if now != std::mem::replace(&mut told, now) {
                self.change(id, move |task| {
                    if task.is_unfinished() {
                        task.progress = now;
                    }
                    None
                })
                .await;
            }
        }
    }

    /// Changes a task; waits for a store that cannot be written. Gives the task, if it is there.
    async fn change(
        &self,
        task: Uuid,
        edit: impl Fn(&mut TaskRecord) -> Option<EventRecord> + Clone + Send + 'static,
    ) -> Option<TaskRecord> {
        loop {
            let edit = edit.clone();
            match self.state.run(move |state| change(state, task, edit)).await {
                Ok(task) => return task,
                Err(StateError::Ending) => return None,
                Err(error) => tracing::error!(%task, "cannot be stored, trying again: {error}"),
            }
            sleep(STORE_AGAIN).await;
        }
    }
}

fn change(
    state: &State,
    task: Uuid,
    edit: impl Fn(&mut TaskRecord) -> Option<EventRecord>,
) -> Result<Option<TaskRecord>, StateError> {
    let name = task.to_string();
    loop {
        let Some(stored) = state.read::<TaskRecord>(&name)? else { return Ok(None) };
        let mut task = stored.record.clone();
        let event = edit(&mut task);
        if task == stored.record {
            return Ok(Some(task));
        }
        let transaction = Transaction::new().if_still(&name, &stored).write(&name, &task);
        let transaction = event.into_iter().fold(transaction, |transaction, event| transaction.tell(&event));
        if let Outcome::Committed(_) = state.commit(&transaction)? {
            return Ok(Some(task));
        }
    }
}

/// Ends a task that did not come to its end by itself.
fn end(task: &mut TaskRecord, error: &WorkError) -> Option<EventRecord> {
    let what = format!("import-image: '{}'", task.image.as_deref().unwrap_or("?"));
    let (kind, text) = match error {
        WorkError::Cancelled => {
            task.note("cancelled; nothing of it is left");
            task.end(TaskStateRecord::Cancelled, None);
            (EventKind::TaskCancelled, format!("{what}: cancelled; nothing of it is left"))
        }
        WorkError::Failed(cause) => {
            task.end(TaskStateRecord::Failed, Some(cause.clone()));
            (EventKind::TaskFailed, format!("{what}: {}; {}", cause.message, cause.way_out))
        }
    };
    Some(EventRecord::now(kind, text).by_task(Some(task.id)))
}
