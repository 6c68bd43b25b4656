//! What a VM is to be: the configuration that the monitor is started with, and that a saved VM carries along.

use std::num::{NonZeroU32, NonZeroU64};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cpu::CpuConfig;
use crate::cpu::features::{self, FeatureError};
use crate::memory::MemoryConfig;

/// A VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmConfig {
    /// Its name, for people.
    #[serde(default = "default_name")]
    pub name: String,
    /// Virtual CPUs.
    pub cpus: CpuConfig,
    /// Memory.
    pub memory: MemoryConfig,
    /// What it boots.
    pub boot: BootConfig,
    /// Disks, in the order in which the guest finds them.
    #[serde(default)]
    pub disks: Vec<DiskConfig>,
    /// Network cards, in the order in which the guest finds them.
    #[serde(default)]
    pub nets: Vec<NetConfig>,
    /// Which console the monitor's standard input and output are.
    #[serde(default)]
    pub console: ConsoleConfig,
    /// Whether there is an entropy device.
    #[serde(default = "yes")]
    pub rng: bool,
    /// Whether there is a balloon, which gives memory that the guest does not use back to the host.
    #[serde(default)]
    pub balloon: bool,
    /// Whether there is a port for the guest agent of QEMU (`org.qemu.guest_agent.0`).
    #[serde(default)]
    pub guest_agent: bool,
    /// The socket device.
    #[serde(default)]
    pub vsock: Option<VsockConfig>,
    /// What to do when the guest resets the machine.
    #[serde(default)]
    pub on_reset: OnReset,
}

fn default_name() -> String {
    "vm".into()
}

fn yes() -> bool {
    true
}

fn one() -> u16 {
    1
}

/// What a VM boots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootConfig {
    /// A bzImage (`vmlinuz`) or an ELF kernel with a PVH entry.
    pub kernel: PathBuf,
    /// Initial file system.
    #[serde(default)]
    pub initrd: Option<PathBuf>,
    /// Kernel command line.
    #[serde(default)]
    pub command_line: String,
}

/// A disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskConfig {
    /// Its name, one of its kind in the VM.
    pub id: String,
    /// A file or block device.
    pub path: PathBuf,
    /// What the file means; by its extension if left out. Its content never decides: a guest could write it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<DiskFormat>,
    /// Whether the guest may only read it.
    #[serde(default)]
    pub read_only: bool,
    /// Whether to go around the host's page cache (`O_DIRECT`).
    #[serde(default)]
    pub direct: bool,
    /// Queues, each with a thread; 0 means one per vCPU, at most four.
    #[serde(default)]
    pub queues: u16,
    /// The serial number that the guest sees, at most 20 bytes; the id by default.
    #[serde(default)]
    pub serial: Option<String>,
    /// PCI slot, 1 to 25; the lowest free one by default.
    #[serde(default)]
    pub slot: Option<u8>,
    /// Whether what the guest reads from a parent is written to the image itself.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub copy_on_read: bool,
    /// How much it may do.
    #[serde(default, skip_serializing_if = "DiskLimits::is_none")]
    pub limits: DiskLimits,
}

/// How much a disk may do, all its queues together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskLimits {
    /// Operations: one for each 8 KiB of a request, and at least one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iops: Option<RateConfig>,
    /// Bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<RateConfig>,
}

/// How fast, in operations or bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateConfig {
    /// What is always allowed, in each second.
    pub per_second: NonZeroU64,
    /// What is allowed for a while after times of less.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<BurstConfig>,
}

/// A time of more than the rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BurstConfig {
    /// What is allowed meanwhile, in each second. No more than the rate means no burst.
    pub per_second: NonZeroU64,
    /// How long a full burst lasts, in seconds.
    pub seconds: NonZeroU32,
}

impl DiskLimits {
    /// Whether nothing is limited.
    pub fn is_none(&self) -> bool {
        *self == DiskLimits::default()
    }
}

impl From<DiskLimits> for disk::limits::Limits {
    fn from(limits: DiskLimits) -> disk::limits::Limits {
        disk::limits::Limits {
            operations: limits.iops.map(disk::limits::Rate::from),
            bandwidth: limits.bandwidth.map(disk::limits::Rate::from),
        }
    }
}

