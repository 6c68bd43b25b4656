//! `/metrics`: numbers for Prometheus, in its text format (version 0.0.4).

use std::fmt::Write;
use std::sync::Arc;

use axum::Extension;
use axum::extract::State as Shared;
use axum::http::header;
use axum::response::{IntoResponse, Response};

use super::host::memory;
use super::requests::{BOUNDS, Counts, Requests};
use super::{App, Refusal, ports, volumes};
use crate::host::Host;
use crate::records::{TaskRecord, TaskStateRecord, VmRecord};
use crate::state::{State, StateError};

/// The text in the making.
#[derive(Default)]
struct Text(String);

impl Text {
    /// Begins a metric; its samples follow.
    fn metric(&mut self, name: &str, kind: &str, help: &str) -> Samples<'_> {
        // Writing to a String cannot fail.
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        Samples { text: &mut self.0, name: name.into() }
    }

    fn gauge(&mut self, name: &str, help: &str) -> Samples<'_> {
        self.metric(name, "gauge", help)
    }

    fn counter(&mut self, name: &str, help: &str) -> Samples<'_> {
        self.metric(name, "counter", help)
    }
}

struct Samples<'t> {
    text: &'t mut String,
    name: String,
}

impl Samples<'_> {
    fn add(&mut self, labels: &[(&str, &str)], value: f64) {
        let name = self.name.clone();
        self.line(&name, labels, value);
    }

    fn line(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        let labels: Vec<String> = labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(self.text, "{name}{labels} {value}");
    }
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Numbers for Prometheus
///
/// In its text format. The address is also `/metrics`, at the top, where Prometheus looks if nothing else is said.
#[utoipa::path(get, path = "/metrics", tag = "host", operation_id = "metrics", responses(
    (status = 200, description = "Metrics", body = String, content_type = "text/plain"),
    (status = "default", description = "Not done", body = api::Error),
))]
pub async fn show(Shared(app): Shared<App>, Extension(requests): Extension<Arc<Requests>>) -> Result<Response, Refusal> {
    let host = app.host.clone();
    let text = app.host.state.run(move |state| write(state, &host, &requests.counts())).await?;
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response())
}

fn write(state: &State, host: &Host, requests: &Counts) -> Result<String, StateError> {
    let mut text = Text::default();
    of_host(&mut text, host);
    of_marud(&mut text, state, host, requests)?;
    let vms: Vec<VmRecord> = state.all::<VmRecord>()?.into_iter().map(|stored| stored.record).collect();
    of_vms(&mut text, host, &vms);
    of_limits(&mut text, &vms);
    of_volumes(&mut text, &volumes::told(state, &host.surroundings)?);
    of_ports(&mut text, &ports::told(state, &host.surroundings.network)?);
    Ok(text.0)
}

fn of_host(text: &mut Text, host: &Host) {
    let (total, available) = memory();
    let ledger = &host.surroundings.ledger;
    text.gauge("maru_host_memory_bytes", "Memory of the host.").add(&[], total as f64);
    text.gauge("maru_host_memory_available_bytes", "Memory that could be given out without swapping.").add(&[], available as f64);
    text.gauge("maru_host_memory_for_vms_bytes", "Memory that running VMs may have together.")
        .add(&[], ledger.capacity().for_vms_bytes() as f64);
    text.gauge("maru_host_memory_given_bytes", "Memory that running VMs have been promised.")
        .add(&[], ledger.memory_taken() as f64);
    text.gauge("maru_host_cpus", "Processors of the host.").add(&[], f64::from(ledger.capacity().cpus));
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let times = stat.lines().next().unwrap_or_default().split_whitespace().skip(1).map_while(|time| time.parse::<f64>().ok());
    let modes = ["user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal"];
    let mut cpu = text.counter("maru_host_cpu_seconds_total", "What the host's processors did.");
    for (mode, ticks) in modes.into_iter().zip(times) {
        cpu.add(&[("mode", mode)], ticks / 100.0);
    }
    let uptime = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    let uptime = uptime.split(' ').next().and_then(|seconds| seconds.parse().ok()).unwrap_or(0.0);
    text.gauge("maru_host_uptime_seconds", "Time since the host started.").add(&[], uptime);
}

