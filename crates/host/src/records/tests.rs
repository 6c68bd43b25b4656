//! The stored forms, which never change: what is here must be readable for ever.

use ::switch::team::config::Datapath;
use store::record::{from_bytes, to_bytes};
use time::macros::datetime;
use uuid::uuid;

use super::*;

fn stays<T: Record + PartialEq + std::fmt::Debug>(record: &T, golden: &str) {
    assert_eq!(String::from_utf8(to_bytes(record)).unwrap(), golden.trim());
    assert_eq!(from_bytes::<T>("key", golden.trim().as_bytes()).unwrap(), *record);
}

const AT: time::OffsetDateTime = datetime!(2026-11-27 08:00:00.5 UTC);
const VM: Uuid = uuid!("7d9b5e0a-53f2-4d9e-9f0f-3f6f3a3a2b11");
const TASK: Uuid = uuid!("0199a7c2-8a52-7c3e-8a5d-0b2f6f3d1c22");

#[test]
fn records_of_version_1_are_read_and_written_as_ever() {
    let steady = |per_second| RateRecord { per_second, burst: None };
    let burst = RateRecord { burst: Some((20, 60)), ..steady(10) };
    let file = |path: &str| FileRef { volume: "local".into(), path: path.into() };
    let vm = VmRecord {
        id: VM,
        name: "web".into(),
        cpus: 2,
        max_cpus: 4,
        memory_bytes: 1 << 30,
        max_memory_bytes: Some(2 << 30),
        boot: BootRecord { kernel: file("vmlinuz"), initrd: Some(file("initrd.img")), command_line: "quiet".into() },
        disks: vec![DiskRecord {
            id: "disk0".into(),
            file: file("web/root.vhdx"),
            format: Some(FormatRecord::Vhdx),
            read_only: false,
            direct: true,
            parents: vec![ParentRecord { file: file("base.vhdx"), inherited: true }],
        }],
        nets: vec![
            NetRecord {
                id: "net0".into(),
                mac: "52:54:00:12:34:56".into(),
                name: None,
                attachment: AttachmentRecord::Tap { tap: "tap0".into() },
                disconnected: true,
            },
            NetRecord {
                id: "net1".into(),
                mac: "52:54:00:12:34:57".into(),
                name: None,
                attachment: AttachmentRecord::Switch {
                    switch: "lan".into(),
                    policy: ::switch::policy::PortPolicy::default().into(),
                },
                disconnected: false,
            },
        ],
        console: ConsoleRecord::Serial,
        balloon: true,
        guest_agent: true,
        cloud_init: Some(CloudInitRecord {
            host_name: Some("web.example".into()),
            user: Some("alice".into()),
            ssh_keys: vec!["ssh-rsa AAAA".into()],
            password_hash: Some("$6$x".into()),
            nets: vec![CloudNetRecord {
                id: "net0".into(),
                addresses: vec!["10.0.0.5/24".into()],
                gateway: Some("10.0.0.1".into()),
                name_servers: vec!["10.0.0.2".into()],
            }],
            user_data: None,
        }),
        balloon_bytes: 1 << 20,
        auto_start: AutoStartRecord { policy: AutoStartPolicyRecord::IfItRan, delay_seconds: 5, order: 1 },
        own_files: vec![file("web/kernel")],
        made_by: Some(TASK),
        power: Power::On,
        created_at: AT,
        started_at: Some(AT),
        last_end: Some(EndingRecord { at: AT, reason: "the guest powered off".into(), failed: false }),
        saved: Some(SavedRecord { file: file("vms/1/a.saved"), phase: SavedPhase::Saved, bytes: 4096, at: AT }),
        resources: ResourcesRecord {
            cpu: CpuRecord { weight: 300, cap_percent: Some(150), reserve_percent: 50 },
            disks: [("disk0".into(), DiskLimitsRecord { iops: Some(steady(500)), bandwidth: None })].into(),
            nets: [("net0".into(), NetLimitsRecord { receive: None, transmit: Some(burst) })].into(),
        },
        host: None,
        owned_at: None,
        cpu_features: None,
    };
    stays(&vm, include_str!("golden/vm-1.json"));
    let named = NetRecord { name: Some("storage".into()), ..vm.nets[0].clone() };
    let golden = r#"{"id":"net0","mac":"52:54:00:12:34:56","name":"storage","tap":"tap0","disconnected":true}"#;
    assert_eq!(serde_json::to_string(&named).unwrap(), golden);
    assert_eq!(serde_json::from_str::<NetRecord>(golden).unwrap(), named);
    let task = TaskRecord {
        id: TASK,
        vm: Some(VM),
        vm_name: Some("web".into()),
        image: None,
        host: None,
        operation: OperationRecord::ShutDown { grace_seconds: 60 },
        state: TaskStateRecord::Failed,
        progress: Some(ProgressRecord { done: 1, total: 2 }),
        cancel_requested: true,
        error: Some(Cause::new("vm-off", "it is off", "start it")),
        created_by: "admin".into(),
        created_at: AT,
        started_at: Some(AT),
        ended_at: None,
        log: vec![LogRecord { at: AT, text: "waits".into() }],
    };
    stays(&task, include_str!("golden/task-1.json"));
    let event = EventRecord { at: AT, ..EventRecord::now(EventKind::VmStarted, "runs") }.of_vm(VM, "web").by_task(Some(TASK));
    stays(&event, include_str!("golden/event-1.json"));
    let token = TokenRecord { name: "admin".into(), role: RoleRecord::Admin, secret_sha256: "00ff".into(), created_at: AT };
    stays(&token, include_str!("golden/token-1.json"));
    stays(&OnceRecord { request_sha256: "00ff".into(), made: TASK, at: AT }, include_str!("golden/once-1.json"));
    let seen =
        SeenRecord { run: "boot/812/4711".into(), cpu_us: 5, devices: [("disk0".into(), [("writes".into(), 4)].into())].into() };
    let used = UsedRecord { cpu_us: 9, disk_writes: 8, ..UsedRecord::default() };
    stays(&UsageRecord { since: AT, at: AT, used, seen: Some(seen) }, include_str!("golden/usage-1.json"));
    let place = Some(PlaceRecord::Directory { path: "/srv/vms".into() });
    let volume = VolumeRecord { place, level: LevelRecord::Warning, ..VolumeRecord::new("big") };
    stays(&volume, include_str!("golden/volume-1.json"));
    let image = ImageRecord {
        id: VM,
        name: "debian12".into(),
        description: "Debian 12".into(),
        file: file("images/1.vhdx"),
        virtual_bytes: 1 << 31,
        source: "upload".into(),
        source_format: ImageFormatRecord::Qcow2,
        source_bytes: 1 << 20,
        sha256: "00ff".into(),
        boot: Some(BootRecord { kernel: file("vmlinuz"), initrd: None, command_line: "quiet".into() }),
        created_by: "admin".into(),
        created_at: AT,
        deleting: true,
    };
    stays(&image, include_str!("golden/image-1.json"));
    let kind = SwitchKindRecord::Internal { interface: "lan0".into(), address: Some("10.0.0.1/24".into()) };
    stays(&SwitchRecord { name: "lan".into(), kind }, include_str!("golden/switch-1.json"));
    let uplink = UplinkRecord::Nic { uplink: "eth1".into() };
    let kind = SwitchKindRecord::External { uplink: uplink.clone(), capacity_bps: 0, datapath: Datapath::default() };
    stays(&SwitchRecord { name: "wan".into(), kind }, include_str!("golden/switch-nic-1.json"));
    let kind = SwitchKindRecord::External { uplink, capacity_bps: 0, datapath: Datapath::AfXdp };
    stays(&SwitchRecord { name: "wan".into(), kind }, include_str!("golden/switch-datapath-1.json"));
    let text = r#"{"nics": ["eth1", "eth2"], "mode": "active-standby", "primary": "eth2"}"#;
    let uplink = UplinkRecord::Team { team: serde_json::from_str(text).unwrap() };
    let kind = SwitchKindRecord::External { uplink, capacity_bps: 1_000_000_000, datapath: Datapath::default() };
    stays(&SwitchRecord { name: "wan".into(), kind }, include_str!("golden/switch-team-1.json"));
    let copied = CopiedFile {
        from: file("web/root.vhdx"),
        to: file("vms/1/root.vhdx"),
        bytes: 4096,
        allocated: 2048,
        mode: 0o600,
        there: false,
        owned: true,
        goes: true,
    };
    let phase = CopyPhase::Given { left: true, arrived: false };
    let copy = CopyRecord { id: TASK, vm: VM, from: "h1".into(), to: "h2".into(), files: vec![copied], phase };
    stays(&copy, include_str!("golden/copy-1.json"));
    let operation = OperationRecord::Copy(CopyOperation { to: "h2".into(), volume: Some("fast".into()) });
    assert_eq!(serde_json::to_string(&operation).unwrap(), r#"{"do":"copy","to":"h2","volume":"fast"}"#);
    stays(&NameRecord { vm: VM }, include_str!("golden/name-1.json"));
    let booted = BootedRecord { boot_id: "b".into(), pending: vec![PendingStart { vm: VM, at: AT }] };
    stays(&booted, include_str!("golden/booted-1.json"));
    stays(&Pruned { up_to: 7 }, include_str!("golden/pruned-1.json"));
}
