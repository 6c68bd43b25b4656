//! A VM, as it is stored.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use store::record::Record;
use switch::policy::PortPolicy;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{AutoStartRecord, ResourcesRecord};
use crate::net::policy;

/// `vms/ID`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmRecord {
    /// Its id.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// vCPUs at start.
    pub cpus: u32,
    /// vCPUs that it may have.
    pub max_cpus: u32,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Bytes that it may have while it runs, if they are more.
    #[serde(default)]
    pub max_memory_bytes: Option<u64>,
    /// What it boots.
    pub boot: BootRecord,
    /// Its disks.
    pub disks: Vec<DiskRecord>,
    /// Its network cards.
    pub nets: Vec<NetRecord>,
    /// Which console its monitor has.
    pub console: ConsoleRecord,
    /// Whether it has a balloon.
    pub balloon: bool,
    /// Whether it has a port for a guest agent.
    #[serde(default = "yes")]
    pub guest_agent: bool,
    /// What its guest is told at its first start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cloud_init: Option<super::CloudInitRecord>,
    /// Bytes that the balloon takes.
    #[serde(default)]
    pub balloon_bytes: u64,
    /// Whether it is started with its host.
    #[serde(default)]
    pub auto_start: AutoStartRecord,
    /// Files that were made for it beside its disks.
    #[serde(default)]
    pub own_files: Vec<FileRef>,
    /// The task that makes it, if it is not there yet.
    #[serde(default)]
    pub made_by: Option<Uuid>,
    /// Whether it is to run.
    pub power: Power,
    /// When it was created.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// When it was started the last time.
    #[serde(with = "time::serde::rfc3339::option")]
    pub started_at: Option<OffsetDateTime>,
    /// How it ended the last time.
    pub last_end: Option<EndingRecord>,
    /// What it was saved to, or is being saved to.
    #[serde(default)]
    pub saved: Option<SavedRecord>,
    /// How much of the host it may have.
    #[serde(default)]
    pub resources: ResourcesRecord,
    /// What it was promised of the processors when it was made, and all that it sees of them; what its host has, if there is nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_features: Option<BTreeSet<String>>,
    /// The host of a cluster that does what is to be done with it, and runs it if it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Under which revision of its owner's record it was started there the last time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owned_at: Option<u64>,
}

fn yes() -> bool {
    true
}

impl Record for VmRecord {
    const PREFIX: &'static str = "vms/";
    const KIND: &'static str = "vm";
    const VERSION: u32 = 1;
}

/// Whether a VM is to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Power {
    /// No.
    Off,
    /// Yes; whether it is paused is the monitor's to know.
    On,
}

/// A file in a volume.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FileRef {
    /// The volume's name.
    pub volume: String,
    /// The path in it: relative, without `.` and `..`.
    pub path: String,
}

impl std::fmt::Display for FileRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.volume, self.path)
    }
}

/// What a VM boots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootRecord {
    /// The kernel.
    pub kernel: FileRef,
    /// The initial file system.
    pub initrd: Option<FileRef>,
    /// The kernel's command line.
    pub command_line: String,
}

/// A disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskRecord {
    /// Its name in the VM.
    pub id: String,
    /// Its file.
    pub file: FileRef,
    /// What the file means; by its extension if there is nothing here.
    pub format: Option<FormatRecord>,
    /// Whether the guest may only read it.
    pub read_only: bool,
    /// Whether to go around the host's page cache.
    pub direct: bool,
    /// The files below its file, the nearest first, as far as they are in volumes.
    #[serde(default)]
    pub parents: Vec<ParentRecord>,
}

/// A file that a disk is based on. Nobody may change it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParentRecord {
    /// The file.
    pub file: FileRef,
    /// Whether it was a VM's disk: it is deleted with the last VM that is based on it.
    pub inherited: bool,
}

/// What a disk's file means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FormatRecord {
    /// The disk itself.
    Raw,
    /// A VHDX image.
    Vhdx,
    /// A VHD image.
    Vhd,
}

/// A network card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetRecord {
    /// Its name in the VM.
    pub id: String,
    /// Its address.
    pub mac: String,
    /// What its guest is told that it is called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What it is on.
    #[serde(flatten)]
    pub attachment: AttachmentRecord,
    /// Whether its cable is out.
    #[serde(default)]
    pub disconnected: bool,
}

/// What a network card is on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum AttachmentRecord {
    /// A TAP of the host.
    Tap {
        /// Its name.
        tap: String,
    },
    /// A virtual switch of the host.
    Switch {
        /// Its name.
        switch: String,
        /// What the card may do there, as the switch is told it. The port's address is the card's.
        policy: Box<PortPolicy>,
    },
}

/// Which console the monitor has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConsoleRecord {
    /// The serial port.
    Serial,
    /// A virtio console.
    Virtio,
}

/// How a VM ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndingRecord {
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// Why.
    pub reason: String,
    /// Whether that was not in order.
    pub failed: bool,
}

