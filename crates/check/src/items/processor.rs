//! Processors, interrupts and time.

use super::Cpu;
use crate::report::{Group, Item, Status};
use crate::root::Root;

fn item(id: &'static str, title: &'static str, status: Status, found: impl Into<String>) -> Item {
    Item::new(Group::Processor, id, title, status, found.into())
}

pub(super) fn items(root: &Root, cpu: &Cpu) -> Vec<Item> {
    vec![model(cpu), x2apic(cpu), tsc(root, cpu), mitigations(root)]
}

fn model(cpu: &Cpu) -> Item {
    let model = if cpu.model.is_empty() { "unknown" } else { &cpu.model };
    item("cpu.model", "Processors", Status::Info, format!("{} × {model}", cpu.count))
}

fn x2apic(cpu: &Cpu) -> Item {
    let (id, title) = ("cpu.x2apic", "x2APIC");
    if cpu.has("x2apic") {
        return item(id, title, Status::Ok, "yes");
    }
    // Eight bits of APIC id, of which 255 addresses everyone.
    let status = if cpu.count >= 255 { Status::Warn } else { Status::Info };
    item(id, title, status, "no")
        .cost("interrupts cost more, and of more than 255 CPUs the rest lie idle")
        .fix(if cpu.is_guest() { "have the outer hypervisor offer it" } else { "turn on x2APIC in the firmware setup (BIOS)" })
}

fn tsc(root: &Root, cpu: &Cpu) -> Item {
    let (id, title) = ("cpu.tsc", "Time source");
    let clocksource =
        root.text("/sys/devices/system/clocksource/clocksource0/current_clocksource").unwrap_or_else(|| "unknown".into());
    let invariant = cpu.has("constant_tsc") && cpu.has("nonstop_tsc");
    let found = format!("{clocksource}, TSC {}", if invariant { "invariant" } else { "not invariant" });
    // A host that is a VM (or emulated) reads the time of its own host.
    let paravirtual = matches!(clocksource.as_str(), "kvm-clock" | "hyperv_clocksource_tsc_page");
    if (invariant && clocksource == "tsc") || paravirtual {
        return item(id, title, Status::Ok, found);
    }
    let fix = if invariant {
        "see `dmesg | grep -i tsc`: the kernel found the TSC unstable, often a firmware fault"
    } else {
        "a processor with an invariant TSC, or pass it on from the outer hypervisor"
    };
    item(id, title, Status::Warn, found).cost("guests read the time slowly, and their clocks may drift after a move").fix(fix)
}

fn mitigations(root: &Root) -> Item {
    const FOLDER: &str = "/sys/devices/system/cpu/vulnerabilities";
    let (id, title) = ("cpu.vulnerabilities", "Processor flaws");
    let names = root.names(FOLDER);
    if names.is_empty() {
        return item(id, title, Status::Info, "not told");
    }
    let open: Vec<&str> = names
        .iter()
        .filter(|name| root.text(&format!("{FOLDER}/{name}")).is_some_and(|text| text.starts_with("Vulnerable")))
        .map(String::as_str)
        .collect();
    if open.is_empty() {
        return item(id, title, Status::Ok, format!("all {} known ones mitigated", names.len()));
    }
    item(id, title, Status::Warn, format!("open: {}", open.join(", ")))
        .cost("a guest may read memory of the host or of other guests")
        .fix("update the microcode and remove mitigations=off from the kernel command line")
}
