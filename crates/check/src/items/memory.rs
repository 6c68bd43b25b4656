//! Memory, large pages and NUMA.

use crate::report::{Group, Item, Status};
use crate::root::Root;

fn item(id: &'static str, title: &'static str, status: Status, found: impl Into<String>) -> Item {
    Item::new(Group::Memory, id, title, status, found.into())
}

pub(super) fn items(root: &Root) -> Vec<Item> {
    vec![
        total(root),
        numa(root),
        huge(root, "memory.huge_2m", "Huge pages, 2 MiB", 2048),
        huge(root, "memory.huge_1g", "Huge pages, 1 GiB", 1_048_576),
        transparent(root),
    ]
}

/// A field of a `meminfo` file, in KiB.
fn meminfo(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip_while(|word| word.trim_end_matches(':') != name);
        words.next()?;
        words.next()?.parse().ok()
    })
}

fn gib(kib: u64) -> String {
    format!("{:.1} GiB", kib as f64 / (1 << 20) as f64)
}

fn total(root: &Root) -> Item {
    let text = root.text("/proc/meminfo").unwrap_or_default();
    let found = match (meminfo(&text, "MemTotal"), meminfo(&text, "MemAvailable")) {
        (Some(total), Some(available)) => format!("{}, {} available", gib(total), gib(available)),
        (Some(total), None) => gib(total),
        _ => "unknown".into(),
    };
    item("memory.total", "Memory", Status::Info, found)
}

fn numa(root: &Root) -> Item {
    const FOLDER: &str = "/sys/devices/system/node";
    let nodes: Vec<String> = root
        .names(FOLDER)
        .into_iter()
        .filter(|name| name.strip_prefix("node").is_some_and(|number| number.parse::<u32>().is_ok()))
        .map(|name| {
            let cpus = root.text(&format!("{FOLDER}/{name}/cpulist")).unwrap_or_default();
            let memory = root.text(&format!("{FOLDER}/{name}/meminfo")).unwrap_or_default();
            format!("{name} (CPUs {cpus}, {})", meminfo(&memory, "MemTotal").map_or("?".into(), gib))
        })
        .collect();
    let found = match nodes.len() {
        0 | 1 => "one node".into(),
        _ => nodes.join(", "),
    };
    item("memory.numa", "NUMA", Status::Info, found)
}

fn huge(root: &Root, id: &'static str, title: &'static str, size_kib: u64) -> Item {
    let folder = format!("/sys/kernel/mm/hugepages/hugepages-{size_kib}kB");
    let Some(configured) = root.number(&format!("{folder}/nr_hugepages")) else {
        return item(id, title, Status::Info, "not supported here");
    };
    if configured == 0 {
        let fix = if size_kib == 2048 {
            "`sysctl vm.nr_hugepages=N`, best right after boot".to_owned()
        } else {
            "hugepagesz=1G hugepages=N on the kernel command line".to_owned()
        };
        return item(id, title, Status::Info, "none configured").cost("only VMs that ask for huge pages miss them").fix(fix);
    }
    let free = root.number(&format!("{folder}/free_hugepages")).unwrap_or(0);
    item(id, title, Status::Ok, format!("{configured} configured, {free} free ({})", gib(free.saturating_mul(size_kib))))
}

/// The chosen word of a sysfs choice such as `always [madvise] never`.
fn chosen(text: &str) -> &str {
    text.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map_or(text, |(word, _)| word)
}

fn transparent(root: &Root) -> Item {
    let (id, title) = ("memory.thp", "Transparent huge pages");
    let mode = |name: &str| root.text(&format!("/sys/kernel/mm/transparent_hugepage/{name}"));
    let (Some(private), Some(shared)) = (mode("enabled"), mode("shmem_enabled")) else {
        return item(id, title, Status::Warn, "not in this kernel")
            .cost("guests without huge pages of their own lose some percent to page table walks")
            .fix("a kernel with CONFIG_TRANSPARENT_HUGEPAGE");
    };
    let (private, shared) = (chosen(&private), chosen(&shared));
    let found = format!("{private}; shared memory: {shared}");
    // Guest memory that the switch also maps is shared memory: its mode is the one that counts.
    if matches!(shared, "always" | "within_size" | "advise" | "force") {
        return item(id, title, Status::Ok, found);
    }
    item(id, title, Status::Warn, found)
        .cost("guest memory shared with the virtual switch stays in 4 KiB pages: some percent slower")
        .fix("`echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_read_with_and_without_a_node_prefix() {
        assert_eq!(meminfo("MemTotal:  24 kB\nMemFree: 3 kB", "MemFree"), Some(3));
        assert_eq!(meminfo("Node 0 MemTotal:  17 kB", "MemTotal"), Some(17));
        assert_eq!(meminfo("MemTotal:", "MemTotal"), None);
        assert_eq!(meminfo("", "MemTotal"), None);
    }

    #[test]
    fn the_chosen_mode_is_the_one_in_brackets() {
        assert_eq!(chosen("always [madvise] never"), "madvise");
        assert_eq!(chosen("never"), "never");
        assert_eq!(chosen("a [b"), "a [b");
    }
}
