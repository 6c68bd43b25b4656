//! Time, and what happens in it.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BinaryHeap};
use std::ops::RangeInclusive;
use std::time::Duration;

use store::record::{Record, to_bytes};
use store::{Change, Changed, Condition, Transaction};

use super::checker::{COPIES, Checker};
use super::engine::{Batch, Engine, Request};
use super::faults::Fault;
use super::links::Links;
use super::log::Log;
use super::machine::{Clock, Copying, Daemon, Doing, Guard, Machine, Process};
use crate::records::{
    AliveRecord, HostRecord, LocalFiles, PlacementRecord, PolicyRecord, RenewalRecord, alive_key, host_key, own_volume,
    placement_key,
};
use crate::view::Standing;
use crate::{Action, Answer, Beat, Config, Ending, Event, Guarded, HostId, Network, Node, Notice, View, VmId};

/// A fault of the code, made by the simulation, which the checker has to find: the proof that it finds any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// Hosts stop their VMs when the lease ends by their own clock, not before.
    NoMargin,
    /// The deadline is counted from about the answer to a renewal: from the last one that was sent before the answer came.
    DeadlineFromAnswer,
    /// The coordinator's transactions have no conditions on leases.
    TakeoverWithoutLease,
    /// Leases are ended without the condition that there was no later renewal.
    EndWithoutRenewal,
    /// VMs do not look at the deadline before they write.
    VmsDoNotLook,
    /// The guard does nothing, and VMs do not look.
    NoGuard,
    /// VMs that are not bound to their host run on without a lease, too.
    AllBound,
}

/// How long things take, in microseconds.
#[derive(Clone, Debug)]
pub(super) struct Delays {
    pub(super) message: RangeInclusive<u64>,
    pub(super) commit: RangeInclusive<u64>,
    pub(super) start: RangeInclusive<u64>,
    pub(super) stop: RangeInclusive<u64>,
    pub(super) kill: RangeInclusive<u64>,
    pub(super) copy: RangeInclusive<u64>,
    pub(super) boot: RangeInclusive<u64>,
    pub(super) election: RangeInclusive<u64>,
}

/// The time after which the watchdog resets a host whose guard does nothing.
const WATCHDOG: Duration = Duration::from_secs(2);
/// It does so at the latest so long after the deadline: the guard does not feed it beyond that.
const WATCHDOG_AFTER_DEADLINE: Duration = Duration::from_millis(500);
/// When a commit without an answer is given up, and a read of everything is begun anew.
const PATIENCE: Duration = Duration::from_secs(1);
/// Seconds since 1970 when a simulation begins: a midnight.
const BEGIN_UNIX_S: u64 = 1_800_057_600;

/// How often things happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// VMs were started.
    pub starts: u64,
    /// VMs were given to another host since theirs had failed.
    pub takeovers: u64,
    /// VMs were killed by a guard.
    pub guard_kills: u64,
    /// Hosts were reset by their watchdog.
    pub resets: u64,
    /// Transactions met a condition that did not hold.
    pub conflicts: u64,
    /// Transactions were done after their sender had given them up.
    pub late: u64,
    /// VMs went to another host with their memory.
    pub restores: u64,
    /// VMs went to another host with copies of their files.
    pub copies: u64,
    /// VMs that are bound to their host ran on when its lease was over.
    pub outlived: u64,
}

/// What is to happen at some time.
enum Happening {
    Daemon { machine: usize, instance: u64, event: Event },
    Timer { machine: usize, instance: u64, at: Duration },
    Arrives(Letter),
    Watch { machine: usize, instance: u64, stream: u64, batch: Batch },
    ListAgain { machine: usize, instance: u64 },
    Vm { machine: usize, boot: u64, vm: VmId, number: u64, ending: Option<Ending> },
    Copied { machine: usize, vm: VmId, number: u64 },
    Guard { machine: usize, boot: u64 },
    Watchdog { machine: usize, boot: u64, since: Duration },
    GuardBack { machine: usize, boot: u64, since: Duration },
    Thaws { machine: usize, boot: u64 },
    DaemonStarts { machine: usize, boot: u64 },
    Leases,
    Election,
    Fault(Fault),
}

/// A request on its way.
struct Letter {
    machine: usize,
    instance: u64,
    request: Request,
    sent: Duration,
    tries: u32,
}

