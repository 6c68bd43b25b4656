//! What is to be done when.
//!
//! ```text
//!   Free ──extend──▶ Held ──deadline──▶ Ending ──no VM runs──▶ Ended
//!    ▲                │ ▲                                        │
//!    └────release─────┘ └────────────────extend──────────────────┘
//! ```

use std::time::Duration;

use crate::BootTime;

/// While VMs are being ended, it is looked at so often whether they have.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// Without a watchdog, it is looked at so often whether something runs that must not.
const LOOK_AT_TIMES: Duration = Duration::from_millis(500);

/// The times that hold as long as the guard runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// From the deadline to the first moment when the store may give the VMs to another host.
    pub margin: Duration,
    /// How long after it was fed last the watchdog resets the host.
    pub watchdog: Option<Duration>,
    /// How far ahead a deadline may be.
    pub horizon: Duration,
}

/// Where things stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// VMs may run: there is no lease that they need.
    Free,
    /// VMs may run until then.
    Held(BootTime),
    /// That time has passed, and VMs are being ended.
    Ending(BootTime),
    /// They have ended.
    Ended,
}

/// What to do with the watchdog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watch {
    /// It is not needed.
    Off,
    /// Feed it.
    Feed,
    /// Let it count: it resets the host unless things get better.
    Starve,
}

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Orders {
    /// End all VMs.
    pub kill: bool,
    /// The watchdog.
    pub watch: Watch,
    /// When to look again.
    pub again: BootTime,
}

/// Why a deadline is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It has passed.
    #[error("the deadline has passed already: renew the lease, and count from when the renewal is sent")]
    Past,
    /// Nobody has a lease that long.
    #[error("the deadline is {ahead:?} ahead, and at most {most:?} are taken: is it of another clock than CLOCK_BOOTTIME?")]
    TooFar {
        /// How far ahead it is.
        ahead: Duration,
        /// How far it may be.
        most: Duration,
    },
    /// The one before has passed.
    #[error("the deadline before this one has passed, and the VMs are being ended: come again when none runs")]
    Ending,
}

/// Decides. Has no clock and does nothing itself.
#[derive(Clone, Debug)]
pub struct Fence {
    times: Times,
    state: State,
}

impl Fence {
    /// One that goes on from a state.
    pub fn new(times: Times, state: State) -> Fence {
        Fence { times, state }
    }

    /// Where things stand.
    pub fn state(&self) -> State {
        self.state
    }

    /// Moves the deadline; never back. `running` says whether a VM runs now.
    pub fn extend(&mut self, now: BootTime, deadline: BootTime, running: bool) -> Result<BootTime, Refused> {
        if deadline <= now {
            return Err(Refused::Past);
        }
        let (ahead, most) = (now.until(deadline), self.times.horizon);
        if ahead > most {
            return Err(Refused::TooFar { ahead, most });
        }
        let deadline = match self.state {
            State::Free => deadline,
            State::Held(before) if now < before => before.max(deadline),
            State::Ended if !running => deadline,
            // Whoever is late finds the VMs ended, even if nobody has looked yet.
            State::Held(_) | State::Ending(_) | State::Ended => return Err(Refused::Ending),
        };
        self.state = State::Held(deadline);
        Ok(deadline)
    }

    /// No lease is needed any more.
    pub fn release(&mut self, now: BootTime) -> Result<(), Refused> {
        match self.state {
            State::Held(deadline) if now >= deadline => Err(Refused::Ending),
            State::Ending(_) => Err(Refused::Ending),
            State::Free | State::Held(_) | State::Ended => {
                self.state = State::Free;
                Ok(())
            }
        }
    }

