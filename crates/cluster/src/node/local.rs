//! The VMs of this host.
//!
//! A VM is started here while all of this holds: its owner record names this host in this life of it; the record is newer than any
//! transaction of this host that gives the VM away and whose outcome is not known (its *floor*); and the lease can be proven. The first
//! cannot change behind this host's back: only the holder changes the record while the holder's lease lives.
//!
//! ```text
//!                    owner is this host                         wanted off: Stop
//!   (nothing here) ─────────────────────▶ Starting ─▶ Running ───────────────────▶ Stopping ─┐
//!          ▲                                  │          │ to go elsewhere, or the host       │
//!          │   transaction: the record is     │          │ goes down: Save                    │
//!          │   deleted, without a holder, or  │          ├──────────────────────▶ Saving ─────┤
//!          │   names the next host            │          │ not the owner any more: Kill       │
//!          │                                  │          └──────────────────────▶ Killing ────┤
//!          └──────────────────────────────── ended ◀──────────────────────────────────────────┘
//! ```
//! Before a VM is given to the next host, those of its files are copied that only this host reaches ([`copies`](super::copies)).
//!
//! A VM with such files is *bound* to this host when it is started: its owner record says so, and nobody else changes that record, lease or
//! not. So it runs on when the lease is lost, and the record names this host's new life when there is one. If it has ended meanwhile, the record
//! is given up, and the coordinator finds it a host as any other.

use std::cmp::Reverse;

use store::record::to_bytes;
use store::{LeaseId, Revision, Transaction};

use super::copies::Files;
use super::{Node, Purpose};
use crate::placement::Way;
use crate::records::{
    Failure, Holder, Home, Left, MoveReason, OwnerRecord, PlacementRecord, Power, alive_key, move_key, owner_key, placement_key,
};
use crate::view::{HostView, VmView};
use crate::{Action, Ending, HostId, Notice, VmId};

/// Why a VM is not started again whose host failed.
pub(super) const NOT_AGAIN: &str = "its host failed, and it is not to be restarted by itself";

/// Failures that are remembered of one VM, however often it may be restarted.
const FAILURES: usize = 100;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Local {
    Starting,
    Running,
    Stopping,
    Saving,
    /// It does not run, and its files are copied.
    Copying,
    /// They are not to be any more.
    Cancelling,
    Killing,
}

impl Node {
    pub(super) fn vm_running(&mut self, vm: VmId) {
        // One that was to stop, or to be saved, may go on after all; then that is asked for again.
        let goes_down = self.goes_down();
        if let Some(local @ (Local::Starting | Local::Stopping | Local::Saving)) = self.locals.get_mut(&vm) {
            let was = std::mem::replace(local, Local::Running);
            if was == Local::Saving {
                if goes_down {
                    self.unsavable.insert(vm.clone());
                }
                // Others have its place.
                self.look_at_all();
            }
        }
        self.todo.insert(vm);
    }

    pub(super) fn vm_ended(&mut self, vm: VmId, ending: Ending) {
        let Some(local) = self.locals.remove(&vm) else { return };
        self.unsavable.remove(&vm);
        let wanted_on = self.view.vm(&vm).is_some_and(VmView::wanted_on);
        let ending = match ending {
            // It was shut down since its host goes down, or is to run after all: that its guest has ended says nothing of what is wanted.
            Ending::PoweredOff | Ending::Crashed(_) if local == Local::Stopping && wanted_on => Ending::Stopped,
            ending => ending,
        };
        if let Ending::StartFailed(reason) | Ending::Crashed(reason) | Ending::SaveFailed(reason) = &ending {
            self.tell(Notice::Failed { vm: vm.clone(), reason: reason.clone() });
        }
        self.bound.remove(&vm);
        // Without a lease nothing can be said of it to others; whoever finds the lease ended takes it from there, unless it is bound to this host.
        if let Some(view) = self.view.vm(&vm)
            && let Some(owner) = &view.owner
            && (self.lease.held().is_some() || view.is_bound_to(&self.config.host))
        {
            self.ended.insert(vm.clone(), (ending, owner.revision));
        }
        // Saves and starts that wait for this one have their turn.
        self.look_at_all();
        self.todo.insert(vm);
    }

