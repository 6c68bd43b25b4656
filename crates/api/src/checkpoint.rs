//! Checkpoints of VMs.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::VmSpec;

/// A state that a VM can go back to. The checkpoints of a VM are a tree: `parent` names the one that each was made on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Checkpoint {
    /// Its id.
    pub id: Uuid,
    /// Its name. Several may have the same.
    pub name: String,
    /// When it was made.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// The checkpoint that it was made on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Uuid>,
    /// Whether the VM as it is now came from this one.
    pub current: bool,
    /// What it holds.
    pub kind: CheckpointKind,
    /// The files that were frozen with it.
    pub disks: Vec<CheckpointDisk>,
    /// Bytes that its memory takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// How long the guest stood still for it, in milliseconds, if it ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause_ms: Option<u64>,
    /// What the VM was.
    pub spec: VmSpec,
}

/// What a checkpoint holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum CheckpointKind {
    /// The disks of a VM that was off.
    Off,
    /// Disks and memory: the VM goes on where it was.
    Standard,
    /// Disks, whose file systems were frozen by the guest: it boots as after a shutdown.
    Production,
    /// Disks, as after a power cut.
    CrashConsistent,
}

/// A frozen file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CheckpointDisk {
    /// The disk's name in the VM.
    pub id: String,
    /// Its file, in a volume.
    pub file: String,
    /// Bytes that the file takes: what was written since the checkpoint before.
    pub bytes: u64,
}

/// A checkpoint to make.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewCheckpoint {
    /// Its name; the time if left out. At most 100 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 100)]
    pub name: Option<String>,
    /// What it is to hold, of a VM that is not off.
    #[serde(default)]
    pub kind: WantedCheckpoint,
    /// What is done if the guest cannot freeze its file systems.
    #[serde(default)]
    pub otherwise: Otherwise,
}

/// What a checkpoint of a VM that is not off is to hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum WantedCheckpoint {
    /// Disks and memory.
    #[default]
    Standard,
    /// Disks, whose file systems the guest freezes for a moment.
    Production,
}

/// What is done if the guest cannot freeze its file systems.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Otherwise {
    /// There is no checkpoint.
    #[default]
    Refuse,
    /// It is made all the same: disks as after a power cut.
    CrashConsistent,
}

/// Another name for a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RenameCheckpoint {
    /// The name: 1 to 100 characters.
    #[schema(min_length = 1, max_length = 100)]
    pub name: String,
}

/// The files that a disk is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiskChain {
    /// The disk's name in the VM.
    pub disk: String,
    /// Its own file, then those below it, the nearest first.
    pub files: Vec<DiskFile>,
}

/// A file of a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiskFile {
    /// The file, in a volume; its path on the host if it is in none.
    pub file: String,
    /// Bytes that it takes.
    pub bytes: u64,
}
