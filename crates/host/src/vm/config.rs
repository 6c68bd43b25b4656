//! From what the API is told to what is stored, and from there to what a monitor is told.

use std::path::{Path, PathBuf};

use time::OffsetDateTime;
use uuid::Uuid;
use vmm::config::{
    BootConfig, ConsoleConfig, DiskConfig, DiskFormat, MacAddress, NetBackend, NetConfig, OnReset, VmConfig, check_id,
};
use vmm::cpu::CpuConfig;
use vmm::launch::command_line;
use vmm::memory::MemoryConfig;

use super::{cloud_init, disks, resources};
use crate::images;
use crate::net::{MAX_NET_ID, is_interface, policy};
use crate::records::{
    AttachmentRecord, BootRecord, Cause, ConsoleRecord, DiskRecord, FileRef, FormatRecord, ImageRecord, NetRecord, ParentRecord,
    Power, ResourcesRecord, VmRecord,
};
use crate::volumes::Volumes;

const MIB: u64 = 1 << 20;
/// What the memory of a VM is a multiple of.
const MEMORY_STEP: u64 = 2 * MIB;
/// What it has at least.
const MEMORY_MIN: u64 = 64 * MIB;
/// Disks and network cards that a VM may have: it has 25 PCI slots for them, and for the disk for cloud-init.
const MAX_DEVICES: usize = 25;
/// The longest delay before a VM is started with its host, in seconds.
const MAX_DELAY: u32 = 86_400;
/// Linux takes no longer command line on x86.
const MAX_COMMAND_LINE: usize = 2047;

fn bad(message: impl Into<String>, way_out: &str) -> Cause {
    Cause::new("bad-vm", message, way_out)
}

/// What a VM is to be, and what must be done to its disks for that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The VM.
    pub vm: VmRecord,
    /// Disks to make.
    pub make: Vec<NewDisk>,
    /// Disks that the VM has, by their ids, and the sizes in bytes that they are to have.
    pub grow: Vec<(String, u64)>,
}

/// A disk to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewDisk {
    /// Its file.
    pub file: FileRef,
    /// What the file is to mean.
    pub format: disk::Format,
    /// Bytes of the disk.
    pub size: u64,
    /// The file of the image that it is based on.
    pub parent: Option<FileRef>,
}

/// Checks what a VM is to be, and gives it an id. Its disks may be made from these images.
pub fn record(spec: &api::VmSpec, volumes: &Volumes, images: &[ImageRecord]) -> Result<Wanted, Cause> {
    wanted(Uuid::new_v4(), None, spec, volumes, images)
}

/// Checks what a VM is to become.
pub fn edited(vm: &VmRecord, spec: &api::VmSpec, volumes: &Volumes, images: &[ImageRecord]) -> Result<Wanted, Cause> {
    wanted(vm.id, Some(vm), spec, volumes, images)
}

