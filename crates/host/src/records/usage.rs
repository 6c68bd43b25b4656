//! What a VM has used, as it is stored.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use store::record::Record;
use time::OffsetDateTime;

/// `usage/ID`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageRecord {
    /// Since when it counts.
    #[serde(with = "time::serde::rfc3339")]
    pub since: OffsetDateTime,
    /// Until when.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// What was used.
    pub used: UsedRecord,
    /// The counters when they were last seen, of the run that they belong to. What they grew by since is not in `used` yet.
    pub seen: Option<SeenRecord>,
}

/// Sums over all runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields of api::Usage, which says what they mean")]
pub struct UsedRecord {
    pub running_ms: u64,
    pub cpu_us: u64,
    pub memory_peak_bytes: u64,
    pub memory_mib_ms: u64,
    pub disk_reads: u64,
    pub disk_writes: u64,
    pub disk_read_bytes: u64,
    pub disk_written_bytes: u64,
    pub net_received_packets: u64,
    pub net_sent_packets: u64,
    pub net_received_bytes: u64,
    pub net_sent_bytes: u64,
}

/// Counters of one run of the VM, which begin with 0.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenRecord {
    /// The run: the host's boot, the monitor's process id, and when that process started.
    pub run: String,
    /// Processor time in microseconds.
    pub cpu_us: u64,
    /// Each device's counters, by its id and their names.
    pub devices: BTreeMap<String, BTreeMap<String, u64>>,
}

impl Record for UsageRecord {
    const PREFIX: &'static str = "usage/";
    const KIND: &'static str = "usage";
    const VERSION: u32 = 1;
}