struct Scheduled {
    at: Duration,
    sequence: u64,
    happening: Happening,
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Scheduled) -> Ordering {
        (other.at, other.sequence).cmp(&(self.at, self.sequence))
    }
}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Scheduled) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Scheduled) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Scheduled {}

/// Everything.
pub(super) struct World {
    pub(super) now: Duration,
    queue: BinaryHeap<Scheduled>,
    count: u64,
    pub(super) rng: fastrand::Rng,
    pub(super) machines: Vec<Machine>,
    pub(super) links: Links,
    engine: Engine,
    pub(super) checker: Checker,
    pub(super) log: Log,
    pub(super) delays: Delays,
    mutation: Option<Mutation>,
    pub(super) config: Config,
    /// Messages and commits are slow until then.
    pub(super) slow_until: Duration,
    /// Watches lose changes, and tell of ends that were none: one in so many; never if 0.
    pub(super) lies: u32,
    /// VMs that do not start, and saves that fail: one in so many; none if 0.
    pub(super) failures: u32,
    leases_at: Option<Duration>,
    pub(super) counts: Counts,
}

impl World {
    /// Machines of which the first are hosts; members of the store are named by their indexes.
    pub(super) fn new(
        rng: fastrand::Rng,
        machines: Vec<Machine>,
        members: Vec<usize>,
        delays: Delays,
        mut config: Config,
        mutation: Option<Mutation>,
        log: Log,
    ) -> World {
        if mutation == Some(Mutation::NoMargin) {
            config.margin = Duration::ZERO;
        }
        let clock = machines[members[0]].clock;
        World {
            now: Duration::ZERO,
            queue: BinaryHeap::new(),
            count: 0,
            rng,
            links: Links::new(machines.len()),
            machines,
            engine: Engine::new(members, clock, config.ttl),
            checker: Checker::new(!matches!(mutation, Some(Mutation::VmsDoNotLook | Mutation::NoGuard))),
            log,
            delays,
            mutation,
            config,
            slow_until: Duration::ZERO,
            lies: 0,
            failures: 0,
            leases_at: None,
            counts: Counts::default(),
        }
    }

    /// Writes the records that a cluster begins with, and starts all daemons.
    pub(super) fn set_up(&mut self, hosts: &[(HostId, HostRecord)], vms: &[(VmId, PlacementRecord)], policy: &PolicyRecord) {
        let mut transaction = Transaction::new().put(crate::records::POLICY_KEY, to_bytes(policy));
        for (id, record) in hosts {
            transaction = transaction.put(host_key(id), to_bytes(record));
        }
        for (id, record) in vms {
            transaction = transaction.put(placement_key(id), to_bytes(record));
        }
        self.engine.commit(&transaction);
        self.spread();
        for machine in 0..self.machines.len() {
            self.start_daemon(machine);
        }
    }

    /// The time as others call it.
    pub(super) fn unix_s(&self) -> u64 {
        BEGIN_UNIX_S + self.now.as_secs()
    }

    pub(super) fn number(&mut self) -> u64 {
        self.count += 1;
        self.count
    }

    pub(super) fn pick(&mut self, range: &RangeInclusive<u64>) -> Duration {
        Duration::from_micros(self.rng.u64(range.clone()))
    }

    fn at(&mut self, at: Duration, happening: Happening) {
        let sequence = self.number();
        self.queue.push(Scheduled { at: at.max(self.now), sequence, happening });
    }

    pub(super) fn fault_at(&mut self, at: Duration, fault: Fault) {
        self.at(at, Happening::Fault(fault));
    }