    /// Does the next thing for one VM.
    pub(super) fn reconcile(&mut self, id: &VmId) {
        let holder = self.lease.held().map(|incarnation| Holder { host: self.config.host.clone(), incarnation });
        let view = self.view.vm(id);
        let is_bound = view.is_some_and(|vm| vm.is_bound_to(&self.config.host));
        let is_of_this_life = holder.is_some() && view.and_then(VmView::holder) == holder.as_ref();
        let mine = is_of_this_life || holder.is_some() && is_bound;
        let waits = self.busy.contains(id) || self.settled.get(id).is_some_and(|settled| self.view.revision() < *settled);
        if let Some(local) = self.locals.get(id).copied() {
            // What is to become of it is seen with the next lease.
            if holder.is_none() && self.bound.contains(id) {
                return;
            }
            match (mine, local) {
                (_, Local::Killing | Local::Cancelling) => {}
                (_, Local::Copying) => self.look_at_copying(id, mine),
                (false, _) => self.end_local(id, Local::Killing, Action::Kill),
                (true, _) if view.is_some_and(|view| view.unreadable) => {}
                (true, Local::Starting | Local::Running) if !is_of_this_life => {
                    if let (Some(holder), Some(owner), false) = (holder, view.and_then(|view| view.owner.clone()), waits) {
                        self.claim(id, owner.record, owner.revision, holder.incarnation);
                    }
                }
                (true, Local::Running) if !view.is_some_and(VmView::wanted_on) => {
                    self.end_local(id, Local::Stopping, Action::Stop)
                }
                (true, Local::Running) if self.leaves(id) => self.end_local(id, Local::Saving, Action::Save),
                (true, Local::Running) if self.goes_down() => self.rest(id),
                (true, _) => {}
            }
            return;
        }
        let (Some(holder), Some(view), true) = (holder, view, mine) else {
            if !is_bound {
                self.ended.remove(id);
            }
            self.restoring.remove(id);
            self.floors.remove(id);
            // What was done of it is not known here yet, or will be known.
            if !self.busy.contains(id) && self.settled.get(id).is_none_or(|settled| self.view.revision() >= *settled) {
                self.settled.remove(id);
                self.hand_over(id);
            }
            return;
        };
        let (Some(owner), false) = (&view.owner, view.unreadable) else { return };
        if waits {
            return;
        }
        let floor = self.floors.get(id).copied().unwrap_or_default().max(self.floor);
        // An ending under an older revision was dealt with: the record has changed hands since.
        if self.ended.get(id).is_some_and(|(_, at)| *at != owner.revision) {
            self.ended.remove(id);
        }
        let ending = self.ended.get(id).map(|(ending, _)| ending.clone());
        if ending.is_some() || !view.wanted_on() {
            let owner = owner.clone();
            self.give_away(id, owner.record, owner.revision, ending);
        } else if !is_of_this_life {
            let owner = owner.clone();
            self.release(id, owner.record, owner.revision);
        } else if owner.revision <= floor || owner.record.saved {
            let owner = owner.clone();
            self.claim(id, owner.record, owner.revision, holder.incarnation);
        } else {
            let priority = view.placement.as_ref().map(|placement| placement.record.priority).unwrap_or_default();
            self.queue.insert((Reverse(priority), id.clone()));
        }
    }

    pub(super) fn end_local(&mut self, id: &VmId, local: Local, action: impl FnOnce(VmId) -> Action) {
        self.locals.insert(id.clone(), local);
        self.actions.push(action(id.clone()));
    }

    /// Whether a VM is to be saved now since it goes elsewhere.
    fn leaves(&self, id: &VmId) -> bool {
        let Some(to) = self.view.vm(id).and_then(|vm| vm.moving.as_ref()).map(|moving| &moving.record.to) else { return false };
        let ready = self.view.host(to).is_some_and(HostView::is_ready);
        let stays = self.goes_down() && self.unsavable.contains(id);
        let room = if self.files_are_here(id) {
            self.copying() < self.config.parallel_copies
        } else {
            self.saving().filter(|vm| !self.files_are_here(vm)).count() < self.config.parallel_moves
        };
        *to != self.config.host && ready && !stays && room
    }

    /// VMs that are being saved.
    fn saving(&self) -> impl Iterator<Item = &VmId> {
        self.locals.iter().filter(|(_, local)| **local == Local::Saving).map(|(vm, _)| vm)
    }

