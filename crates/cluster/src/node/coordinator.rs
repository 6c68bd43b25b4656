//! Giving VMs to hosts: done by one host at a time, and harmless if two believe to be that one.
//!
//! Each plan is one transaction. Its conditions are that the coordinator's record is the same, that each VM's owner record is the same, that
//! the hosts that get VMs have the leases they had, and that those that lose VMs have not. So a plan made from a view that is
//! behind, or by a host that was replaced, changes nothing. One plan is under way at a time, and the next is made when the view has it.

mod drains;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use store::record::to_bytes;
use store::{LeaseId, MAX_OPERATIONS, Revision, Transaction};

use super::local::NOT_AGAIN;
use super::{Node, Purpose};
use crate::placement::Way;
use crate::records::{
    COORDINATOR_KEY, CoordinatorRecord, Holder, Home, Left, MoveReason, MoveRecord, OwnerRecord, alive_key, move_key, owner_key,
    placement_key,
};
use crate::view::{HostView, Standing, VmView};
use crate::{Answer, HostId, Moment, Notice, VmId};

/// Between the moments at which hosts try to follow a coordinator, the first in the order of their names at once.
const RANK: Duration = Duration::from_millis(50);
/// How often VMs that wait for a host are looked at again, when something has changed.
const RECHECK: Duration = Duration::from_millis(500);
/// How often times of day are looked at.
const LOOK: Duration = Duration::from_secs(60);
/// VMs for which no host was found, in one step at most: each costs a look at all hosts.
const REFUSALS: usize = 256;

/// A plan that was sent.
pub(super) struct Planned {
    notices: Vec<Notice>,
    /// VMs that are to go with copies of their files.
    copies: Vec<VmId>,
}

#[derive(Default)]
enum Office {
    #[default]
    Out,
    Asked,
    In,
}

/// The coordinator's part of a node.
#[derive(Default)]
pub(super) struct Coordination {
    office: Office,
    /// Since when nobody is in office.
    vacant_since: Option<Moment>,
    planning: bool,
    /// The last plan that was done.
    settled: Revision,
    /// No plan before this moment.
    plan_at: Moment,
    /// Something has changed since the last plan.
    dirty: bool,
    /// VMs that no host suits, as far as was looked.
    waiting: BTreeSet<VmId>,
    /// VMs of which that was told.
    told: BTreeSet<VmId>,
    recheck_at: Option<Moment>,
    gather_until: Option<Moment>,
    /// Most hosts have come back meanwhile.
    most_are_there: bool,
    look_at: Moment,
    wake_at: Option<Moment>,
    lost: BTreeSet<HostId>,
    drained: BTreeSet<HostId>,
    /// VMs on hosts that are drained, with when they were last sent to have their files copied: each try costs them time.
    tried: BTreeMap<VmId, (HostId, Moment)>,
}

impl Coordination {
    pub(super) fn in_office(&self) -> bool {
        matches!(self.office, Office::In)
    }

    pub(super) fn something_changed(&mut self, now: Moment) {
        self.dirty = true;
        if !self.waiting.is_empty() && self.recheck_at.is_none() {
            self.recheck_at = Some(now + RECHECK);
        }
    }

    pub(super) fn wake_at(&self) -> Moment {
        self.wake_at.unwrap_or(Moment(Duration::MAX))
    }
}

/// A plan in the making.
#[derive(Default)]
struct Plan {
    /// Absent, or unchanged at a revision.
    conditions: BTreeMap<String, Option<Revision>>,
    changes: Vec<(String, Option<Vec<u8>>)>,
    reserved: Vec<VmId>,
    /// VMs that are to go with copies of their files, and where to.
    copies: Vec<(VmId, HostId)>,
    notices: Vec<Notice>,
    /// VMs that it is about.
    vms: usize,
}

impl Plan {
    /// Whether nothing more can be put into it: neither as many VMs as a transaction is to have, nor more than the store takes. Each VM has
    /// four conditions and two changes at most, and the coordinator adds two conditions in the end.
    fn is_full(&self, batch: usize) -> bool {
        self.vms >= batch || self.conditions.len() + 6 > MAX_OPERATIONS || self.changes.len() + 2 > MAX_OPERATIONS
    }

    fn transaction(self) -> (Transaction, Vec<Notice>) {
        let mut transaction = Transaction::new();
        for (key, revision) in self.conditions {
            transaction = match revision {
                Some(revision) => transaction.unchanged(key, revision),
                None => transaction.absent(key),
            };
        }
        for (key, value) in self.changes {
            transaction = match value {
                Some(value) => transaction.put(key, value),
                None => transaction.delete(key),
            };
        }
        (transaction, self.notices)
    }
}

