//! The machine that decides for one host.
//!
//! ```text
//!               ┌── lease ───── may this host run VMs, and until when
//!   step ──▶ view ── local ───── the VMs of this host: start, stop, save, kill, give away
//!               ├── copies ──── files that only this host reaches, of VMs that go elsewhere
//!               ├── coordinator  on one host at a time: gives VMs to hosts
//!               ├── renewals ─── whose lease nobody renews any more, and is ended
//!               └── heartbeat ── who is silent; tells users, decides nothing
//! ```
//!
//! Whatever is decided follows from the view, the lease and what runs here, all looked at again after each event; an event that is missed
//! costs time only. Commits whose outcome nobody knows are made again under the same conditions, and whatever may still come of the first
//! is ruled out before anything is started ([`local`]).

mod coordinator;
mod copies;
mod heartbeat;
mod lease;
mod local;
mod renewals;

#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use store::record::RecordError;
use store::{LeaseId, Revision, Transaction};

use crate::records::Priority;
use crate::view::{HostView, Touched};
use crate::{Action, Answer, Ending, Event, HostId, Moment, Notice, View, VmId};
use coordinator::{Coordination, Planned};
use copies::Copying;
use heartbeat::Peers;
use lease::Lease;
use local::Local;
use renewals::Renewals;
pub use renewals::renewal;

/// Numbers that hosts of one cluster agree on, but for the name.
#[derive(Clone, Debug)]
pub struct Config {
    /// This host.
    pub host: HostId,
    /// How long a lease lives after the store heard of its host.
    pub ttl: Duration,
    /// How much earlier than the end of its lease a host has stopped all VMs, by its own clock: for clocks that go at different speeds
    /// (1 % of the TTL for both together), for killing, and for the watchdog behind it.
    pub margin: Duration,
    /// How often the lease is renewed.
    pub renew_every: Duration,
    /// How often in a cluster of more hosts than [`MANY_HOSTS`]: each renewal is a write, of which all hosts hear.
    pub renew_every_of_many: Duration,
    /// How often other hosts are sent heartbeats.
    pub beat_every: Duration,
    /// After how much silence a host is suspected.
    pub suspect_after: Duration,
    /// When something that was refused, or of which nobody knows, is tried again.
    pub retry_after: Duration,
    /// How often all entries are read anew, in case that a watch lost some.
    pub read_every: Duration,
    /// How long a coordinator waits for other hosts when most are missing.
    pub gather_for: Duration,
    /// How long it waits for the rest when most are there.
    pub gather_rest_for: Duration,
    /// How many VMs are started at once on one host.
    pub parallel_starts: usize,
    /// How many VMs leave one host, or come back to one, at once.
    pub parallel_moves: usize,
    /// How many VMs of one host, beside these, have their files copied to others at once; and to one host when others are drained.
    pub parallel_copies: usize,
    /// After how long a VM of a host that is drained is sent again whose files could not be copied.
    pub copy_again: Duration,
    /// How many VMs are given to hosts in one transaction at most: fewer, if they would be more than the store takes.
    pub batch: usize,
}

/// With more hosts than these, leases are renewed [less often](Config::renew_every_of_many).
pub const MANY_HOSTS: usize = 16;

impl Config {
    /// The numbers that `docs/src/cluster.md` argues for.
    pub fn new(host: HostId) -> Config {
        Config {
            host,
            ttl: Duration::from_secs(5),
            margin: Duration::from_millis(1000),
            renew_every: Duration::from_millis(500),
            renew_every_of_many: Duration::from_millis(1000),
            beat_every: Duration::from_millis(1000),
            suspect_after: Duration::from_millis(2500),
            retry_after: Duration::from_millis(200),
            read_every: Duration::from_secs(300),
            gather_for: Duration::from_secs(20),
            gather_rest_for: Duration::from_secs(2),
            parallel_starts: 8,
            parallel_moves: 4,
            parallel_copies: 2,
            copy_again: Duration::from_secs(300),
            batch: 64,
        }
    }
}

/// What the guard holds when the program around the node starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guarded {
    /// The lease of the node before.
    pub lease: LeaseId,
    /// Its deadline.
    pub deadline: Moment,
}

/// What a transaction was for.
enum Purpose {
    Vm(VmId),
    Office,
    Plan(Planned),
    /// Of another host's lease.
    End,
}