    /// A VM of a host that is about to be switched off, and that no other host takes as its files are, waits with its memory saved: for this host,
    /// or another one. If it cannot be saved, its guest is shut down.
    fn rest(&mut self, id: &VmId) {
        if self.unsavable.contains(id) {
            return self.end_local(id, Local::Stopping, Action::Stop);
        }
        let (moves, unix_s) = (self.view.vm(id).is_some_and(|vm| vm.moving.is_some()), self.unix_s());
        let room = self.saving().count() < self.config.parallel_moves;
        if !moves && room && self.view.best_host(id, unix_s, Way::Start).is_err() {
            self.end_local(id, Local::Saving, Action::Save);
        }
    }

    /// Starts VMs, the most important first, as many as may start at once.
    pub(super) fn start_queued(&mut self) {
        let mut starting = self.locals.values().filter(|local| **local == Local::Starting).count();
        while starting < self.config.parallel_starts
            && let Some((_, id)) = self.queue.pop_first()
        {
            starting += usize::from(self.start(id));
        }
    }

    /// Starts a VM if all that is needed for it still holds.
    fn start(&mut self, id: VmId) -> bool {
        let (Some(incarnation), Some(view)) = (self.lease.held(), self.view.vm(&id)) else { return false };
        let (Some(owner), true) = (&view.owner, view.wanted_on() && !view.unreadable) else { return false };
        let holds = view.holder().is_some_and(|holder| holder.host == self.config.host && holder.incarnation == incarnation);
        let floor = self.floors.get(&id).copied().unwrap_or_default().max(self.floor);
        let idle = !self.locals.contains_key(&id) && !self.busy.contains(&id) && !self.ended.contains_key(&id);
        if !holds || owner.revision <= floor || owner.record.saved || !idle {
            return false;
        }
        let (token, bound, restore) = (owner.revision, owner.record.bound, self.restoring.remove(&id));
        // What was copied of it is old from now on.
        self.call_off(&id);
        self.locals.insert(id.clone(), Local::Starting);
        if bound {
            self.bound.insert(id.clone());
        }
        self.actions.push(Action::Start { vm: id, token, restore, bound });
        true
    }

    pub(super) fn commit_vm(&mut self, id: &VmId, transaction: Transaction) {
        self.busy.insert(id.clone());
        self.commit(transaction, Purpose::Vm(id.clone()));
    }

    /// Writes a VM's owner record, if nobody else has meanwhile.
    fn write_owner(&mut self, id: &VmId, owner: &OwnerRecord, revision: Revision) {
        let key = owner_key(id);
        self.commit_vm(id, Transaction::new().unchanged(key.clone(), revision).put(key, to_bytes(owner)));
    }

    /// Writes the owner record anew with this host as its holder: whatever was sent under the revision before cannot be done any more. The
    /// mark of saved memory is taken off before the VM runs, so that it is never restored a second time.
    fn claim(&mut self, id: &VmId, mut owner: OwnerRecord, revision: Revision, incarnation: LeaseId) {
        if std::mem::take(&mut owner.saved) {
            self.restoring.insert(id.clone());
        }
        owner.holder = Some(Holder { host: self.config.host.clone(), incarnation });
        // While it runs, it goes on as it was started.
        if !self.locals.contains_key(id) {
            owner.bound = self.files_are_here(id);
        }
        self.write_owner(id, &owner, revision);
    }

    /// A VM that an earlier life of this host had is not here any more: it is to find a host as any other whose host failed.
    fn release(&mut self, id: &VmId, mut owner: OwnerRecord, revision: Revision) {
        (owner.holder, owner.bound) = (None, false);
        let placement = self.view.vm(id).and_then(|vm| vm.placement.as_ref());
        owner.gave_up = placement.filter(|placement| placement.record.restart.limit == 0).map(|_| NOT_AGAIN.into());
        if let Some(reason) = &owner.gave_up {
            self.tell(Notice::GaveUp { vm: id.clone(), reason: reason.clone() });
        }
        self.write_owner(id, &owner, revision);
    }

