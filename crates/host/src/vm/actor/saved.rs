//! Saving a VM to a file, and letting it go on from there.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use serde_json::Value;
use time::OffsetDateTime;
use tokio::time::sleep;
use uuid::Uuid;
use vmm::control::{Request, SavedReport};

use super::super::monitor::{CallError, Monitor};
use super::super::process::Process;
use super::operations::{Went, last_end, refused};
use super::{ANSWER, Actor, START, STORE_AGAIN};
use crate::records::{Cause, EndingRecord, EventKind, FileRef, Power, SavedPhase, SavedRecord, TaskStateRecord, VmRecord};
use crate::volumes::Volumes;

/// How long a monitor that saves may tell nothing: it makes the file durable at the end.
const SAVE: Duration = Duration::from_secs(600);
/// Bytes of memory that a monitor reads in a second at least.
const RESTORE_RATE: u64 = 20 << 20;

impl Actor {
    /// Why something cannot be done to a VM that does not run.
    pub(super) fn not_running(&self) -> Cause {
        if self.vm.record.is_saved() {
            let way_out = "start it, or drop its saved state (discard-saved)";
            return Cause::new("vm-saved", "the VM is saved", way_out);
        }
        Cause::new("vm-off", "the VM does not run", "start it first")
    }

    /// How long a monitor may take until it answers for the first time.
    pub(super) fn start_limit(&self) -> Duration {
        let saved = self.vm.record.saved.as_ref().map_or(0, |saved| saved.bytes);
        START + Duration::from_secs(saved / RESTORE_RATE)
    }

    /// Saves the VM and tells its monitor to end. `ran`: it goes on if it cannot be saved.
    pub(super) async fn save(&mut self, task: Uuid, ran: bool) -> Result<Went, Cause> {
        if self.vm.record.is_saved() {
            // An earlier marud got as far as that.
            return Ok(Went::Done(None));
        }
        if self.machine.is_none() {
            return Err(self.not_running());
        }
        let FileRef { volume, path } = self.vm.record.own_directory();
        let file = FileRef { volume, path: format!("{path}/{task}.saved") };
        let saved = SavedRecord { file: file.clone(), phase: SavedPhase::Writing, bytes: 0, at: OffsetDateTime::now_utc() };
        self.set_saved(Some(saved.clone())).await;
        match self.write_memory(&file).await {
            Ok(report) => {
                let saved = SavedRecord { phase: SavedPhase::Saved, bytes: report.bytes, ..saved };
                self.note(task, format!("saved to {file}: {} bytes in {} ms", report.bytes, report.took_ms)).await;
                self.set_saved(Some(saved)).await;
                self.tell_to_end(task).await;
                Ok(Went::Waits)
            }
            Err(cause) => {
                self.forget_saved().await;
                if ran && let Some(machine) = &mut self.machine {
                    let resumed = machine.monitor.call::<Value>(&Request::Resume, ANSWER).await;
                    machine.paused = resumed.is_err();
                }
                Err(cause)
            }
        }
    }

    /// Has the monitor pause and write everything but the disks to a file. Durable, and so are the disks, when it returns.
    pub(super) async fn write_memory(&mut self, file: &FileRef) -> Result<SavedReport, Cause> {
        let (volumes, wanted) = (self.surroundings.volumes.clone(), file.clone());
        let made = tokio::task::spawn_blocking(move || create(&volumes, &wanted));
        let made = made.await.map_err(|_| ending())??;
        let machine = self.machine.as_mut().ok_or_else(ending)?;
        machine.paused = true;
        let report = machine.monitor.call_with::<SavedReport>(&Request::Save, &[made.as_raw_fd()], SAVE).await;
        let report = report.map_err(|error| match error {
            CallError::Refused(reason) => Cause::new("not-saved", reason, "make room in the volume, or try again"),
            error => refused(&error),
        })?;
        let (volumes, record, wanted) = (self.surroundings.volumes.clone(), self.vm.record.clone(), file.clone());
        let synced = tokio::task::spawn_blocking(move || make_durable(&volumes, &record, &wanted));
        synced.await.map_err(|_| ending())??;
        Ok(report)
    }

    /// Whether the guest is to go on from what was saved: nobody may start it in another way.
    pub(super) fn goes_on_from_saved(&self) -> bool {
        self.vm.record.saved.as_ref().is_some_and(|saved| saved.phase == SavedPhase::Spent)
    }