fn wanted(
    id: Uuid,
    old: Option<&VmRecord>,
    spec: &api::VmSpec,
    volumes: &Volumes,
    images: &[ImageRecord],
) -> Result<Wanted, Cause> {
    check_name(&spec.name)?;
    let max_cpus = spec.max_cpus.unwrap_or(spec.cpus);
    if spec.cpus == 0 || max_cpus < spec.cpus {
        return Err(bad(
            format!("{} vCPUs of at most {max_cpus}", spec.cpus),
            "give it one at least, and no more than its maximum",
        ));
    }
    check_memory(spec)?;
    let names = spec.cpu_features.as_ref().map_or(Ok(()), vmm::cpu::features::check);
    names.map_err(|error| {
        bad(error.to_string(), "list what `maru-vmm --cpu-features` prints on the hosts that it is to run on, or nothing")
    })?;
    if spec.auto_start.delay_seconds > MAX_DELAY {
        return Err(bad(format!("a delay of {} s", spec.auto_start.delay_seconds), "let it start within a day"));
    }
    if spec.disks.len() + spec.nets.len() + usize::from(spec.cloud_init.is_some()) > MAX_DEVICES {
        return Err(bad(format!("more than {MAX_DEVICES} disks and network cards"), "give it fewer"));
    }
    let (mut make, mut grow) = (Vec::new(), Vec::new());
    let mut disks = Vec::new();
    let ids = ids("disk", spec.disks.iter().map(|disk| disk.id.as_deref()));
    for (disk, id) in spec.disks.iter().zip(ids) {
        let own = old.and_then(|old| old.disks.iter().find(|own| own.id == id));
        let own = own.filter(|own| disk.file.is_empty() || own.file.to_string() == disk.file);
        // One that the VM has already was made from it.
        let image = disk.image.as_deref().filter(|_| own.is_none()).map(|name| image(name, images)).transpose()?;
        let size = disk.size_bytes.or(image.map(|image| image.virtual_bytes));
        let file = match (own, size) {
            (Some(own), _) => own.file.clone(),
            (None, Some(_)) if disk.file.is_empty() => {
                new_file(&spec.name, &id, disk.format, image.map(|image| image.file.volume.as_str()), volumes)?
            }
            (None, _) => volumes.parse(&disk.file)?,
        };
        let mut record = self::disk(disk, id, file);
        match (own, image) {
            (Some(own), _) => record.parents = own.parents.clone(),
            (None, Some(image)) => record.parents = vec![ParentRecord { file: image.file.clone(), inherited: false }],
            (None, None) if size.is_none() => record.parents = disks::parents(&record, volumes),
            (None, None) => {}
        }
        match (own, size) {
            (Some(_), Some(size)) => grow.push((record.id.clone(), size)),
            (None, Some(size)) => {
                let format = super::clone::format(&record, Path::new(&record.file.path));
                if let Some(image) = image {
                    check_child(&record, format, size, image)?;
                }
                make.push(NewDisk { file: record.file.clone(), format, size, parent: image.map(|image| image.file.clone()) });
            }
            (_, None) => {}
        }
        disks.push(record);
    }
    let boot = boot_of(&spec.boot, &disks, volumes, images)?;
    let vm = VmRecord {
        id,
        name: spec.name.clone(),
        cpus: spec.cpus,
        max_cpus,
        memory_bytes: spec.memory_bytes,
        max_memory_bytes: spec.max_memory_bytes.filter(|max| *max > spec.memory_bytes),
        boot,
        disks,
        nets: nets(spec, id)?,
        console: match spec.console {
            api::Console::Serial => ConsoleRecord::Serial,
            api::Console::Virtio => ConsoleRecord::Virtio,
        },
        balloon: spec.balloon,
        guest_agent: spec.guest_agent,
        cloud_init: spec.cloud_init.as_ref().map(|wanted| cloud_init::record(wanted, old)),
        balloon_bytes: spec.balloon_bytes,
        auto_start: spec.auto_start.into(),
        own_files: old.map_or_else(Vec::new, |old| old.own_files.clone()),
        made_by: old.and_then(|old| old.made_by),
        power: old.map_or(Power::Off, |old| old.power),
        created_at: old.map_or_else(OffsetDateTime::now_utc, |old| old.created_at),
        started_at: old.and_then(|old| old.started_at),
        last_end: old.and_then(|old| old.last_end.clone()),
        saved: old.and_then(|old| old.saved.clone()),
        resources: ResourcesRecord::default(),
        cpu_features: spec.cpu_features.clone(),
        host: old.and_then(|old| old.host.clone()),
        owned_at: old.and_then(|old| old.owned_at),
    };
    let vm = VmRecord { resources: resources::record(&spec.resources, &vm)?, ..vm };
    if let Some(cloud_init) = &vm.cloud_init {
        cloud_init::check(cloud_init, &vm)?;
    }
    // What a start would refuse is better refused now.
    let new = |file: &FileRef| make.iter().any(|new| new.file == *file);
    // Where sockets are makes no difference.
    monitor_with(&vm, volumes, Path::new("/"), &|file| if new(file) { volumes.place(file) } else { volumes.find(file) })?;
    Ok(Wanted { vm, make, grow })
}

