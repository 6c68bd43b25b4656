//! What a block device counts.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The counters of one queue: written by its thread only, on cache lines of their own.
#[repr(align(64))]
#[derive(Default)]
pub(super) struct QueueCounters {
    pub reads: AtomicU64,
    pub writes: AtomicU64,
    pub read_bytes: AtomicU64,
    pub written_bytes: AtomicU64,
    pub flushes: AtomicU64,
    pub discards: AtomicU64,
    pub zeroings: AtomicU64,
    pub errors: AtomicU64,
    pub held: AtomicU64,
    pub interrupts: AtomicU64,
}

/// Adds to a counter that only one thread writes: a plain addition, without a locked instruction.
pub(super) fn add(counter: &AtomicU64, amount: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
}

/// A device's counters since it was made. Clones read the same counters, from any thread.
#[derive(Clone)]
pub struct Counters {
    queues: Arc<[QueueCounters]>,
}

/// The counters at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CounterValues {
    /// Reads that succeeded.
    pub reads: u64,
    /// Writes that succeeded.
    pub writes: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Flushes that succeeded.
    pub flushes: u64,
    /// Discards that succeeded.
    pub discards: u64,
    /// Ranges zeroed.
    pub zeroings: u64,
    /// Requests answered with an error.
    pub errors: u64,
    /// Times that a request was held because of an error.
    pub held: u64,
    /// Interrupts sent.
    pub interrupts: u64,
}

impl Counters {
    pub(super) fn new(queues: u16) -> Counters {
        Counters { queues: (0..queues).map(|_| QueueCounters::default()).collect() }
    }

    pub(super) fn queue(&self, index: u16) -> &QueueCounters {
        &self.queues[usize::from(index)]
    }

    /// Sums the queues up.
    pub fn read(&self) -> CounterValues {
        let sum = |counter: fn(&QueueCounters) -> &AtomicU64| {
            self.queues.iter().map(|queue| counter(queue).load(Ordering::Relaxed)).sum()
        };
        CounterValues {
            reads: sum(|queue| &queue.reads),
            writes: sum(|queue| &queue.writes),
            read_bytes: sum(|queue| &queue.read_bytes),
            written_bytes: sum(|queue| &queue.written_bytes),
            flushes: sum(|queue| &queue.flushes),
            discards: sum(|queue| &queue.discards),
            zeroings: sum(|queue| &queue.zeroings),
            errors: sum(|queue| &queue.errors),
            held: sum(|queue| &queue.held),
            interrupts: sum(|queue| &queue.interrupts),
        }
    }
}