    /// Lets things happen until a moment, or until something must not have.
    pub(super) fn run_until(&mut self, end: Duration) {
        while self.checker.violation.is_none()
            && self.queue.peek().is_some_and(|next| next.at <= end)
            && let Some(next) = self.queue.pop()
        {
            self.now = next.at;
            self.happen(next.happening);
        }
        self.now = self.now.max(end);
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Daemon { machine, instance, event } => match self.daemon(machine, instance) {
                Present::Now => self.step(machine, event),
                Present::Later(until) => self.at(until, Happening::Daemon { machine, instance, event }),
                Present::Never => {}
            },
            Happening::Timer { machine, instance, at } => match self.daemon(machine, instance) {
                Present::Now => {
                    let daemon = self.machines[machine].daemon.as_mut();
                    if let Some(daemon) = daemon.filter(|daemon| daemon.wake_at == Some(at)) {
                        daemon.wake_at = None;
                        self.step(machine, Event::Timer);
                    }
                }
                Present::Later(until) => self.at(until, Happening::Timer { machine, instance, at }),
                Present::Never => {}
            },
            Happening::Arrives(letter) => self.arrives(letter),
            Happening::Watch { machine, instance, stream, batch } => match self.daemon(machine, instance) {
                Present::Now => self.watched(machine, instance, stream, batch),
                Present::Later(until) => self.at(until, Happening::Watch { machine, instance, stream, batch }),
                Present::Never => {}
            },
            Happening::ListAgain { machine, instance } => match self.daemon(machine, instance) {
                Present::Now => {
                    if self.machines[machine].daemon.as_ref().is_some_and(|daemon| daemon.listing) {
                        self.list(machine, instance);
                    }
                }
                Present::Later(until) => self.at(until, Happening::ListAgain { machine, instance }),
                Present::Never => {}
            },
            Happening::Vm { machine, boot, vm, number, ending } => self.vm_happens(machine, boot, vm, number, ending),
            Happening::Copied { machine, vm, number } => self.copy_ends(machine, vm, number),
            Happening::Guard { machine, boot } => self.guard_looks(machine, boot),
            Happening::Watchdog { machine, boot, since } => {
                let there = &self.machines[machine];
                if there.boot != boot || !there.powered || there.guard != Guard::Away(since) {
                } else if let Some(until) = there.frozen_until.filter(|until| self.now < *until) {
                    self.at(until, Happening::Watchdog { machine, boot, since });
                } else {
                    self.counts.resets += 1;
                    self.say(machine, || "the watchdog resets the host".into());
                    self.reset(machine);
                }
            }
            Happening::GuardBack { machine, boot, since } => {
                let there = &mut self.machines[machine];
                if there.boot == boot && there.guard == Guard::Away(since) {
                    there.guard = Guard::Up;
                    self.guard_looks(machine, boot);
                }
            }
            Happening::Thaws { machine, boot } => {
                if self.machines[machine].boot == boot {
                    self.checker.check_machine(&self.machines, machine, self.now);
                    self.watch_leader();
                }
            }
            Happening::DaemonStarts { machine, boot } => {
                let there = &self.machines[machine];
                if there.boot == boot && there.powered && there.daemon.is_none() {
                    self.start_daemon(machine);
                }
            }
            Happening::Leases => {
                self.leases_at = None;
                if self.leads() {
                    self.engine.advance(self.now);
                    self.spread();
                } else {
                    self.watch_leader();
                }
            }
            Happening::Election => self.elect(),
            Happening::Fault(fault) => self.fault(fault),
        }
    }

    pub(super) fn say(&mut self, machine: usize, what: impl FnOnce() -> String) {
        self.log.line(self.now, &self.machines[machine].id, what);
    }

    fn daemon(&self, machine: usize, instance: u64) -> Present {
        let there = &self.machines[machine];
        match &there.daemon {
            Some(daemon) if daemon.instance == instance => match there.daemon_held_until(self.now) {
                Some(until) => Present::Later(until),
                None => Present::Now,
            },
            _ => Present::Never,
        }
    }

    pub(super) fn start_daemon(&mut self, machine: usize) {
        let instance = self.number();
        let there = &mut self.machines[machine];
        if !there.is_host {
            return;
        }
        let config = Config { host: there.id.clone(), ..self.config.clone() };
        there.copies.clear();
        let guarded = there.page.map(|(lease, deadline)| Guarded { lease, deadline });
        let bound = there.vms.iter().filter(|(_, process)| process.bound).map(|(vm, _)| vm.clone()).collect();
        let node = Node::new(config, there.moment(self.now), guarded, there.vms.keys().cloned().collect(), bound);
        there.daemon = Some(Daemon {
            node,
            instance,
            wake_at: None,
            stream: None,
            listing: false,
            last_renewal: 0,
            told_until: Duration::ZERO,
        });
        self.say(machine, || "marud starts".into());
        let unix_s = self.unix_s();
        self.at(self.now, Happening::Daemon { machine, instance, event: Event::WallClock { unix_s } });
    }

    fn step(&mut self, machine: usize, mut event: Event) {
        if self.mutation == Some(Mutation::DeadlineFromAnswer)
            && let (Event::LeaseRenewed { attempt }, Some(daemon)) = (&mut event, &self.machines[machine].daemon)
        {
            *attempt = daemon.last_renewal;
        }
        let there = &mut self.machines[machine];
        let moment = there.moment(self.now);
        let Some(daemon) = &mut there.daemon else { return };
        let actions = daemon.node.step(moment, event);
        let (wake, instance) = (daemon.node.wake_at(), daemon.instance);
        let wake = there.real(wake);
        let Some(daemon) = &mut there.daemon else { return };
        if daemon.wake_at.is_none_or(|scheduled| scheduled > wake || scheduled <= self.now) {
            daemon.wake_at = Some(wake);
            self.at(wake, Happening::Timer { machine, instance, at: wake });
        }
        for action in actions {
            self.act(machine, instance, action);
        }
    }

    fn act(&mut self, machine: usize, instance: u64, action: Action) {
        match action {
            Action::Read => self.list(machine, instance),
            Action::TakeLease { attempt } => {
                let host = self.machines[machine].id.clone();
                self.send(machine, instance, Request::Take { attempt, host });
            }
            Action::RenewLease { attempt, lease, alive } => {
                if let Some(daemon) = &mut self.machines[machine].daemon {
                    daemon.last_renewal = attempt;
                }
                let host = self.machines[machine].id.clone();
                self.send(machine, instance, Request::Renew { attempt, lease, host, alive });
            }
            Action::Guard { lease, deadline } => {
                let there = &mut self.machines[machine];
                // A guard that does nothing takes no deadline either.
                if there.guard == Guard::Up {
                    there.page = Some((lease, deadline));
                    let (at, boot) = (there.real(deadline), there.boot);
                    self.at(at, Happening::Guard { machine, boot });
                    self.checker.check_machine(&self.machines, machine, self.now);
                }
            }
            Action::Commit { commit, mut transaction } => {
                match self.mutation {
                    Some(Mutation::TakeoverWithoutLease) => transaction = without(&transaction, AliveRecord::PREFIX),
                    Some(Mutation::EndWithoutRenewal) => transaction = without(&transaction, RenewalRecord::PREFIX),
                    _ => {}
                }
                // Now and then a message is doubled.
                if self.failures > 0 && self.rng.u32(0..50) == 0 {
                    self.send(machine, instance, Request::Commit { commit, transaction: transaction.clone() });
                }
                self.send(machine, instance, Request::Commit { commit, transaction });
                let event = Event::Committed { commit, answer: Answer::Unknown };
                self.at(self.now + PATIENCE, Happening::Daemon { machine, instance, event });
            }
            Action::Start { vm, token: _, restore, bound } => {
                self.start_vm(machine, vm, restore, bound || self.mutation == Some(Mutation::AllBound));
            }
            Action::Stop(vm) => self.end_vm(machine, &vm, Doing::Stopping, Ending::Stopped),
            Action::Save(vm) => {
                let fails = self.failures > 0 && self.rng.u32(0..self.failures) == 0;
                let ending = if fails { Ending::SaveFailed("the volume is full".into()) } else { Ending::Saved };
                self.end_vm(machine, &vm, Doing::Saving, ending);
            }
            Action::Copy { vm, to, volume: _ } => {
                let (number, starts) = (self.number(), self.checker.starts(&vm));
                self.say(machine, || format!("copies {vm} to {to}"));
                self.machines[machine].copies.insert(vm.clone(), Copying { to, number, starts });
                let at = self.now + self.pick(&self.delays.copy.clone());
                self.at(at, Happening::Copied { machine, vm, number });
            }
            Action::EndCopy(vm) => {
                if self.machines[machine].copies.remove(&vm).is_some() {
                    let event = Event::VmCopied { vm, result: Err("it was called off".into()) };
                    self.at(self.now, Happening::Daemon { machine, instance, event });
                }
            }
            Action::Kill(vm) => {
                let there = &mut self.machines[machine];
                there.copies.remove(&vm);
                if !there.vms.contains_key(&vm) {
                    let event = Event::VmEnded { vm: vm.clone(), ending: Ending::Killed };
                    self.at(self.now, Happening::Daemon { machine, instance, event });
                }
                self.end_vm(machine, &vm, Doing::Dying, Ending::Killed);
            }
            Action::Beat { to, beat } => self.send_beat(machine, &to, beat),
            Action::Tell(notice) => {
                self.counts.takeovers += u64::from(matches!(notice, Notice::Placed { from: Some(_), .. }));
                self.say(machine, || notice.to_string());
            }
        }
    }

    fn send_beat(&mut self, machine: usize, to: &HostId, beat: Beat) {
        let Some(target) = self.machines.iter().position(|there| there.id == *to) else { return };
        let from = self.machines[machine].id.clone();
        for network in Network::ALL {
            let lost = self.links.loss[network as usize];
            if !self.links.up(network, machine, target) || (lost > 0 && self.rng.u32(0..100) < lost) {
                continue;
            }
            let at = self.now + self.message();
            if let Some(instance) = self.machines[target].daemon.as_ref().map(|daemon| daemon.instance) {
                let event = Event::Heartbeat { from: from.clone(), network, beat };
                self.at(at, Happening::Daemon { machine: target, instance, event });
            }
        }
    }

    /// The time that a message takes.
    fn message(&mut self) -> Duration {
        let slow = if self.now < self.slow_until { Duration::from_micros(self.rng.u64(0..2_000_000)) } else { Duration::ZERO };
        self.pick(&self.delays.message.clone()) + slow
    }

    fn list(&mut self, machine: usize, instance: u64) {
        if let Some(daemon) = &mut self.machines[machine].daemon {
            daemon.listing = true;
        }
        self.send(machine, instance, Request::List);
        self.at(self.now + PATIENCE, Happening::ListAgain { machine, instance });
    }

    /// A member through which a machine reaches the leader, in one direction.
    fn via(&self, machine: usize, forth: bool) -> Option<usize> {
        let leader = self.engine.leader;
        let up = |a, b| if forth { self.links.up(Network::First, a, b) } else { self.links.up(Network::First, b, a) };
        let goes = |member: &usize| self.machines[*member].member_goes(self.now) && up(machine, *member) && up(*member, leader);
        // Its own member first, then the leader itself.
        let mut members = [machine, leader].into_iter().filter(|member| self.engine.members.contains(member));
        members.find(goes).or_else(|| self.engine.members.iter().copied().find(goes))
    }

    fn send(&mut self, machine: usize, instance: u64, request: Request) {
        if self.via(machine, true).is_some() {
            // A connection hides what is lost, and takes longer.
            let lost = self.links.loss[0];
            let again = if lost > 0 && self.rng.u32(0..100) < lost { Duration::from_millis(300) } else { Duration::ZERO };
            let at = self.now + self.message() + again;
            let letter = Letter { machine, instance, request, sent: self.now, tries: 0 };
            self.at(at, Happening::Arrives(letter));
        }
    }

    fn arrives(&mut self, letter: Letter) {
        let Letter { machine, instance, sent, tries, .. } = letter;
        if !self.leads() {
            self.watch_leader();
            // It waits at the member, and may be done long after its sender gave up; or it is lost.
            if tries < 4 && self.rng.bool() {
                let at = self.now + Duration::from_millis(700);
                self.at(at, Happening::Arrives(Letter { tries: tries + 1, ..letter }));
            }
            return;
        }
        self.engine.advance(self.now);
        let writes = matches!(letter.request, Request::Commit { .. } | Request::Take { .. });
        let lists = matches!(letter.request, Request::List);
        if writes && tries == 0 {
            // The disk; what is asked for is decided when it is written.
            let at = self.now
                + self.pick(&self.delays.commit.clone())
                + if self.now < self.slow_until { self.message() } else { Duration::ZERO };
            self.at(at, Happening::Arrives(Letter { tries: 1, ..letter }));
            return;
        }
        let event = self.engine.handle(letter.request);
        if let Event::Committed { answer, .. } = &event {
            self.counts.conflicts += u64::from(matches!(answer, Answer::Conflict { .. }));
            self.counts.late += u64::from(self.now - sent > PATIENCE && matches!(answer, Answer::Done(_)));
        }
        self.spread();
        let back = self.via(machine, false);
        let at = self.now + self.message();
        let Some(daemon) = self.machines[machine].daemon.as_mut().filter(|daemon| daemon.instance == instance) else { return };
        if back.is_none() {
            return;
        }
        let at = if lists {
            daemon.stream = Some(self.count);
            daemon.told_until = daemon.told_until.max(at);
            daemon.told_until
        } else {
            at
        };
        self.at(at, Happening::Daemon { machine, instance, event });
        if lists && let Some(daemon) = &mut self.machines[machine].daemon {
            daemon.listing = false;
        }
    }

    /// Lets watchers know what was committed, and judges it.
    pub(super) fn spread(&mut self) {
        for batch in self.engine.committed() {
            for change in batch.changes.iter() {
                self.checker.changed(&self.machines, change, self.now);
            }
            for machine in 0..self.machines.len() {
                let at = self.now + self.message();
                let Some(daemon) = &mut self.machines[machine].daemon else { continue };
                let Some(stream) = daemon.stream else { continue };
                daemon.told_until = daemon.told_until.max(at);
                let (at, instance) = (daemon.told_until, daemon.instance);
                self.at(at, Happening::Watch { machine, instance, stream, batch: batch.clone() });
            }
        }
        if let Some(end) = self.engine.next_end()
            && self.leases_at.is_none_or(|at| at > end)
        {
            self.leases_at = Some(end);
            self.at(end, Happening::Leases);
        }
    }

    fn watched(&mut self, machine: usize, instance: u64, stream: u64, batch: Batch) {
        let reached = self.via(machine, false).is_some();
        let Some(daemon) = &mut self.machines[machine].daemon else { return };
        if daemon.stream != Some(stream) {
            return;
        }
        if !reached {
            // The watch ends, and is begun anew when that is noticed.
            daemon.stream = None;
            daemon.listing = true;
            let at = self.now + Duration::from_millis(self.rng.u64(500..3000));
            self.at(at, Happening::ListAgain { machine, instance });
            return;
        }
        let mut changes: Vec<Changed> = (*batch.changes).clone();
        if self.lies > 0 && self.rng.u32(0..self.lies) == 0 {
            if self.rng.bool() {
                return;
            }
            let host = self.rng.usize(0..self.machines.len());
            let key = alive_key(&self.machines[host].id);
            changes.push(Changed { key, value: None, revision: batch.revision });
        }
        self.step(machine, Event::Changed { revision: batch.revision, changes });
    }

    /// Whether the leader goes on, and reaches most members.
    pub(super) fn leads(&self) -> bool {
        self.could_lead(self.engine.leader)
    }

    fn could_lead(&self, member: usize) -> bool {
        let goes = |member: usize| self.machines[member].member_goes(self.now);
        let followers =
            self.engine.members.iter().filter(|other| goes(**other) && self.links.both(Network::First, member, **other));
        goes(member) && followers.count() * 2 > self.engine.members.len()
    }

    pub(super) fn watch_leader(&mut self) {
        if !self.engine.election && !self.leads() {
            self.engine.election = true;
            let at = self.now + self.pick(&self.delays.election.clone());
            self.at(at, Happening::Election);
        }
    }

    fn elect(&mut self) {
        self.engine.election = false;
        if !self.leads() {
            let able: Vec<usize> = self.engine.members.iter().copied().filter(|member| self.could_lead(*member)).collect();
            if able.is_empty() {
                self.engine.election = true;
                self.at(self.now + Duration::from_millis(500), Happening::Election);
                return;
            }
            let leader = able[self.rng.usize(0..able.len())];
            let clock: Clock = self.machines[leader].clock;
            self.engine.lead(self.now, leader, clock);
            self.say(leader, || "leads the store".into());
        }
        self.engine.advance(self.now);
        self.spread();
    }

    fn start_vm(&mut self, machine: usize, vm: VmId, restore: bool, bound: bool) {
        let number = self.number();
        let there = &mut self.machines[machine];
        let process = Process { doing: Doing::Starting, number, bound };
        if there.vms.insert(vm.clone(), process).is_some() {
            self.checker.violation.get_or_insert(format!("{vm} was started on {} where it is", there.id));
        }
        let boot = there.boot;
        let fails = self.failures > 0 && self.rng.u32(0..self.failures) == 0;
        let ending = fails.then(|| Ending::StartFailed("its disk cannot be opened".into()));
        let at = self.now + self.pick(&self.delays.start.clone());
        self.counts.starts += 1;
        self.checker.started(&vm);
        self.counts.restores += u64::from(restore);
        self.say(machine, || format!("{} {vm}", if restore { "restores" } else { "starts" }));
        self.checker.check_vm(&self.machines, &vm, self.now);
        self.at(at, Happening::Vm { machine, boot, vm, number, ending });
    }

    pub(super) fn end_vm(&mut self, machine: usize, vm: &VmId, doing: Doing, ending: Ending) {
        let time = if doing == Doing::Dying { self.delays.kill.clone() } else { self.delays.stop.clone() };
        let at = self.now + self.pick(&time);
        let there = &mut self.machines[machine];
        let boot = there.boot;
        let Some(process) = there.vms.get_mut(vm) else { return };
        process.doing = doing;
        let number = process.number;
        self.at(at, Happening::Vm { machine, boot, vm: vm.clone(), number, ending: Some(ending) });
    }

    fn vm_happens(&mut self, machine: usize, boot: u64, vm: VmId, number: u64, ending: Option<Ending>) {
        let there = &mut self.machines[machine];
        let Some(process) = there.vms.get_mut(&vm).filter(|process| process.number == number) else { return };
        if there.boot != boot {
            return;
        }
        if let Some(until) = there.frozen_until.filter(|until| self.now < *until) {
            self.at(until, Happening::Vm { machine, boot, vm, number, ending });
            return;
        }
        let event = match ending {
            None if process.doing == Doing::Starting => {
                process.doing = Doing::Running;
                Event::VmRunning(vm.clone())
            }
            None => return,
            Some(ending) => {
                there.vms.remove(&vm);
                Event::VmEnded { vm: vm.clone(), ending }
            }
        };
        if let Some(instance) = there.daemon.as_ref().map(|daemon| daemon.instance) {
            self.say(machine, || match &event {
                Event::VmEnded { ending, .. } => format!("{vm} is gone: {ending:?}"),
                _ => format!("{vm} runs"),
            });
            self.at(self.now, Happening::Daemon { machine, instance, event });
        }
    }

    /// Files of a VM are where it is to go, unless the way there is not whole.
    fn copy_ends(&mut self, machine: usize, vm: VmId, number: u64) {
        let there = &mut self.machines[machine];
        if there.copies.get(&vm).is_none_or(|copy| copy.number != number) {
            return;
        }
        if let Some(until) = there.daemon_held_until(self.now) {
            self.at(until, Happening::Copied { machine, vm, number });
            return;
        }
        let (Some(copy), Some(instance)) = (there.copies.remove(&vm), there.daemon.as_ref().map(|daemon| daemon.instance)) else {
            return;
        };
        let target = self.machines.iter().position(|machine| machine.id == copy.to);
        let reached = target.is_some_and(|to| self.machines[to].goes(self.now) && self.links.both(Network::First, machine, to));
        let fails = self.failures > 0 && self.rng.u32(0..4) == 0;
        let result =
            if reached && !fails { Ok(self.copied(&vm, &copy)) } else { Err(format!("{} takes nothing any more", copy.to)) };
        self.say(machine, || match &result {
            Ok(_) => format!("{vm} is copied to {}", copy.to),
            Err(reason) => format!("{vm} is not copied: {reason}"),
        });
        self.at(self.now, Happening::Daemon { machine, instance, event: Event::VmCopied { vm, result } });
    }

    /// What makes copied files those of their VM.
    fn copied(&mut self, vm: &VmId, copy: &Copying) -> Transaction {
        self.counts.copies += 1;
        let truth = self.truth();
        let Some(stored) = truth.vm(vm).and_then(|vm| vm.placement.clone()) else { return Transaction::new() };
        let mut record = stored.record;
        if let Some(local) = &mut record.local {
            for volume in local.volumes.keys() {
                record.volumes.remove(&own_volume(volume, &local.host));
                record.volumes.insert(own_volume(volume, &copy.to));
            }
            *local = LocalFiles { host: copy.to.clone(), volumes: local.volumes.clone() };
        }
        let key = placement_key(vm);
        let transaction = Transaction::new().unchanged(key.clone(), stored.revision).put(key, to_bytes(&record));
        transaction.put(format!("{COPIES}{vm}"), copy.starts.to_le_bytes())
    }

    fn guard_looks(&mut self, machine: usize, boot: u64) {
        let there = &self.machines[machine];
        if there.boot != boot || !there.powered || there.guard != Guard::Up || self.mutation == Some(Mutation::NoGuard) {
            return;
        }
        if let Some(until) = there.frozen_until.filter(|until| self.now < *until) {
            self.at(until, Happening::Guard { machine, boot });
            return;
        }
        if there.is_past_deadline(self.now) {
            self.counts.outlived += there.vms.values().filter(|process| process.bound).count() as u64;
            let ends = |process: &Process| process.doing != Doing::Dying && !process.bound;
            let vms: Vec<VmId> = there.vms.iter().filter(|(_, process)| ends(process)).map(|(vm, _)| vm.clone()).collect();
            if !vms.is_empty() {
                self.say(machine, || format!("the guard kills {} VM(s)", vms.len()));
            }
            self.counts.guard_kills += vms.len() as u64;
            for vm in vms {
                self.end_vm(machine, &vm, Doing::Dying, Ending::Killed);
            }
        }
    }

    /// The guard does nothing for a time. The watchdog gives it two seconds, and less if it has not been fed for want of a lease.
    pub(super) fn guard_away(&mut self, machine: usize, time: Duration) {
        let there = &mut self.machines[machine];
        if there.guard != Guard::Up || !there.powered {
            return;
        }
        let since = self.now;
        there.guard = Guard::Away(since);
        let boot = there.boot;
        if let Some((_, deadline)) = there.page {
            let fires = (since + WATCHDOG).min(there.real(deadline + WATCHDOG_AFTER_DEADLINE));
            if there.vms.values().any(|process| !process.bound) && self.mutation != Some(Mutation::NoGuard) {
                self.at(fires, Happening::Watchdog { machine, boot, since });
            }
        }
        self.at(since + time, Happening::GuardBack { machine, boot, since });
    }

    pub(super) fn lose_power(&mut self, machine: usize) {
        self.machines[machine].lose_power();
        self.watch_leader();
    }

    pub(super) fn get_power(&mut self, machine: usize) {
        if self.machines[machine].powered {
            return;
        }
        self.machines[machine].get_power(self.now);
        let boot = self.machines[machine].boot;
        let at = self.now + self.pick(&self.delays.boot.clone());
        self.at(at, Happening::DaemonStarts { machine, boot });
        self.watch_leader();
    }

    pub(super) fn reset(&mut self, machine: usize) {
        self.lose_power(machine);
        self.get_power(machine);
    }

    pub(super) fn daemon_restarts_at(&mut self, machine: usize, at: Duration) {
        let boot = self.machines[machine].boot;
        self.at(at, Happening::DaemonStarts { machine, boot });
    }

    pub(super) fn thaws_at(&mut self, machine: usize, at: Duration) {
        let boot = self.machines[machine].boot;
        self.at(at, Happening::Thaws { machine, boot });
    }

    /// What is true in the store.
    pub(super) fn truth(&self) -> View {
        let mut view = View::default();
        view.replace(&self.engine.snapshot());
        view
    }

    /// A user's request, at the store itself.
    pub(super) fn request(&mut self, transaction: &Transaction) {
        self.engine.advance(self.now);
        self.engine.commit(transaction);
        self.spread();
    }

    /// What is not yet as it is wanted.
    pub(super) fn unsettled(&self) -> Option<String> {
        let view = self.truth();
        let mut there: BTreeMap<&VmId, Vec<(&HostId, Doing)>> = BTreeMap::new();
        for machine in &self.machines {
            for (vm, process) in &machine.vms {
                there.entry(vm).or_default().push((&machine.id, process.doing));
            }
        }
        for (id, vm) in view.vms() {
            let processes = there.get(id).map(Vec::as_slice).unwrap_or_default();
            let standing = view.standing(id);
            let right = match &standing {
                Standing::Held(host) => {
                    let drained = !view.host(host).is_some_and(crate::view::HostView::is_active);
                    vm.wanted_on() && vm.moving.is_none() && !drained && processes == [(host, Doing::Running)]
                }
                Standing::GaveUp | Standing::Off => processes.is_empty() && vm.moving.is_none(),
                Standing::Homeless
                | Standing::Leftover
                | Standing::Unreadable
                | Standing::OutOfTouch(_)
                | Standing::Unconfirmed(_) => false,
            };
            if !right {
                return Some(format!("{id} stands as {standing:?}, moves {:?}, and has the processes {processes:?}", vm.moving));
            }
        }
        None
    }
}

/// Whether something for a daemon can be delivered.
enum Present {
    Now,
    Later(Duration),
    Never,
}

/// A transaction without its conditions on keys with this prefix.
fn without(transaction: &Transaction, prefix: &str) -> Transaction {
    let mut without = Transaction::new();
    for condition in transaction.conditions() {
        without = match condition {
            condition if condition.key().starts_with(prefix) => without,
            Condition::Absent(key) => without.absent(key.clone()),
            Condition::Unchanged(key, revision) => without.unchanged(key.clone(), *revision),
        };
    }
    for change in transaction.changes() {
        without = match change {
            Change::Put { key, value, .. } => without.put(key.clone(), value.clone()),
            Change::Delete(key) => without.delete(key.clone()),
        };
    }
    without
}