impl Node {
    pub(super) fn host_touched(&mut self, host: &HostId) {
        let Some((alive, wanted_active)) = self.view.host(host).map(|view| (view.alive.is_some(), view.is_active())) else {
            return;
        };
        if *host == self.config.host {
            if !self.goes_down() {
                self.unsavable.clear();
            }
            self.look_at_all();
        }
        if wanted_active {
            self.coordination.drained.remove(host);
        }
        if !alive {
            self.tell_lost(host);
        } else if self.coordination.lost.remove(host) && self.coordinates() {
            self.tell(Notice::HostBack(host.clone()));
        }
        // VMs here may wait for that host to be able to take them.
        let arriving = self.view.host(host).into_iter().flat_map(|view| &view.arriving);
        let here = |vm: &&VmId| self.locals.contains_key(*vm) || self.files_are_here(vm);
        let waiting: Vec<VmId> = arriving.filter(here).cloned().collect();
        self.todo.extend(waiting);
    }

    fn tell_lost(&mut self, host: &HostId) {
        let Some(view) = self.view.host(host).filter(|view| view.record.is_some()) else { return };
        let fenced = view.record.as_ref().is_some_and(|host| host.record.fencing == crate::records::Fencing::Watchdog);
        let bound = view.vms.iter().filter(|vm| self.view.vm(vm).is_some_and(VmView::is_bound)).count();
        let vms = view.vms.len() - bound;
        if self.coordinates() && self.coordination.lost.insert(host.clone()) {
            self.tell(Notice::HostLost { host: host.clone(), vms, bound, fenced });
        }
    }

    pub(super) fn office_answered(&mut self, answer: &Answer) {
        if let Office::Asked = self.coordination.office {
            self.coordination.office = Office::Out;
        }
        if !matches!(answer, Answer::Done(_)) {
            self.coordination.vacant_since = None;
        }
    }

    pub(super) fn plan_answered(&mut self, planned: Planned, answer: Answer) {
        self.coordination.planning = false;
        self.coordination.dirty = true;
        match answer {
            Answer::Done(revision) => {
                self.coordination.settled = revision;
                self.actions.extend(planned.notices.into_iter().map(crate::Action::Tell));
                for vm in planned.copies {
                    if let Some(host) = self.view.vm(&vm).and_then(VmView::files_on) {
                        self.coordination.tried.insert(vm, (host.clone(), self.now));
                    }
                }
            }
            Answer::Conflict { .. } | Answer::Unknown => self.coordination.plan_at = self.now + self.config.retry_after,
        }
    }

    /// Takes the office if it is vacant, and does its work if it is held.
    pub(super) fn coordinate(&mut self) {
        self.coordination.wake_at = None;
        let Some(me) = self.lease.held().map(|incarnation| Holder { host: self.config.host.clone(), incarnation }) else {
            self.coordination.office = Office::Out;
            return;
        };
        // Conditions are made of it; it is on its way.
        if !self.view.lives(&me) {
            return;
        }
        self.end_leases(&me);
        let holder = self.view.coordinator().map(|coordinator| coordinator.record.holder.clone());
        if holder.as_ref() == Some(&me) {
            if !self.coordination.in_office() {
                self.enter_office();
            }
            self.plan(&me);
            return;
        }
        if self.coordination.in_office() {
            self.coordination = Coordination { plan_at: self.coordination.plan_at, ..Coordination::default() };
        }
        if holder.is_some_and(|holder| self.view.lives(&holder)) {
            self.coordination.vacant_since = None;
        } else if !matches!(self.coordination.office, Office::Asked) {
            self.follow(me);
        }
    }

    fn follow(&mut self, me: Holder) {
        let since = *self.coordination.vacant_since.get_or_insert(self.now);
        let due = since + self.rank(None);
        if self.now < due {
            self.coordination.wake_at = Some(due);
            return;
        }
        let mut plan = Plan::default();
        match self.view.coordinator() {
            Some(coordinator) => {
                plan.conditions.insert(COORDINATOR_KEY.into(), Some(coordinator.revision));
                let holder = coordinator.record.holder.clone();
                self.require_dead(&mut plan, &holder);
            }
            None => {
                plan.conditions.insert(COORDINATOR_KEY.into(), None);
            }
        }
        self.require_alive(&mut plan, &me.host, me.incarnation);
        plan.changes.push((COORDINATOR_KEY.into(), Some(to_bytes(&CoordinatorRecord { holder: me }))));
        self.coordination.office = Office::Asked;
        let (transaction, _) = plan.transaction();
        self.commit(transaction, Purpose::Office);
    }