/// Decides for one host. See the [crate](crate).
pub struct Node {
    config: Config,
    now: Moment,
    wall: Option<(Moment, u64)>,
    view: View,
    /// All entries were read once.
    has_read: bool,
    read_at: Moment,
    /// When `Read` was asked for last, while there is no answer.
    reading: Option<Moment>,
    lease: Lease,
    /// Attempts to take a lease, and when they were sent.
    asked: VecDeque<(u64, Moment)>,
    /// What was told of why there is none.
    refusal: Option<String>,
    /// VMs of which a process is on this host.
    locals: BTreeMap<VmId, Local>,
    /// Those of them that run on without a lease.
    bound: BTreeSet<VmId>,
    /// How VMs ended that this host still owns, and the owner's revision at that time.
    ended: BTreeMap<VmId, (Ending, Revision)>,
    /// A VM is started under an owner's revision above this one only: a transaction that gives it away under that one may still come.
    floors: BTreeMap<VmId, Revision>,
    /// The same for all VMs: what the node before this one has sent may still come.
    floor: Revision,
    /// Files of VMs that are copied to where these go.
    copies: BTreeMap<VmId, Copying>,
    /// VMs whose saved memory this host has taken, and restores.
    restoring: BTreeSet<VmId>,
    /// VMs of a host that goes down which could not be saved.
    unsavable: BTreeSet<VmId>,
    /// VMs that are to be started as soon as others have.
    queue: BTreeSet<(Reverse<Priority>, VmId)>,
    /// VMs to look at.
    todo: BTreeSet<VmId>,
    /// VMs to look at later.
    later: BTreeMap<VmId, Moment>,
    commits: BTreeMap<u64, Purpose>,
    /// VMs with a transaction that has no answer.
    busy: BTreeSet<VmId>,
    /// Transactions of VMs that are done, and not yet in the view.
    settled: BTreeMap<VmId, Revision>,
    coordination: Coordination,
    renewals: Renewals,
    peers: Peers,
    count: u64,
    actions: Vec<Action>,
}

impl Node {
    /// Begins when the program around it does. The guard, which outlives that program, says which lease it holds; `running` are the VMs of
    /// which there are processes on this host, and `bound` those of them that were started as such. Ends at once with [`Action::Read`] in the
    /// first step.
    pub fn new(config: Config, now: Moment, guarded: Option<Guarded>, running: Vec<VmId>, mut bound: BTreeSet<VmId>) -> Node {
        bound.retain(|vm| running.contains(vm));
        let lease = match guarded {
            Some(Guarded { lease, deadline }) if now < deadline => Lease::adopted(lease, deadline, now),
            _ if running.len() == bound.len() => Lease::None { ask_at: now },
            _ => Lease::Lost,
        };
        Node {
            peers: Peers::new(now, &config),
            config,
            now,
            wall: None,
            view: View::default(),
            has_read: false,
            read_at: now,
            reading: None,
            lease,
            asked: VecDeque::new(),
            refusal: None,
            locals: running.into_iter().map(|vm| (vm, Local::Running)).collect(),
            bound,
            ended: BTreeMap::new(),
            floors: BTreeMap::new(),
            floor: Revision(0),
            copies: BTreeMap::new(),
            restoring: BTreeSet::new(),
            unsavable: BTreeSet::new(),
            queue: BTreeSet::new(),
            todo: BTreeSet::new(),
            later: BTreeMap::new(),
            commits: BTreeMap::new(),
            busy: BTreeSet::new(),
            settled: BTreeMap::new(),
            coordination: Coordination::default(),
            renewals: Renewals::default(),
            count: 0,
            actions: Vec::new(),
        }
    }

    /// What this host knows.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// The lease that this host can prove.
    pub fn lease(&self) -> Option<LeaseId> {
        self.lease.held()
    }

    /// Whether this host is about to be switched off.
    pub fn goes_down(&self) -> bool {
        self.view.host(&self.config.host).is_some_and(HostView::goes_down)
    }

    /// Whether a process of a VM is on this host, as far as is known.
    pub fn runs_vms(&self) -> bool {
        !self.locals.is_empty()
    }

    /// Whether this host gives VMs to hosts.
    pub fn coordinates(&self) -> bool {
        self.coordination.in_office()
    }

    /// The time as others call it, in seconds since 1970; 0 if nobody has told.
    pub fn unix_s(&self) -> u64 {
        self.wall.map_or(0, |(at, unix_s)| unix_s + self.now.since(at).as_secs())
    }

    /// Takes in what happened, and says what is to be done. `now` never goes back.
    pub fn step(&mut self, now: Moment, event: Event) -> Vec<Action> {
        self.now = self.now.max(now);
        // Before anything else: what comes in late must not find a lease that is over.
        self.check_deadline();
        match event {
            Event::Entries(snapshot) => {
                let (touched, errors) = self.view.replace(&snapshot);
                self.reading = None;
                self.read_at = self.now + self.config.read_every;
                if !self.has_read {
                    self.has_read = true;
                    self.floor = snapshot.revision;
                    self.todo.extend(self.locals.keys().cloned());
                }
                self.touched(touched, errors);
            }
            Event::Changed { revision, changes } => {
                if self.has_read {
                    let (touched, errors) = self.view.change(revision, &changes);
                    self.touched(touched, errors);
                }
            }
            Event::LeaseTaken { attempt, lease } => self.lease_taken(attempt, lease),
            Event::LeaseRefused { attempt, reason } => self.lease_refused(attempt, reason),
            Event::LeaseRenewed { attempt } => self.lease_renewed(attempt),
            Event::LeaseEnded { lease } => self.lease_ended(lease),
            Event::Committed { commit, answer } => self.committed(commit, answer),
            Event::Heartbeat { from, network, beat } => self.heard(from, network, beat),
            Event::VmRunning(vm) => self.vm_running(vm),
            Event::VmEnded { vm, ending } => self.vm_ended(vm, ending),
            Event::VmCopied { vm, result } => self.vm_copied(vm, result),
            Event::WallClock { unix_s } => self.wall = Some((self.now, unix_s)),
            Event::Timer => {}
        }
        self.pass_time();
        std::mem::take(&mut self.actions)
    }

