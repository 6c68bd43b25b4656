//! What a VM uses: counters that begin anew with each run, put together to sums that go on.
//!
//! ```text
//!   control group: processor time, memory ─┐
//!   monitor: each device's counters ───────┴─▶ Reading ──▶ add ──▶ sums, and the counters as seen: one record in the store
//! ```
//!
//! The counters go on while no `marud` looks. The next one knows from the record what it has counted already, and of which run.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use time::OffsetDateTime;
use uuid::Uuid;
use vmm::control::DeviceStatus;

use super::Cgroups;
use crate::records::{SeenRecord, UsageRecord, UsedRecord, VmRecord};

/// Ticks of the processor times in `/proc`, in each second: Linux tells user space nothing else.
const TICKS: u64 = 100;
const PAGE: u64 = 4096;
/// The longest time that counts as time in which a VM ran between two readings: `marud` may have been away.
const MAX_STEP_MS: i128 = i64::MAX as i128;

/// Counters at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// The run that they belong to.
    pub run: String,
    /// Processor time in microseconds.
    pub cpu_us: Option<u64>,
    /// Memory now, in bytes.
    pub memory_bytes: u64,
    /// Counters of devices, if the monitor told them.
    pub devices: Option<BTreeMap<String, BTreeMap<String, u64>>>,
}

/// The counters in a monitor's status.
pub fn counters(devices: &[DeviceStatus]) -> BTreeMap<String, BTreeMap<String, u64>> {
    let counted = devices.iter().filter(|device| matches!(device.kind.as_str(), "disk" | "net"));
    counted.map(|device| (device.id.clone(), device.counters.clone())).collect()
}

/// Names this run of a monitor, unlike any other.
pub fn run(pid: u32) -> io::Result<String> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let started = fields(pid)?.get(19).cloned().ok_or(io::ErrorKind::InvalidData)?;
    Ok(format!("{}/{pid}/{started}", boot.trim()))
}

/// What is behind the name in `/proc/PID/stat`, from the state on.
fn fields(pid: u32) -> io::Result<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, rest) = stat.rsplit_once(") ").ok_or(io::ErrorKind::InvalidData)?;
    Ok(rest.split_whitespace().map(String::from).collect())
}

impl Reading {
    /// What a VM has used in this run, without its devices: by its control group, which outlives the process, or by the process.
    pub fn of(cgroups: &Cgroups, vm: Uuid, run: &str, pid: Option<u32>) -> Reading {
        let process = |index: usize| fields(pid?).ok()?.get(index)?.parse::<u64>().ok();
        let of_process = || Some((process(11)? + process(12)?) * 1_000_000 / TICKS);
        Reading {
            run: run.into(),
            cpu_us: cgroups.cpu_us(vm).or_else(of_process),
            memory_bytes: cgroups.memory_bytes(vm).or_else(|| Some(process(21)? * PAGE)).unwrap_or(0),
            devices: None,
        }
    }
}

impl UsageRecord {
    /// A meter that begins now.
    pub fn new(now: OffsetDateTime) -> UsageRecord {
        UsageRecord { since: now, at: now, used: UsedRecord::default(), seen: None }
    }

    /// Counts what was used since the last reading.
    pub fn add(&mut self, reading: &Reading, now: OffsetDateTime) {
        let same = self.seen.take().filter(|seen| seen.run == reading.run);
        let passed = (now - self.at).whole_milliseconds().clamp(0, MAX_STEP_MS) as u64;
        // A run that is new began since then, nobody knows exactly when: it counts from now.
        let ran = if same.is_some() { passed } else { 0 };
        let mut seen = same.unwrap_or_else(|| SeenRecord { run: reading.run.clone(), ..SeenRecord::default() });
        let used = &mut self.used;
        used.running_ms += ran;
        used.memory_mib_ms += (reading.memory_bytes >> 20) * ran;
        used.memory_peak_bytes = used.memory_peak_bytes.max(reading.memory_bytes);
        if let Some(cpu_us) = reading.cpu_us {
            used.cpu_us += grown(seen.cpu_us, cpu_us);
            seen.cpu_us = cpu_us;
        }
        if let Some(devices) = &reading.devices {
            for (id, counters) in devices {
                let before = seen.devices.get(id);
                for (name, value) in counters {
                    let before = before.and_then(|before| before.get(name)).copied().unwrap_or(0);
                    if let Some(sum) = used.sum(name) {
                        *sum += grown(before, *value);
                    }
                }
            }
            seen.devices.clone_from(devices);
        }
        self.seen = Some(seen);
        self.at = now;
    }

    /// Begins anew. What the counters have now does not count.
    pub fn reset(&mut self, now: OffsetDateTime) {
        *self = UsageRecord { seen: self.seen.take(), ..UsageRecord::new(now) };
    }

