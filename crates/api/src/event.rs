//! What happened.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;
use uuid::Uuid;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Grows from event to event. With it, a stream goes on where it was left.
    pub id: u64,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// What.
    pub kind: EventKind,
    /// To which VM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<Uuid>,
    /// Its name at that time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm_name: Option<String>,
    /// The task that did it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<Uuid>,
    /// The same for people, with the cause.
    pub text: String,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum EventKind {
    /// A VM was created.
    VmCreated,
    /// It runs.
    VmStarted,
    /// It was paused.
    VmPaused,
    /// It goes on.
    VmResumed,
    /// It was reset.
    VmReset,
    /// It ended in order: its guest switched it off, or it was stopped.
    VmStopped,
    /// It ended, and that was not in order.
    VmFailed,
    /// Something is wrong with it, and it goes on, or waits paused.
    VmAlarm,
    /// It was found running when `marud` started.
    VmAdopted,
    /// It is started with its host.
    VmAutoStart,
    /// What it is to be was changed.
    VmChanged,
    /// It was deleted.
    VmDeleted,
    /// An image was made.
    ImageCreated,
    /// Its name, or what it says, was changed.
    ImageChanged,
    /// It was deleted.
    ImageDeleted,
    /// A volume becomes full, or is nearly full.
    VolumeAlarm,
    /// It has more space again.
    VolumeRecovered,
    /// A virtual switch was made.
    SwitchCreated,
    /// Its way out, or the host's address there, was changed.
    SwitchChanged,
    /// It was deleted.
    SwitchDeleted,
    /// Virtual switches do not work as they are to, or did not for a moment.
    SwitchAlarm,
    /// It was saved, and does not run.
    VmSaved,
    /// What it was saved to was dropped.
    VmSavedDiscarded,
    /// A checkpoint of it was made.
    VmCheckpointCreated,
    /// It was made what it was at a checkpoint.
    VmCheckpointApplied,
    /// Checkpoints were deleted, or what they had left was merged.
    VmCheckpointDeleted,
    /// A task failed.
    TaskFailed,
    /// A task was cancelled.
    TaskCancelled,
    /// `marud` started.
    HostStarted,
    /// A host of the cluster is not there any more: its lease has ended, and its VMs with it.
    HostLost,
    /// It is there again.
    HostBack,
    /// Something is wrong with it: it is silent on a network, or on all.
    HostAlarm,
    /// A VM gets a host, or is to go to another one.
    VmPlaced,
    /// Something that a cluster did, and that is as it should be.
    ClusterNote,
    /// This host became the first of a cluster.
    ClusterCreated,
    /// A host joined the cluster.
    HostJoined,
    /// A host left the cluster, or was removed from it.
    HostLeft,
    /// The members of the cluster's store changed.
    StoreMembers,
    /// Something is wrong with the cluster's store, or was.
    StoreAlarm,
}
