//! A task, as it is stored.

use serde::{Deserialize, Serialize};
use store::record::Record;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{FileRef, ImageSourceRecord, ImportImageRecord};

/// `tasks/ID`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskRecord {
    /// Its id.
    pub id: Uuid,
    /// The VM, if it is one's.
    pub vm: Option<Uuid>,
    /// The VM's name when the task was made.
    pub vm_name: Option<String>,
    /// The name of the image, if it is one's.
    #[serde(default)]
    pub image: Option<String>,
    /// The host of a cluster that does it, if it is no VM's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// What to do.
    pub operation: OperationRecord,
    /// How far it is.
    pub state: TaskStateRecord,
    /// How much of it is done, if it takes long.
    #[serde(default)]
    pub progress: Option<ProgressRecord>,
    /// Whether someone wants it to end.
    pub cancel_requested: bool,
    /// Why it failed.
    pub error: Option<Cause>,
    /// The token that asked for it.
    pub created_by: String,
    /// When it was asked for.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// When it began.
    #[serde(with = "time::serde::rfc3339::option")]
    pub started_at: Option<OffsetDateTime>,
    /// When it ended.
    #[serde(with = "time::serde::rfc3339::option")]
    pub ended_at: Option<OffsetDateTime>,
    /// What it did.
    pub log: Vec<LogRecord>,
}

impl Record for TaskRecord {
    const PREFIX: &'static str = "tasks/";
    const KIND: &'static str = "task";
    const VERSION: u32 = 1;
}

/// How many bytes of a task's work are done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgressRecord {
    /// Those that are done.
    pub done: u64,
    /// All.
    pub total: u64,
}

/// A line of a log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogRecord {
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// What.
    pub text: String,
}

/// What a task does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum OperationRecord {
    /// Starts the VM.
    Start,
    /// Has the guest shut down, and ends the VM if it has not after this time.
    ShutDown {
        /// The time in seconds.
        grace_seconds: u32,
    },
    /// Ends the VM at once.
    ForceOff,
    /// Resets it.
    Reset,
    /// Pauses it.
    Pause,
    /// Lets it go on.
    Resume,
    /// Deletes it.
    Delete {
        /// And its disks.
        disks: DeleteDisks,
    },
    /// Saves it.
    Save {
        /// Whether it ran, and goes on if it cannot be saved; known when the task begins.
        ran: bool,
    },
    /// Drops what it was saved to.
    DiscardSaved,
    /// Does something with its checkpoints.
    Checkpoint(CheckpointOperation),
    /// Changes how much of the host it may have.
    SetResources {
        /// Resources as the API has them, or a part of them: a JSON merge patch (RFC 7396).
        change: serde_json::Value,
        /// Whether they take the place of those before, and what is left out is as usual.
        replace: bool,
    },
    /// Changes what one of its network cards may do at its switch.
    SetPolicy {
        /// The card.
        net: String,
        /// A policy as the API has it, or a part of one: a JSON merge patch (RFC 7396).
        change: serde_json::Value,
        /// Whether it takes the place of the one before, and what is left out is as usual.
        replace: bool,
    },
    /// Has its meter begin anew.
    ResetUsage,
    /// Makes another VM like it.
    Clone(CloneRecord),
    /// Changes what it is to be.
    Edit {
        /// A merge patch (RFC 7396) of its specification.
        patch: serde_json::Value,
    },
    /// Writes it to a directory.
    Export {
        /// The directory.
        to: FileRef,
    },
    /// Makes it from one. Its record is there already.
    Import(ImportRecord),
    /// Copies those of its files that only its host reaches to another host, to which it goes. It is done when the VM belongs to that.
    Copy(CopyOperation),
    /// Makes an image.
    ImportImage(Box<ImportImageRecord>),
}

/// What is done with checkpoints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "checkpoint", rename_all = "kebab-case")]
pub enum CheckpointOperation {
    /// Makes one.
    Create {
        /// Its id.
        id: Uuid,
        /// Its name.
        name: String,
        /// Whether the guest freezes its file systems for it, and what is done if it cannot.
        production: Option<Otherwise>,
        /// Whether the VM ran, and goes on; known when the task begins.
        ran: bool,
    },
    /// Makes the VM what it was.
    Apply {
        /// With this checkpoint.
        id: Uuid,
        /// Makes a checkpoint of this id and name first.
        before: Option<(Uuid, String)>,
    },
    /// Deletes some.
    Delete {
        /// Which.
        ids: Vec<Uuid>,
    },
    /// Merges what deleted ones left.
    Merge,
}

