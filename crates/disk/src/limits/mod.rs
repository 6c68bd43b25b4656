//! How much a disk may do: operations and bytes in each second, alone and in a group of disks that share one storage.
//!
//! ```text
//!   request ──▶ Limiter::admit(now, bytes) ──▶ Admit::Now ─────────────────────────▶ start it
//!                                     └──────▶ Admit::Later(ticket) ─ wait until ticket.at() ─┐
//!                                                    ▲                                        ▼
//!                                                    └───────────────────── Limiter::again(now, ticket) ──▶ Admit::Now
//! ```
//!
//! An [`Engine`](crate::Engine) asks for each request once the disk has limits ([`Disk::set_limits`](crate::Disk::set_limits),
//! [`Disk::join_group`](crate::Disk::join_group)), parks those that have to wait, and sets a timer in its ring.
//!
//! Nothing here sleeps, does I/O or looks at a clock: time is a value that the caller passes. A request that has to wait gets a
//! [`Ticket`], which is its place in the line. Places are handed out in the order of asking, so queues and threads of one disk
//! never overtake each other for long and none starves. A place is measured in work, not in time: a changed limit moves everybody
//! in the line at once (who sleeps asks again after [`Limiter::set`], and learns the new time).
//!
//! # What is counted
//! Operations are counted in units of [`OPERATION_BYTES`]: a request of n bytes is max(1, ⌈n / 8 KiB⌉) of them, so that a limit on
//! operations means the same to the storage whatever their size. Bytes are counted as they are.
//!
//! # What is promised
//! - In any time t, what is admitted is at most `rate × t`, plus the saved burst, plus [`SLACK`] of the rate, plus one request: a
//!   request is admitted when everything before it is paid for, so that one larger than any bucket still passes.
//! - A disk that always has requests waiting, and asks at the times it is told, gets its rate.
//! - In a [`Group`], a disk with requests waiting gets at least its share, at once, even if it was idle before; what others leave is
//!   lent in proportion to the weights.
//!
//! # Cost
//! A disk without limits is not counted at all, and one whose limits were taken away takes no lock. A limited disk takes one that is its own, and one of its group for as long as adding a few
//! numbers takes: such a disk is slow by intent, so a shared lock is not what holds it up.

mod bucket;
mod group;
mod limiter;
mod meter;
mod shares;

use std::num::NonZeroU64;
use std::time::Duration;

pub use group::{Group, GroupLimits};
pub use limiter::{Admit, Limiter, Ticket};
pub use meter::Metered;

/// The size of one counted operation.
pub const OPERATION_BYTES: u64 = 8 * 1024;

/// What a disk may catch up on after it did nothing, as a time at its rate: timers fire late, and without it the time lost would be
/// lost for good. It is 1 % of a second's work, so that what passes in any second stays well within 5 % of the rate.
pub const SLACK: Duration = Duration::from_millis(10);

/// The limits of one disk. The default has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Counted operations.
    pub operations: Option<Rate>,
    /// Bytes.
    pub bandwidth: Option<Rate>,
}

/// How fast, and how much faster for how long.
///
/// ```
/// use std::{num::NonZeroU64, time::Duration};
/// use disk::limits::{Burst, Rate};
/// // 500 in each second; after enough idle time 3000 in each second, for ten minutes.
/// let per_second = |n| NonZeroU64::new(n).unwrap();
/// let burst = Burst { per_second: per_second(3000), length: Duration::from_secs(600) };
/// let rate = Rate { per_second: per_second(500), burst: Some(burst) };
/// assert_eq!(rate.burst_size(), 2500 * 600);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// What is always allowed, in each second.
    pub per_second: NonZeroU64,
    /// What is allowed for a while after times of less.
    pub burst: Option<Burst>,
}

/// A time of more than the rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Burst {
    /// What is allowed meanwhile, in each second. No more than the rate itself means no burst.
    pub per_second: NonZeroU64,
    /// How long a full burst lasts. It is saved up by staying below the rate.
    pub length: Duration,
}

impl Rate {
    /// A rate without bursts.
    pub fn steady(per_second: NonZeroU64) -> Rate {
        Rate { per_second, burst: None }
    }

    /// How much more than the rate a full burst carries, in operations or bytes.
    pub fn burst_size(&self) -> u64 {
        let Some(burst) = self.burst else { return 0 };
        let above = burst.per_second.get().saturating_sub(self.per_second.get());
        let size = u128::from(above).saturating_mul(burst.length.as_nanos()) / NANOS;
        u64::try_from(size).unwrap_or(u64::MAX)
    }
}

/// How many operations a request of so many bytes counts as.
///
/// ```
/// assert_eq!([0, 512, 8192, 8193, 1 << 20].map(disk::limits::operations), [1, 1, 1, 2, 128]);
/// ```
pub fn operations(bytes: u64) -> u64 {
    bytes.div_ceil(OPERATION_BYTES).max(1)
}

/// Work is kept in units of 1/10⁹, so that a rate per second times a time in nanoseconds is exact.
const NANOS: u128 = 1_000_000_000;
/// The largest rate that is told from no limit: 2⁶⁰ in a second. With [`MAX_STEP`] and [`MAX_WEIGHT`], sums stay inside 128 bits.
const MAX_RATE: u64 = 1 << 60;
/// The longest time that is credited at once.
const MAX_STEP: Duration = Duration::from_secs(24 * 3600);
/// The largest weight of a disk in its group.
pub const MAX_WEIGHT: u16 = 10_000;

/// What a rate yields in a time.
fn yielded(per_second: u64, time: Duration) -> u128 {
    u128::from(per_second.min(MAX_RATE)) * time.min(MAX_STEP).as_nanos()
}

/// How long a rate takes to yield this much work, rounded up. Far below what an `Instant` can hold.
fn time_to_yield(work: u128, per_second: u64) -> Duration {
    const LONGEST: u128 = 1 << 62;
    Duration::from_nanos(work.div_ceil(u128::from(per_second.clamp(1, MAX_RATE))).min(LONGEST) as u64)
}

/// What a request costs.
#[derive(Clone, Copy, Debug)]
struct Cost {
    operations: u64,
    bytes: u64,
}

impl Cost {
    fn of(bytes: u64) -> Cost {
        Cost { operations: operations(bytes), bytes }
    }
}

/// A place in the line: how much work was asked for before.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    operations: u128,
    bytes: u128,
}

#[cfg(test)]
mod tests;