    /// How long this host leaves it to those that live and come before it, without one of which it is known that it does nothing.
    pub(super) fn rank(&self, without: Option<&HostId>) -> Duration {
        let before = self.view.hosts().take_while(|(host, _)| **host != self.config.host);
        let before = before.filter(|(host, view)| view.alive.is_some() && Some(*host) != without).count();
        RANK * u32::try_from(before).unwrap_or(u32::MAX)
    }

    fn enter_office(&mut self) {
        self.coordination = Coordination { office: Office::In, dirty: true, ..Coordination::default() };
        self.tell(Notice::Coordinates);
        let known = self.view.hosts().filter(|(_, host)| host.record.is_some());
        let (present, absent): (Vec<_>, Vec<_>) = known.partition(|(_, host)| host.alive.is_some());
        let (present, hosts) = (present.len(), present.len() + absent.len());
        let absent: Vec<HostId> = absent.into_iter().map(|(host, _)| host.clone()).collect();
        if present * 2 < hosts {
            self.coordination.gather_until = Some(self.now + self.config.gather_for);
            self.tell(Notice::Gathering { present, hosts });
        }
        for host in absent {
            self.tell_lost(&host);
        }
    }

    /// The transaction is done only if a holder's lease has ended.
    fn require_dead(&self, plan: &mut Plan, holder: &Holder) {
        let alive = self.view.host(&holder.host).and_then(|host| host.alive.as_ref());
        plan.conditions.insert(alive_key(&holder.host), alive.map(|alive| alive.revision));
    }

    /// The transaction is done only if a host has this lease.
    fn require_alive(&self, plan: &mut Plan, host: &HostId, incarnation: LeaseId) {
        if let Some(alive) = self.view.alive(host, incarnation) {
            plan.conditions.insert(alive_key(host), Some(alive.revision));
        }
    }

    /// The transaction is done only if a VM's owner record is what this host knows.
    fn require_owner(plan: &mut Plan, id: &VmId, vm: &VmView) {
        plan.conditions.insert(owner_key(id), vm.owner.as_ref().map(|owner| owner.revision));
    }

    fn plan(&mut self, me: &Holder) {
        let now = self.now;
        let look_due = now >= self.coordination.look_at;
        if look_due {
            self.coordination.look_at = now + LOOK;
        }
        if self.coordination.recheck_at.is_some_and(|at| now >= at) {
            self.coordination.recheck_at = None;
            self.coordination.waiting.clear();
            self.coordination.dirty = true;
        }
        let (tried, again) = (self.coordination.tried.len(), self.config.copy_again);
        self.coordination.tried.retain(|_, (_, at)| now < *at + again);
        self.coordination.dirty |= self.coordination.tried.len() < tried;
        let gathering = self.gathers();
        let ready =
            !self.coordination.planning && now >= self.coordination.plan_at && self.view.revision() >= self.coordination.settled;
        if ready && !gathering && (self.coordination.dirty || look_due) {
            self.coordination.dirty = false;
            let mut plan = Plan::default();
            self.plan_leftovers(&mut plan);
            self.plan_homeless(&mut plan);
            self.plan_moves(&mut plan);
            for vm in std::mem::take(&mut plan.reserved) {
                self.view.unreserve(&vm);
            }
            if !plan.changes.is_empty() {
                let revision = self.view.coordinator().map(|coordinator| coordinator.revision);
                plan.conditions.insert(COORDINATOR_KEY.into(), revision);
                self.require_alive(&mut plan, &me.host, me.incarnation);
                let copies = std::mem::take(&mut plan.copies).into_iter().map(|(vm, _)| vm).collect();
                let (transaction, notices) = plan.transaction();
                self.coordination.planning = true;
                self.commit(transaction, Purpose::Plan(Planned { notices, copies }));
            }
        }
        let coordination = &mut self.coordination;
        let mut wake = coordination.look_at;
        wake = coordination.recheck_at.map_or(wake, |at| wake.min(at));
        wake = coordination.gather_until.map_or(wake, |at| wake.min(at));
        wake = coordination.tried.values().fold(wake, |wake, (_, at)| wake.min(*at + again));
        if coordination.dirty && !coordination.planning && !gathering && coordination.plan_at > now {
            wake = wake.min(coordination.plan_at);
        }
        coordination.wake_at = Some(wake);
    }