/// What is done if the guest cannot freeze its file systems.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Otherwise {
    /// There is no checkpoint.
    Refuse,
    /// It is made all the same.
    CrashConsistent,
}

/// A VM to make like another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloneRecord {
    /// Its id.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// Whether both go on in children of the disks.
    #[serde(default)]
    pub linked: bool,
    /// Where its disks are to be; where each disk is now if nothing is said.
    pub volume: Option<String>,
}

/// Where a VM goes with its files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyOperation {
    /// The host.
    pub to: String,
    /// The volume there for all of them; those of the same names if there is none.
    pub volume: Option<String>,
}

/// A VM to make from an exported one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportRecord {
    /// The VM that is made.
    pub id: Uuid,
    /// Its files.
    pub files: Vec<ImportedFile>,
}

/// A file of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportedFile {
    /// Where it is.
    pub from: FileRef,
    /// Where it is copied to, if it is.
    pub to: Option<FileRef>,
    /// Its bytes.
    pub bytes: u64,
    /// What its content must be.
    pub sha256: String,
}

impl OperationRecord {
    /// Whether it is long work, which goes on beside the VM's owner and ends when someone wants that.
    pub fn is_long(&self) -> bool {
        use CheckpointOperation::{Apply, Delete, Merge};
        matches!(
            self,
            OperationRecord::Clone(_)
                | OperationRecord::Edit { .. }
                | OperationRecord::Export { .. }
                | OperationRecord::Import(_)
                | OperationRecord::Copy(_)
                | OperationRecord::ImportImage(_)
                | OperationRecord::Checkpoint(Apply { .. } | Delete { .. } | Merge)
        )
    }

    /// Whether it deletes checkpoints.
    pub fn deletes_checkpoints(&self) -> bool {
        matches!(self, OperationRecord::Checkpoint(CheckpointOperation::Delete { .. }))
    }

    /// The VM that it makes.
    pub fn makes(&self) -> Option<Uuid> {
        match self {
            OperationRecord::Clone(clone) => Some(clone.id),
            OperationRecord::Import(import) => Some(import.id),
            _ => None,
        }
    }

    /// Whether it makes files under this id, or needs those that are there.
    pub fn stages(&self, id: Uuid) -> bool {
        match self {
            OperationRecord::ImportImage(image) => {
                image.id == id || matches!(image.source, ImageSourceRecord::Upload { id: upload, .. } if upload == id)
            }
            operation => operation.makes() == Some(id),
        }
    }

    /// Whether the VM does not run when it is done.
    pub fn ends_vm(&self) -> bool {
        matches!(self, OperationRecord::ShutDown { .. } | OperationRecord::ForceOff | OperationRecord::Save { .. })
    }

    /// Whether it is done while long work goes on: the VM must obey meanwhile.
    pub fn overtakes(&self) -> bool {
        use OperationRecord::{ForceOff, Pause, Reset, ResetUsage, Resume, SetPolicy, SetResources, ShutDown};
        matches!(self, ForceOff | ShutDown { .. } | Reset | Pause | Resume | SetResources { .. } | SetPolicy { .. } | ResetUsage)
    }
}

/// What happens to the disks of a VM that is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeleteDisks {
    /// They stay.
    Keep,
    /// They are deleted.
    Delete,
}

/// How far a task is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TaskStateRecord {
    /// Others come first.
    Queued,
    /// It is being done.
    Running,
    /// It is done.
    Done,
    /// It could not be done.
    Failed,
    /// It was told to end.
    Cancelled,
}

/// Why something failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    /// A word for programs.
    pub code: String,
    /// The cause.
    pub message: String,
    /// What can be done.
    pub way_out: String,
}

impl Cause {
    /// A cause of a kind.
    pub fn new(code: &str, message: impl Into<String>, way_out: impl Into<String>) -> Cause {
        Cause { code: code.into(), message: message.into(), way_out: way_out.into() }
    }
}

impl From<&Cause> for api::Error {
    fn from(cause: &Cause) -> api::Error {
        api::Error { code: cause.code.clone(), message: cause.message.clone(), way_out: cause.way_out.clone() }
    }
}

impl TaskRecord {
    /// A task of a VM that waits to be done.
    pub fn new(vm: Uuid, vm_name: String, operation: OperationRecord, created_by: String) -> TaskRecord {
        TaskRecord { vm: Some(vm), vm_name: Some(vm_name), ..TaskRecord::of_host(operation, created_by) }
    }

