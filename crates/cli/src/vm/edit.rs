//! `maru vm edit`.

use std::str::FromStr;

use clap::Args;
use serde_json::{Map, Value, json};

use super::manage::segment;
use crate::options::{AUTO_START_FORM, AutoStartOption, MANAGED_DISK_FORM, MANAGED_NET_FORM, ManagedDisk, ManagedNet};
use crate::remote::{RemoteError, TaskArgs, finish};
use crate::size::ByteSize;

const AFTER_HELP: &str = "\
EXAMPLES
  Two more vCPUs and more memory for a VM that runs:
    maru vm edit web --cpus 4 --memory 4G

  A new disk of 100 GiB; then more of it; then none:
    maru vm edit web --add-disk size=100G,id=data
    maru vm edit web --grow-disk data=200G
    maru vm edit web --remove-disk data

  Another name, and a network card's cable out:
    maru vm edit web --name www --link net0=down

While a VM runs, vCPUs can be added up to --max-cpus, and memory up to --max-memory, which it must have been started with. What cannot be done to a
VM that runs is refused as a whole. A device is removed when the guest has given it back; `maru task cancel` ends the wait. The file of a disk that is
removed stays.";

/// `maru vm edit`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct EditArgs {
    /// Its name or id
    vm: String,
    /// Another name
    #[arg(long)]
    name: Option<String>,
    /// Virtual CPUs
    #[arg(long, value_name = "N")]
    cpus: Option<u32>,
    /// Virtual CPUs that it may have later
    #[arg(long, value_name = "N")]
    max_cpus: Option<u32>,
    /// Memory, with the unit K, M, G or T
    #[arg(long, value_name = "SIZE")]
    memory: Option<ByteSize>,
    /// Memory that it may have later, while it runs
    #[arg(long, value_name = "SIZE")]
    max_memory: Option<ByteSize>,
    /// All that the guest may see of the processors, such as sse2,avx; `host` for what its host has
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    cpu_features: Option<Vec<String>>,
    /// Memory that the balloon takes from the guest
    #[arg(long, value_name = "SIZE")]
    balloon_size: Option<ByteSize>,
    /// Whether to start it with its host, how long after the one before it, and in which order
    #[arg(long, value_name = AUTO_START_FORM)]
    auto_start: Option<AutoStartOption>,
    /// Kernel to boot
    #[arg(long, value_name = "VOLUME:PATH")]
    kernel: Option<String>,
    /// Initial file system; `none` for none
    #[arg(long, value_name = "VOLUME:PATH")]
    initrd: Option<String>,
    /// Kernel command line
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    cmdline: Option<String>,
    /// A disk to add; may be given several times
    #[arg(long = "add-disk", value_name = MANAGED_DISK_FORM)]
    add_disks: Vec<ManagedDisk>,
    /// A disk to remove; its file stays
    #[arg(long = "remove-disk", value_name = "ID")]
    remove_disks: Vec<String>,
    /// A disk to grow
    #[arg(long = "grow-disk", value_name = "ID=SIZE")]
    grow_disks: Vec<Change<ByteSize>>,
    /// A network card to add; may be given several times
    #[arg(long = "add-net", value_name = MANAGED_NET_FORM)]
    add_nets: Vec<ManagedNet>,
    /// A network card to remove
    #[arg(long = "remove-net", value_name = "ID")]
    remove_nets: Vec<String>,
    /// Plug a network card's cable in or out
    #[arg(long = "link", value_name = "ID=up|down")]
    links: Vec<Change<Link>>,
    /// What the guest is told that a network card is called; nothing for no name. Of a VM that is off
    #[arg(long = "net-name", value_name = "ID=NAME")]
    net_names: Vec<Change<String>>,
    #[command(flatten)]
    task: TaskArgs,
}

/// `ID=VALUE`.
#[derive(Clone, Debug)]
struct Change<T> {
    id: String,
    value: T,
}

impl<T: FromStr<Err: ToString>> FromStr for Change<T> {
    type Err = String;

    fn from_str(text: &str) -> Result<Change<T>, String> {
        let (id, value) = text.split_once('=').ok_or("write the device's id, =, and what it is to be")?;
        Ok(Change { id: id.into(), value: value.parse().map_err(|error: T::Err| error.to_string())? })
    }
}

#[derive(Clone, Copy, Debug)]
enum Link {
    Up,
    Down,
}

impl FromStr for Link {
    type Err = String;

    fn from_str(text: &str) -> Result<Link, String> {
        match text {
            "up" => Ok(Link::Up),
            "down" => Ok(Link::Down),
            _ => Err(format!("'{text}' is neither up nor down")),
        }
    }
}

/// Changes it.
pub fn run(args: EditArgs) -> Result<(), RemoteError> {
    let client = args.task.connect.client()?;
    let path = format!("/vms/{}", segment(&args.vm));
    // Lists are sent as a whole: the tag says that they are still those that were read.
    let (vm, tag): (api::Vm, String) = client.get_tagged(&path)?;
    let patch = patch(&args, vm.spec)?;
    finish(&client, client.patch(&path, &tag, &patch)?, &args.task)
}

