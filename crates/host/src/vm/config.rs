//! From what the API is told to what is stored, and from there to what a monitor is told.

use time::OffsetDateTime;
use uuid::Uuid;
use vmm::config::{
    BootConfig, ConsoleConfig, DiskConfig, DiskFormat, MacAddress, NetBackend, NetConfig, OnReset, VmConfig, check_id,
};
use vmm::cpu::CpuConfig;
use vmm::launch::command_line;
use vmm::memory::MemoryConfig;

use super::resources;
use crate::records::{BootRecord, Cause, ConsoleRecord, DiskRecord, FormatRecord, NetRecord, Power, ResourcesRecord, VmRecord};
use crate::volumes::Volumes;

const MIB: u64 = 1 << 20;
/// What the memory of a VM is a multiple of.
const MEMORY_STEP: u64 = 2 * MIB;
/// What it has at least.
const MEMORY_MIN: u64 = 64 * MIB;
/// Disks and network cards that a VM may have: it has 26 PCI slots for them.
const MAX_DEVICES: usize = 26;
/// The kernel's limit for names of network interfaces, without the zero at the end.
const INTERFACE_NAME: usize = 15;
/// Linux takes no longer command line on x86.
const MAX_COMMAND_LINE: usize = 2047;

fn bad(message: impl Into<String>, way_out: &str) -> Cause {
    Cause::new("bad-vm", message, way_out)
}

/// Checks what a VM is to be, and gives it an id.
pub fn record(spec: &api::VmSpec, volumes: &Volumes) -> Result<VmRecord, Cause> {
    check_name(&spec.name)?;
    let id = Uuid::new_v4();
    let max_cpus = spec.max_cpus.unwrap_or(spec.cpus);
    if spec.cpus == 0 || max_cpus < spec.cpus {
        return Err(bad(
            format!("{} vCPUs of at most {max_cpus}", spec.cpus),
            "give it one at least, and no more than its maximum",
        ));
    }
    if spec.memory_bytes < MEMORY_MIN || !spec.memory_bytes.is_multiple_of(MEMORY_STEP) {
        let message = format!("memory of {} bytes", spec.memory_bytes);
        return Err(bad(message, "give it a multiple of 2 MiB, and 64 MiB at least"));
    }
    if spec.disks.len() + spec.nets.len() > MAX_DEVICES {
        return Err(bad(format!("more than {MAX_DEVICES} disks and network cards"), "give it fewer"));
    }
    if spec.boot.command_line.len() > MAX_COMMAND_LINE || spec.boot.command_line.contains('\0') {
        return Err(bad(format!("a command line of {} bytes", spec.boot.command_line.len()), "give it 2047 at most"));
    }
    let vm = VmRecord {
        id,
        name: spec.name.clone(),
        cpus: spec.cpus,
        max_cpus,
        memory_bytes: spec.memory_bytes,
        boot: BootRecord {
            kernel: volumes.parse(&spec.boot.kernel)?,
            initrd: spec.boot.initrd.as_deref().map(|initrd| volumes.parse(initrd)).transpose()?,
            command_line: spec.boot.command_line.clone(),
        },
        disks: spec.disks.iter().enumerate().map(|(index, disk)| self::disk(disk, index, volumes)).collect::<Result<_, _>>()?,
        nets: spec.nets.iter().enumerate().map(|(index, net)| self::net(net, index, id)).collect::<Result<_, _>>()?,
        console: match spec.console {
            api::Console::Serial => ConsoleRecord::Serial,
            api::Console::Virtio => ConsoleRecord::Virtio,
        },
        balloon: spec.balloon,
        power: Power::Off,
        created_at: OffsetDateTime::now_utc(),
        started_at: None,
        last_end: None,
        saved: None,
        resources: ResourcesRecord::default(),
    };
    let vm = VmRecord { resources: resources::record(&spec.resources, &vm)?, ..vm };
    // What a start would refuse is better refused now.
    monitor(&vm, volumes)?;
    Ok(vm)
}

/// Checks a VM's name.
pub fn check_name(name: &str) -> Result<(), Cause> {
    let way_out = "use 1 to 64 letters, digits, '-', '_' and '.'";
    // What names a VM in an address is its name or its id.
    if check_id(name).is_err() || Uuid::parse_str(name).is_ok() || matches!(name, "." | "..") {
        return Err(Cause::new("bad-name", format!("'{name}' cannot be a VM's name"), way_out));
    }
    Ok(())
}

fn disk(disk: &api::Disk, index: usize, volumes: &Volumes) -> Result<DiskRecord, Cause> {
    Ok(DiskRecord {
        id: disk.id.clone().unwrap_or_else(|| format!("disk{index}")),
        file: volumes.parse(&disk.file)?,
        format: disk.format.map(|format| match format {
            api::DiskFormat::Raw => FormatRecord::Raw,
            api::DiskFormat::Vhdx => FormatRecord::Vhdx,
            api::DiskFormat::Vhd => FormatRecord::Vhd,
        }),
        read_only: disk.read_only,
        direct: disk.direct,
    })
}

/// The address of a VM's network card with this number.
pub fn own_mac(vm: Uuid, index: usize) -> String {
    let [.., a, b, c] = vm.into_bytes();
    MacAddress([0x52, 0x54, 0x00, a, b, c.wrapping_add(index as u8)]).to_string()
}

