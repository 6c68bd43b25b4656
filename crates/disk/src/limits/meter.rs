//! What a disk did.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::Cost;

/// Counters of a disk since its limiter was made. They never fall.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Metered {
    /// Requests admitted.
    pub requests: u64,
    /// Operations admitted, in units of [`OPERATION_BYTES`](super::OPERATION_BYTES).
    pub operations: u64,
    /// Bytes admitted.
    pub bytes: u64,
    /// Requests that had to wait and then were admitted.
    pub throttled: u64,
    /// How long these waited, together.
    pub throttled_time: Duration,
}

/// The counters behind [`Metered`]. They are read one by one, so a reading may lie between two requests' additions.
#[derive(Debug, Default)]
pub(super) struct Meter {
    requests: AtomicU64,
    operations: AtomicU64,
    bytes: AtomicU64,
    throttled: AtomicU64,
    throttled_nanos: AtomicU64,
}

impl Meter {
    pub fn admitted(&self, cost: Cost) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.operations.fetch_add(cost.operations, Ordering::Relaxed);
        self.bytes.fetch_add(cost.bytes, Ordering::Relaxed);
    }

    pub fn waited(&self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.throttled.fetch_add(1, Ordering::Relaxed);
        self.throttled_nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    pub fn read(&self) -> Metered {
        Metered {
            requests: self.requests.load(Ordering::Relaxed),
            operations: self.operations.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            throttled: self.throttled.load(Ordering::Relaxed),
            throttled_time: Duration::from_nanos(self.throttled_nanos.load(Ordering::Relaxed)),
        }
    }
}
