//! What is stored, and in which form.
//!
//! | key | record |
//! |---|---|
//! | `vms/ID` | a VM: what it is to be, and whether it is to run |
//! | `names/NAME` | the id of the VM that has this name |
//! | `trees/VM` | the checkpoints of a VM, and the files of its disks that belong to them |
//! | `copies/ID` | files of a VM that go from one host to another, and whose they are |
//! | `tasks/ID` | a task; unfinished ones are the queues of their VMs |
//! | `images/NAME` | an image, whose file is whole |
//! | `volumes/NAME` | a volume: where it is, and its alarms |
//! | `switches/NAME` | a virtual switch |
//! | `usage/ID` | what a VM has used |
//! | `events/ID` | an event; its revision in the store is its number |
//! | `tokens/NAME` | who may do what |
//! | `once/TOKEN/KEY` | what a request with an `Idempotency-Key` made |
//! | `boots/last` | the host's last start, and the VMs that are still to be started with it |
//! | `pruned/events` | up to which number events were forgotten |
//!
//! These types are apart from those of the API, so that either can change; `From` goes between them here.

mod boot;
mod checkpoint;
mod cloud_init;
mod copy;
mod event;
mod image;
mod resources;
mod switch;
mod task;
mod token;
mod usage;
mod vm;
mod volume;

pub use boot::{AutoStartPolicyRecord, AutoStartRecord, BootedRecord, PendingStart};
pub use checkpoint::{CheckpointKind, CheckpointRecord, LayerRecord, MemoryRecord, MergeRecord, PendingRecord, TreeRecord};
pub use cloud_init::{CloudInitRecord, CloudNetRecord};
pub use copy::{CopiedFile, CopyPhase, CopyRecord};
pub use event::{EventKind, EventRecord, Pruned};
pub use image::{ImageFormatRecord, ImageRecord, ImageSourceRecord, ImportImageRecord};
pub use resources::{CpuRecord, DiskLimitsRecord, NetLimitsRecord, RateRecord, ResourcesRecord};
pub use switch::{SwitchKindRecord, SwitchRecord, UplinkRecord};
pub use task::{
    Cause, CheckpointOperation, CloneRecord, CopyOperation, DeleteDisks, ImportRecord, ImportedFile, LogRecord, OperationRecord,
    Otherwise, ProgressRecord, TaskRecord, TaskStateRecord,
};
pub use token::{OnceRecord, RoleRecord, TokenRecord};
pub use usage::{SeenRecord, UsageRecord, UsedRecord};
pub use vm::{
    AttachmentRecord, BootRecord, ConsoleRecord, DiskRecord, EndingRecord, FileRef, FormatRecord, NetRecord, ParentRecord, Power,
    SavedPhase, SavedRecord, VmRecord,
};
pub use volume::{LevelRecord, PlaceRecord, VolumeRecord};

use serde::{Deserialize, Serialize};
use store::record::Record;
use uuid::Uuid;

/// `names/NAME`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameRecord {
    /// The VM.
    pub vm: Uuid,
}

impl Record for NameRecord {
    const PREFIX: &'static str = "names/";
    const KIND: &'static str = "name";
    const VERSION: u32 = 1;
}

#[cfg(test)]
mod tests;