impl From<RateConfig> for disk::limits::Rate {
    fn from(rate: RateConfig) -> disk::limits::Rate {
        let burst = rate.burst.map(|burst| disk::limits::Burst {
            per_second: burst.per_second,
            length: Duration::from_secs(burst.seconds.get().into()),
        });
        disk::limits::Rate { per_second: rate.per_second, burst }
    }
}

/// What a disk's file means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// The file is the disk.
    Raw,
    /// A VHDX image, with its parents.
    Vhdx,
    /// A VHD image, with its parents.
    Vhd,
}

impl DiskConfig {
    /// Names another file, of the same format.
    pub fn move_to(&mut self, path: PathBuf) {
        let format = self.open_options().format;
        self.path = path;
        if self.open_options().format != format {
            self.format = Some(format.into());
        }
    }

    /// How its files are opened.
    pub fn open_options(&self) -> disk::OpenOptions {
        disk::OpenOptions {
            format: self.format.map_or_else(|| disk::Format::from_path(&self.path), disk::Format::from),
            access: if self.read_only { disk::Access::ReadOnly } else { disk::Access::ReadWrite },
            cache: if self.direct { disk::Cache::Direct } else { disk::Cache::Host },
            copy_on_read: self.copy_on_read,
            ..Default::default()
        }
    }
}

impl From<DiskFormat> for disk::Format {
    fn from(format: DiskFormat) -> disk::Format {
        match format {
            DiskFormat::Raw => disk::Format::Raw,
            DiskFormat::Vhdx => disk::Format::Vhdx,
            DiskFormat::Vhd => disk::Format::Vhd,
        }
    }
}

impl From<disk::Format> for DiskFormat {
    fn from(format: disk::Format) -> DiskFormat {
        match format {
            disk::Format::Raw => DiskFormat::Raw,
            disk::Format::Vhdx => DiskFormat::Vhdx,
            disk::Format::Vhd => DiskFormat::Vhd,
        }
    }
}

impl std::str::FromStr for DiskFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<DiskFormat, String> {
        match text {
            "raw" => Ok(DiskFormat::Raw),
            "vhdx" => Ok(DiskFormat::Vhdx),
            "vhd" => Ok(DiskFormat::Vhd),
            _ => Err(format!("'{text}' is no format of disks; raw, vhdx and vhd are")),
        }
    }
}

/// A network card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetConfig {
    /// Its name, one of its kind in the VM.
    pub id: String,
    /// Its address.
    pub mac: MacAddress,
    /// What the guest is told that it is called: 1 to 63 printable characters of ASCII.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Receive and transmit queues in pairs.
    #[serde(default = "one")]
    pub queue_pairs: u16,
    /// The largest packet that the guest is told, in bytes without the Ethernet header.
    #[serde(default)]
    pub mtu: Option<u16>,
    /// What carries its frames.
    pub backend: NetBackend,
    /// PCI slot, 1 to 25; the lowest free one by default.
    #[serde(default)]
    pub slot: Option<u8>,
    /// How much it may carry. Only a card on a TAP can be limited here: one on a virtual switch is the switch's.
    #[serde(default, skip_serializing_if = "NetLimits::is_none")]
    pub limits: NetLimits,
}

/// How much a network card may carry, all its queues together: bytes of frames with their Ethernet headers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetLimits {
    /// Towards the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receive: Option<RateConfig>,
    /// From the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transmit: Option<RateConfig>,
}

impl NetLimits {
    /// Whether nothing is limited.
    pub fn is_none(&self) -> bool {
        *self == NetLimits::default()
    }
}

/// What carries the frames of a network card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum NetBackend {
    /// An existing TAP of the host, by its name.
    Tap(String),
    /// A virtual switch that listens on this socket.
    VhostUser(PathBuf),
}

/// An Ethernet address, written `52:54:00:12:34:56`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddress(pub [u8; 6]);

impl std::str::FromStr for MacAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<MacAddress, String> {
        let parts: Vec<u8> =
            text.split(':').filter(|part| part.len() == 2).filter_map(|part| u8::from_str_radix(part, 16).ok()).collect();
        let bytes: [u8; 6] = parts
            .try_into()
            .ok()
            .filter(|_| text.len() == 17)
            .ok_or_else(|| format!("'{text}' is no MAC address: write six bytes like 52:54:00:12:34:56"))?;
        if bytes[0] & 1 != 0 {
            return Err(format!("'{text}' is the address of a group: the first byte must be even"));
        }
        Ok(MacAddress(bytes))
    }
}

