//! Virtual machines.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;
use uuid::Uuid;

/// What a VM is to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VmSpec {
    /// Its name, one of its kind on the host: letters, digits, `-`, `_` and `.`, at most 64; not the form of a UUID.
    #[schema(min_length = 1, max_length = 64, pattern = "^[A-Za-z0-9._-]+$", example = "web")]
    pub name: String,
    /// vCPUs at start.
    #[serde(default = "one")]
    #[schema(minimum = 1, default = 1)]
    pub cpus: u32,
    /// vCPUs that it may have later; as many as at start if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_cpus: Option<u32>,
    /// Memory in bytes: a multiple of 2 MiB, at least 64 MiB.
    #[schema(minimum = 67_108_864, example = 536_870_912)]
    pub memory_bytes: u64,
    /// Memory that it may have later, while it runs; as much as at start if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_memory_bytes: Option<u64>,
    /// All that the guest may see of the processors, by names of Linux's `/proc/cpuinfo`. It runs on hosts that have all of it. If left out, it is
    /// what the host has, and in a cluster what all hosts have in common when the VM is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_features: Option<BTreeSet<String>>,
    /// What it boots. May be left out if a disk is made from an image that says it.
    #[serde(default)]
    pub boot: Boot,
    /// Disks, in the order in which the guest finds them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<Disk>,
    /// Network cards, in the order in which the guest finds them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nets: Vec<Net>,
    /// What the console is for the guest.
    #[serde(default)]
    pub console: Console,
    /// Whether there is a balloon, which gives memory that the guest does not use back to the host.
    #[serde(default)]
    pub balloon: bool,
    /// Whether there is a port for the guest agent of QEMU, by which the guest can be asked for its addresses and be shut down.
    #[serde(default = "yes")]
    #[schema(default = true)]
    pub guest_agent: bool,
    /// What its guest is told at its first start, by cloud-init.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cloud_init: Option<crate::CloudInit>,
    /// Memory that the balloon takes from the guest.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub balloon_bytes: u64,
    /// Whether it is started with its host.
    #[serde(default, skip_serializing_if = "AutoStart::is_default")]
    pub auto_start: AutoStart,
    /// How much of the host it may have.
    #[serde(default, skip_serializing_if = "crate::Resources::is_default")]
    pub resources: crate::Resources,
}

fn yes() -> bool {
    true
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

fn one() -> u32 {
    1
}

/// Whether a VM is started with its host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AutoStart {
    /// Whether.
    #[serde(default)]
    pub policy: AutoStartPolicy,
    /// How long after the VM before it, in seconds; after the host, for the first.
    #[serde(default)]
    #[schema(maximum = 86400)]
    pub delay_seconds: u32,
    /// Smaller numbers come first; those with the same go by their names.
    #[serde(default)]
    pub order: u32,
}

impl AutoStart {
    fn is_default(&self) -> bool {
        *self == AutoStart::default()
    }
}

/// When a VM is started with its host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum AutoStartPolicy {
    /// Never.
    #[default]
    Never,
    /// Always.
    Always,
    /// If it ran when the host went down.
    IfItRan,
}

/// What a VM boots. Files are in volumes: `VOLUME:PATH`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Boot {
    /// A kernel: a bzImage (`vmlinuz`), or an ELF file with a PVH entry. Left out, it is that of the image that a disk is based on, and so is the rest
    /// that is left out.
    #[serde(default)]
    #[schema(example = "local:vmlinuz")]
    pub kernel: String,
    /// Initial file system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<String>,
    /// Kernel command line.
    #[serde(default)]
    #[schema(example = "console=ttyS0 root=/dev/vda1")]
    pub command_line: String,
}

/// A disk of a VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// Its name in the VM; `disk0`, `disk1`... if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Its file, in a volume. May be left out with `size_bytes` or `image`: a new disk gets a file in a directory with the VM's name.
    #[serde(default)]
    #[schema(example = "local:web/root.vhdx")]
    pub file: String,
    /// In a request: makes a new disk of this size, or grows one that the VM has. Not told in answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = 21_474_836_480_u64)]
    pub size_bytes: Option<u64>,
    /// In a request: makes a new disk from this image, by its name or id. It takes space for what differs from it, and is as large if no size is
    /// given. Not told in answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "debian12")]
    pub image: Option<String>,
    /// What the file means; by its extension if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<DiskFormat>,
    /// Whether the guest may only read it.
    #[serde(default)]
    pub read_only: bool,
    /// Whether to go around the host's page cache.
    #[serde(default)]
    pub direct: bool,
}