/// The image with this name or id.
fn image<'a>(name: &str, images: &'a [ImageRecord]) -> Result<&'a ImageRecord, Cause> {
    images.iter().find(|image| images::is(image, name)).ok_or_else(|| {
        let known: Vec<&str> = images.iter().map(|image| image.name.as_str()).collect();
        let message = format!("there is no image '{name}'; there are: {}", known.join(", "));
        Cause::new("no-image", message, "name one of these, or import one (maru image import)")
    })
}

/// Refuses a disk that cannot be based on an image.
fn check_child(disk: &DiskRecord, format: disk::Format, size: u64, image: &ImageRecord) -> Result<(), Cause> {
    if format != disk::Format::Vhdx {
        let message = format!("the disk {} would be {format}, and what is based on an image is VHDX", disk.file);
        return Err(bad(message, "let its file end with .vhdx, and name no other format"));
    }
    if size < image.virtual_bytes {
        let message = format!("a disk of {size} bytes from the image '{}', which has {}", image.name, image.virtual_bytes);
        return Err(bad(message, "give it as much, or more"));
    }
    Ok(())
}

/// What a VM boots.
pub fn boot(wanted: &api::Boot, volumes: &Volumes) -> Result<BootRecord, Cause> {
    let command_line = wanted.command_line.clone();
    if command_line.len() > MAX_COMMAND_LINE || command_line.contains('\0') {
        return Err(bad(format!("a command line of {} bytes", command_line.len()), "give it 2047 at most"));
    }
    let kernel = volumes.parse(&wanted.kernel)?;
    let initrd = wanted.initrd.as_deref().map(|initrd| volumes.parse(initrd)).transpose()?;
    Ok(BootRecord { kernel, initrd, command_line })
}

/// The same, with what is left out as the image says that a disk is based on.
fn boot_of(wanted: &api::Boot, disks: &[DiskRecord], volumes: &Volumes, images: &[ImageRecord]) -> Result<BootRecord, Cause> {
    if !wanted.kernel.is_empty() {
        return boot(wanted, volumes);
    }
    let below = disks.iter().flat_map(|disk| &disk.parents);
    let mut images = below.filter_map(|parent| images.iter().find(|image| image.file == parent.file));
    let Some(usual) = images.find_map(|image| image.boot.as_ref()).map(api::Boot::from) else {
        let way_out = "name a kernel (--kernel), or give the image one (maru image edit)";
        return Err(bad("there is no kernel, and no disk is based on an image that has one", way_out));
    };
    let command_line = if wanted.command_line.is_empty() { usual.command_line } else { wanted.command_line.clone() };
    boot(&api::Boot { kernel: usual.kernel, initrd: wanted.initrd.clone().or(usual.initrd), command_line }, volumes)
}

fn check_memory(spec: &api::VmSpec) -> Result<(), Cause> {
    let max = spec.max_memory_bytes.unwrap_or(spec.memory_bytes);
    for bytes in [spec.memory_bytes, max] {
        if bytes < MEMORY_MIN || !bytes.is_multiple_of(MEMORY_STEP) {
            return Err(bad(format!("memory of {bytes} bytes"), "give it a multiple of 2 MiB, and 64 MiB at least"));
        }
    }
    if max < spec.memory_bytes {
        let message = format!("memory of {} bytes, of at most {max}", spec.memory_bytes);
        return Err(bad(message, "give it no more than its maximum"));
    }
    if spec.balloon_bytes > 0 && !spec.balloon {
        return Err(bad("a balloon that takes memory, of a VM that has none", "give it one: balloon"));
    }
    if spec.balloon_bytes > spec.memory_bytes {
        return Err(bad("a balloon that takes more memory than the VM has", "have it take less"));
    }
    Ok(())
}

/// The ids that are given, and the first free ones of the form `disk0` for the others.
fn ids<'a>(kind: &str, given: impl Iterator<Item = Option<&'a str>>) -> Vec<String> {
    let given: Vec<Option<&str>> = given.collect();
    let mut free = (0..).map(|number| format!("{kind}{number}")).filter(|id| !given.contains(&Some(id)));
    given.iter().map(|id| id.map_or_else(|| free.next().unwrap_or_default(), String::from)).collect()
}