    /// Whether to wait for hosts that are about to come back, as after a power cut of all. When most are there, the others have a moment
    /// to follow: after a time without a quorum all come back at once, but for one that may be the reason.
    fn gathers(&mut self) -> bool {
        let Some(mut until) = self.coordination.gather_until else { return false };
        let known = self.view.hosts().filter(|(_, host)| host.record.is_some());
        let (mut present, mut hosts) = (0, 0);
        for (_, host) in known {
            hosts += 1;
            present += usize::from(host.alive.is_some());
        }
        if present * 2 > hosts && !std::mem::replace(&mut self.coordination.most_are_there, true) {
            until = until.min(self.now + self.config.gather_rest_for);
            self.coordination.gather_until = Some(until);
        }
        if present == hosts || self.now >= until {
            self.coordination.gather_until = None;
            self.coordination.dirty = true;
        }
        self.coordination.gather_until.is_some()
    }

    /// Takes away owner records of VMs that are off and whose holder is gone.
    fn plan_leftovers(&mut self, plan: &mut Plan) {
        for id in self.view.leftover() {
            if plan.is_full(self.config.batch) {
                break;
            }
            let Some(vm) = self.view.vm(id) else { continue };
            Node::require_owner(plan, id, vm);
            if let Some(holder) = vm.holder() {
                self.require_dead(plan, holder);
            }
            plan.changes.push((owner_key(id), None));
            if vm.moving.is_some() {
                plan.changes.push((move_key(id), None));
            }
            plan.vms += 1;
        }
    }

    /// Gives hosts to VMs that need one, the most important first.
    fn plan_homeless(&mut self, plan: &mut Plan) {
        let mut refusals = 0;
        let room = self.config.batch.saturating_sub(plan.vms);
        let waiting = &self.coordination.waiting;
        let next: Vec<VmId> = self.view.homeless().filter(|vm| !waiting.contains(vm)).take(room + REFUSALS).cloned().collect();
        for id in next {
            if plan.is_full(self.config.batch) || refusals >= REFUSALS {
                self.coordination.dirty = true;
                self.coordination.plan_at = self.coordination.plan_at.max(self.now);
                break;
            }
            match self.place(plan, &id) {
                Ok(()) => plan.vms += 1,
                Err(reason) => {
                    refusals += 1;
                    self.coordination.waiting.insert(id.clone());
                    if self.coordination.told.insert(id.clone()) {
                        self.tell(Notice::Waits { vm: id, reason });
                    }
                }
            }
        }
    }

    fn place(&mut self, plan: &mut Plan, id: &VmId) -> Result<(), String> {
        let unix_s = self.unix_s();
        let Some(vm) = self.view.vm(id) else { return Ok(()) };
        let (Some(placement), moving) = (vm.placement.clone(), vm.moving.is_some()) else { return Ok(()) };
        let owner = vm.owner.clone();
        // VMs that ran were admitted; their host's failure is what room was left for.
        if owner.is_none()
            && let Some(reason) = self.view.not_admitted(id)
        {
            return Err(reason);
        }
        let mut next = owner.as_ref().map(|owner| owner.record.clone()).unwrap_or_default();
        if next.start != placement.record.start {
            next = OwnerRecord {
                start: placement.record.start,
                holder: next.holder,
                saved: next.saved,
                home: next.home,
                ..OwnerRecord::default()
            };
        }
        let failed = next.holder.take();
        if failed.is_some() && placement.record.restart.limit == 0 {
            next.gave_up = Some(NOT_AGAIN.into());
        } else {
            let host = self.view.best_host(id, unix_s, Way::Start)?;
            let alive = self.view.host(&host).and_then(|host| host.alive.clone());
            let Some(alive) = alive else { return Ok(()) };
            self.view.reserve(id, &host);
            plan.reserved.push(id.clone());
            plan.conditions.insert(alive_key(&host), Some(alive.revision));
            if let Some(failed) = &failed
                && failed.host != host
                && next.home.is_none()
            {
                next.home = Some(Home { host: failed.host.clone(), left: Left::Failure });
            }
            next.home = next.home.filter(|home| home.host != host);
            next.bound = placement.record.local.as_ref().is_some_and(|local| local.host == host);
            next.holder = Some(Holder { host: host.clone(), incarnation: alive.record.incarnation });
            let from = failed.as_ref().map(|failed| failed.host.clone());
            plan.notices.push(Notice::Placed { vm: id.clone(), host, from });
        }
        self.coordination.told.remove(id);
        if let Some(failed) = &failed {
            self.require_dead(plan, failed);
        }
        plan.conditions.insert(owner_key(id), owner.map(|owner| owner.revision));
        // While nobody owns it, its files may go elsewhere.
        if placement.record.local.is_some() {
            plan.conditions.insert(placement_key(id), Some(placement.revision));
        }
        if let Some(reason) = &next.gave_up {
            plan.notices.push(Notice::GaveUp { vm: id.clone(), reason: reason.clone() });
        }
        plan.changes.push((owner_key(id), Some(to_bytes(&next))));
        if moving {
            plan.changes.push((move_key(id), None));
        }
        Ok(())
    }