fn of_marud(text: &mut Text, state: &State, host: &Host, requests: &Counts) -> Result<(), StateError> {
    text.gauge("marud_info", "The version of marud.").add(&[("version", env!("CARGO_PKG_VERSION"))], 1.0);
    text.gauge("marud_start_time_seconds", "When marud started.").add(&[], host.started_at.unix_timestamp() as f64);
    text.gauge("marud_store_bytes", "Size of the store's file.").add(&[], state.file_bytes() as f64);
    text.counter("marud_store_revision", "The newest revision of the store.").add(&[], state.revision()?.0 as f64);
    let tasks = state.all::<TaskRecord>()?;
    let mut samples = text.gauge("marud_tasks", "Tasks that are remembered.");
    let states = [
        ("queued", TaskStateRecord::Queued),
        ("running", TaskStateRecord::Running),
        ("done", TaskStateRecord::Done),
        ("failed", TaskStateRecord::Failed),
        ("cancelled", TaskStateRecord::Cancelled),
    ];
    for (name, state) in states {
        samples.add(&[("state", name)], tasks.iter().filter(|task| task.record.state == state).count() as f64);
    }
    let mut samples = text.counter("marud_requests_total", "Requests that were answered.");
    for ((method, status), count) in &requests.answered {
        samples.add(&[("method", method), ("status", &status.to_string())], *count as f64);
    }
    let name = "marud_request_duration_seconds";
    let mut samples = text.metric(name, "histogram", "How long requests took that were not to wait for something.");
    let mut sum = 0;
    for (index, count) in requests.took.iter().enumerate() {
        sum += count;
        let bound = BOUNDS.get(index).map_or_else(|| "+Inf".into(), f64::to_string);
        samples.line(&format!("{name}_bucket"), &[("le", &bound)], sum as f64);
    }
    samples.line(&format!("{name}_sum"), &[], requests.took_together.as_secs_f64());
    samples.line(&format!("{name}_count"), &[], sum as f64);
    Ok(())
}

/// A metric: its name, its help, and the number that it is of something.
type Told<T> = (&'static str, &'static str, fn(&T) -> f64);
/// Limits of devices: the device's id, the direction if there are two, and the rate.
type Limits<'r> = Vec<(&'r str, &'static str, Option<api::Rate>)>;

/// What is told of each VM's use.
const USED: [Told<api::Usage>; 10] = [
    ("maru_vm_running_seconds_total", "How long it ran.", |usage| usage.running_ms as f64 / 1e3),
    ("maru_vm_cpu_seconds_total", "Processor time that it used.", |usage| usage.cpu_us as f64 / 1e6),
    ("maru_vm_disk_read_bytes_total", "Bytes that it read from disks.", |usage| usage.disk_read_bytes as f64),
    ("maru_vm_disk_written_bytes_total", "Bytes that it wrote to disks.", |usage| usage.disk_written_bytes as f64),
    ("maru_vm_disk_reads_total", "Requests to disks that read.", |usage| usage.disk_reads as f64),
    ("maru_vm_disk_writes_total", "Requests to disks that wrote.", |usage| usage.disk_writes as f64),
    ("maru_vm_net_received_bytes_total", "Bytes that came to it.", |usage| usage.net_received_bytes as f64),
    ("maru_vm_net_sent_bytes_total", "Bytes that it sent.", |usage| usage.net_sent_bytes as f64),
    ("maru_vm_net_received_packets_total", "Packets that came to it.", |usage| usage.net_received_packets as f64),
    ("maru_vm_net_sent_packets_total", "Packets that it sent.", |usage| usage.net_sent_packets as f64),
];

fn of_vms(text: &mut Text, host: &Host, vms: &[VmRecord]) {
    let usage: Vec<api::Usage> = vms.iter().map(|vm| host.surroundings.meters.told(vm)).collect();
    let mut samples = text.gauge("maru_vm_state", "What it does: 1 for the state that it has.");
    for vm in vms {
        let state = host.live(vm.id).state.to_string();
        samples.add(&[("vm", &vm.name), ("id", &vm.id.to_string()), ("state", &state)], 1.0);
    }
    for (name, help, value) in USED {
        let mut samples = text.counter(name, help);
        usage.iter().for_each(|usage| samples.add(&[("vm", &usage.vm_name)], value(usage)));
    }
    let mut samples = text.gauge("maru_vm_memory_bytes", "Memory of the host that it has.");
    usage.iter().for_each(|usage| samples.add(&[("vm", &usage.vm_name)], usage.memory_bytes as f64));
    let mut samples = text.gauge("maru_vm_memory_configured_bytes", "Memory that it may have.");
    vms.iter().for_each(|vm| samples.add(&[("vm", &vm.name)], vm.memory_bytes as f64));
    let mut samples = text.gauge("maru_vm_cpus", "vCPUs that it starts with.");
    vms.iter().for_each(|vm| samples.add(&[("vm", &vm.name)], f64::from(vm.cpus)));
}