/// A place for a new disk that nothing is in.
fn new_file(
    name: &str,
    id: &str,
    format: Option<api::DiskFormat>,
    volume: Option<&str>,
    volumes: &Volumes,
) -> Result<FileRef, Cause> {
    let names = volumes.names();
    let volume = names.iter().find(|name| *name == volume.unwrap_or("local")).or(names.first());
    let volume = volume.ok_or_else(|| Cause::new("no-volume", "there is no volume", "start marud with one"))?;
    let end = match format {
        Some(api::DiskFormat::Raw) => "raw",
        Some(api::DiskFormat::Vhd) => "vhd",
        Some(api::DiskFormat::Vhdx) | None => "vhdx",
    };
    let mut suffixes = std::iter::once(String::new()).chain((2..).map(|number| format!("-{number}")));
    loop {
        let suffix = suffixes.next().unwrap_or_default();
        let file = FileRef { volume: volume.clone(), path: format!("{name}/{id}{suffix}.{end}") };
        if std::fs::symlink_metadata(volumes.place(&file)?).is_err() {
            return Ok(file);
        }
    }
}

/// Checks a VM's name.
pub fn check_name(name: &str) -> Result<(), Cause> {
    let way_out = "use 1 to 64 letters, digits, '-', '_' and '.'";
    // What names a VM in an address is its name or its id.
    if check_id(name).is_err() || Uuid::parse_str(name).is_ok() || matches!(name, "." | ".." | "import") {
        return Err(Cause::new("bad-name", format!("'{name}' cannot be a VM's name"), way_out));
    }
    Ok(())
}

fn disk(disk: &api::Disk, id: String, file: FileRef) -> DiskRecord {
    DiskRecord {
        id,
        file,
        format: disk.format.map(|format| match format {
            api::DiskFormat::Raw => FormatRecord::Raw,
            api::DiskFormat::Vhdx => FormatRecord::Vhdx,
            api::DiskFormat::Vhd => FormatRecord::Vhd,
        }),
        read_only: disk.read_only,
        direct: disk.direct,
        parents: Vec::new(),
    }
}

/// The address of a VM's network card with this number.
pub fn own_mac(vm: Uuid, index: usize) -> String {
    let [.., a, b, c] = vm.into_bytes();
    MacAddress([0x52, 0x54, 0x00, a, b, c.wrapping_add(index as u8)]).to_string()
}

fn nets(spec: &api::VmSpec, vm: Uuid) -> Result<Vec<NetRecord>, Cause> {
    let given: Vec<&str> = spec.nets.iter().filter_map(|net| net.mac.as_deref()).collect();
    let mut free = (0..).map(|index| own_mac(vm, index)).filter(|mac| !given.contains(&mac.as_str()));
    let ids = ids("net", spec.nets.iter().map(|net| net.id.as_deref()));
    let nets = spec.nets.iter().zip(ids).map(|(net, id)| {
        let attachment = attachment(net, &id)?;
        let mac = net.mac.clone().or_else(|| free.next()).unwrap_or_default();
        Ok(NetRecord { id, mac, name: net.name.clone(), attachment, disconnected: net.disconnected })
    });
    nets.collect()
}

/// What a network card is to be on.
fn attachment(net: &api::Net, id: &str) -> Result<AttachmentRecord, Cause> {
    match (&net.switch, &net.tap) {
        (Some(switch), None) => {
            if id.len() > MAX_NET_ID {
                let way_out = format!("give it one of {MAX_NET_ID} bytes at most");
                return Err(Cause::new("bad-vm", format!("the network card '{id}' on a switch has a long id"), way_out));
            }
            let policy = policy::record(&net.policy.clone().unwrap_or_default())?;
            Ok(AttachmentRecord::Switch { switch: switch.clone(), policy: policy.into() })
        }
        (None, Some(_)) if net.policy.is_some() => {
            Err(bad("a policy of a network card on a TAP", "attach it to a switch, which keeps to policies; or leave it out"))
        }
        (None, Some(tap)) if is_interface(tap) => Ok(AttachmentRecord::Tap { tap: tap.clone() }),
        (None, Some(tap)) => Err(bad(format!("'{tap}' is no name of a TAP"), "name a TAP of this host")),
        (Some(_), Some(_)) => Err(bad("a network card that is on a switch and on a TAP", "name one of them")),
        (None, None) => Err(bad("a network card that is on nothing", "name a switch of this host, or a TAP")),
    }
}

