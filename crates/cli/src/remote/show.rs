//! Answers for people.

use api::{Rate, Resources, VmSpec};
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::RemoteError;
use crate::output::{Output, print};

/// Prints something as JSON, or as the text that is made of it.
pub fn show_one(output: Output, value: &impl Serialize, text: impl FnOnce() -> String) -> Result<(), RemoteError> {
    Ok(print(&output.render(value, text)?)?)
}

/// Rows below their heads, each column as wide as it must be.
pub fn table<const N: usize>(heads: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let rows: Vec<[String; N]> = std::iter::once(heads.map(String::from)).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        text += cells.collect::<Vec<_>>().join("  ").trim_end();
        text.push('\n');
    }
    text
}

/// Names and what they stand for, one a line.
pub fn fields(fields: &[(&str, String)]) -> String {
    let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    fields.iter().map(|(name, value)| format!("{name:width$}  {value}\n")).collect()
}

/// A size with the largest unit that leaves it at least 1.
pub fn shown_size(bytes: u64) -> String {
    let units = [(1_u64 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    let Some((unit, name)) = units.into_iter().find(|(unit, _)| bytes >= *unit) else { return format!("{bytes} B") };
    if bytes.is_multiple_of(unit) {
        format!("{} {name}", bytes / unit)
    } else {
        format!("{:.1} {name}", bytes as f64 / unit as f64)
    }
}

/// A time, to the second.
pub fn shown_time(time: OffsetDateTime) -> String {
    time.replace_nanosecond(0).unwrap_or(time).format(&Rfc3339).unwrap_or_else(|_| time.to_string())
}

/// What the guest agent of a VM tells.
pub fn guest_fields(guest: &api::Guest) -> Vec<(&'static str, String)> {
    let mut fields: Vec<_> = guest.os.iter().map(|os| ("guest", os.clone())).collect();
    fields.extend(guest.host_name.clone().map(|name| ("host name", name)));
    let addresses = |net: &&api::GuestNet| !net.addresses.is_empty() && net.name != "lo";
    fields.extend(
        guest.nets.iter().filter(addresses).map(|net| ("addresses", format!("{}: {}", net.name, net.addresses.join(", ")))),
    );
    fields.push(("guest agent", guest.agent_version.clone()));
    fields
}

fn memory(spec: &VmSpec) -> String {
    let mut text = shown_size(spec.memory_bytes);
    if let Some(max) = spec.max_memory_bytes {
        text += &format!(", at most {}", shown_size(max));
    }
    if spec.balloon_bytes > 0 {
        text += &format!(", of which the balloon takes {}", shown_size(spec.balloon_bytes));
    }
    text
}

/// What a VM is to be.
pub fn spec_fields(spec: &VmSpec) -> Vec<(&'static str, String)> {
    let mut fields = vec![
        ("vCPUs", spec.max_cpus.map_or(spec.cpus.to_string(), |max| format!("{}, at most {max}", spec.cpus))),
        ("memory", memory(spec)),
        ("kernel", spec.boot.kernel.clone()),
    ];
    let promised = spec.cpu_features.iter().map(|names| names.iter().map(String::as_str).collect::<Vec<_>>().join(", "));
    fields.extend(promised.map(|names| ("CPU features", names)));
    fields.extend(spec.boot.initrd.clone().map(|initrd| ("initrd", initrd)));
    if !spec.boot.command_line.is_empty() {
        fields.push(("command line", spec.boot.command_line.clone()));
    }
    for disk in &spec.disks {
        let marks = [(disk.read_only, ", read-only"), (disk.direct, ", direct")];
        let marks: String = marks.iter().filter(|(on, _)| *on).map(|(_, mark)| *mark).collect();
        fields.push(("disk", format!("{}: {}{marks}", disk.id.as_deref().unwrap_or("?"), disk.file)));
    }
    for net in &spec.nets {
        let mac = net.mac.as_deref().unwrap_or("?");
        let cable = if net.disconnected { ", disconnected" } else { "" };
        let on = net.switch.as_ref().or(net.tap.as_ref()).map_or("?", String::as_str);
        let name = net.name.as_ref().map(|name| format!(", '{name}' in the guest")).unwrap_or_default();
        fields.push(("network card", format!("{}: {on}, {mac}{name}{cable}", net.id.as_deref().unwrap_or("?"))));
    }
    let policy = match spec.auto_start.policy {
        api::AutoStartPolicy::Never => None,
        api::AutoStartPolicy::Always => Some("always"),
        api::AutoStartPolicy::IfItRan => Some("if it ran"),
    };
    let api::AutoStart { delay_seconds, order, .. } = spec.auto_start;
    fields.extend(
        policy.map(|policy| ("auto-start", format!("{policy}, order {order}, {delay_seconds} s after the one before it"))),
    );
    fields.extend(resource_fields(&spec.resources));
    if let Some(told) = &spec.cloud_init {
        let names = told.host_name.iter().chain(&told.user).cloned();
        let keys = (!told.ssh_keys.is_empty()).then(|| format!("{} SSH keys", told.ssh_keys.len()));
        let nets = told.nets.iter().map(|net| format!("{}: {}", net.id, net.addresses.join(" ")));
        fields.push(("cloud-init", names.chain(keys).chain(nets).collect::<Vec<_>>().join(", ")));
    }
    fields
}

/// How much of the host a VM may have, where that is not as usual.
fn resource_fields(resources: &Resources) -> Vec<(&'static str, String)> {
    let usual = Resources::default();
    let mut fields = Vec::new();
    if resources.cpu_weight != usual.cpu_weight {
        fields.push(("CPU weight", resources.cpu_weight.to_string()));
    }
    fields.extend(resources.cpu_cap_percent.map(|cap| ("CPU cap", format!("{cap}%"))));
    if resources.cpu_reserve_percent > 0 {
        fields.push(("CPU reserve", format!("{}%", resources.cpu_reserve_percent)));
    }
    let count = |number: u64| number.to_string();
    let size = |bytes: u64| shown_size(bytes);
    let rate = |name: &str, rate: Option<Rate>, shown: fn(u64) -> String| {
        let rate = rate?;
        let burst = rate.burst.map(|burst| format!(" ({} for {} s)", shown(burst.per_second), burst.seconds));
        Some(format!("{name} {}/s{}", shown(rate.per_second), burst.unwrap_or_default()))
    };
    for (id, limits) in &resources.disks {
        let rates = [rate("operations", limits.iops, count), rate("bandwidth", limits.bandwidth, size)];
        fields.push(("limits", format!("{id}: {}", rates.into_iter().flatten().collect::<Vec<_>>().join(", "))));
    }
    for (id, limits) in &resources.nets {
        let rates = [rate("receive", limits.receive, size), rate("transmit", limits.transmit, size)];
        fields.push(("limits", format!("{id}: {}", rates.into_iter().flatten().collect::<Vec<_>>().join(", "))));
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_they_must_be() {
        let rows = [["a", "1"], ["longer", ""]].map(|row| row.map(String::from));
        assert_eq!(table(["NAME", "N"], rows.into_iter()), "NAME    N\na       1\nlonger\n");
        assert_eq!(fields(&[("a", "1".into()), ("bcd", "2".into())]), "a    1\nbcd  2\n");
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!([0, 1023, 1 << 20, 3 << 29, 5 << 40].map(shown_size), ["0 B", "1023 B", "1 MiB", "1.5 GiB", "5 TiB"]);
    }
}
