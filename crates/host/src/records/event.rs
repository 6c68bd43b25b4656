//! An event, as it is stored.

use serde::{Deserialize, Serialize};
use store::Revision;
use store::record::Record;
use time::OffsetDateTime;
use uuid::Uuid;

use super::TaskRecord;

/// `events/ID`. A transaction has one at most, so that the revision is the event's number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventRecord {
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// What.
    pub kind: EventKind,
    /// To which VM.
    pub vm: Option<Uuid>,
    /// Its name.
    pub vm_name: Option<String>,
    /// The task that did it.
    pub task: Option<Uuid>,
    /// For people.
    pub text: String,
}

impl Record for EventRecord {
    const PREFIX: &'static str = "events/";
    const KIND: &'static str = "event";
    const VERSION: u32 = 1;
}

/// `pruned/events`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pruned {
    /// Events up to this number may be gone.
    pub up_to: u64,
}

impl Record for Pruned {
    const PREFIX: &'static str = "pruned/";
    const KIND: &'static str = "pruned";
    const VERSION: u32 = 1;
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "the words of api::EventKind, which says what they mean")]
pub enum EventKind {
    VmCreated,
    VmStarted,
    VmPaused,
    VmResumed,
    VmReset,
    VmStopped,
    VmFailed,
    VmAlarm,
    VmAdopted,
    VmAutoStart,
    VmChanged,
    VmDeleted,
    ImageCreated,
    ImageChanged,
    ImageDeleted,
    VolumeAlarm,
    VolumeRecovered,
    SwitchCreated,
    SwitchChanged,
    SwitchDeleted,
    SwitchAlarm,
    VmSaved,
    VmSavedDiscarded,
    VmCheckpointCreated,
    VmCheckpointApplied,
    VmCheckpointDeleted,
    TaskFailed,
    TaskCancelled,
    HostStarted,
    HostLost,
    HostBack,
    HostAlarm,
    VmPlaced,
    ClusterNote,
    ClusterCreated,
    HostJoined,
    HostLeft,
    StoreMembers,
    StoreAlarm,
}

impl From<EventKind> for api::EventKind {
    fn from(kind: EventKind) -> api::EventKind {
        match kind {
            EventKind::VmCreated => api::EventKind::VmCreated,
            EventKind::VmStarted => api::EventKind::VmStarted,
            EventKind::VmPaused => api::EventKind::VmPaused,
            EventKind::VmResumed => api::EventKind::VmResumed,
            EventKind::VmReset => api::EventKind::VmReset,
            EventKind::VmStopped => api::EventKind::VmStopped,
            EventKind::VmFailed => api::EventKind::VmFailed,
            EventKind::VmAlarm => api::EventKind::VmAlarm,
            EventKind::VmAdopted => api::EventKind::VmAdopted,
            EventKind::VmAutoStart => api::EventKind::VmAutoStart,
            EventKind::VmChanged => api::EventKind::VmChanged,
            EventKind::VmDeleted => api::EventKind::VmDeleted,
            EventKind::ImageCreated => api::EventKind::ImageCreated,
            EventKind::ImageChanged => api::EventKind::ImageChanged,
            EventKind::ImageDeleted => api::EventKind::ImageDeleted,
            EventKind::VolumeAlarm => api::EventKind::VolumeAlarm,
            EventKind::VolumeRecovered => api::EventKind::VolumeRecovered,
            EventKind::SwitchCreated => api::EventKind::SwitchCreated,
            EventKind::SwitchChanged => api::EventKind::SwitchChanged,
            EventKind::SwitchDeleted => api::EventKind::SwitchDeleted,
            EventKind::SwitchAlarm => api::EventKind::SwitchAlarm,
            EventKind::VmSaved => api::EventKind::VmSaved,
            EventKind::VmSavedDiscarded => api::EventKind::VmSavedDiscarded,
            EventKind::VmCheckpointCreated => api::EventKind::VmCheckpointCreated,
            EventKind::VmCheckpointApplied => api::EventKind::VmCheckpointApplied,
            EventKind::VmCheckpointDeleted => api::EventKind::VmCheckpointDeleted,
            EventKind::TaskFailed => api::EventKind::TaskFailed,
            EventKind::TaskCancelled => api::EventKind::TaskCancelled,
            EventKind::HostStarted => api::EventKind::HostStarted,
            EventKind::HostLost => api::EventKind::HostLost,
            EventKind::HostBack => api::EventKind::HostBack,
            EventKind::HostAlarm => api::EventKind::HostAlarm,
            EventKind::VmPlaced => api::EventKind::VmPlaced,
            EventKind::ClusterNote => api::EventKind::ClusterNote,
            EventKind::ClusterCreated => api::EventKind::ClusterCreated,
            EventKind::HostJoined => api::EventKind::HostJoined,
            EventKind::HostLeft => api::EventKind::HostLeft,
            EventKind::StoreMembers => api::EventKind::StoreMembers,
            EventKind::StoreAlarm => api::EventKind::StoreAlarm,
        }
    }
}

impl EventRecord {
    /// Something that happened now.
    pub fn now(kind: EventKind, text: impl Into<String>) -> EventRecord {
        EventRecord { at: OffsetDateTime::now_utc(), kind, vm: None, vm_name: None, task: None, text: text.into() }
    }

    /// The same, to a VM.
    #[must_use]
    pub fn of_vm(mut self, vm: Uuid, name: &str) -> EventRecord {
        self.vm = Some(vm);
        self.vm_name = Some(name.into());
        self
    }

    /// The same, done by a task.
    #[must_use]
    pub fn by_task(mut self, task: Option<Uuid>) -> EventRecord {
        self.task = task;
        self
    }

    /// The same, done by a task, to what that is done to.
    #[must_use]
    pub fn of(mut self, task: &TaskRecord) -> EventRecord {
        self.vm = task.vm;
        self.vm_name = task.vm_name.clone();
        self.by_task(Some(task.id))
    }

    /// As the API tells it.
    pub fn told(&self, number: Revision) -> api::Event {
        api::Event {
            id: number.0,
            at: self.at,
            kind: self.kind.into(),
            vm: self.vm,
            vm_name: self.vm_name.clone(),
            task: self.task,
            text: self.text.clone(),
        }
    }
}
