//! Fencing: what makes sure that a host's VMs have ended before another host may start them.
//!
//! ```text
//!   marud ──extend──▶ maru-guard ──▶ the deadline, in a page of memory ──▶ monitors: no write to a disk after it
//!                        │
//!                        ├─ at the deadline: ends all processes of VMs (cgroup.kill)
//!                        └─ the watchdog: fed only while the VMs are sure to end in time, or none runs
//! ```
//!
//! A host of a cluster runs VMs under a lease of the store. Each renewal moves the deadline: the moment when the renewal was *sent*, plus the
//! lease's time, less a margin. When it passes, the VMs are ended, whatever has become of `marud`; if they do not end, or nobody
//! is there to end them, the watchdog resets the host. Both happen before the store can have ended the lease, and only then may another
//! host start the VMs. So a VM never runs twice, and restarting or killing `marud` fences nobody.
//!
//! # Time
//! All times are of `CLOCK_BOOTTIME`, which nobody sets and which goes on while a machine sleeps. With `T` the time of the lease, `s` the moment
//! when the last renewal was sent and `m` the margin: the deadline is `s + T - m`, the store ends the lease at `s + T` at the earliest.
//! A watchdog of timeout `W` is fed as long as it would bite by `s + T`: `now + W <= deadline + m`. A guard that is killed or stopped
//! feeds it no more.
//!
//! # Life cycle
//! Free (no lease is needed: a host without a cluster) → held → ending (VMs are being ended) → ended → held again with the next lease. A guard that was
//! killed and started again goes on where the page says that the other one was.
//!
//! # I/O and errors
//! [`Fence`] decides and does no I/O. The program has one thread, takes its memory at the start, and asks for a real-time priority, so that a
//! host that is short of both still ends its VMs in time.

pub mod client;
mod fence;
pub mod page;
pub mod protocol;
mod server;
mod vms;
mod watchdog;

use std::time::Duration;

pub use fence::{Fence, Orders, Refused, State, Times, Watch};
pub use server::{Options, serve};

use serde::{Deserialize, Serialize};

/// A moment, in nanoseconds of `CLOCK_BOOTTIME`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BootTime(pub u64);

impl BootTime {
    /// This moment.
    pub fn now() -> BootTime {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        BootTime(now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64)
    }

    /// So much later.
    #[must_use]
    pub fn after(self, time: Duration) -> BootTime {
        BootTime(self.0.saturating_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// How long it is until then; nothing if that is over.
    #[must_use]
    pub fn until(self, then: BootTime) -> Duration {
        Duration::from_nanos(then.0.saturating_sub(self.0))
    }
}
