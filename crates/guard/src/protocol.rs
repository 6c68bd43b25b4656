//! What the guard is asked over its socket: a `SOCK_SEQPACKET` Unix socket for root, each packet a JSON object, an answer for each request.

use serde::{Deserialize, Serialize};

use crate::BootTime;

/// What can be asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// VMs may run until then: a renewal of the lease was acknowledged.
    Extend {
        /// The lease.
        lease: u64,
        /// When the renewal was sent, plus the lease's time, less the margin.
        deadline: BootTime,
    },
    /// No lease is needed any more: the host has left the cluster.
    Release,
    /// How things are.
    Status,
}

/// How things are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Status {
    /// Which state.
    pub state: StateName,
    /// Until when VMs may run, in nanoseconds of `CLOCK_BOOTTIME`; while they are held only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<BootTime>,
    /// The lease that the deadline belongs to: a `marud` that was started again goes on with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<u64>,
    /// Whether a process of a VM is there.
    pub running: bool,
    /// After how many milliseconds without food the watchdog resets the host; without one, nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watchdog_ms: Option<u64>,
    /// From the deadline to the end of the lease in the store, in milliseconds.
    pub margin_ms: u64,
}

/// The states by their names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StateName {
    /// VMs may run, and need no lease.
    Free,
    /// VMs may run until the deadline.
    Held,
    /// The deadline has passed, and VMs are being ended.
    Ending,
    /// The deadline has passed, and no VM runs.
    Ended,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// How things are after it was done.
    Ok(Status),
    /// Why it was not done.
    Error(String),
}