fn of_limits(text: &mut Text, vms: &[VmRecord]) {
    let told: Vec<(&str, api::Resources)> = vms.iter().map(|vm| (vm.name.as_str(), vm.told_resources())).collect();
    let mut samples = text.gauge("maru_vm_cpu_weight", "Its part of the processors beside others.");
    told.iter().for_each(|(vm, resources)| samples.add(&[("vm", vm)], f64::from(resources.cpu_weight)));
    let mut samples = text.gauge("maru_vm_cpu_cap_ratio", "Processors that it gets at most.");
    for (vm, resources) in &told {
        if let Some(cap) = resources.cpu_cap_percent {
            samples.add(&[("vm", vm)], f64::from(cap) / 100.0);
        }
    }
    let mut samples = text.gauge("maru_vm_cpu_reserve_ratio", "Processors that it gets whenever it needs them.");
    told.iter().for_each(|(vm, resources)| samples.add(&[("vm", vm)], f64::from(resources.cpu_reserve_percent) / 100.0));
    let mut limits = |name: &str, help: &str, of: fn(&api::Resources) -> Limits<'_>| {
        let mut samples = text.gauge(name, help);
        for (vm, resources) in &told {
            for (device, direction, rate) in of(resources) {
                if let Some(rate) = rate {
                    let labels = [("vm", *vm), ("device", device), ("direction", direction)];
                    let count = if direction.is_empty() { 2 } else { 3 };
                    samples.add(&labels[..count], rate.per_second as f64);
                }
            }
        }
    };
    limits("maru_vm_disk_operations_limit", "Operations that a disk may do in a second.", |resources| {
        resources.disks.iter().map(|(id, limits)| (id.as_str(), "", limits.iops)).collect()
    });
    limits("maru_vm_disk_bandwidth_limit_bytes", "Bytes that a disk may carry in a second.", |resources| {
        resources.disks.iter().map(|(id, limits)| (id.as_str(), "", limits.bandwidth)).collect()
    });
    limits("maru_vm_net_bandwidth_limit_bytes", "Bytes that a network card may carry in a second.", |resources| {
        resources
            .nets
            .iter()
            .flat_map(|(id, limits)| [(id.as_str(), "receive", limits.receive), (id.as_str(), "transmit", limits.transmit)])
            .collect()
    });
}

fn of_ports(text: &mut Text, ports: &[api::Port]) {
    let told: [Told<api::PortCounters>; 4] = [
        ("maru_port_received_bytes_total", "Bytes that came to who is behind it.", |port| port.received_bytes as f64),
        ("maru_port_sent_bytes_total", "Bytes that who is behind it sent.", |port| port.sent_bytes as f64),
        ("maru_port_received_packets_total", "Frames that came to who is behind it.", |port| port.received_packets as f64),
        ("maru_port_sent_packets_total", "Frames that who is behind it sent.", |port| port.sent_packets as f64),
    ];
    let mut samples = text.gauge("maru_port_connected", "Whether somebody is behind a port of a virtual switch.");
    for port in ports {
        samples.add(&[("port", &port.name), ("switch", &port.switch)], f64::from(u8::from(port.connected)));
    }
    let there: Vec<(&api::Port, &api::PortCounters)> =
        ports.iter().filter_map(|port| Some((port, port.counters.as_ref()?))).collect();
    for (name, help, value) in told {
        let mut samples = text.counter(name, help);
        there.iter().for_each(|(port, counters)| samples.add(&[("port", &port.name), ("switch", &port.switch)], value(counters)));
    }
    let mut samples =
        text.counter("maru_port_dropped_packets_total", "Frames that its policy or its buffers did not let through.");
    for (port, counters) in &there {
        for (reason, count) in &counters.drops {
            samples.add(&[("port", &port.name), ("switch", &port.switch), ("reason", reason)], *count as f64);
        }
    }
}

fn of_volumes(text: &mut Text, volumes: &[api::Volume]) {
    let told: [Told<api::Volume>; 5] = [
        ("maru_volume_bytes", "Its size.", |volume| volume.total_bytes as f64),
        ("maru_volume_free_bytes", "What is free.", |volume| volume.free_bytes as f64),
        ("maru_volume_allocated_bytes", "What disks of VMs take.", |volume| volume.allocated_bytes as f64),
        ("maru_volume_provisioned_bytes", "What disks of VMs would take if they were full.", |volume| {
            volume.provisioned_bytes as f64
        }),
        ("maru_volume_alarm", "How full it is: 0, 1 for a warning, 2 for nearly full.", |volume| match volume.level {
            api::VolumeLevel::Ok => 0.0,
            api::VolumeLevel::Warning => 1.0,
            api::VolumeLevel::Critical => 2.0,
        }),
    ];
    for (name, help, value) in told {
        let mut samples = text.gauge(name, help);
        volumes.iter().for_each(|volume| samples.add(&[("volume", &volume.name)], value(volume)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_the_text_format() {
        let mut text = Text::default();
        text.gauge("a", "Help.").add(&[], 1.5);
        let mut samples = text.counter("b_total", "More.");
        samples.add(&[("vm", "we\"b\\\n"), ("x", "y")], 3.0);
        let expected = "# HELP a Help.\n# TYPE a gauge\na 1.5\n# HELP b_total More.\n# TYPE b_total counter\n\
                        b_total{vm=\"we\\\"b\\\\\\n\",x=\"y\"} 3\n";
        assert_eq!(text.0, expected);
    }
}
