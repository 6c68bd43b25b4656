//! What tasks do with checkpoints.

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use serde_json::Value;
use time::OffsetDateTime;
use tokio::time::sleep;
use uuid::Uuid;
use vmm::config::VmConfig;
use vmm::control::{NewLayer, Request};

use super::super::checkpoints::merge::Merger;
use super::super::checkpoints::{self, files, plan};
use super::super::guest::Frozen;
use super::super::monitor::CallError;
use super::operations::{Went, refused};
use super::{ANSWER, Actor, STORE_AGAIN};
use crate::records::{
    Cause, CheckpointKind, CheckpointOperation, CheckpointRecord, EventKind, FileRef, MemoryRecord, Otherwise, PendingRecord,
    SavedPhase, SavedRecord, TaskRecord, TreeRecord, VmRecord,
};
use crate::state::StateError;

/// How long a monitor may take to let the guest go on in new files.
const ADD_LAYERS: Duration = Duration::from_secs(60);
/// How long a guest's file systems may stay frozen. Its programs cannot write meanwhile.
const FROZEN: Duration = Duration::from_secs(60);
/// What becomes of a task that merges when it is cancelled.
const NOT_MERGED: &str = "cancelled: what is not merged yet is merged with the next deletion, or by `maru vm checkpoint merge`";

fn ending() -> Cause {
    Cause::new("ending", "marud or the VM is about to end", "try again")
}

impl Actor {
    pub(super) async fn checkpoint(&mut self, task: &TaskRecord, operation: &CheckpointOperation) -> Result<Went, Cause> {
        match operation {
            CheckpointOperation::Create { id, name, production, ran } => {
                self.create_checkpoint(*id, name, *production, *ran).await?;
                let event = self.event(EventKind::VmCheckpointCreated, format!("the checkpoint '{name}' was made"));
                Ok(Went::Done(Some(event)))
            }
            CheckpointOperation::Apply { id, before } => self.apply_checkpoint(task.id, *id, before.as_ref()).await,
            CheckpointOperation::Delete { ids } => {
                let ids = ids.clone();
                self.edit_tree(move |_, tree| plan::delete(tree, &ids)).await?;
                self.merge_checkpoints(task)
            }
            CheckpointOperation::Merge => self.merge_checkpoints(task),
        }
    }

    fn merge_checkpoints(&mut self, task: &TaskRecord) -> Result<Went, Cause> {
        let (state, surroundings, vm) = (self.state.clone(), self.surroundings.clone(), self.vm.record.id);
        let event = match task.operation.deletes_checkpoints() {
            true => self.event(EventKind::VmCheckpointDeleted, "checkpoints were deleted"),
            false => self.event(EventKind::VmCheckpointDeleted, "what deleted checkpoints left was merged"),
        };
        self.begin(task, NOT_MERGED, move |progress| {
            let later = Merger { state: &state, surroundings: &surroundings, vm, progress }.run()?;
            let mut event = event;
            if !later.is_empty() {
                let later: Vec<String> = later.into_iter().collect();
                event.text += &format!("; {} can be merged when the VM is off (maru vm checkpoint merge)", later.join(", "));
            }
            Ok(Some(event))
        });
        Ok(Went::Waits)
    }