impl TryFrom<String> for MacAddress {
    type Error = String;
    fn try_from(text: String) -> Result<MacAddress, String> {
        text.parse()
    }
}

impl From<MacAddress> for String {
    fn from(mac: MacAddress) -> String {
        mac.to_string()
    }
}

impl std::fmt::Display for MacAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// Which device the monitor's standard input and output are for the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConsoleConfig {
    /// The serial port (`console=ttyS0`).
    #[default]
    Serial,
    /// A virtio console (`console=hvc0`), faster; the serial port's output is kept for the control socket only.
    Virtio,
}

/// Sockets between guest and host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockConfig {
    /// The guest's context id, 3 or more.
    pub cid: u32,
    /// Path of the host's socket; ports that the guest connects to are sockets at this path with `_PORT` behind it.
    pub path: PathBuf,
}

/// What a reset by the guest does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnReset {
    /// The VM boots anew.
    #[default]
    Restart,
    /// The monitor ends, and says so with its exit status.
    Exit,
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not this format.
    #[error("the configuration cannot be read: {0}")]
    Malformed(#[from] serde_json::Error),
    /// Two devices of the same name.
    #[error("two devices are called '{0}': each needs a name of its own")]
    DuplicateId(String),
    /// A name that cannot be used.
    #[error("'{0}' cannot be a device's name: use 1 to 64 letters, digits, '-', '_' and '.'")]
    BadId(String),
    /// A name that a guest cannot be told.
    #[error(
        "'{0}' cannot be a network card's name in the guest: use 1 to 63 printable characters of ASCII, with no space at the ends"
    )]
    BadNetName(String),
    /// A context id that is taken.
    #[error("context id {0}: guests have 3 to 4294967294")]
    BadCid(u32),
    /// What the processors are to be able to do.
    #[error(transparent)]
    Features(#[from] FeatureError),
    /// A card whose frames do not pass through the monitor.
    #[error("network card '{0}' is on a virtual switch and cannot be limited here: only cards on TAPs can")]
    SwitchLimits(String),
}

impl VmConfig {
    /// Reads a configuration from JSON and checks what can be checked without the host.
    pub fn from_json(text: &[u8]) -> Result<VmConfig, ConfigError> {
        let config: VmConfig = serde_json::from_slice(text)?;
        config.check()?;
        Ok(config)
    }

    /// What a saved VM goes on with where this is how it is wanted now: files, backends and limits are these; memory, processors and the places of
    /// devices are those that its guest knows.
    #[must_use]
    pub fn for_saved(mut self, saved: &VmConfig) -> VmConfig {
        (self.cpus, self.memory) = (saved.cpus.clone(), saved.memory.clone());
        for disk in &mut self.disks {
            let known = saved.disks.iter().find(|other| other.id == disk.id);
            disk.slot = known.map_or(disk.slot, |known| known.slot);
        }
        for net in &mut self.nets {
            let known = saved.nets.iter().find(|other| other.id == net.id);
            net.slot = known.map_or(net.slot, |known| known.slot);
        }
        let at = |index: Option<usize>| index.unwrap_or(usize::MAX);
        self.disks.sort_by_key(|disk| at(saved.disks.iter().position(|other| other.id == disk.id)));
        self.nets.sort_by_key(|net| at(saved.nets.iter().position(|other| other.id == net.id)));
        self
    }

    /// Checks what can be checked without the host.
    pub fn check(&self) -> Result<(), ConfigError> {
        let ids: Vec<&str> = self.disks.iter().map(|d| d.id.as_str()).chain(self.nets.iter().map(|n| n.id.as_str())).collect();
        for (index, id) in ids.iter().enumerate() {
            check_id(id)?;
            if ids[..index].contains(id) || BUILT_IN_IDS.contains(id) {
                return Err(ConfigError::DuplicateId((*id).into()));
            }
        }
        for net in &self.nets {
            net.name.as_deref().map_or(Ok(()), check_net_name)?;
            if !net.limits.is_none() && matches!(net.backend, NetBackend::VhostUser(_)) {
                return Err(ConfigError::SwitchLimits(net.id.clone()));
            }
        }
        self.cpus.features.as_ref().map_or(Ok(()), features::check)?;
        match &self.vsock {
            Some(vsock) if vsock.cid < 3 || vsock.cid == u32::MAX => Err(ConfigError::BadCid(vsock.cid)),
            _ => Ok(()),
        }
    }
}