    /// As the API tells it.
    pub fn told(&self, vm: &VmRecord, memory_bytes: u64) -> api::Usage {
        let used = self.used;
        api::Usage {
            vm: vm.id,
            vm_name: vm.name.clone(),
            since: self.since,
            at: self.at,
            running_ms: used.running_ms,
            cpu_us: used.cpu_us,
            memory_bytes,
            memory_peak_bytes: used.memory_peak_bytes,
            memory_mib_seconds: used.memory_mib_ms / 1000,
            disk_reads: used.disk_reads,
            disk_writes: used.disk_writes,
            disk_read_bytes: used.disk_read_bytes,
            disk_written_bytes: used.disk_written_bytes,
            net_received_packets: used.net_received_packets,
            net_sent_packets: used.net_sent_packets,
            net_received_bytes: used.net_received_bytes,
            net_sent_bytes: used.net_sent_bytes,
        }
    }
}

/// How much a counter grew. One that is smaller than before began anew: its device was taken out and another one of its name plugged in.
fn grown(before: u64, now: u64) -> u64 {
    now.checked_sub(before).unwrap_or(now)
}

impl UsedRecord {
    /// The sum that a device's counter belongs to.
    fn sum(&mut self, counter: &str) -> Option<&mut u64> {
        Some(match counter {
            "reads" => &mut self.disk_reads,
            "writes" => &mut self.disk_writes,
            "read-bytes" => &mut self.disk_read_bytes,
            "written-bytes" => &mut self.disk_written_bytes,
            "rx-packets" => &mut self.net_received_packets,
            "tx-packets" => &mut self.net_sent_packets,
            "rx-bytes" => &mut self.net_received_bytes,
            "tx-bytes" => &mut self.net_sent_bytes,
            _ => return None,
        })
    }
}

/// What each VM has used, as last read: for whoever wants to know, without asking its owner.
#[derive(Debug, Default)]
pub struct Meters(Mutex<BTreeMap<Uuid, (UsageRecord, u64)>>);

impl Meters {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Uuid, (UsageRecord, u64)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what a VM has used, and the memory that it has now, in bytes.
    pub fn note(&self, vm: Uuid, usage: UsageRecord, memory_bytes: u64) {
        self.lock().insert(vm, (usage, memory_bytes));
    }

    /// Forgets a VM.
    pub fn forget(&self, vm: Uuid) {
        self.lock().remove(&vm);
    }

    /// What a VM has used. One that nobody has looked at yet has used nothing.
    pub fn told(&self, vm: &VmRecord) -> api::Usage {
        let found = self.lock().get(&vm.id).cloned();
        let (usage, memory) = found.unwrap_or_else(|| (UsageRecord::new(vm.created_at), 0));
        usage.told(vm, memory)
    }
}

#[cfg(test)]
mod tests {
    use time::Duration;
    use time::macros::datetime;

    use super::*;

    const START: OffsetDateTime = datetime!(2026-11-27 08:00:00 UTC);

    fn reading(run: &str, cpu_us: u64, writes: u64) -> Reading {
        let devices = [("disk0".into(), [("writes".into(), writes), ("errors".into(), 7)].into())].into();
        Reading { run: run.into(), cpu_us: Some(cpu_us), memory_bytes: 64 << 20, devices: Some(devices) }
    }

    fn sums(usage: &UsageRecord) -> (u64, u64, u64) {
        (usage.used.running_ms, usage.used.cpu_us, usage.used.disk_writes)
    }

    #[test]
    fn sums_go_on_over_runs_and_nothing_counts_twice() {
        let mut usage = UsageRecord::new(START);
        let at = |seconds| START + Duration::seconds(seconds);
        usage.add(&reading("a", 10, 1), at(5));
        usage.add(&reading("a", 30, 4), at(15));
        usage.add(&reading("a", 30, 4), at(15));
        assert_eq!(sums(&usage), (10_000, 30, 4));
        // Another run; the first one's memory does not count for the time between them.
        usage.add(&reading("b", 5, 2), at(100));
        usage.add(&reading("b", 6, 2), at(101));
        assert_eq!(sums(&usage), (11_000, 36, 6));
        assert_eq!(usage.used.memory_mib_ms, 64 * 11_000);
        // Without the monitor's answer; and a disk that was replaced by one of the same name.
        usage.add(&Reading { devices: None, ..reading("b", 7, 0) }, at(102));
        usage.add(&reading("b", 7, 1), at(103));
        assert_eq!(sums(&usage), (13_000, 37, 7));
        usage.reset(at(104));
        usage.add(&reading("b", 9, 3), at(105));
        assert_eq!((sums(&usage), usage.since), ((1000, 2, 2), at(104)));
        // A clock that was set back.
        usage.add(&reading("b", 9, 3), at(50));
        assert_eq!(sums(&usage), (1000, 2, 2));
    }

    #[test]
    fn a_process_has_a_run_and_uses_something() {
        let own = run(std::process::id()).unwrap();
        assert_eq!(own, run(std::process::id()).unwrap());
        let (cgroups, _) = Cgroups::at(std::path::Path::new("/nonexistent/maru"));
        let read = Reading::of(&cgroups, Uuid::nil(), &own, Some(std::process::id()));
        assert!(read.memory_bytes > 1 << 16 && read.cpu_us.is_some(), "{read:?}");
    }
}
