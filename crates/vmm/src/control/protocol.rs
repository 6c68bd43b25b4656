//! Requests, replies and events: the types on the wire.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::config::{DiskConfig, DiskLimits, NetConfig, NetLimits};

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// What the VM is and does; answered with [`Status`].
    Status,
    /// The VM's configuration as it is now; answered with a `VmConfig`.
    Config,
    /// Send events on this connection from now on.
    Subscribe,
    /// Stop the guest until `resume`.
    Pause,
    /// Let it go on.
    Resume,
    /// Press the power button: the guest shuts itself down.
    PowerButton,
    /// Reset the machine at once.
    Reset,
    /// End the VM at once, as if its power were cut.
    Stop,
    /// Pause and write the whole VM to the attached file; answered with a [`SavedReport`]. The VM stays paused.
    Save,
    /// Plug a disk in. Its opened file is attached, then those of its parents; the paths are only names.
    AddDisk {
        /// The disk.
        disk: DiskConfig,
        /// The files of its parents, the nearest first.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        parents: Vec<PathBuf>,
    },
    /// Plug a network card in. For a TAP, one opened queue per pair is attached; for vhost-user, the connected socket.
    AddNet {
        /// The card.
        net: NetConfig,
    },
    /// Ask the guest to give a disk or network card back; the event `device-removed` says when it did.
    Remove {
        /// Its name.
        id: String,
    },
    /// Grow a disk.
    ResizeDisk {
        /// Its name.
        id: String,
        /// Its new size; a block device must have grown already.
        bytes: u64,
    },
    /// Give disks a new layer, which takes what is written from now on; what was their file is read below it. The VM is paused. For each, its
    /// opened file is attached: a new child of the disk's file. Answered with a [`LayersReport`].
    AddLayers {
        /// All disks get theirs, or none.
        layers: Vec<NewLayer>,
    },
    /// Put other files below a disk's own, which read the same. Their opened files are attached. Answered with a [`ReplacedReport`].
    ReplaceParents {
        /// The disk.
        id: String,
        /// What the files are called, the nearest first; absolute.
        parents: Vec<PathBuf>,
    },
    /// Write what a disk's own file holds into the one below, which is the disk's file from then on. It is attached, opened for writing.
    /// Answered with a [`MergedReport`].
    MergeLeaf {
        /// The disk.
        id: String,
        /// Refuse to hold the guest's requests up for more bytes than these.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        most_bytes: Option<u64>,
    },
    /// Limit how much a disk may do, from now on.
    SetDiskLimits {
        /// Its name.
        id: String,
        /// The limits; what is left out has none.
        limits: DiskLimits,
    },
    /// Limit how much a network card on a TAP may carry, from now on.
    SetNetLimits {
        /// Its name.
        id: String,
        /// The limits; what is left out has none.
        limits: NetLimits,
    },
    /// Have this many vCPUs. The guest is asked for those that are too many; the event `cpus-removed` says when it gave one back.
    SetCpus {
        /// Their number: from 1 to the configured maximum.
        count: u32,
    },
    /// Have this much memory beside that at start (virtio-mem).
    SetHotplugMemory {
        /// Bytes, a multiple of 2 MiB.
        bytes: u64,
    },
    /// Have the balloon take this much memory from the guest.
    SetBalloon {
        /// Bytes.
        bytes: u64,
    },
    /// Plug a network card's cable in or out.
    SetLink {
        /// The card.
        id: String,
        /// Whether it is in.
        up: bool,
    },
    /// Connect the attached descriptor (a socket or terminal) to the console, scroll-back first.
    Console,
    /// Connect the attached stream socket to the port of the guest agent, in place of an earlier one; answered with whether the agent
    /// has its port open.
    GuestAgent,
    /// Start noting which pages of memory change.
    StartDirtyLog,
    /// How many pages changed since the last time; answered with their number.
    TakeDirtyLog,
    /// Stop noting.
    StopDirtyLog,
}