    /// What to do now. `running` says whether a VM runs.
    pub fn look(&mut self, now: BootTime, running: bool) -> Orders {
        self.state = match self.state {
            State::Held(deadline) if now >= deadline && running => State::Ending(deadline),
            State::Held(deadline) if now >= deadline => State::Ended,
            State::Ending(_) if !running => State::Ended,
            // Somebody started it without a lease.
            State::Ended if running => State::Ending(BootTime(0)),
            other => other,
        };
        // The host must be reset by then if VMs run.
        let (end, kill) = match self.state {
            State::Free => return Orders { kill: false, watch: Watch::Off, again: now.after(LOOK_AT_TIMES) },
            State::Held(deadline) => (deadline, false),
            State::Ending(deadline) => (deadline, true),
            State::Ended => (BootTime(0), false),
        };
        let in_time = |timeout| now.after(timeout) <= end.after(self.times.margin);
        let watch = match self.times.watchdog {
            None => Watch::Off,
            Some(timeout) if !running || in_time(timeout) => Watch::Feed,
            Some(_) => Watch::Starve,
        };
        // Three meals may fail.
        let regular = now.after(self.times.watchdog.map_or(LOOK_AT_TIMES, |timeout| timeout / 4));
        let again = match self.state {
            State::Held(deadline) => regular.min(deadline),
            State::Ending(_) => now.after(LOOK_AGAIN),
            State::Free | State::Ended => regular,
        };
        Orders { kill, watch, again }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: u64 = 1_000_000;
    const TIMES: Times =
        Times { margin: Duration::from_secs(1), watchdog: Some(Duration::from_secs(2)), horizon: Duration::from_secs(60) };

    fn at(ms: u64) -> BootTime {
        BootTime(ms * MS)
    }

    fn held(ms: u64) -> Fence {
        Fence::new(TIMES, State::Held(at(ms)))
    }

    #[test]
    fn the_vms_are_ended_at_the_deadline_and_not_before() {
        let mut fence = held(4000);
        assert!(!fence.look(at(3999), true).kill);
        assert!(fence.look(at(4000), true).kill);
        assert!(fence.look(at(4005), true).kill, "until they have ended");
        assert!(!fence.look(at(4010), false).kill);
        assert_eq!(fence.state(), State::Ended);
        assert!(fence.look(at(9000), true).kill, "what runs without a lease is ended, too");
    }

    #[test]
    fn it_wakes_up_at_the_deadline() {
        assert_eq!(held(4000).look(at(3900), true).again, at(4000));
    }

    #[test]
    fn a_deadline_moves_forward_only_and_not_after_it_has_passed() {
        let mut fence = Fence::new(TIMES, State::Free);
        assert_eq!(fence.extend(at(0), at(4000), true), Ok(at(4000)));
        assert_eq!(fence.extend(at(1000), at(3000), true), Ok(at(4000)));
        assert_eq!(fence.extend(at(1000), at(5000), true), Ok(at(5000)));
        assert_eq!(fence.extend(at(5000), at(9000), true), Err(Refused::Ending), "nobody has looked yet");
        fence.look(at(5001), true);
        assert_eq!(fence.extend(at(5002), at(9000), true), Err(Refused::Ending));
        fence.look(at(5003), false);
        assert_eq!(fence.extend(at(5004), at(9000), true), Err(Refused::Ending), "one runs that nobody has ended yet");
        assert_eq!(fence.extend(at(5005), at(9000), false), Ok(at(9000)));
    }

    #[test]
    fn deadlines_that_make_no_sense_are_refused() {
        let mut fence = Fence::new(TIMES, State::Free);
        assert_eq!(fence.extend(at(10), at(10), false), Err(Refused::Past));
        let refused = fence.extend(at(10), at(60_011), false);
        assert!(matches!(refused, Err(Refused::TooFar { .. })), "{refused:?}");
        assert_eq!(fence.state(), State::Free);
    }

    #[test]
    fn a_host_that_leaves_is_free_but_not_while_its_vms_are_ended() {
        let mut fence = held(4000);
        assert_eq!(fence.release(at(4000)), Err(Refused::Ending));
        assert_eq!(fence.release(at(3999)), Ok(()));
        assert_eq!(fence.look(at(9000), true).watch, Watch::Off);
    }

    #[test]
    fn without_vms_the_watchdog_is_fed_whatever_the_lease() {
        let mut fence = held(4000);
        for ms in [3000, 4000, 8000, 90_000] {
            assert_eq!(fence.look(at(ms), false).watch, Watch::Feed);
        }
    }

    proptest! {
        /// Whenever the guard is stopped for good, the watchdog has bitten by the time at which the store may end the lease, if VMs run.
        #[test]
        fn a_host_whose_guard_stops_is_reset_in_time(
            renewals in prop::collection::vec(200u64..1500, 1..12),
            stop in 0u64..20_000,
        ) {
            // A lease of 5 s: the deadline is 4 s after a renewal was sent.
            let (mut now, mut fence) = (at(0), Fence::new(TIMES, State::Free));
            fence.extend(now, at(4000), true).unwrap();
            let (mut sent, mut fed, mut killed) = (0, 0, None);
            let mut renewals = renewals.into_iter().scan(0, |sum, gap| { *sum += gap; Some(*sum) }).peekable();
            while now < at(stop) && killed.is_none() {
                while let Some(renewal) = renewals.next_if(|renewal| at(*renewal) <= now) {
                    if fence.extend(now, at(renewal + 4000), true).is_ok() {
                        sent = renewal;
                    }
                }
                let orders = fence.look(now, true);
                if orders.watch == Watch::Feed {
                    fed = now.0 / MS;
                }
                killed = orders.kill.then_some(now);
                let next = renewals.peek().map_or(orders.again, |renewal| orders.again.min(at(*renewal)));
                prop_assert!(next > now);
                now = next;
            }
            match killed {
                Some(moment) => prop_assert_eq!(moment, at(sent + 4000)),
                None => prop_assert!(fed + 2000 <= sent + 5000, "fed at {} with a renewal sent at {}", fed, sent),
            }
        }
    }
}