fn patch(args: &EditArgs, mut spec: api::VmSpec) -> Result<Value, RemoteError> {
    let mut patch = Map::new();
    let mut set = |name: &str, value: Option<Value>| drop(value.and_then(|value| patch.insert(name.into(), value)));
    let size = |size: Option<ByteSize>| size.map(|size| json!(size.0));
    set("name", args.name.as_ref().map(|name| json!(name)));
    set("cpus", args.cpus.map(|count| json!(count)));
    set("max_cpus", args.max_cpus.map(|count| json!(count)));
    set("memory_bytes", size(args.memory));
    set("max_memory_bytes", size(args.max_memory));
    let is_host = |names: &Vec<String>| matches!(names.as_slice(), [name] if name == "host");
    set("cpu_features", args.cpu_features.as_ref().map(|names| if is_host(names) { Value::Null } else { json!(names) }));
    set("balloon_bytes", size(args.balloon_size));
    set("auto_start", args.auto_start.map(|option| serde_json::to_value(option.0)).transpose()?);
    let mut boot = Map::new();
    for (name, value) in [("kernel", &args.kernel), ("initrd", &args.initrd), ("command_line", &args.cmdline)] {
        if let Some(value) = value {
            let none = name == "initrd" && value == "none";
            boot.insert(name.into(), if none { Value::Null } else { json!(value) });
        }
    }
    set("boot", (!boot.is_empty()).then_some(Value::Object(boot)));
    if !(args.add_disks.is_empty() && args.remove_disks.is_empty() && args.grow_disks.is_empty()) {
        for id in &args.remove_disks {
            spec.disks.remove(find(&spec.disks, id, |disk| disk.id.as_deref())?);
        }
        for grow in &args.grow_disks {
            let index = find(&spec.disks, &grow.id, |disk| disk.id.as_deref())?;
            spec.disks[index].size_bytes = Some(grow.value.0);
        }
        spec.disks.extend(args.add_disks.iter().map(|disk| disk.0.clone()));
        set("disks", Some(serde_json::to_value(spec.disks)?));
    }
    if !(args.add_nets.is_empty() && args.remove_nets.is_empty() && args.links.is_empty() && args.net_names.is_empty()) {
        for id in &args.remove_nets {
            spec.nets.remove(find(&spec.nets, id, |net| net.id.as_deref())?);
        }
        for link in &args.links {
            let index = find(&spec.nets, &link.id, |net| net.id.as_deref())?;
            spec.nets[index].disconnected = matches!(link.value, Link::Down);
        }
        for name in &args.net_names {
            let index = find(&spec.nets, &name.id, |net| net.id.as_deref())?;
            spec.nets[index].name = Some(name.value.clone()).filter(|name| !name.is_empty());
        }
        spec.nets.extend(args.add_nets.iter().map(|net| net.0.clone()));
        set("nets", Some(serde_json::to_value(spec.nets)?));
    }
    if patch.is_empty() {
        return Err(RemoteError::NothingToDo);
    }
    Ok(Value::Object(patch))
}

fn find<T>(devices: &[T], id: &str, own: impl Fn(&T) -> Option<&str>) -> Result<usize, RemoteError> {
    devices.iter().position(|device| own(device) == Some(id)).ok_or_else(|| RemoteError::NoDevice {
        id: id.into(),
        known: devices.iter().filter_map(&own).collect::<Vec<_>>().join(", "),
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Edit {
        #[command(flatten)]
        args: EditArgs,
    }

    #[test]
    fn only_what_is_to_change_is_sent_and_lists_as_a_whole() {
        let spec = || -> api::VmSpec {
            serde_json::from_value(json!({
                "name": "web", "memory_bytes": 1, "boot": {"kernel": "k"},
                "disks": [{"id": "disk0", "file": "local:a"}, {"id": "disk1", "file": "local:b"}],
                "nets": [{"id": "net0", "tap": "t", "mac": "m"}],
            }))
            .unwrap()
        };
        let patch = |words: &[&str]| patch(&Edit::parse_from([&["edit", "web"], words].concat()).args, spec());
        assert_eq!(patch(&["--cpus", "2", "--initrd", "none"]).unwrap(), json!({"cpus": 2, "boot": {"initrd": null}}));
        let features = |text: &str| patch(&["--cpu-features", text]).unwrap()["cpu_features"].clone();
        assert_eq!((features("sse2,avx"), features("host")), (json!(["sse2", "avx"]), Value::Null));
        let disks = patch(&["--remove-disk", "disk0", "--grow-disk", "disk1=1G", "--add-disk", "size=2G"]).unwrap();
        let ids: Vec<_> = disks["disks"].as_array().unwrap().iter().map(|disk| (&disk["id"], &disk["size_bytes"])).collect();
        assert_eq!(ids, [(&json!("disk1"), &json!(1 << 30)), (&Value::Null, &json!(2_u64 << 30))]);
        assert_eq!(patch(&["--link", "net0=down"]).unwrap()["nets"][0]["disconnected"], json!(true));
        assert_eq!(patch(&["--net-name", "net0=front"]).unwrap()["nets"][0]["name"], json!("front"));
        let said = patch(&["--remove-disk", "x"]).unwrap_err().to_string();
        assert!(said.contains("'x'") && said.contains("disk0, disk1"), "{said}");
        assert!(matches!(patch(&[]), Err(RemoteError::NothingToDo)));
    }
}