    /// A task of no VM that waits to be done.
    pub fn of_host(operation: OperationRecord, created_by: String) -> TaskRecord {
        TaskRecord {
            // In the order of time, and each later than those that this process made before.
            id: Uuid::now_v7(),
            vm: None,
            vm_name: None,
            image: None,
            host: None,
            operation,
            state: TaskStateRecord::Queued,
            progress: None,
            cancel_requested: false,
            error: None,
            created_by,
            created_at: OffsetDateTime::now_utc(),
            started_at: None,
            ended_at: None,
            log: Vec::new(),
        }
    }

    /// A task that makes an image and waits to be done.
    pub fn of_image(image: ImportImageRecord, created_by: String) -> TaskRecord {
        let name = Some(image.name.clone());
        TaskRecord { image: name, ..TaskRecord::of_host(OperationRecord::ImportImage(image.into()), created_by) }
    }

    /// By which the unfinished tasks of a VM are in the order in which they are to be done: what was begun goes first, and ids are in the order of
    /// time.
    pub fn turn(&self) -> (bool, Uuid) {
        (self.state != TaskStateRecord::Running, self.id)
    }

    /// Whether there is more to do.
    pub fn is_unfinished(&self) -> bool {
        matches!(self.state, TaskStateRecord::Queued | TaskStateRecord::Running)
    }

    /// Notes what is done or waited for.
    pub fn note(&mut self, text: impl Into<String>) {
        self.log.push(LogRecord { at: OffsetDateTime::now_utc(), text: text.into() });
    }

    /// Ends it.
    pub fn end(&mut self, state: TaskStateRecord, error: Option<Cause>) {
        self.state = state;
        self.error = error;
        self.ended_at = Some(OffsetDateTime::now_utc());
    }
}

impl From<&OperationRecord> for api::Operation {
    fn from(operation: &OperationRecord) -> api::Operation {
        match operation {
            OperationRecord::Start => api::Operation::Start,
            OperationRecord::ShutDown { .. } | OperationRecord::ForceOff => api::Operation::Stop,
            OperationRecord::Reset => api::Operation::Reset,
            OperationRecord::Pause => api::Operation::Pause,
            OperationRecord::Resume => api::Operation::Resume,
            OperationRecord::Delete { .. } => api::Operation::Delete,
            OperationRecord::ResetUsage => api::Operation::ResetUsage,
            OperationRecord::Save { .. } => api::Operation::Save,
            OperationRecord::DiscardSaved => api::Operation::DiscardSaved,
            OperationRecord::Checkpoint(CheckpointOperation::Create { .. }) => api::Operation::CreateCheckpoint,
            OperationRecord::Checkpoint(CheckpointOperation::Apply { .. }) => api::Operation::ApplyCheckpoint,
            OperationRecord::Checkpoint(CheckpointOperation::Delete { .. }) => api::Operation::DeleteCheckpoint,
            OperationRecord::Checkpoint(CheckpointOperation::Merge) => api::Operation::MergeCheckpoints,
            OperationRecord::SetResources { .. } => api::Operation::SetResources,
            OperationRecord::SetPolicy { .. } => api::Operation::SetPolicy,
            OperationRecord::Clone(_) => api::Operation::Clone,
            OperationRecord::Edit { .. } => api::Operation::Edit,
            OperationRecord::Export { .. } => api::Operation::Export,
            OperationRecord::Import(_) => api::Operation::Import,
            OperationRecord::Copy(_) => api::Operation::Copy,
            OperationRecord::ImportImage(_) => api::Operation::ImportImage,
        }
    }
}

impl From<&TaskRecord> for api::Task {
    fn from(task: &TaskRecord) -> api::Task {
        api::Task {
            id: task.id,
            operation: (&task.operation).into(),
            vm: task.vm,
            vm_name: task.vm_name.clone(),
            image: task.image.clone(),
            state: match task.state {
                TaskStateRecord::Queued => api::TaskState::Queued,
                TaskStateRecord::Running => api::TaskState::Running,
                TaskStateRecord::Done => api::TaskState::Done,
                TaskStateRecord::Failed => api::TaskState::Failed,
                TaskStateRecord::Cancelled => api::TaskState::Cancelled,
            },
            progress: task.progress.map(api::Progress::from),
            makes: task.operation.makes(),
            error: task.error.as_ref().map(api::Error::from),
            created_by: task.created_by.clone(),
            created_at: task.created_at,
            started_at: task.started_at,
            ended_at: task.ended_at,
            log: task.log.iter().map(|line| api::LogLine { at: line.at, text: line.text.clone() }).collect(),
        }
    }
}

impl From<ProgressRecord> for api::Progress {
    fn from(progress: ProgressRecord) -> api::Progress {
        api::Progress { done: progress.done, total: progress.total, unit: api::ProgressUnit::Bytes }
    }
}
