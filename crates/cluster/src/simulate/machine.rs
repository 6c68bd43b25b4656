//! One machine: its clock, its power, and what runs on it.

use std::collections::BTreeMap;
use std::time::Duration;

use store::LeaseId;

use crate::{HostId, Moment, Node, VmId};

/// A clock that goes too fast or too slow by a constant.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Clock {
    /// In millionths; more is faster.
    pub(super) drift_ppm: i64,
}

impl Clock {
    /// What it measures of a time that passes.
    pub(super) fn measured(self, real: Duration) -> Duration {
        scale(real, 1_000_000 + self.drift_ppm, 1_000_000)
    }

    /// The time that passes until it has measured another; never shorter.
    pub(super) fn real(self, measured: Duration) -> Duration {
        scale(measured, 1_000_000, 1_000_000 + self.drift_ppm) + Duration::from_nanos(2)
    }
}

fn scale(time: Duration, by: i64, over: i64) -> Duration {
    let nanos = time.as_nanos() * u128::try_from(by).unwrap_or(1) / u128::try_from(over).unwrap_or(1);
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// The program around a node.
pub(super) struct Daemon {
    pub(super) node: Node,
    /// Which of the host's daemons it is; what was for another one is not for it.
    pub(super) instance: u64,
    /// The moment at which its next timer is due.
    pub(super) wake_at: Option<Duration>,
    /// It is fed by a watch that began with this number; `None` while it has none.
    pub(super) stream: Option<u64>,
    /// It waits for all entries.
    pub(super) listing: bool,
    /// The renewal that it asked for last.
    pub(super) last_renewal: u64,
    /// What the watch tells comes in order.
    pub(super) told_until: Duration,
}

/// How a VM's process is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Doing {
    Starting,
    Running,
    Stopping,
    Saving,
    Dying,
}

/// A VM's process.
pub(super) struct Process {
    pub(super) doing: Doing,
    /// Which of the processes it is.
    pub(super) number: u64,
    /// It does not look at the deadline, and the guard leaves it alone.
    pub(super) bound: bool,
}

/// The guard's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Guard {
    Up,
    /// It does nothing since this moment: it was stopped or killed.
    Away(Duration),
}

/// Files of a VM that are being copied from a machine.
pub(super) struct Copying {
    pub(super) to: HostId,
    /// Which of the copies it is.
    pub(super) number: u64,
    /// How often the VM had been started when it began.
    pub(super) starts: u64,
}

pub(super) struct Machine {
    pub(super) id: HostId,
    /// Whether it is a host, and not only a member of the store.
    pub(super) is_host: bool,
    pub(super) clock: Clock,
    pub(super) powered: bool,
    /// Counts its starts.
    pub(super) boot: u64,
    booted_at: Duration,
    /// Nothing on it goes on before this moment.
    pub(super) frozen_until: Option<Duration>,
    pub(super) daemon: Option<Daemon>,
    pub(super) daemon_frozen_until: Option<Duration>,
    pub(super) guard: Guard,
    /// What the guard and all VMs see: the lease, and the deadline.
    pub(super) page: Option<(LeaseId, Moment)>,
    pub(super) vms: BTreeMap<VmId, Process>,
    /// By the daemon, and they end with it.
    pub(super) copies: BTreeMap<VmId, Copying>,
    /// The store's member on it, if it has one, is up.
    pub(super) member_up: bool,
    pub(super) member_frozen_until: Option<Duration>,
}

impl Machine {
    pub(super) fn new(id: HostId, is_host: bool, clock: Clock) -> Machine {
        Machine {
            id,
            is_host,
            clock,
            powered: true,
            boot: 1,
            booted_at: Duration::ZERO,
            frozen_until: None,
            daemon: None,
            daemon_frozen_until: None,
            guard: Guard::Up,
            page: None,
            vms: BTreeMap::new(),
            copies: BTreeMap::new(),
            member_up: true,
            member_frozen_until: None,
        }
    }

    /// Whether anything on it goes on.
    pub(super) fn goes(&self, now: Duration) -> bool {
        self.powered && self.frozen_until.is_none_or(|until| now >= until)
    }

    pub(super) fn member_goes(&self, now: Duration) -> bool {
        self.goes(now) && self.member_up && self.member_frozen_until.is_none_or(|until| now >= until)
    }

    /// When the daemon goes on, if it does not now.
    pub(super) fn daemon_held_until(&self, now: Duration) -> Option<Duration> {
        let until = self.frozen_until.max(self.daemon_frozen_until)?;
        (now < until).then_some(until)
    }

    /// What its clock shows.
    pub(super) fn moment(&self, now: Duration) -> Moment {
        Moment(self.clock.measured(now.saturating_sub(self.booted_at)))
    }

    /// When its clock shows a moment.
    pub(super) fn real(&self, moment: Moment) -> Duration {
        self.booted_at.saturating_add(self.clock.real(moment.0))
    }

    /// Everything on it is gone.
    pub(super) fn lose_power(&mut self) {
        self.powered = false;
        self.frozen_until = None;
        self.daemon = None;
        self.daemon_frozen_until = None;
        self.guard = Guard::Up;
        self.page = None;
        self.vms.clear();
        self.copies.clear();
        self.member_frozen_until = None;
    }

    pub(super) fn get_power(&mut self, now: Duration) {
        self.powered = true;
        self.boot += 1;
        self.booted_at = now;
        self.member_up = true;
    }

    /// Whether the deadline has passed on its clock, or there never was one.
    pub(super) fn is_past_deadline(&self, now: Duration) -> bool {
        self.page.is_none_or(|(_, deadline)| self.moment(now) >= deadline)
    }
}