/// What the monitor of a VM is told. The sockets of its network cards on switches are in this directory.
pub fn monitor(vm: &VmRecord, volumes: &Volumes, sockets: &Path) -> Result<VmConfig, Cause> {
    monitor_with(vm, volumes, sockets, &|file| volumes.find(file))
}

/// The same, with other places for the files of disks.
fn monitor_with(
    vm: &VmRecord,
    volumes: &Volumes,
    sockets: &Path,
    find: &dyn Fn(&FileRef) -> Result<PathBuf, Cause>,
) -> Result<VmConfig, Cause> {
    let console = match vm.console {
        ConsoleRecord::Serial => ConsoleConfig::Serial,
        ConsoleRecord::Virtio => ConsoleConfig::Virtio,
    };
    let config = VmConfig {
        name: vm.name.clone(),
        cpus: CpuConfig { count: vm.cpus, max: vm.max_cpus, threads_per_core: 1, sockets: 1, features: vm.cpu_features.clone() },
        memory: MemoryConfig {
            size: vm.memory_bytes,
            hotplug_size: vm.max_memory_bytes.map_or(0, |max| max.saturating_sub(vm.memory_bytes)),
            huge_pages: false,
        },
        boot: BootConfig {
            kernel: volumes.find(&vm.boot.kernel)?,
            initrd: vm.boot.initrd.as_ref().map(|initrd| volumes.find(initrd)).transpose()?,
            command_line: command_line(&vm.boot.command_line, console),
        },
        disks: vm
            .disks
            .iter()
            .map(|disk| Ok(monitor_disk(disk, &vm.resources, find(&disk.file)?)))
            .collect::<Result<_, Cause>>()?,
        nets: vm.nets.iter().map(|net| monitor_net(net, &vm.resources, sockets)).collect::<Result<_, _>>()?,
        console,
        rng: true,
        balloon: vm.balloon,
        guest_agent: vm.guest_agent,
        vsock: None,
        on_reset: OnReset::Restart,
    };
    config.check().map_err(|error| bad(error.to_string(), "change that"))?;
    Ok(config)
}

/// What a monitor is told of a disk whose file is there.
pub fn monitor_disk(disk: &DiskRecord, resources: &ResourcesRecord, path: PathBuf) -> DiskConfig {
    DiskConfig {
        id: disk.id.clone(),
        path,
        format: disk.format.map(|format| match format {
            FormatRecord::Raw => DiskFormat::Raw,
            FormatRecord::Vhdx => DiskFormat::Vhdx,
            FormatRecord::Vhd => DiskFormat::Vhd,
        }),
        read_only: disk.read_only,
        direct: disk.direct,
        queues: 0,
        serial: None,
        slot: None,
        copy_on_read: false,
        limits: resources::disk(resources, &disk.id),
    }
}

