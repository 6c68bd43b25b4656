//! Passthrough, network and watchdog devices.

use crate::report::{Group, Item, Status};
use crate::root::Root;

fn item(id: &'static str, title: &'static str, status: Status, found: impl Into<String>) -> Item {
    Item::new(Group::Devices, id, title, status, found.into())
}

pub(super) fn items(root: &Root) -> Vec<Item> {
    let groups = root.names("/sys/kernel/iommu_groups").len();
    let mut items = vec![iommu(root, groups)];
    if groups > 0 {
        items.push(interrupt_remapping(root));
    }
    items.push(sriov(root));
    items.push(node(
        root,
        ("devices.vhost_net", "vhost-net", "/dev/vhost-net"),
        "ports without the virtual switch (plain taps) run through user space",
        "`modprobe vhost_net`",
    ));
    items.push(node(
        root,
        ("devices.vhost_vsock", "vhost-vsock", "/dev/vhost-vsock"),
        "host-guest sockets run through user space",
        "`modprobe vhost_vsock`",
    ));
    items.push(node(
        root,
        ("devices.tun", "tun/tap", "/dev/net/tun"),
        "no VM can be put on a bridge of the host's kernel",
        "`modprobe tun`",
    ));
    items.push(watchdog(root));
    items
}

fn iommu(root: &Root, groups: usize) -> Item {
    let (id, title) = ("devices.iommu", "IOMMU");
    if groups > 0 {
        let units = root.names("/sys/class/iommu");
        let units = if units.is_empty() { String::new() } else { format!(" ({})", units.join(", ")) };
        return item(id, title, Status::Ok, format!("{groups} groups{units}"));
    }
    item(id, title, Status::Info, "no groups")
        .cost("no device can be passed through to a VM")
        .fix("turn on VT-d or AMD-Vi in the firmware setup (BIOS); on Intel also intel_iommu=on on the kernel command line")
}

fn interrupt_remapping(root: &Root) -> Item {
    let (id, title) = ("devices.interrupt_remapping", "Interrupt remapping");
    // The kernel names the chips of remapped interrupts IR-*; sysfs does not tell.
    let interrupts = root.text("/proc/interrupts").unwrap_or_default();
    if interrupts.split_whitespace().any(|word| word.starts_with("IR-")) {
        return item(id, title, Status::Ok, "on");
    }
    item(id, title, Status::Warn, "off")
        .cost("a passed-through device could send any interrupt to the host; VFIO refuses it")
        .fix("turn on x2APIC and interrupt remapping in the firmware setup (BIOS); no intremap=off on the kernel command line")
}

fn sriov(root: &Root) -> Item {
    const FOLDER: &str = "/sys/bus/pci/devices";
    let devices: Vec<String> = root
        .names(FOLDER)
        .into_iter()
        .filter_map(|device| {
            let total = root.number(&format!("{FOLDER}/{device}/sriov_totalvfs")).filter(|total| *total > 0)?;
            let used = root.number(&format!("{FOLDER}/{device}/sriov_numvfs")).unwrap_or(0);
            Some(format!("{device} ({used} of {total} in use)"))
        })
        .collect();
    let found = if devices.is_empty() { "no such device".into() } else { devices.join(", ") };
    let status = if devices.is_empty() { Status::Info } else { Status::Ok };
    item("devices.sriov", "SR-IOV", status, found)
}

/// A device file that some VMs may use.
fn node(root: &Root, (id, title, path): (&'static str, &'static str, &'static str), cost: &str, modprobe: &str) -> Item {
    if !root.exists(path) {
        return item(id, title, Status::Info, format!("no {path}")).cost(cost).fix(modprobe);
    }
    if root.writable(path) {
        return item(id, title, Status::Ok, path);
    }
    item(id, title, Status::Info, format!("{path}: this user may not open it"))
        .cost(cost)
        .fix("nothing, if marud runs as root; otherwise a udev rule for the device")
}

fn watchdog(root: &Root) -> Item {
    const FOLDER: &str = "/sys/class/watchdog";
    let (id, title) = ("devices.watchdog", "Watchdog");
    let found: Vec<String> = root
        .names(FOLDER)
        .into_iter()
        .map(|name| match root.text(&format!("{FOLDER}/{name}/identity")) {
            Some(identity) => format!("{name} ({identity})"),
            None => name,
        })
        .collect();
    if !found.is_empty() {
        return item(id, title, Status::Ok, found.join(", "));
    }
    let found = if root.exists("/dev/watchdog") { "/dev/watchdog, unnamed" } else { "none" };
    let item = item(id, title, Status::Warn, found);
    if root.exists("/dev/watchdog") {
        return Item { status: Status::Ok, ..item };
    }
    item.cost("a host that hangs is not reset by itself: its VMs fail over only once it is surely off")
        .fix("turn on the board's watchdog in the firmware setup, or `modprobe softdog`")
}