/// What a disk's file means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DiskFormat {
    /// The file is the disk.
    Raw,
    /// A VHDX image.
    Vhdx,
    /// A VHD image.
    Vhd,
}

/// A network card. It is on a virtual switch, or on a TAP.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Net {
    /// Its name in the VM; `net0`, `net1`... if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Its address; made from the VM's id if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "52:54:00:12:34:56")]
    pub mac: Option<String>,
    /// What its guest is told that it is called: 1 to 63 printable characters of ASCII.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "storage")]
    pub name: Option<String>,
    /// A virtual switch of the host, by its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "lan")]
    pub switch: Option<String>,
    /// What it may do there; as usual if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<crate::PortPolicy>,
    /// Instead of a switch: a TAP of the host, by its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "tap0")]
    pub tap: Option<String>,
    /// Whether its cable is out.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub disconnected: bool,
}

/// What the console is for the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Console {
    /// The serial port, `ttyS0`.
    #[default]
    Serial,
    /// A virtio console, `hvc0`.
    Virtio,
}

/// A VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Vm {
    /// Its id, for ever.
    pub id: Uuid,
    /// What it is to be.
    pub spec: VmSpec,
    /// The host of the cluster that looks after it, and runs it if it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// What it does.
    pub state: VmState,
    /// How it ended the last time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_end: Option<Ending>,
    /// The files of its disks: told when one VM is asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub chains: Vec<crate::DiskChain>,
    /// What a saved VM goes on from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub saved: Option<SavedVm>,
    /// The process that runs it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// What runs in it, if its guest agent is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<crate::Guest>,
    /// When it was created.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// When it was started the last time.
    #[serde(default, with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    pub started_at: Option<OffsetDateTime>,
}

/// How a VM ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Ending {
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// Why.
    pub reason: String,
    /// Whether that was not in order.
    pub failed: bool,
}

/// The state that a saved VM goes on from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SavedVm {
    /// When it was saved.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// Its file, in a volume.
    pub file: String,
    /// The file's length in bytes.
    pub bytes: u64,
}

/// What a VM does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum VmState {
    /// It is being made.
    Creating,
    /// It does not run.
    Off,
    /// It is being started.
    Starting,
    /// It runs.
    Running,
    /// It is paused.
    Paused,
    /// It is to end, and has not yet.
    Stopping,
    /// It does not run, and goes on where it was when it is started: its memory is in a file.
    Saved,
    /// `marud` has just started, and does not know yet.
    Unknown,
}

impl std::fmt::Display for VmState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            VmState::Creating => "creating",
            VmState::Off => "off",
            VmState::Starting => "starting",
            VmState::Running => "running",
            VmState::Paused => "paused",
            VmState::Stopping => "stopping",
            VmState::Saved => "saved",
            VmState::Unknown => "unknown",
        })
    }
}

/// How to make a VM like another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CloneVm {
    /// The new VM's name.
    #[schema(min_length = 1, max_length = 64, pattern = "^[A-Za-z0-9._-]+$", example = "web2")]
    pub name: String,
    /// Whether to copy no disk: both VMs go on in new files on top of what each disk is now, which nobody may change any more.
    #[serde(default)]
    pub linked: bool,
    /// The volume for its disks; where each disk is now if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<String>,
}

/// Where to export a VM to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExportVm {
    /// The directory to make: `VOLUME:PATH`. There must be nothing.
    #[schema(example = "local:exports/web")]
    pub to: String,
}

/// Which exported VM to import, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImportVm {
    /// The directory that it was exported to: `VOLUME:PATH`.
    #[schema(example = "local:exports/web")]
    pub from: String,
    /// Its name here; as it was if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Whether its files are copied or used where they are.
    #[serde(default)]
    pub mode: ImportMode,
    /// The volume for copied files; that of the directory if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<String>,
}

/// What becomes of the files of a VM that is imported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ImportMode {
    /// They are copied; the directory stays as it is.
    #[default]
    Copy,
    /// The VM uses them where they are.
    Register,
}

/// What happens to a VM's disks when it is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DiskAction {
    /// Their files stay.
    Keep,
    /// Their files are deleted, too.
    Delete,
}