/// Names that the monitor gives to devices itself.
pub const BUILT_IN_IDS: [&str; 6] = ["rng", "balloon", "console", "guest-agent", "vsock", "memory"];

/// Checks what a guest is to be told that a network card is called.
pub fn check_net_name(name: &str) -> Result<(), ConfigError> {
    let fine = |c: char| c.is_ascii_graphic() || c == ' ';
    match (1..=63).contains(&name.len()) && name.trim() == name && name.chars().all(fine) {
        true => Ok(()),
        false => Err(ConfigError::BadNetName(name.into())),
    }
}

/// Checks a device's name.
pub fn check_id(id: &str) -> Result<(), ConfigError> {
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if id.is_empty() || id.len() > 64 || !id.chars().all(fine) {
        return Err(ConfigError::BadId(id.into()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = r#"{"cpus":{"count":1},"memory":{"size":67108864},"boot":{"kernel":"/boot/vmlinuz"}"#;

    #[test]
    fn a_minimal_configuration_has_defaults_and_survives_a_round_trip() {
        let config = VmConfig::from_json(format!("{MINIMAL}}}").as_bytes()).unwrap();
        assert!(config.rng && config.cpus.sockets == 1 && config.on_reset == OnReset::Restart);
        assert_eq!(VmConfig::from_json(&serde_json::to_vec(&config).unwrap()).unwrap(), config);
    }

    #[test]
    fn a_saved_vm_keeps_what_its_guest_knows_and_gets_files_that_are_wanted_now() {
        let config = |json: &str| VmConfig::from_json(format!("{MINIMAL},{json}}}").as_bytes()).unwrap();
        let mut saved = config(r#""disks":[{"id":"b","path":"/old/b","slot":3},{"id":"a","path":"/old/a","slot":1}]"#);
        saved.cpus.count = 2;
        let mut wanted = config(r#""disks":[{"id":"a","path":"/new/a"},{"id":"b","path":"/new/b"}]"#);
        wanted.memory.size *= 2;
        let known = wanted.for_saved(&saved);
        let disks: Vec<_> = known.disks.iter().map(|disk| (disk.path.to_str().unwrap(), disk.slot)).collect();
        assert_eq!(disks, [("/new/b", Some(3)), ("/new/a", Some(1))]);
        assert_eq!((known.cpus.count, known.memory.size), (2, saved.memory.size));
    }

    #[test]
    fn mistakes_are_named() {
        let listed = MINIMAL.replace(r#""count":1"#, r#""count":1,"features":["avx"]"#) + "}";
        assert!(VmConfig::from_json(listed.as_bytes()).unwrap_err().to_string().contains("not xsave"));
        let parse = |rest: &str| VmConfig::from_json(format!("{MINIMAL},{rest}}}").as_bytes()).unwrap_err().to_string();
        assert!(parse(r#""memroy":1"#).contains("memroy"));
        let disk = r#"{"id":"a","path":"/x"}"#;
        assert!(parse(&format!(r#""disks":[{disk},{disk}]"#)).contains("two devices are called 'a'"));
        assert!(parse(r#""disks":[{"id":"a/b","path":"/x"}]"#).contains("cannot be a device's name"));
        let net = |mac: &str| format!(r#""nets":[{{"id":"n","mac":"{mac}","backend":{{"tap":"t"}}}}]"#);
        assert!(parse(&net("52:54:00:12:34")).contains("six bytes"));
        assert!(parse(&net("53:54:00:12:34:56")).contains("group"));
        assert!(parse(r#""vsock":{"cid":2,"path":"/x"}"#).contains("context id 2"));
        let limits = r#""limits":{"transmit":{"per_second":1}}"#;
        let net = format!(r#""nets":[{{"id":"n","mac":"52:54:00:00:00:01","backend":{{"vhost-user":"/s"}},{limits}}}]"#);
        assert!(parse(&net).contains("is on a virtual switch"));
    }
}