    /// Sends VMs off hosts that are drained, and home; calls off moves that lead nowhere.
    fn plan_moves(&mut self, plan: &mut Plan) {
        for id in self.view.moving() {
            if plan.is_full(self.config.batch) {
                break;
            }
            let Some(vm) = self.view.vm(id) else { continue };
            let Some(moving) = &vm.moving else { continue };
            let to = &moving.record.to;
            let ready = self.view.host(to).is_some_and(HostView::is_ready);
            let leads_nowhere = match self.view.standing(id) {
                Standing::Held(host) => host == *to || !ready,
                // Its files are copied while it is off.
                Standing::Off | Standing::GaveUp | Standing::Homeless if vm.files_on().is_some_and(|host| host != to) => !ready,
                // Its holder let go of it before it heard of the move.
                Standing::Off | Standing::GaveUp => true,
                // Whoever deals with its owner record deals with the move, too.
                Standing::Homeless
                | Standing::Leftover
                | Standing::OutOfTouch(_)
                | Standing::Unconfirmed(_)
                | Standing::Unreadable => false,
            };
            if leads_nowhere {
                Node::require_owner(plan, id, vm);
                plan.conditions.insert(move_key(id), Some(moving.revision));
                plan.changes.push((move_key(id), None));
                plan.vms += 1;
                // That was not the VM's fault.
                self.coordination.tried.remove(id);
            }
        }
        self.plan_drains(plan);
        self.plan_failbacks(plan);
    }

    /// Whether a VM runs, is to run on, and does not go anywhere yet.
    fn movable(&self, id: &VmId) -> bool {
        let view = self.view.vm(id);
        view.is_some_and(|vm| vm.wanted_on() && vm.moving.is_none()) && matches!(self.view.standing(id), Standing::Held(_))
    }

    fn plan_failbacks(&mut self, plan: &mut Plan) {
        let unix_s = self.unix_s();
        let minute = u16::try_from(unix_s / 60 % (24 * 60)).unwrap_or(0);
        let mut coming: BTreeMap<HostId, usize> = BTreeMap::new();
        let candidates: Vec<(VmId, HostId)> =
            self.view.away().filter_map(|id| Some((id.clone(), self.home_now(id, minute)?))).collect();
        for (vm, home) in candidates {
            let coming =
                coming.entry(home.clone()).or_insert_with(|| self.view.host(&home).map_or(0, |host| host.arriving.len()));
            if *coming < self.config.parallel_moves && !plan.is_full(self.config.batch) && self.view.suits(&vm, &home, unix_s) {
                *coming += 1;
                self.plan_move(plan, &vm, home, MoveReason::Failback);
            }
        }
    }

    /// Where a VM goes back to now.
    fn home_now(&self, id: &VmId, minute: u16) -> Option<HostId> {
        let vm = self.view.vm(id).filter(|_| self.movable(id))?;
        let home = vm.owner.as_ref()?.record.home.as_ref()?;
        let host = self.view.host(&home.host).filter(|host| host.alive.is_some() && host.is_active())?;
        let allowed = match home.left {
            Left::Drain => true,
            Left::Failure => vm.placement.as_ref()?.record.failback.allows(minute),
        };
        (allowed && host.record.is_some()).then(|| home.host.clone())
    }

    fn plan_move(&mut self, plan: &mut Plan, id: &VmId, to: HostId, reason: MoveReason) {
        let Some(vm) = self.view.vm(id) else { return };
        Node::require_owner(plan, id, vm);
        plan.conditions.insert(move_key(id), None);
        if let Some(alive) = self.view.host(&to).and_then(|host| host.alive.as_ref()) {
            plan.conditions.insert(alive_key(&to), Some(alive.revision));
        }
        let (copied, runs) = (vm.files_on().is_some(), vm.holder().is_some());
        if runs {
            self.view.reserve(id, &to);
            plan.reserved.push(id.clone());
        }
        plan.copies.extend(copied.then(|| (id.clone(), to.clone())));
        let why = match reason {
            MoveReason::Drain => "its host is drained",
            MoveReason::Failback => "it goes back",
            MoveReason::User => "someone wants it",
        };
        self.coordination.told.remove(id);
        plan.notices.push(Notice::Moves { vm: id.clone(), to: to.clone(), why });
        plan.changes.push((move_key(id), Some(to_bytes(&MoveRecord { to, reason, volume: None }))));
        plan.vms += 1;
    }
}
