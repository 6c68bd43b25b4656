//! What the programs of a benchmark tell each other.
//!
//! The guest speaks through its serial port: control characters where the moment counts (one byte costs the
//! same few exits on all monitors), and lines that start with [`LINE`] for everything else. `bench-host` takes an order
//! as JSON in its first argument and prints JSON lines.

use serde::{Deserialize, Serialize};

/// Sent by the guest's init as its first act.
pub const AT_INIT: u8 = 0x02;
/// Sent when drivers are loaded and the disk and the network card are there.
pub const AT_DEVICES: u8 = 0x03;
/// Sent right before the guest powers off.
pub const AT_END: u8 = 0x04;
/// Starts every line of the guest.
pub const LINE: &str = "bench:";

/// What `bench-host` is to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Order {
    /// Boot one VM and measure; answers with a [`Boot`].
    Boot(BootOrder),
    /// Run a load in several VMs in turn; answers with a [`BlockEvent`] per line.
    Block(BlockOrder),
}

/// A boot to measure.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BootOrder {
    /// The monitor's command line.
    pub argv: Vec<String>,
    /// Size of the guest's memory: the mapping of this length is not the monitor's own.
    pub memory_mib: u32,
    /// How long after [`AT_DEVICES`] the monitor's memory is looked at.
    pub settle_ms: u64,
    /// Whether to record and add up all exits of the VM. It slows the boot down.
    pub explain: bool,
}

/// A boot that was measured. Times count from the moment before the monitor's process was started.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Boot {
    /// Until the guest's init ran, in milliseconds.
    pub init_ms: f64,
    /// Until its devices were there, in milliseconds.
    pub devices_ms: f64,
    /// The guest's own clock at its init, in milliseconds since its kernel set it up.
    pub guest_clock_ms: f64,
    /// From the guest's order to power off to the end of the process, in milliseconds.
    pub end_ms: f64,
    /// Processor time of the monitor and its guest until the end, in milliseconds.
    pub cpu_ms: f64,
    /// How the process ended; 0 is a clean end.
    pub exit_code: i32,
    /// The monitor's memory.
    pub memory: OwnMemory,
    /// What the guest printed.
    pub console: String,
    /// Where the time went, if that was asked for.
    pub phases: Option<Phases>,
}

/// A monitor's memory without the guest's, in KiB.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct OwnMemory {
    /// Resident pages.
    pub rss_kib: u64,
    /// Resident pages that no other process has.
    pub private_kib: u64,
    /// Resident pages that are not of a file (heap, stacks, rings).
    pub anonymous_kib: u64,
    /// Resident pages of the guest's memory, for comparison.
    pub guest_kib: u64,
    /// Threads of the process.
    pub threads: u64,
    /// The largest mappings: name and resident KiB.
    pub largest: Vec<(String, u64)>,
}

/// Where the time of a boot went, from KVM's trace events. Only the time until the guest's init counts.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Phases {
    /// From the start of the process to the first instruction of the guest, in milliseconds.
    pub before_guest_ms: f64,
    /// In the guest, in milliseconds, added over all vCPUs.
    pub in_guest_ms: f64,
    /// Halted, in milliseconds, added over all vCPUs.
    pub halted_ms: f64,
    /// Exits by reason: name, number, milliseconds until the guest went on.
    pub exits: Vec<(String, u64, f64)>,
    /// Accesses by port or page, the most frequent first: name, number.
    pub accesses: Vec<(String, u64)>,
    /// Events that the trace lost.
    pub lost: u64,
}

/// A comparison of disks.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BlockOrder {
    /// The VMs: name and the monitor's command line. All run at the same time; one works, the others idle.
    pub contenders: Vec<(String, Vec<String>)>,
    /// What each does in each round.
    pub loads: Vec<Load>,
    /// Rounds.
    pub rounds: u32,
    /// No round is started that would not end within this time, in milliseconds; the first always is.
    pub limit_ms: u64,
    /// Whether the host writes its caches out between two measurements.
    pub sync: bool,
}

/// A load on a disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Load {
    /// Its name in the table.
    pub name: String,
    /// Whether it writes.
    pub write: bool,
    /// Whether it jumps about.
    pub random: bool,
    /// Bytes per request.
    pub block_bytes: u32,
    /// Requests under way.
    pub depth: u32,
    /// How long it runs before it counts, in milliseconds.
    pub warm_ms: u64,
    /// How long it counts, in milliseconds.
    pub run_ms: u64,
}

/// What a load did.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct LoadResult {
    /// Requests that ended while it counted.
    pub requests: u64,
    /// How long it counted, in nanoseconds.
    pub elapsed_ns: u64,
    /// Half of the requests were faster, in nanoseconds.
    pub median_ns: u64,
    /// All but one in a hundred were faster, in nanoseconds.
    pub p99_ns: u64,
}

impl LoadResult {
    /// Requests per second.
    pub fn per_second(&self) -> f64 {
        self.requests as f64 * 1e9 / self.elapsed_ns.max(1) as f64
    }
}

/// What happened in a comparison of disks.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum BlockEvent {
    /// A VM is up.
    Ready(String),
    /// A load has ended.
    Result {
        /// Counted from 0.
        round: u32,
        /// Which load.
        load: usize,
        /// Which contender.
        contender: usize,
        /// What it did.
        result: LoadResult,
    },
}
