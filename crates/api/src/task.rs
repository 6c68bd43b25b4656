//! Long work.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::Error;

/// Work that takes its time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Task {
    /// Its id.
    pub id: Uuid,
    /// What is to be done.
    pub operation: Operation,
    /// To which VM; absent if it is no VM's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<Uuid>,
    /// The VM's name when the task was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm_name: Option<String>,
    /// The image's name, if it is one's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// How far it is.
    pub state: TaskState,
    /// How much of it is done, if it takes long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// The VM that it makes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub makes: Option<Uuid>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Error>,
    /// The name of the token that asked for it.
    pub created_by: String,
    /// When it was asked for.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// When it began.
    #[serde(default, with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    pub started_at: Option<OffsetDateTime>,
    /// When it ended.
    #[serde(default, with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<OffsetDateTime>,
    /// What it did and what it waits for, the newest last.
    pub log: Vec<LogLine>,
}

impl Task {
    /// The name of what it is done to, for people.
    pub fn subject(&self) -> &str {
        self.vm_name.as_deref().or(self.image.as_deref()).unwrap_or("host")
    }
}

/// How much of a task is done. It is told about once a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Progress {
    /// What is done.
    pub done: u64,
    /// All that there is to do.
    pub total: u64,
    /// What is counted.
    pub unit: ProgressUnit,
}

/// What a task's progress counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ProgressUnit {
    /// Bytes.
    Bytes,
}

/// A line of a task's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogLine {
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// What.
    pub text: String,
}

/// What a task does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Operation {
    /// Starts a VM.
    Start,
    /// Ends it.
    Stop,
    /// Resets it.
    Reset,
    /// Pauses it.
    Pause,
    /// Lets it go on.
    Resume,
    /// Deletes it.
    Delete,
    /// Saves it, memory and all, and ends it.
    Save,
    /// Drops what it was saved to.
    DiscardSaved,
    /// Makes a checkpoint of it.
    CreateCheckpoint,
    /// Makes it what it was.
    ApplyCheckpoint,
    /// Deletes checkpoints.
    DeleteCheckpoint,
    /// Merges what deleted checkpoints left.
    MergeCheckpoints,
    /// Changes how much of the host it may have.
    SetResources,
    /// Changes what one of its network cards may do.
    SetPolicy,
    /// Has its meter begin anew.
    ResetUsage,
    /// Makes another one like it.
    Clone,
    /// Changes what it is to be.
    Edit,
    /// Writes it to a directory.
    Export,
    /// Makes it from one.
    Import,
    /// Copies its files to the host that it goes to.
    Copy,
    /// Makes an image.
    ImportImage,
}

impl std::fmt::Display for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Operation::Start => "start",
            Operation::Stop => "stop",
            Operation::Reset => "reset",
            Operation::Pause => "pause",
            Operation::Resume => "resume",
            Operation::Delete => "delete",
            Operation::SetPolicy => "set-policy",
            Operation::ResetUsage => "reset-usage",
            Operation::Save => "save",
            Operation::DiscardSaved => "discard-saved",
            Operation::CreateCheckpoint => "create-checkpoint",
            Operation::ApplyCheckpoint => "apply-checkpoint",
            Operation::DeleteCheckpoint => "delete-checkpoint",
            Operation::MergeCheckpoints => "merge-checkpoints",
            Operation::SetResources => "set-resources",
            Operation::Clone => "clone",
            Operation::Edit => "edit",
            Operation::Export => "export",
            Operation::Import => "import",
            Operation::Copy => "copy",
            Operation::ImportImage => "import-image",
        })
    }
}

/// How far a task is.
///
/// ```text
///  queued ──> running ──> done | failed
///     └──────────┴──> cancelled
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TaskState {
    /// Others come first.
    Queued,
    /// It is being done.
    Running,
    /// It is done.
    Done,
    /// It could not be done; the state is that from before it.
    Failed,
    /// It was told to end.
    Cancelled,
}

impl TaskState {
    /// Whether it stays like this.
    pub fn is_final(self) -> bool {
        matches!(self, TaskState::Done | TaskState::Failed | TaskState::Cancelled)
    }
}

impl std::fmt::Display for TaskState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            TaskState::Queued => "queued",
            TaskState::Running => "running",
            TaskState::Done => "done",
            TaskState::Failed => "failed",
            TaskState::Cancelled => "cancelled",
        })
    }
}