/// A new layer of a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewLayer {
    /// The disk.
    pub id: String,
    /// What the new file is called.
    pub path: PathBuf,
}

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// Done; what was asked for, or null.
    Ok(serde_json::Value),
    /// Not done, and nothing changed.
    Error(Failure),
    /// Not done yet.
    Progress {
        /// How far, in the units of `total`.
        done: u64,
        /// When it is complete.
        total: u64,
    },
}

/// Why a request was not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The cause and the way out.
    pub message: String,
}

impl Failure {
    /// From an error and its causes.
    pub fn new(error: &dyn std::error::Error) -> Failure {
        Failure { message: crate::error_chain(error) }
    }
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Counts all events of this monitor, from 1: a gap tells a client that it missed something.
    pub sequence: u64,
    /// What.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum EventKind {
    /// The guest runs.
    Running,
    /// The guest is paused.
    Paused,
    /// The machine was reset.
    Reset,
    /// The VM is about to end, and its devices do nothing more: their counters will not change any more.
    FinalCounters {
        /// The devices.
        devices: Vec<DeviceStatus>,
    },
    /// The VM has ended.
    Ended {
        /// Why.
        reason: String,
    },
    /// The guest's system panicked.
    GuestPanicked,
    /// A device cannot go on until the guest's driver resets it.
    DeviceFailed {
        /// Which one.
        id: String,
        /// Why.
        reason: String,
    },
    /// A disk failed a request. The VM is paused if waiting can help (no space is left); `resume` tries again.
    DiskFailed {
        /// Which one.
        id: String,
        /// Why.
        reason: String,
    },
    /// The guest agent has opened its port, or closed it.
    GuestAgent {
        /// Whether it is open now.
        open: bool,
    },
    /// The guest has given a vCPU back.
    CpusRemoved {
        /// How many are left.
        count: u32,
    },
    /// The guest has given a device back.
    DeviceRemoved {
        /// Which one.
        id: String,
    },
}

/// What is sent to clients.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Message {
    /// To the oldest unanswered request.
    Reply(Reply),
    /// To whom it may concern.
    Event(Event),
}

/// What the guest is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunStatus {
    /// It runs.
    Running,
    /// It is paused.
    Paused,
}

/// What the VM is and does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The VM's name.
    pub name: String,
    /// The monitor's process.
    pub pid: u32,
    /// What the guest is doing.
    pub state: RunStatus,
    /// vCPUs present.
    pub cpus: u32,
    /// Bytes of memory at start.
    pub memory: u64,
    /// Bytes of memory that were added and are in use.
    pub hotplug_memory: u64,
    /// Bytes that the balloon holds.
    pub balloon: u64,
    /// Whether system calls and files are confined.
    pub confined: bool,
    /// The disk for whose want of space the VM was paused: it is to go on when there is some. Nothing if somebody paused it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub short_of_space: Option<String>,
    /// Devices in their slots.
    pub devices: Vec<DeviceStatus>,
}

/// A device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceStatus {
    /// Its name.
    pub id: String,
    /// Its kind.
    pub kind: String,
    /// PCI slot.
    pub slot: u8,
    /// A disk's files: its own, then those of its parents, the nearest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<PathBuf>,
    /// Its counters.
    pub counters: BTreeMap<String, u64>,
}

/// What saving took.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedReport {
    /// Length of the file in bytes.
    pub bytes: u64,
    /// From the request to the end, in milliseconds.
    pub took_ms: u64,
}

/// What adding layers took.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayersReport {
    /// From the request to the end, in milliseconds.
    pub took_ms: u64,
}

/// What replacing a disk's parents took.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplacedReport {
    /// How long the guest's requests were held up, in milliseconds.
    pub held_ms: u64,
}

/// What merging a disk's file into the one below took.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MergedReport {
    /// Bytes that were written or zeroed.
    pub bytes: u64,
    /// How long the guest's requests were held up, in milliseconds.
    pub held_ms: u64,
}
