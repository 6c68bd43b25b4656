//! `status` for people.

use std::fmt::Write;

use vmm::control::{DeviceStatus, RunStatus, Status};

use crate::size::ByteSize;

/// The status as aligned lines, and the devices as a table.
pub fn table(status: &Status) -> String {
    let state = match status.state {
        RunStatus::Running => "running",
        RunStatus::Paused => "paused",
    };
    let mut memory = ByteSize(status.memory).to_string();
    if status.hotplug_memory > 0 {
        let _ = write!(memory, " + {} added", ByteSize(status.hotplug_memory));
    }
    if status.balloon > 0 {
        let _ = write!(memory, " - {} in the balloon", ByteSize(status.balloon));
    }
    let confined = if status.confined { "yes" } else { "no" };
    let lines = [
        ("name", status.name.clone()),
        ("state", state.into()),
        ("process", status.pid.to_string()),
        ("vCPUs", status.cpus.to_string()),
        ("memory", memory),
        ("confined", confined.into()),
    ];
    let mut text = String::new();
    for (name, value) in lines {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{name:<10}{value}");
    }
    let header = ["DEVICE", "KIND", "SLOT", "FILES", "COUNTERS"].map(str::to_owned);
    let rows = status.devices.iter().map(|device| {
        let counters: Vec<String> = device.counters.iter().map(|(name, value)| format!("{name}={value}")).collect();
        [device.id.clone(), device.kind.clone(), device.slot.to_string(), files(device), counters.join(" ")]
    });
    let rows: Vec<[String; 5]> = std::iter::once(header).chain(rows).collect();
    if rows.len() > 1 {
        text.push('\n');
        columns(&mut text, &rows);
    }
    text
}

/// A disk's own file, and how many there are below it.
fn files(device: &DeviceStatus) -> String {
    match &device.files[..] {
        [] => "-".into(),
        [own] => own.display().to_string(),
        [own, parents @ ..] => format!("{} (+{})", own.display(), parents.len()),
    }
}

fn columns<const N: usize>(text: &mut String, rows: &[[String; N]]) {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    for row in rows {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        let _ = writeln!(text, "{}", cells.join("  ").trim_end());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> Status {
        Status {
            name: "web".into(),
            pid: 42,
            state: RunStatus::Running,
            cpus: 2,
            memory: 1 << 30,
            hotplug_memory: 0,
            balloon: 0,
            confined: true,
            short_of_space: None,
            devices: Vec::new(),
        }
    }

    #[test]
    fn a_vm_without_devices_is_a_few_lines() {
        let expected = "name      web\nstate     running\nprocess   42\nvCPUs     2\nmemory    1 GiB\nconfined  yes\n";
        assert_eq!(table(&status()), expected);
    }

    #[test]
    fn devices_are_a_table_and_memory_says_what_changed() {
        let device = |id: &str, kind: &str, slot, counters: &[(&str, u64)]| DeviceStatus {
            id: id.into(),
            kind: kind.into(),
            slot,
            files: Vec::new(),
            counters: counters.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect(),
        };
        let disk = device("disk0", "disk", 1, &[("reads", 7), ("writes", 0)]);
        let disk = DeviceStatus { files: ["/d/top", "/d/middle", "/d/base"].map(Into::into).into(), ..disk };
        let devices = vec![disk, device("lan", "net", 12, &[])];
        let status = Status { hotplug_memory: 512 << 20, balloon: 2 << 20, devices, ..status() };
        let text = table(&status);
        assert!(text.contains("memory    1 GiB + 512 MiB added - 2 MiB in the balloon\n"));
        let table = "
DEVICE  KIND  SLOT  FILES        COUNTERS
disk0   disk  1     /d/top (+2)  reads=7 writes=0
lan     net   12    -
";
        assert!(text.ends_with(table), "{text}");
    }
}