    fn pass_time(&mut self) {
        self.pass_lease();
        if self.reading.is_none() && self.now >= self.read_at {
            self.read();
        }
        self.beat();
        let due: Vec<VmId> = self.later.iter().filter(|(_, at)| **at <= self.now).map(|(vm, _)| vm.clone()).collect();
        for vm in due {
            self.later.remove(&vm);
            self.todo.insert(vm);
        }
        if self.has_read {
            for vm in std::mem::take(&mut self.todo) {
                self.reconcile(&vm);
            }
            self.start_queued();
            self.coordinate();
        }
    }

    /// When [`Event::Timer`] is to come next.
    pub fn wake_at(&self) -> Moment {
        let mut wake = self.lease.wake_at().unwrap_or(Moment(Duration::MAX));
        wake = wake.min(self.peers.beat_at);
        if self.reading.is_none() {
            wake = wake.min(self.read_at);
        }
        if let Some(at) = self.later.values().min() {
            wake = wake.min(*at);
        }
        if self.has_read {
            wake = wake.min(self.coordination.wake_at()).min(self.renewals.wake_at());
        }
        wake.max(self.now + Duration::from_millis(1))
    }

    /// Asks for all entries, unless that was done a moment ago.
    fn read(&mut self) {
        if self.reading.is_none() {
            self.reading = Some(self.now);
            self.actions.push(Action::Read);
        }
    }

    fn tell(&mut self, notice: Notice) {
        self.actions.push(Action::Tell(notice));
    }

    /// A number that this node has not used.
    fn number(&mut self) -> u64 {
        self.count += 1;
        self.count
    }

    fn commit(&mut self, transaction: Transaction, purpose: Purpose) {
        let commit = self.number();
        self.commits.insert(commit, purpose);
        self.actions.push(Action::Commit { commit, transaction });
    }

    fn committed(&mut self, commit: u64, answer: Answer) {
        let Some(purpose) = self.commits.remove(&commit) else { return };
        // The view is behind, or a watch has lost something.
        if matches!(answer, Answer::Conflict { .. }) {
            self.read();
        }
        match purpose {
            Purpose::Vm(vm) => {
                self.busy.remove(&vm);
                if answer != Answer::Unknown {
                    self.copy_committed(&vm, matches!(answer, Answer::Done(_)));
                }
                match answer {
                    Answer::Done(revision) => {
                        self.settled.insert(vm.clone(), revision);
                        self.todo.insert(vm);
                    }
                    Answer::Conflict { .. } | Answer::Unknown => {
                        self.later.insert(vm, self.now + self.config.retry_after);
                    }
                }
            }
            Purpose::Office => self.office_answered(&answer),
            Purpose::Plan(planned) => self.plan_answered(planned, answer),
            // A watch tells.
            Purpose::End => {}
        }
    }

    fn touched(&mut self, touched: BTreeSet<Touched>, errors: Vec<RecordError>) {
        for error in errors {
            self.tell(Notice::Unreadable(error.to_string()));
        }
        let only_renewed = touched.iter().all(|touched| matches!(touched, Touched::Renewal(_)));
        for touched in touched {
            match touched {
                Touched::Vm(vm) => {
                    let here =
                        self.view.vm(&vm).and_then(|view| view.holder()).is_some_and(|holder| holder.host == self.config.host);
                    let known = self.locals.contains_key(&vm) || self.ended.contains_key(&vm) || self.copies.contains_key(&vm);
                    if here || known || self.leaves_with_files(&vm) {
                        self.todo.insert(vm);
                    }
                }
                Touched::Host(host) => self.host_touched(&host),
                Touched::Renewal(host) => self.renewal_touched(host),
                Touched::Cluster => {}
            }
        }
        if !only_renewed {
            self.coordination.something_changed(self.now);
            // There may be room elsewhere now, or none any more.
            if self.goes_down() {
                self.look_at_all();
            }
        }
    }

    /// Looks at all VMs that are here, or that this host owns or sends elsewhere.
    fn look_at_all(&mut self) {
        self.todo.extend(self.locals.keys().chain(self.copies.keys()).cloned());
        if let Some(host) = self.view.host(&self.config.host) {
            let leaving = host.keeps.iter().filter(|vm| self.leaves_with_files(vm));
            let all: Vec<VmId> = host.vms.iter().chain(leaving).cloned().collect();
            self.todo.extend(all);
        }
    }
}
