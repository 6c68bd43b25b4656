//! Decides for one disk when each of its requests may start.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::bucket::Dimension;
use super::group::{Group, Membership};
use super::meter::{Meter, Metered};
use super::{Cost, Limits, Place};

/// When a request may start.
#[must_use = "a request that has to wait has a ticket, which is used or withdrawn"]
#[derive(Debug)]
pub enum Admit {
    /// At once; it is counted.
    Now,
    /// Not yet: ask again with the ticket at its time.
    Later(Ticket),
}

/// A request's place in the line of its disk.
#[derive(Debug)]
pub struct Ticket {
    cost: Cost,
    since: Instant,
    at: Instant,
    stage: Stage,
}

/// A request first passes the limits of its disk and only then stands in line for the group's: what a disk may not do anyway takes
/// nothing from the others.
#[derive(Clone, Copy, Debug)]
enum Stage {
    Own(Place),
    Group(Place),
}

impl Ticket {
    /// When to ask again. Not before, or the answer will be the same; later is allowed, and loses time.
    pub fn at(&self) -> Instant {
        self.at
    }

    /// The request's size.
    pub fn bytes(&self) -> u64 {
        self.cost.bytes
    }
}

/// The limits of a disk, for all its queues: any thread may ask.
///
/// ```
/// use std::{num::NonZeroU64, time::{Duration, Instant}};
/// use disk::limits::{Admit, Limiter, Limits, Rate};
/// let start = Instant::now();
/// let rate = Rate::steady(NonZeroU64::new(100).unwrap());
/// let limiter = Limiter::new(Limits { operations: Some(rate), bandwidth: None }, start);
/// // A disk that did nothing may do one hundredth of a second's work, and one request more, at once.
/// assert!(matches!(limiter.admit(start, 4096), Admit::Now));
/// assert!(matches!(limiter.admit(start, 4096), Admit::Now));
/// let Admit::Later(ticket) = limiter.admit(start, 4096) else { panic!() };
/// assert_eq!(ticket.at(), start + Duration::from_millis(10));
/// assert!(matches!(limiter.again(start + Duration::from_millis(10), ticket), Admit::Now));
/// assert_eq!(limiter.metered().throttled_time, Duration::from_millis(10));
/// ```
#[derive(Debug)]
pub struct Limiter {
    /// Whether `state` has a limit; a disk without one takes no lock.
    limited: AtomicBool,
    state: Mutex<State>,
    group: Option<Membership>,
    meter: Meter,
}

#[derive(Debug)]
struct State {
    limits: Limits,
    operations: Dimension,
    bandwidth: Dimension,
}

impl Limiter {
    /// The limiter of a disk that is in no group.
    pub fn new(limits: Limits, now: Instant) -> Limiter {
        Limiter::build(limits, None, now)
    }

    /// The limiter of a disk in a group, with its weight there: 1 to [`MAX_WEIGHT`](super::MAX_WEIGHT), what is outside counts as the
    /// nearest. The disk leaves the group when the limiter is dropped.
    pub fn in_group(limits: Limits, group: &Group, weight: u16, now: Instant) -> Limiter {
        Limiter::build(limits, Some(Membership::new(group, weight, now)), now)
    }

    fn build(limits: Limits, group: Option<Membership>, now: Instant) -> Limiter {
        let state = State {
            limits,
            operations: Dimension::new(limits.operations, now),
            bandwidth: Dimension::new(limits.bandwidth, now),
        };
        let limited = AtomicBool::new(limits != Limits::default());
        Limiter { limited, state: Mutex::new(state), group, meter: Meter::default() }
    }

    /// Asks for a request of so many bytes. A flush or a discard asks with 0, and counts as one operation.
    pub fn admit(&self, now: Instant, bytes: u64) -> Admit {
        let cost = Cost::of(bytes);
        if self.limited.load(Ordering::Acquire) {
            let mut state = self.lock();
            state.refill(now);
            let place = Place { operations: state.operations.ask(cost.operations), bytes: state.bandwidth.ask(cost.bytes) };
            let wait = state.wait(place);
            if !wait.is_zero() {
                return Admit::Later(Ticket { cost, since: now, at: later(now, wait), stage: Stage::Own(place) });
            }
        }
        self.enter_group(now, now, cost)
    }

    /// Asks again for a request that had to wait. The answer is [`Admit::Later`] again when it is asked too early, when limits were
    /// lowered meanwhile, and in a group, where others have a say.
    pub fn again(&self, now: Instant, mut ticket: Ticket) -> Admit {
        let wait = match (ticket.stage, &self.group) {
            (Stage::Own(place), _) => {
                let mut state = self.lock();
                state.refill(now);
                state.wait(place)
            }
            (Stage::Group(place), Some(group)) => group.wait(place, now),
            (Stage::Group(_), None) => Duration::ZERO,
        };
        match ticket.stage {
            _ if !wait.is_zero() => {
                ticket.at = later(now, wait);
                Admit::Later(ticket)
            }
            Stage::Own(_) => self.enter_group(now, ticket.since, ticket.cost),
            Stage::Group(_) => self.pass(now, ticket.since, ticket.cost),
        }
    }

    /// Gives a place back: the request will not be made (a reset, a queue that goes away). Those behind it move up.
    pub fn withdraw(&self, ticket: Ticket) {
        match (ticket.stage, &self.group) {
            (Stage::Own(_), _) => {
                let mut state = self.lock();
                state.operations.withdraw(ticket.cost.operations);
                state.bandwidth.withdraw(ticket.cost.bytes);
            }
            (Stage::Group(_), Some(group)) => group.withdraw(ticket.cost),
            (Stage::Group(_), None) => {}
        }
    }

    /// Changes the limits. Places in the line are kept; wake those who sleep until their tickets' times, so that they ask again.
    pub fn set(&self, limits: Limits, now: Instant) {
        let mut state = self.lock();
        state.limits = limits;
        state.operations.set(limits.operations, now);
        state.bandwidth.set(limits.bandwidth, now);
        self.limited.store(limits != Limits::default(), Ordering::Release);
    }

    /// Changes the weight in the group. Without a group there is none, and this does nothing.
    pub fn set_weight(&self, weight: u16, now: Instant) {
        if let Some(group) = &self.group {
            group.set_weight(weight, now);
        }
    }

    /// The limits as they are.
    pub fn limits(&self) -> Limits {
        self.lock().limits
    }

    /// What was done so far.
    pub fn metered(&self) -> Metered {
        self.meter.read()
    }

    fn enter_group(&self, now: Instant, since: Instant, cost: Cost) -> Admit {
        let Some(group) = &self.group else { return self.pass(now, since, cost) };
        let (place, wait) = group.ask(cost, now);
        if wait.is_zero() {
            return self.pass(now, since, cost);
        }
        Admit::Later(Ticket { cost, since, at: later(now, wait), stage: Stage::Group(place) })
    }

    fn pass(&self, now: Instant, since: Instant, cost: Cost) -> Admit {
        self.meter.admitted(cost);
        let waited = now.saturating_duration_since(since);
        if !waited.is_zero() {
            self.meter.waited(waited);
        }
        Admit::Now
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn refill(&mut self, now: Instant) {
        self.operations.refill(now);
        self.bandwidth.refill(now);
    }

    fn wait(&self, place: Place) -> Duration {
        self.operations.wait(place.operations).max(self.bandwidth.wait(place.bytes))
    }
}

/// A time that cannot be represented is replaced by one far away; whoever comes back then asks again.
fn later(now: Instant, wait: Duration) -> Instant {
    now.checked_add(wait).unwrap_or_else(|| now + Duration::from_secs(3600))
}
