//! Checkpoints of a VM, and the files that its disks are made of since there are some, as they are stored.
//!
//! ```text
//!   base ── a ── b ── (now)        base, a: frozen, each the state of a checkpoint's disk
//!            └── c                 b: frozen, its checkpoint was deleted: it stays until it has one child, and that is merged into it
//! ```

use serde::{Deserialize, Serialize};
use store::record::Record;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{FileRef, VmRecord};

/// `trees/VM`: all checkpoints of a VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeRecord {
    /// The checkpoints, in the order in which they were made.
    pub checkpoints: Vec<CheckpointRecord>,
    /// The one that the VM was made to be, or that was made of it, last.
    pub current: Option<Uuid>,
    /// The files of its disks that belong to a checkpoint, or hang on such a file.
    pub layers: Vec<LayerRecord>,
    /// Files that are being made.
    pub pending: Option<PendingRecord>,
    /// A file that is being merged into the one below it.
    pub merging: Option<MergeRecord>,
    /// Files that nothing needs any more.
    pub garbage: Vec<FileRef>,
    /// The VM is paused for a moment, and goes on when what it was paused for is done.
    pub held: bool,
    /// The task that applied a checkpoint last.
    pub applied_by: Option<Uuid>,
}

impl Record for TreeRecord {
    const PREFIX: &'static str = "trees/";
    const KIND: &'static str = "tree";
    const VERSION: u32 = 1;
}

/// A checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointRecord {
    /// Its id.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// When it was made.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// The one that it was made on.
    pub parent: Option<Uuid>,
    /// What it holds.
    pub kind: CheckpointKind,
    /// What the VM was; its disks name the frozen files.
    pub vm: VmRecord,
    /// Its memory.
    pub memory: Option<MemoryRecord>,
    /// How long the guest stood still for it, in milliseconds.
    pub pause_ms: Option<u64>,
}

/// What a checkpoint holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CheckpointKind {
    /// Disks of a VM that was off.
    Off,
    /// Disks and memory.
    Standard,
    /// Disks whose file systems were frozen.
    Production,
    /// Disks as after a power cut.
    CrashConsistent,
}

/// The memory of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryRecord {
    /// Its file.
    pub file: FileRef,
    /// The file's length in bytes.
    pub bytes: u64,
}

/// A file of a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRecord {
    /// The disk's name in the VM.
    pub disk: String,
    /// The file.
    pub file: FileRef,
    /// The file that it hangs on, of those here.
    pub parent: Option<FileRef>,
    /// It was a checkpoint's: it must not be written, except by a merge.
    pub frozen: bool,
}

/// Files that are being made. If they are not whole when this is found, they are removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingRecord {
    /// The checkpoint that they make, if they make one.
    pub checkpoint: Option<CheckpointRecord>,
    /// New children, by the disks' names.
    pub children: Vec<(String, FileRef)>,
    /// Where the memory goes.
    pub memory: Option<FileRef>,
}

/// A merge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MergeRecord {
    /// The disk's name in the VM.
    pub disk: String,
    /// The file whose data go down; it is removed afterwards.
    pub upper: FileRef,
    /// The file that takes its place.
    pub lower: FileRef,
}

impl TreeRecord {
    /// The checkpoint with this id.
    pub fn checkpoint(&self, id: Uuid) -> Option<&CheckpointRecord> {
        self.checkpoints.iter().find(|checkpoint| checkpoint.id == id)
    }

    /// The checkpoint with this id, and all that were made on it.
    pub fn subtree(&self, id: Uuid) -> Vec<Uuid> {
        let mut found = vec![id];
        let mut next = 0;
        while let Some(parent) = found.get(next).copied() {
            found.extend(self.checkpoints.iter().filter(|it| it.parent == Some(parent)).map(|it| it.id));
            next += 1;
        }
        found
    }

    /// Whether a checkpoint needs this file as it is.
    pub fn is_used(&self, file: &FileRef) -> bool {
        self.checkpoints.iter().any(|it| it.vm.disks.iter().any(|disk| !disk.read_only && disk.file == *file))
    }

    /// The files that hang on this one.
    pub fn children<'a>(&'a self, file: &'a FileRef) -> impl Iterator<Item = &'a LayerRecord> {
        self.layers.iter().filter(move |layer| layer.parent.as_ref() == Some(file))
    }

    /// Whether there is nothing to remember.
    pub fn is_empty(&self) -> bool {
        *self == TreeRecord { applied_by: self.applied_by, ..TreeRecord::default() }
    }
}
