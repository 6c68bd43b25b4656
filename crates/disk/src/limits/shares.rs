//! One rate divided between the disks of a group.

use std::time::{Duration, Instant};

use super::{NANOS, SLACK, time_to_yield, yielded};

/// A disk in the group. As in a bucket of its own, a request passes once its place is allowed.
#[derive(Debug)]
struct Member {
    weight: u16,
    asked: u128,
    allowed: u128,
}

/// Work is given out as it accrues: to every disk in proportion to its weight, as long as the disk has room. A disk that waits has
/// room for all it asked for; an idle one is soon full, and its part goes to the others in the same proportion. What nobody has
/// room for is spare, and covers late timers; beyond that it is lost.
#[derive(Debug)]
pub(super) struct Shares {
    per_second: Option<u64>,
    members: Vec<Option<Member>>,
    weights: u128,
    spare: u128,
    filled: Instant,
}

/// A disk asks again after this long at most: what it gets depends on what others do meanwhile.
const LONGEST_WAIT: Duration = Duration::from_millis(10);
/// And not sooner than this, so that a guess which was a little early does not become a busy loop.
const SHORTEST_WAIT: Duration = Duration::from_micros(20);

/// How long a disk that has enough may draw on it before the others are looked at.
const LONGEST_UNFILLED: Duration = Duration::from_millis(1);

impl Shares {
    pub fn new(per_second: Option<u64>, now: Instant) -> Shares {
        Shares { per_second, members: Vec::new(), weights: 0, spare: 0, filled: now }
    }

    pub fn set(&mut self, per_second: Option<u64>, now: Instant) {
        self.refill(now);
        self.per_second = per_second;
        self.spare = 0;
    }

    /// Adds a disk and returns its number.
    pub fn join(&mut self, weight: u16, now: Instant) -> usize {
        self.refill(now);
        self.weights += u128::from(weight);
        let member = Some(Member { weight, asked: 0, allowed: 0 });
        match self.members.iter().position(Option::is_none) {
            Some(index) => {
                self.members[index] = member;
                index
            }
            None => {
                self.members.push(member);
                self.members.len() - 1
            }
        }
    }

    /// Removes a disk. What accrued and was not yet given out goes to the others.
    pub fn leave(&mut self, index: usize) {
        if let Some(member) = self.members[index].take() {
            self.weights -= u128::from(member.weight);
        }
    }

    pub fn set_weight(&mut self, index: usize, weight: u16, now: Instant) {
        self.refill(now);
        if let Some(member) = &mut self.members[index] {
            self.weights = self.weights - u128::from(member.weight) + u128::from(weight);
            member.weight = weight;
        }
    }

    /// Puts work at the end of the disk's line and returns its place.
    pub fn ask(&mut self, index: usize, work: u64, now: Instant) -> u128 {
        // First what accrued until now, within the room there was: new work is no room for the past. Not for every request, because
        // it looks at all disks; what is left out for a moment is little.
        let behind = self.members[index].as_ref().is_some_and(|member| member.allowed <= member.asked);
        if behind || now.saturating_duration_since(self.filled) >= LONGEST_UNFILLED {
            self.refill(now);
        }
        let Some(member) = &mut self.members[index] else { return 0 };
        let place = member.asked;
        member.asked += u128::from(work) * NANOS;
        place
    }

    pub fn withdraw(&mut self, index: usize, work: u64) {
        if let Some(member) = &mut self.members[index] {
            member.asked = member.asked.saturating_sub(u128::from(work) * NANOS);
        }
    }

    /// How long until this disk may do the work at this place: zero for now, otherwise when to ask again.
    pub fn wait(&mut self, index: usize, place: u128, now: Instant) -> Duration {
        let Some(per_second) = self.per_second else {
            // Without a limit nobody falls behind; a limit set later starts here.
            if let Some(member) = &mut self.members[index] {
                member.allowed = member.allowed.max(member.asked);
            }
            return Duration::ZERO;
        };
        if self.allowed(index) < place {
            self.refill(now);
        }
        let missing = place.saturating_sub(self.allowed(index));
        let lent = missing.min(self.spare);
        if lent > 0 {
            self.spare -= lent;
            if let Some(member) = &mut self.members[index] {
                member.allowed += lent;
            }
        }
        if missing == lent {
            return Duration::ZERO;
        }
        // The part of the rate that it gets while the same disks have room.
        let waiting: u128 =
            self.members.iter().flatten().filter(|it| it.allowed < it.asked).map(|it| u128::from(it.weight)).sum();
        let weight = self.members[index].as_ref().map_or(1, |it| u128::from(it.weight));
        let part = u128::from(per_second) * weight / waiting.max(weight);
        time_to_yield(missing - lent, part as u64).clamp(SHORTEST_WAIT, LONGEST_WAIT)
    }

    fn allowed(&self, index: usize) -> u128 {
        self.members[index].as_ref().map_or(u128::MAX, |member| member.allowed)
    }

    fn refill(&mut self, now: Instant) {
        let time = now.saturating_duration_since(self.filled);
        if time.is_zero() {
            return;
        }
        self.filled = now;
        let Some(per_second) = self.per_second else { return };
        let slack = yielded(per_second, SLACK);
        let mut left = yielded(per_second, time);
        // Each round fills at least one disk or gives everything out, so there are no more rounds than disks.
        while left > 0 {
            let room = |member: &Member, weights: u128| {
                let full = member.asked + slack * u128::from(member.weight) / weights.max(1);
                full.saturating_sub(member.allowed)
            };
            let weights = self.weights;
            let open = self.members.iter().flatten().filter(|member| room(member, weights) > 0);
            let open_weights: u128 = open.map(|member| u128::from(member.weight)).sum();
            if open_weights == 0 {
                break;
            }
            let mut given = 0;
            for member in self.members.iter_mut().flatten() {
                let part = (left * u128::from(member.weight) / open_weights).min(room(member, weights));
                member.allowed += part;
                given += part;
            }
            left -= given;
            if given == 0 {
                break;
            }
        }
        self.spare = (self.spare + left).min(slack);
    }
}
