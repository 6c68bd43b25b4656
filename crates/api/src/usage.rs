//! What VMs have used.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;
use uuid::Uuid;

/// What a VM has used since its meter was reset, or it was created: over restarts of the VM, of `marud` and of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Usage {
    /// The VM.
    pub vm: Uuid,
    /// Its name.
    pub vm_name: String,
    /// Since when.
    #[serde(with = "time::serde::rfc3339")]
    pub since: OffsetDateTime,
    /// Until when.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// How long it ran, in milliseconds.
    pub running_ms: u64,
    /// Processor time in microseconds: of its vCPUs, and of what its devices cost.
    pub cpu_us: u64,
    /// Memory of the host that it has now, in bytes.
    pub memory_bytes: u64,
    /// The most that it had.
    pub memory_peak_bytes: u64,
    /// Memory times time, in MiB times seconds: divided by the time that it ran, it is the average.
    pub memory_mib_seconds: u64,
    /// Requests of all disks that read.
    pub disk_reads: u64,
    /// Requests of all disks that wrote.
    pub disk_writes: u64,
    /// Bytes read.
    pub disk_read_bytes: u64,
    /// Bytes written.
    pub disk_written_bytes: u64,
    /// Packets of all network cards, towards the guest.
    pub net_received_packets: u64,
    /// Packets from the guest.
    pub net_sent_packets: u64,
    /// Bytes towards the guest.
    pub net_received_bytes: u64,
    /// Bytes from the guest.
    pub net_sent_bytes: u64,
}