fn net(net: &api::Net, index: usize, vm: Uuid) -> Result<NetRecord, Cause> {
    let tap = &net.tap;
    if tap.is_empty() || tap.len() > INTERFACE_NAME || !tap.chars().all(|c| c.is_ascii_graphic() && c != '/') {
        return Err(bad(format!("'{tap}' is no name of a TAP"), "name a TAP of this host"));
    }
    Ok(NetRecord {
        id: net.id.clone().unwrap_or_else(|| format!("net{index}")),
        mac: net.mac.clone().unwrap_or_else(|| own_mac(vm, index)),
        tap: tap.clone(),
    })
}

/// What the monitor of a VM is told.
pub fn monitor(vm: &VmRecord, volumes: &Volumes) -> Result<VmConfig, Cause> {
    let console = match vm.console {
        ConsoleRecord::Serial => ConsoleConfig::Serial,
        ConsoleRecord::Virtio => ConsoleConfig::Virtio,
    };
    let config = VmConfig {
        name: vm.name.clone(),
        cpus: CpuConfig { count: vm.cpus, max: vm.max_cpus, threads_per_core: 1, sockets: 1 },
        memory: MemoryConfig { size: vm.memory_bytes, hotplug_size: 0, huge_pages: false },
        boot: BootConfig {
            kernel: volumes.find(&vm.boot.kernel)?,
            initrd: vm.boot.initrd.as_ref().map(|initrd| volumes.find(initrd)).transpose()?,
            command_line: command_line(&vm.boot.command_line, console),
        },
        disks: vm.disks.iter().map(|disk| monitor_disk(disk, &vm.resources, volumes)).collect::<Result<_, _>>()?,
        nets: vm.nets.iter().map(|net| monitor_net(net, &vm.resources)).collect::<Result<_, _>>()?,
        console,
        rng: true,
        balloon: vm.balloon,
        vsock: None,
        on_reset: OnReset::Restart,
    };
    config.check().map_err(|error| bad(error.to_string(), "change that"))?;
    Ok(config)
}

fn monitor_disk(disk: &DiskRecord, resources: &ResourcesRecord, volumes: &Volumes) -> Result<DiskConfig, Cause> {
    Ok(DiskConfig {
        id: disk.id.clone(),
        path: volumes.find(&disk.file)?,
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
    })
}

fn monitor_net(net: &NetRecord, resources: &ResourcesRecord) -> Result<NetConfig, Cause> {
    let mac: MacAddress = net.mac.parse().map_err(|reason: String| bad(reason, "give it another address, or none"))?;
    let (backend, limits) = (NetBackend::Tap(net.tap.clone()), resources::net(resources, &net.id));
    Ok(NetConfig { id: net.id.clone(), mac, queue_pairs: 1, mtu: None, backend, slot: None, limits })
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
        let vm = record(&wanted, &volumes).unwrap();
        let config = monitor(&vm, &volumes).unwrap();
        assert_eq!((config.cpus.count, config.memory.size, config.boot.command_line.as_str()), (1, 64 << 20, "console=ttyS0"));
        assert_eq!((config.disks[0].id.as_str(), config.nets[1].id.as_str()), ("disk0", "net1"));
        assert_ne!(config.nets[0].mac, config.nets[1].mac);
        assert_eq!(record(&vm.spec(), &volumes).unwrap().spec(), vm.spec(), "what is shown can be created again");
    }

    #[test]
    fn what_makes_no_vm_is_refused_with_the_reason() {
        let directory = tempfile::tempdir().unwrap();
        let volumes = volumes(directory.path());
        let code = |change: &dyn Fn(&mut api::VmSpec)| record(&spec(change), &volumes).unwrap_err().code;
        for name in ["", "a b", "a/b", "..", "7d9b5e0a-53f2-4d9e-9f0f-3f6f3a3a2b11"] {
            assert_eq!(code(&|vm| vm.name = name.into()), "bad-name", "{name}");
        }
        assert_eq!(code(&|vm| vm.cpus = 0), "bad-vm");
        assert_eq!(code(&|vm| vm.max_cpus = Some(0)), "bad-vm");
        assert_eq!(code(&|vm| vm.memory_bytes = 1 << 20), "bad-vm");
        assert_eq!(code(&|vm| vm.memory_bytes = (64 << 20) + 1), "bad-vm");
        assert_eq!(code(&|vm| vm.boot.kernel = "/etc/passwd".into()), "bad-file");
        assert_eq!(code(&|vm| vm.boot.kernel = "local:nothing".into()), "no-file");
        let disk = |id: &str| api::Disk {
            id: Some(id.into()),
            file: "local:root.raw".into(),
            format: None,
            read_only: true,
            direct: false,
        };
        assert_eq!(code(&|vm| vm.disks = vec![disk("a"), disk("a")]), "bad-vm");
        assert_eq!(code(&|vm| vm.disks = vec![disk("a/b")]), "bad-vm");
        let net = |mac: Option<&str>, tap: &str| api::Net { id: None, mac: mac.map(String::from), tap: tap.into() };
        let weight = |cpu_weight| api::Resources { cpu_weight, ..api::Resources::default() };
        assert_eq!(code(&|vm| vm.resources = weight(0)), "bad-resources");
        assert_eq!(code(&|vm| vm.resources.cpu_reserve_percent = 101), "bad-resources", "more than its one vCPU");
        assert_eq!(code(&|vm| vm.resources.disks = [("disk0".into(), api::DiskLimits::default())].into()), "bad-resources");
        assert_eq!(code(&|vm| vm.nets = vec![net(None, "../x")]), "bad-vm");
        assert_eq!(code(&|vm| vm.nets = vec![net(Some("53:54:00:00:00:00"), "tap0")]), "bad-vm");
    }
}
