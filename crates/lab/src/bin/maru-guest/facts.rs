//! What the guest sees of its machine.

use std::fs;
use std::time::{Duration, Instant};

use lab::pid1::{self, CommandLine};
use serde_json::{Value, json};

/// How long a device that the command line names may take to appear.
const PATIENCE: Duration = Duration::from_secs(5);

fn number(path: &str) -> u64 {
    fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

fn text(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

/// Processors, memory, disks and NICs.
pub fn gather() -> Value {
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total: u64 = memory
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|kib| kib.parse().ok())
        .unwrap_or(0);
    let nics: Vec<Value> = pid1::nics()
        .into_iter()
        .map(|nic| {
            // The device behind that of virtio: the PCI device.
            let pci = format!("/sys/class/net/{}/device/..", nic.name);
            let (label, index) = (text(&format!("{pci}/label")), number(&format!("{pci}/acpi_index")));
            json!({ "name": nic.name, "mac": nic.mac, "label": label, "acpi_index": index })
        })
        .collect();
    let disks: Vec<Value> = disk_names()
        .into_iter()
        .map(|name| {
            json!({
                "name": name,
                "size_bytes": number(&format!("/sys/block/{name}/size")) * 512,
                "read_only": number(&format!("/sys/block/{name}/ro")) == 1,
                "serial": text(&format!("/sys/block/{name}/serial")),
            })
        })
        .collect();
    json!({
        "cpus": count_list(&text("/sys/devices/system/cpu/online")),
        "mem_total_kib": total,
        "disks": disks,
        "nics": nics,
        "rng": text("/sys/class/misc/hw_random/rng_current"),
        "kernel": text("/proc/sys/kernel/osrelease"),
    })
}

/// Prints the facts as one line of JSON.
pub fn print() {
    println!("maru-guest: facts {}", gather());
}

/// Drivers find their devices in the background: waits for those that the command line names.
pub fn wait_for_devices(line: &CommandLine) {
    let deadline = Instant::now() + PATIENCE;
    let nics = line.all("maru.ip").count();
    let ready = || {
        line.all("maru.disk").chain(line.get("maru.root")).all(|name| fs::metadata(format!("/dev/{name}")).is_ok())
            && pid1::nics().len() >= nics
    };
    while !ready() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn disk_names() -> Vec<String> {
    let entries = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<String> =
        names.filter(|name| !["loop", "ram", "zram"].iter().any(|kind| name.starts_with(kind))).collect();
    names.sort();
    names
}

/// How many numbers a kernel list such as `0-2,5` has.
fn count_list(list: &str) -> usize {
    let parts = list.split(',').filter(|part| !part.is_empty());
    parts
        .map(|part| match part.split_once('-') {
            Some((first, last)) => match (first.parse::<usize>(), last.parse::<usize>()) {
                (Ok(first), Ok(last)) => last.saturating_sub(first) + 1,
                _ => 0,
            },
            None => 1,
        })
        .sum()
}

#[cfg(test)]
mod tests {
    #[test]
    fn kernel_lists_are_counted() {
        for (list, count) in [("0", 1), ("0-3", 4), ("0-2,5", 4), ("", 0)] {
            assert_eq!(super::count_list(list), count, "{list}");
        }
    }
}