    /// Lets go of a VM that does not run here.
    fn give_away(&mut self, id: &VmId, mut owner: OwnerRecord, revision: Revision, ending: Option<Ending>) {
        let was_to_go = matches!(ending, Some(Ending::Saved | Ending::SaveFailed(_)));
        let keeps_files = was_to_go && self.files_are_here(id) && self.view.vm(id).is_some_and(VmView::wanted_on);
        let files = if keeps_files { Some(self.files(id)) } else { None };
        match files {
            Some(Files::OnTheWay) => return,
            Some(_) => {}
            None => self.call_off(id),
        }
        self.floors.insert(id.clone(), revision);
        let here = self.lease.held().map(|incarnation| Holder { host: self.config.host.clone(), incarnation });
        let Some(view) = self.view.vm(id) else { return };
        let key = owner_key(id);
        let mut transaction = Transaction::new().unchanged(key.clone(), revision);
        let placement = view.placement.as_ref();
        let started_again = placement.is_some_and(|placement| placement.record.start != owner.start);
        (owner.holder, owner.bound) = (None, false);
        let mut off = !view.wanted_on();
        let mut goes_on = false;
        match (ending, placement) {
            (Some(Ending::PoweredOff), Some(placement)) if !off && !started_again => {
                let record = PlacementRecord { power: Power::Off, ..placement.record.clone() };
                let key = placement_key(id);
                transaction = transaction.unchanged(key.clone(), placement.revision).put(key, to_bytes(&record));
                off = true;
            }
            (Some(Ending::Saved), _) => (owner.saved, goes_on) = (true, true),
            // Its memory is lost, as with a power cut; it boots where it was to go.
            (Some(Ending::SaveFailed(_)), _) => goes_on = true,
            (Some(Ending::StartFailed(reason) | Ending::Crashed(reason)), Some(placement)) => {
                let at_s = self.unix_s();
                fail(&mut owner, &placement.record, Failure { host: self.config.host.clone(), at_s }, &reason);
            }
            _ => {}
        }
        let gave_up = owner.gave_up.clone().filter(|_| !off);
        if let Some(moving) = &view.moving {
            transaction = transaction.unchanged(move_key(id), moving.revision).delete(move_key(id));
            let to = &moving.record.to;
            let stays = matches!(files, Some(Files::Here));
            let target =
                self.view.host(to).filter(|host| goes_on && !stays && host.is_active()).and_then(|host| host.alive.as_ref());
            if let Some(alive) = target {
                transaction = transaction.unchanged(alive_key(to), alive.revision);
                owner.holder = Some(Holder { host: to.clone(), incarnation: alive.record.incarnation });
                owner.home = home_after(moving.record.reason, owner.home, &self.config.host);
            }
        }
        match files {
            // It does not come back by itself: that would cost it the same time once more.
            Some(Files::There(more)) => {
                (transaction, owner.home) = (transaction.and(more), None);
                owner.bound = owner.holder.is_some();
            }
            // It waits for this host, which is about to be switched off.
            Some(Files::Here) if self.goes_down() => {}
            // No other host could start it, and this one may be drained.
            Some(Files::Here) => {
                (owner.holder, owner.bound) = (here, true);
                owner.start = placement.map_or(owner.start, |placement| placement.record.start);
            }
            Some(Files::OnTheWay) | None => {}
        }
        if owner.holder.is_none() && self.goes_down() {
            owner.home = home_after(MoveReason::Drain, owner.home, &self.config.host);
        }
        // Memory that was saved is of no use to a VM that is to be off: its next start would bring an old state back.
        transaction = if off { transaction.delete(key) } else { transaction.put(key, to_bytes(&owner)) };
        if let Some(reason) = gave_up {
            self.tell(Notice::GaveUp { vm: id.clone(), reason });
        }
        self.commit_vm(id, transaction);
    }
}

/// Where a VM goes back to after a move.
fn home_after(reason: MoveReason, home: Option<Home>, from: &HostId) -> Option<Home> {
    match reason {
        MoveReason::Drain => home.or_else(|| Some(Home { host: from.clone(), left: Left::Drain })),
        MoveReason::Failback | MoveReason::User => None,
    }
}

/// Counts a failure, and gives up when there were too many.
fn fail(owner: &mut OwnerRecord, placement: &PlacementRecord, failure: Failure, reason: &str) {
    let policy = placement.restart;
    let begin = failure.at_s.saturating_sub(policy.period_s);
    owner.failures.retain(|earlier| earlier.at_s > begin || earlier.at_s == failure.at_s);
    owner.failures.push(failure);
    let limit = usize::try_from(policy.limit).unwrap_or(FAILURES).min(FAILURES);
    if owner.failures.len() > limit {
        owner.failures.remove(0);
        owner.gave_up = Some(match limit {
            0 => format!("{reason}, and it is not to be restarted by itself"),
            _ => format!("{reason}, after {limit} restart(s) in {} s", policy.period_s),
        });
    }
}