    /// Changes the VM and its checkpoints; waits for a store that cannot be written.
    async fn edit_tree<T: Send + 'static>(
        &mut self,
        change: impl FnMut(&mut VmRecord, &mut TreeRecord) -> T + Clone + Send + 'static,
    ) -> Result<T, Cause> {
        let vm = self.vm.record.id;
        loop {
            let mut change = change.clone();
            let done = self.state.run(move |state| {
                let result = checkpoints::edit(state, vm, |vm, tree| Some(change(vm, tree)))?;
                Ok((result, state.read::<VmRecord>(&vm.to_string())?))
            });
            match done.await {
                Ok((Some(result), Some(stored))) => {
                    self.vm = stored;
                    self.show();
                    return Ok(result);
                }
                Ok(_) | Err(StateError::Gone(_) | StateError::Ending) => return Err(ending()),
                Err(error) => tracing::error!(vm = %self.vm.record.name, "cannot be stored, trying again: {error}"),
            }
            sleep(STORE_AGAIN).await;
        }
    }

    async fn tree(&mut self) -> Result<TreeRecord, Cause> {
        self.edit_tree(|_, tree| tree.clone()).await
    }

    /// Does something with files where waiting for the disk hurts nobody.
    async fn with_files<T: Send + 'static>(
        &self,
        work: impl FnOnce(&VmRecord, &crate::volumes::Volumes) -> Result<T, Cause> + Send + 'static,
    ) -> Result<T, Cause> {
        let (vm, surroundings) = (self.vm.record.clone(), self.surroundings.clone());
        let work = tokio::task::spawn_blocking(move || work(&vm, &surroundings.volumes));
        work.await.map_err(|_| ending())?
    }

    async fn create_checkpoint(&mut self, id: Uuid, name: &str, production: Option<Otherwise>, ran: bool) -> Result<(), Cause> {
        let mut tree = self.tree().await?;
        if tree.pending.is_some() {
            // An earlier marud was at it.
            self.settle_pending().await?;
            tree = self.tree().await?;
        }
        if tree.checkpoint(id).is_some() {
            return self.go_on_after(ran).await;
        }
        if self.vm.record.is_saved() {
            return Err(self.not_running());
        }
        self.with_files(files::check).await?;
        let (kind, frozen) = self.freeze_guest(production, ran).await?;
        let result = self.freeze_state(id, name, kind, ran).await;
        if result.is_err() {
            self.settle_pending().await?;
        }
        let went_on = self.go_on_after(ran).await;
        let held_since = result?;
        went_on?;
        let pause_ms = held_since.map(|since| since.elapsed().as_millis() as u64);
        // Only a guest that runs can be thawed; and it may have been thawed before its files were frozen.
        let thawed_early = match frozen {
            Some(frozen) => !frozen.thaw().await,
            None => false,
        };
        if pause_ms.is_some() || thawed_early {
            self.edit_tree(move |_, tree| {
                for checkpoint in tree.checkpoints.iter_mut().filter(|it| it.id == id) {
                    checkpoint.pause_ms = pause_ms;
                    if thawed_early {
                        checkpoint.kind = CheckpointKind::CrashConsistent;
                    }
                }
            })
            .await?;
        }
        Ok(())
    }

    /// What a checkpoint of the VM is going to be; a guest that is to freeze its file systems for it has done so.
    async fn freeze_guest(
        &mut self,
        production: Option<Otherwise>,
        ran: bool,
    ) -> Result<(CheckpointKind, Option<Frozen>), Cause> {
        let otherwise = match (&self.machine, production) {
            (None, _) => return Ok((CheckpointKind::Off, None)),
            (Some(_), None) => return Ok((CheckpointKind::Standard, None)),
            (Some(_), Some(otherwise)) => otherwise,
        };
        let frozen = match ran {
            true => self.links.guest.freeze(FROZEN).await.map_err(|error| error.to_string()),
            false => Err("the VM is paused".into()),
        };
        match (frozen, otherwise) {
            (Ok(frozen), _) => Ok((CheckpointKind::Production, Some(frozen))),
            (Err(_), Otherwise::CrashConsistent) => Ok((CheckpointKind::CrashConsistent, None)),
            (Err(reason), Otherwise::Refuse) => {
                let message = format!("the guest cannot freeze its file systems: {reason}");
                let way_out =
                    "take a standard checkpoint, or say that one as after a power cut will do (otherwise: crash-consistent)";
                Err(Cause::new("no-agent", message, way_out))
            }
        }
    }

    /// Makes a checkpoint of the VM as it is now; if it runs, it is paused from then on. Gives since when, if it was not before.
    async fn freeze_state(&mut self, id: Uuid, name: &str, kind: CheckpointKind, ran: bool) -> Result<Option<Instant>, Cause> {
        let runs = self.machine.is_some();
        let vm = self.vm.record.clone();
        let memory = (kind == CheckpointKind::Standard).then(|| {
            let FileRef { volume, path } = vm.own_directory();
            FileRef { volume, path: format!("{path}/{id}.memory") }
        });
        let parent = self.tree().await?.current;
        let children = files::children(&vm, &vm, id);
        let frozen = VmRecord { saved: None, ..vm };
        let name = name.to_owned();
        let created_at = OffsetDateTime::now_utc();
        let checkpoint = CheckpointRecord { id, name, created_at, parent, kind, vm: frozen, memory: None, pause_ms: None };
        let mut pending = PendingRecord { checkpoint: Some(checkpoint), children, memory: memory.clone() };
        let stored = pending.clone();
        self.edit_tree(move |_, tree| tree.pending = Some(stored.clone())).await?;
        let held_since = (runs && ran).then(Instant::now);
        if let Some(machine) = &mut self.machine {
            machine.monitor.call::<Value>(&Request::Pause, ANSWER).await.map_err(|error| refused(&error))?;
            machine.paused = true;
        }
        if let Some(file) = memory {
            let bytes = self.write_memory(&file).await?.bytes;
            if let Some(checkpoint) = &mut pending.checkpoint {
                checkpoint.memory = Some(MemoryRecord { file, bytes });
            }
            // From here on, children that fit make it whole.
            let stored = pending.clone();
            self.edit_tree(move |_, tree| tree.pending = Some(stored.clone())).await?;
        }
        let children = pending.children.clone();
        self.with_files(move |vm, volumes| files::make(vm, &children, volumes, runs)).await?;
        if runs {
            self.add_layers(&pending).await?;
        }
        self.commit_pending().await?;
        Ok(held_since)
    }

    async fn add_layers(&mut self, pending: &PendingRecord) -> Result<(), Cause> {
        let children = pending.children.clone();
        let opened = self.with_files(move |_, volumes| {
            let open = |(id, file): &(String, FileRef)| {
                let path = volumes.find(file)?;
                let opened = File::options().read(true).write(true).open(&path);
                let opened =
                    opened.map_err(|error| Cause::new("disk", format!("{file}: {error}"), "mend that, and try again"))?;
                Ok((NewLayer { id: id.clone(), path }, opened))
            };
            children.iter().map(open).collect::<Result<Vec<_>, Cause>>()
        });
        let (layers, opened): (Vec<NewLayer>, Vec<File>) = opened.await?.into_iter().unzip();
        if layers.is_empty() {
            return Ok(());
        }
        let descriptors: Vec<RawFd> = opened.iter().map(AsRawFd::as_raw_fd).collect();
        let machine = self.machine.as_mut().ok_or_else(ending)?;
        let added = machine.monitor.call_with::<Value>(&Request::AddLayers { layers }, &descriptors, ADD_LAYERS).await;
        added.map(drop).map_err(|error| match error {
            CallError::Refused(reason) => Cause::new("no-layers", reason, "do what it says, or stop the VM first"),
            error => refused(&error),
        })
    }

    /// The checkpoint that was being made is one.
    async fn commit_pending(&mut self) -> Result<(), Cause> {
        self.edit_tree(|vm, tree| {
            let Some(PendingRecord { checkpoint: Some(checkpoint), children, .. }) = tree.pending.take() else { return };
            plan::add(vm, tree, checkpoint, &children);
        })
        .await
    }

    /// What was being made is finished if the VM goes on in it, or would; otherwise nothing of it is left.
    async fn settle_pending(&mut self) -> Result<(), Cause> {
        let Some(pending) = self.tree().await?.pending else { return Ok(()) };
        let wanted = pending.memory.is_some();
        let whole = pending.checkpoint.as_ref().is_some_and(|it| !wanted || it.memory.is_some());
        let took = if let Some(machine) = &mut self.machine {
            let config = machine.monitor.call::<VmConfig>(&Request::Config, ANSWER).await.map_err(|error| refused(&error))?;
            let children = pending.children.clone();
            let paths = self.with_files(move |_, volumes| {
                Ok(children.iter().filter_map(|(_, file)| volumes.find(file).ok()).collect::<Vec<_>>())
            });
            let paths = paths.await?;
            !paths.is_empty() && paths.iter().all(|path| config.disks.iter().any(|disk| disk.path == *path))
        } else if whole && !pending.children.is_empty() {
            let pending = pending.clone();
            self.with_files(move |_, volumes| Ok(files::fit(&pending, volumes))).await?
        } else {
            false
        };
        if took && whole {
            return self.commit_pending().await;
        }
        let wanted = pending.clone();
        self.with_files(move |_, volumes| files::undo(&wanted, volumes)).await?;
        self.edit_tree(|_, tree| tree.pending = None).await
    }

    /// The guest goes on, if it ran before.
    async fn go_on_after(&mut self, ran: bool) -> Result<(), Cause> {
        if let Some(machine) = self.machine.as_mut().filter(|machine| ran && machine.paused) {
            machine.monitor.call::<Value>(&Request::Resume, ANSWER).await.map_err(|error| refused(&error))?;
            machine.paused = false;
        }
        Ok(())
    }

    async fn apply_checkpoint(&mut self, task: Uuid, id: Uuid, before: Option<&(Uuid, String)>) -> Result<Went, Cause> {
        let mut tree = self.tree().await?;
        if tree.applied_by != Some(task) {
            if self.machine.is_some() {
                return Err(Cause::new("vm-running", "the VM runs", "stop it first"));
            }
            if self.vm.record.is_saved() {
                return Err(self.not_running());
            }
            if let Some((id, name)) = before {
                self.create_checkpoint(*id, name, None, false).await?;
            }
            self.settle_pending().await?;
            tree = self.tree().await?;
            let missing = || Cause::new("not-found", "the checkpoint was deleted", "apply another one");
            let checkpoint = tree.checkpoint(id).cloned().ok_or_else(missing)?;
            self.make_applied(task, checkpoint).await?;
        }
        let (state, surroundings, vm) = (self.state.clone(), self.surroundings.clone(), self.vm.record.id);
        let name = tree.checkpoint(id).map(|it| it.name.clone()).unwrap_or_default();
        let event = self.event(EventKind::VmCheckpointApplied, format!("the checkpoint '{name}' was applied"));
        let stored = self.read_task(task).await.ok_or_else(ending)?;
        // What it was until now may leave files that can be merged.
        self.begin(&stored, NOT_MERGED, move |progress| {
            Merger { state: &state, surroundings: &surroundings, vm, progress }.run()?;
            Ok(Some(event))
        });
        Ok(Went::Waits)
    }

    async fn make_applied(&mut self, task: Uuid, checkpoint: CheckpointRecord) -> Result<(), Cause> {
        let children = files::children(&self.vm.record, &checkpoint.vm, task);
        let FileRef { volume, path } = self.vm.record.own_directory();
        let memory = checkpoint.memory.as_ref().map(|_| FileRef { volume, path: format!("{path}/{task}.saved") });
        let pending = PendingRecord { checkpoint: None, children: children.clone(), memory: memory.clone() };
        self.edit_tree(move |_, tree| tree.pending = Some(pending.clone())).await?;
        let (wanted, frozen, shared) = (children.clone(), checkpoint.clone(), memory.clone());
        let made = self.with_files(move |_, volumes| {
            files::make(&frozen.vm, &wanted, volumes, false)?;
            frozen.memory.iter().zip(&shared).try_for_each(|(memory, file)| files::share(&memory.file, file, volumes))
        });
        if let Err(cause) = made.await {
            self.settle_pending().await?;
            return Err(cause);
        }
        let at = OffsetDateTime::now_utc();
        self.edit_tree(move |vm, tree| {
            plan::apply(vm, tree, &checkpoint, &children);
            let bytes = checkpoint.memory.as_ref().map_or(0, |memory| memory.bytes);
            vm.saved = memory.clone().map(|file| SavedRecord { file, phase: SavedPhase::Saved, bytes, at });
            tree.pending = None;
            tree.applied_by = Some(task);
        })
        .await
    }
}