/// What a monitor is told of a network card.
pub fn monitor_net(net: &NetRecord, resources: &ResourcesRecord, sockets: &Path) -> Result<NetConfig, Cause> {
    let mac: MacAddress = net.mac.parse().map_err(|reason: String| bad(reason, "give it another address, or none"))?;
    let backend = match &net.attachment {
        AttachmentRecord::Tap { tap } => NetBackend::Tap(tap.clone()),
        AttachmentRecord::Switch { .. } => NetBackend::VhostUser(sockets.join(&net.id)),
    };
    let limits = resources::net(resources, &net.id);
    let (id, name) = (net.id.clone(), net.name.clone());
    Ok(NetConfig { id, mac, name, queue_pairs: 1, mtu: None, backend, slot: None, limits })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volumes(directory: &std::path::Path) -> Volumes {
        let mut volumes = Volumes::default();
        volumes.add(&format!("local={}", directory.display())).unwrap();
        for name in ["vmlinuz", "root.raw"] {
            std::fs::write(directory.join(name), "").unwrap();
        }
        volumes
    }

    fn spec(change: impl Fn(&mut api::VmSpec)) -> api::VmSpec {
        let mut spec =
            serde_json::from_str(r#"{"name":"web","memory_bytes":67108864,"boot":{"kernel":"local:vmlinuz"}}"#).unwrap();
        change(&mut spec);
        spec
    }

    #[test]
    fn a_small_specification_makes_a_vm_with_everything_that_it_needs() {
        let directory = tempfile::tempdir().unwrap();
        let volumes = volumes(directory.path());
        let mut wanted = spec(|_| {});
        wanted.disks = serde_json::from_str(r#"[{"file":"local:root.raw"}]"#).unwrap();
        wanted.nets = serde_json::from_str(r#"[{"tap":"tap0"},{"tap":"tap1"}]"#).unwrap();
        let vm = record(&wanted, &volumes, &[]).unwrap().vm;
        let config = monitor(&vm, &volumes, Path::new("/")).unwrap();
        assert_eq!((config.cpus.count, config.memory.size, config.boot.command_line.as_str()), (1, 64 << 20, "console=ttyS0"));
        assert_eq!((config.disks[0].id.as_str(), config.nets[1].id.as_str()), ("disk0", "net1"));
        assert_ne!(config.nets[0].mac, config.nets[1].mac);
        assert_eq!(record(&vm.spec(), &volumes, &[]).unwrap().vm.spec(), vm.spec(), "what is shown can be created again");
    }

    #[test]
    fn what_makes_no_vm_is_refused_with_the_reason() {
        let directory = tempfile::tempdir().unwrap();
        let volumes = volumes(directory.path());
        let code = |change: &dyn Fn(&mut api::VmSpec)| record(&spec(change), &volumes, &[]).unwrap_err().code;
        for name in ["", "a b", "a/b", "..", "import", "7d9b5e0a-53f2-4d9e-9f0f-3f6f3a3a2b11"] {
            assert_eq!(code(&|vm| vm.name = name.into()), "bad-name", "{name}");
        }
        assert_eq!(code(&|vm| vm.cpus = 0), "bad-vm");
        assert_eq!(code(&|vm| vm.max_cpus = Some(0)), "bad-vm");
        assert_eq!(code(&|vm| vm.memory_bytes = 1 << 20), "bad-vm");
        assert_eq!(code(&|vm| vm.memory_bytes = (64 << 20) + 1), "bad-vm");
        assert_eq!(code(&|vm| vm.max_memory_bytes = Some(62 << 20)), "bad-vm");
        assert_eq!(code(&|vm| vm.balloon_bytes = 1), "bad-vm");
        assert_eq!(code(&|vm| vm.boot = api::Boot::default()), "bad-vm");
        assert_eq!(code(&|vm| vm.boot.kernel = "/etc/passwd".into()), "bad-file");
        assert_eq!(code(&|vm| vm.boot.kernel = "local:nothing".into()), "no-file");
        let disk = |id: &str| api::Disk {
            id: Some(id.into()),
            file: "local:root.raw".into(),
            size_bytes: None,
            image: None,
            format: None,
            read_only: true,
            direct: false,
        };
        assert_eq!(code(&|vm| vm.disks = vec![disk("a"), disk("a")]), "bad-vm");
        assert_eq!(code(&|vm| vm.disks = vec![disk("a/b")]), "bad-vm");
        let net = |mac: Option<&str>, tap: &str| api::Net {
            id: None,
            mac: mac.map(String::from),
            tap: Some(tap.into()),
            ..api::Net::default()
        };
        let weight = |cpu_weight| api::Resources { cpu_weight, ..api::Resources::default() };
        assert_eq!(code(&|vm| vm.resources = weight(0)), "bad-resources");
        assert_eq!(code(&|vm| vm.resources.cpu_reserve_percent = 101), "bad-resources", "more than its one vCPU");
        assert_eq!(code(&|vm| vm.resources.disks = [("disk0".into(), api::DiskLimits::default())].into()), "bad-resources");
        assert_eq!(code(&|vm| vm.nets = vec![net(None, "../x")]), "bad-vm");
        assert_eq!(code(&|vm| vm.nets = vec![net(Some("53:54:00:00:00:00"), "tap0")]), "bad-vm");
    }
}