    /// Lets a restored VM go on. From the first step the file is worth nothing: the guest changes its disks.
    pub(super) async fn go_on(&mut self) -> Result<Went, Cause> {
        self.spend_saved(Power::On).await;
        let resumed = match &mut self.machine {
            None => Err(CallError::Gone),
            Some(machine) if !machine.paused => Ok(Value::Null),
            Some(machine) => machine.monitor.call::<Value>(&Request::Resume, ANSWER).await,
        };
        match (resumed, &mut self.machine) {
            (Ok(_), Some(machine)) => {
                machine.paused = false;
                let text = format!("it goes on where it was saved, as process {}", machine.monitor.pid());
                self.forget_saved().await;
                Ok(Went::Done(Some(self.event(EventKind::VmStarted, text))))
            }
            (error, _) => {
                // Whether the guest has gone on is not known, so it must not do so a second time.
                let mut message = "its monitor ended when it was to go on".to_owned();
                if let Some(mut machine) = self.machine.take() {
                    machine.monitor.kill();
                    let ending = last_end(&mut machine.monitor, &self.files()).await;
                    message = error.map_or_else(|error| error.to_string(), |_| ending.reason);
                }
                self.clean_up();
                self.forget_saved().await;
                Err(Cause::new("not-started", message, "start it anew: what was saved is used up"))
            }
        }
    }

    /// Drops what the VM was saved to.
    pub(super) async fn discard_saved(&mut self) -> Result<Went, Cause> {
        if self.machine.is_some() || self.vm.record.saved.is_none() {
            return Ok(Went::Done(None));
        }
        self.spend_saved(Power::Off).await;
        self.forget_saved().await;
        Ok(Went::Done(Some(self.event(EventKind::VmSavedDiscarded, "what it was saved to was dropped"))))
    }

    /// A monitor runs of a VM that is in a file: it did not end after it had saved, or it has not gone on since it was restored.
    pub(super) async fn end_saved(&mut self, process: Process) {
        match Monitor::new(process) {
            Ok(mut monitor) => {
                monitor.kill();
                last_end(&mut monitor, &self.files()).await;
                self.note_saved(None).await;
            }
            Err(error) => tracing::error!(vm = %self.vm.record.name, "its monitor cannot be watched: {error}"),
        }
        self.clean_up();
        self.show();
    }

    /// Stores that the VM is in a file and nothing of it runs.
    pub(super) async fn note_saved(&mut self, task: Option<Uuid>) {
        let event = self.event(EventKind::VmSaved, "it is saved").by_task(task);
        let end = EndingRecord { at: OffsetDateTime::now_utc(), reason: "it was saved".into(), failed: false };
        self.last_end = Some(end.clone());
        self.change(task, move |vm, record| {
            vm.power = Power::Off;
            vm.last_end = Some(end.clone());
            if let Some(record) = record {
                record.end(TaskStateRecord::Done, None);
            }
            Some(event.clone())
        })
        .await;
    }

    async fn set_saved(&mut self, saved: Option<SavedRecord>) {
        self.change(None, move |vm, _| {
            vm.saved.clone_from(&saved);
            None
        })
        .await;
    }

    async fn spend_saved(&mut self, power: Power) {
        self.change(None, move |vm, _| {
            vm.power = power;
            if let Some(saved) = &mut vm.saved {
                saved.phase = SavedPhase::Spent;
            }
            None
        })
        .await;
    }

    /// Removes the file of a VM that is not in it, and forgets that there was one.
    pub(super) async fn forget_saved(&mut self) {
        while let Some(saved) = self.vm.record.saved.clone() {
            let volumes = self.surroundings.volumes.clone();
            match tokio::task::spawn_blocking(move || volumes.remove(&saved.file)).await {
                Ok(Ok(())) => return self.set_saved(None).await,
                Ok(Err(cause)) if cause.code == "no-volume" => {
                    tracing::warn!(vm = %self.vm.record.name, "{}", cause.message);
                    return self.set_saved(None).await;
                }
                Ok(Err(cause)) => tracing::error!(vm = %self.vm.record.name, "trying again: {}", cause.message),
                Err(_) => return,
            }
            sleep(STORE_AGAIN).await;
        }
    }
}

fn ending() -> Cause {
    Cause::new("ending", "marud or the VM is about to end", "try again")
}

fn create(volumes: &Volumes, file: &FileRef) -> Result<File, Cause> {
    let path = volumes.make_place(file)?;
    // What an earlier try left is written anew.
    File::options()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .map_err(|error| Cause::new("volume", format!("{file} cannot be made: {error}"), "mend that, and try again"))
}

/// A saved VM believes that its disks hold what it wrote, flushed or not.
fn make_durable(volumes: &Volumes, vm: &VmRecord, saved: &FileRef) -> Result<(), Cause> {
    let sync = |path: &std::path::Path| {
        File::open(path).and_then(|file| file.sync_all()).map_err(|error| {
            let message = format!("{} cannot be made durable: {error}", path.display());
            Cause::new("volume", message, "mend that, and try again")
        })
    };
    for disk in vm.disks.iter().filter(|disk| !disk.read_only) {
        sync(&volumes.find(&disk.file)?)?;
    }
    let saved = volumes.find(saved)?;
    saved.parent().map_or(Ok(()), sync)
}