/// The file with a VM's memory and devices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedRecord {
    /// The file.
    pub file: FileRef,
    /// What it is worth.
    pub phase: SavedPhase,
    /// Its length in bytes, when it is whole.
    pub bytes: u64,
    /// When it was begun.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}

/// What the file of a saved VM is worth.
///
/// ```text
///  (none) ──▶ writing ──▶ saved ──▶ spent ──▶ (none)
///                └── fails ────────────────────▲
/// ```
/// The step to `saved` is the moment from which the monitor must not go on; the step to `spent` that from which the file must not be used: the
/// guest goes on from here, and its disks change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SavedPhase {
    /// It is not whole yet; the VM runs, or is paused.
    Writing,
    /// It is the VM.
    Saved,
    /// The VM has gone on from it, or it was dropped.
    Spent,
}

impl NetRecord {
    /// The switch that it is on, and what it may do there.
    pub fn switch(&self) -> Option<(&str, &PortPolicy)> {
        match &self.attachment {
            AttachmentRecord::Tap { .. } => None,
            AttachmentRecord::Switch { switch, policy } => Some((switch, policy)),
        }
    }
}

impl VmRecord {
    /// Whether the VM is in a file.
    pub fn is_saved(&self) -> bool {
        self.saved.as_ref().is_some_and(|saved| saved.phase == SavedPhase::Saved)
    }

    /// The directory of a VM's own files, in the volume of its first disk.
    pub fn own_directory(&self) -> FileRef {
        let volume = self.disks.first().map_or(&self.boot.kernel.volume, |disk| &disk.file.volume);
        FileRef { volume: volume.clone(), path: format!("vms/{}", self.id) }
    }

    /// What the API calls the VM's specification.
    pub fn spec(&self) -> api::VmSpec {
        api::VmSpec {
            name: self.name.clone(),
            cpus: self.cpus,
            max_cpus: (self.max_cpus != self.cpus).then_some(self.max_cpus),
            memory_bytes: self.memory_bytes,
            max_memory_bytes: self.max_memory_bytes,
            cpu_features: self.cpu_features.clone(),
            boot: api::Boot::from(&self.boot),
            disks: self.disks.iter().map(api::Disk::from).collect(),
            nets: self.nets.iter().map(api::Net::from).collect(),
            console: match self.console {
                ConsoleRecord::Serial => api::Console::Serial,
                ConsoleRecord::Virtio => api::Console::Virtio,
            },
            balloon: self.balloon,
            guest_agent: self.guest_agent,
            cloud_init: self.cloud_init.as_ref().map(super::CloudInitRecord::told),
            balloon_bytes: self.balloon_bytes,
            auto_start: self.auto_start.into(),
            resources: self.told_resources(),
        }
    }

    /// How much of the host it may have, as the API tells it: limits of devices that it has.
    pub fn told_resources(&self) -> api::Resources {
        let mut told = self.resources.told();
        told.disks.retain(|id, _| self.disks.iter().any(|disk| disk.id == *id));
        told.nets.retain(|id, _| self.nets.iter().any(|net| net.id == *id));
        told
    }
}

impl From<&BootRecord> for api::Boot {
    fn from(boot: &BootRecord) -> api::Boot {
        api::Boot {
            kernel: boot.kernel.to_string(),
            initrd: boot.initrd.as_ref().map(FileRef::to_string),
            command_line: boot.command_line.clone(),
        }
    }
}

impl From<&DiskRecord> for api::Disk {
    fn from(disk: &DiskRecord) -> api::Disk {
        api::Disk {
            id: Some(disk.id.clone()),
            file: disk.file.to_string(),
            size_bytes: None,
            image: None,
            format: disk.format.map(|format| match format {
                FormatRecord::Raw => api::DiskFormat::Raw,
                FormatRecord::Vhdx => api::DiskFormat::Vhdx,
                FormatRecord::Vhd => api::DiskFormat::Vhd,
            }),
            read_only: disk.read_only,
            direct: disk.direct,
        }
    }
}

impl From<&NetRecord> for api::Net {
    fn from(net: &NetRecord) -> api::Net {
        let (switch, policy, tap) = match &net.attachment {
            AttachmentRecord::Tap { tap } => (None, None, Some(tap.clone())),
            AttachmentRecord::Switch { switch, policy } => {
                let policy = policy::told(policy);
                (Some(switch.clone()), (policy != api::PortPolicy::default()).then_some(policy), None)
            }
        };
        let (id, mac, name) = (Some(net.id.clone()), Some(net.mac.clone()), net.name.clone());
        api::Net { id, mac, name, switch, policy, tap, disconnected: net.disconnected }
    }
}

impl From<&SavedRecord> for api::SavedVm {
    fn from(saved: &SavedRecord) -> api::SavedVm {
        api::SavedVm { at: saved.at, file: saved.file.to_string(), bytes: saved.bytes }
    }
}

impl From<&EndingRecord> for api::Ending {
    fn from(ending: &EndingRecord) -> api::Ending {
        api::Ending { at: ending.at, reason: ending.reason.clone(), failed: ending.failed }
    }
}
