//! Disks that share one storage, and divide what it can do.

use std::num::NonZeroU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::shares::Shares;
use super::{Cost, MAX_WEIGHT, Place};

/// What the disks of a group may do together. The default has no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupLimits {
    /// Counted operations in each second.
    pub operations: Option<NonZeroU64>,
    /// Bytes in each second.
    pub bandwidth: Option<NonZeroU64>,
}

/// A group of disks. Clones are the same group.
///
/// A disk's share of the group's limits is its weight divided by the sum of the weights. When all disks have requests waiting, each gets
/// its share; what one leaves is lent to those that wait, by weight, and comes back the moment it is wanted.
///
/// ```
/// use std::{num::NonZeroU64, time::Instant};
/// use disk::limits::{Group, GroupLimits, Limiter, Limits};
/// let now = Instant::now();
/// let group = Group::new(GroupLimits { operations: NonZeroU64::new(10_000), bandwidth: None }, now);
/// // The first gets 7500 operations in each second when both are busy, the second 2500; alone, each gets 10 000.
/// let database = Limiter::in_group(Limits::default(), &group, 300, now);
/// let archive = Limiter::in_group(Limits::default(), &group, 100, now);
/// # drop((database, archive));
/// ```
#[derive(Clone, Debug)]
pub struct Group {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    operations: Shares,
    bandwidth: Shares,
}

impl Group {
    /// A group without disks. They join with [`Limiter::in_group`](super::Limiter::in_group).
    pub fn new(limits: GroupLimits, now: Instant) -> Group {
        let shares = |rate: Option<NonZeroU64>| Shares::new(rate.map(NonZeroU64::get), now);
        let state = State { operations: shares(limits.operations), bandwidth: shares(limits.bandwidth) };
        Group { state: Arc::new(Mutex::new(state)) }
    }

    /// Changes what the group may do, from now on.
    pub fn set(&self, limits: GroupLimits, now: Instant) {
        let mut state = self.lock();
        state.operations.set(limits.operations.map(NonZeroU64::get), now);
        state.bandwidth.set(limits.bandwidth.map(NonZeroU64::get), now);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A disk's membership; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Membership {
    group: Group,
    index: usize,
}

impl Membership {
    pub fn new(group: &Group, weight: u16, now: Instant) -> Membership {
        let weight = weight.clamp(1, MAX_WEIGHT);
        let mut state = group.lock();
        let index = state.operations.join(weight, now);
        let other = state.bandwidth.join(weight, now);
        debug_assert_eq!(index, other, "both divide between the same disks");
        Membership { group: group.clone(), index }
    }

    pub fn set_weight(&self, weight: u16, now: Instant) {
        let weight = weight.clamp(1, MAX_WEIGHT);
        let mut state = self.group.lock();
        state.operations.set_weight(self.index, weight, now);
        state.bandwidth.set_weight(self.index, weight, now);
    }

    pub fn ask(&self, cost: Cost, now: Instant) -> (Place, Duration) {
        let mut state = self.group.lock();
        let operations = state.operations.ask(self.index, cost.operations, now);
        let bytes = state.bandwidth.ask(self.index, cost.bytes, now);
        let place = Place { operations, bytes };
        let wait = state.wait(self.index, place, now);
        (place, wait)
    }

    pub fn wait(&self, place: Place, now: Instant) -> Duration {
        self.group.lock().wait(self.index, place, now)
    }

    pub fn withdraw(&self, cost: Cost) {
        let mut state = self.group.lock();
        state.operations.withdraw(self.index, cost.operations);
        state.bandwidth.withdraw(self.index, cost.bytes);
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        let mut state = self.group.lock();
        state.operations.leave(self.index);
        state.bandwidth.leave(self.index);
    }
}

impl State {
    fn wait(&mut self, index: usize, place: Place, now: Instant) -> Duration {
        let operations = self.operations.wait(index, place.operations, now);
        operations.max(self.bandwidth.wait(index, place.bytes, now))
    }
}
