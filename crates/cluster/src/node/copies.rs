//! VMs that are to go to another host, with files that only this one reaches: these are copied while nothing runs.
//!
//! ```text
//!   running ─▶ Saving ─▶ ended ─┐                     ┌─▶ there: one transaction gives the VM away and names its files anew
//!                               ├─▶ Copying ─VmCopied─┤
//!   off, nobody owns it ────────┘      │              └─▶ failed: it does not go; one that ran goes on here
//!                                      └─ does not go any more: EndCopy ─▶ Cancelling ─VmCopied─▶ as it was
//! ```
//! Until that transaction the VM is this host's, and its files are those here; what was copied for it is given up by whoever has it. It is
//! done only if nothing has started the VM since the copying began: that changes its owner's record, or takes the move away, and both are
//! conditions.

use store::{Revision, Transaction};

use super::{Local, Node};
use crate::records::{MoveRecord, alive_key, move_key, owner_key};
use crate::view::{HostView, VmView};
use crate::{Action, Notice, VmId};

/// Files that are copied, or were, for a move.
pub(super) struct Copying {
    /// The move's record.
    moving: Revision,
    /// What became of it: what else the transaction changes that gives the VM away, or why they could not be copied.
    outcome: Option<Result<Transaction, String>>,
}

/// Where the files of a VM are that only this host reached when it began.
pub(super) enum Files {
    /// They are on their way.
    OnTheWay,
    /// They are where the VM goes.
    There(Transaction),
    /// They stay here, and so does the VM.
    Here,
}

impl Node {
    /// Whether some of a VM's files are only here.
    pub(super) fn files_are_here(&self, id: &VmId) -> bool {
        self.view.vm(id).and_then(VmView::files_on) == Some(&self.config.host)
    }

    /// Whether a VM is to go elsewhere whose files are here.
    pub(super) fn leaves_with_files(&self, id: &VmId) -> bool {
        self.files_are_here(id) && self.view.vm(id).is_some_and(|vm| vm.moving.is_some())
    }

    /// Where a VM goes now, and the revision that says so.
    fn destination(&self, id: &VmId) -> Option<(MoveRecord, Revision)> {
        let moving = self.view.vm(id)?.moving.as_ref()?;
        let to = &moving.record.to;
        let goes = *to != self.config.host && self.view.host(to).is_some_and(HostView::is_ready);
        goes.then(|| (moving.record.clone(), moving.revision))
    }

    /// How many VMs of this host have their files copied, or are saved for that.
    pub(super) fn copying(&self) -> usize {
        let counts = |(vm, local): &(&VmId, &Local)| match local {
            Local::Copying | Local::Cancelling => true,
            Local::Saving => self.files_are_here(vm),
            _ => false,
        };
        self.locals.iter().filter(counts).count()
    }

    /// Where the files of a VM are that does not run. If it goes elsewhere and they are here, they are copied from now on.
    pub(super) fn files(&mut self, id: &VmId) -> Files {
        let Some((record, moving)) = self.destination(id) else {
            self.call_off(id);
            return Files::Here;
        };
        match self.copies.get(id).filter(|copy| copy.moving == moving).and_then(|copy| copy.outcome.as_ref()) {
            Some(Ok(more)) => Files::There(more.clone()),
            Some(Err(_)) => Files::Here,
            None => {
                self.copies.insert(id.clone(), Copying { moving, outcome: None });
                self.locals.insert(id.clone(), Local::Copying);
                self.actions.push(Action::Copy { vm: id.clone(), to: record.to, volume: record.volume });
                Files::OnTheWay
            }
        }
    }

    /// What was copied of a VM is not needed.
    pub(super) fn call_off(&mut self, id: &VmId) {
        if self.copies.remove(id).is_some_and(|copy| !matches!(copy.outcome, Some(Err(_)))) {
            self.actions.push(Action::EndCopy(id.clone()));
        }
    }

    /// Ends the copying of a VM's files if what it is for has changed.
    pub(super) fn look_at_copying(&mut self, id: &VmId, mine: bool) {
        let wanted = self.destination(id).map(|(_, moving)| moving);
        let holds = wanted.is_some() && wanted == self.copies.get(id).map(|copy| copy.moving) && self.files_are_here(id);
        let owned = self.view.vm(id).is_some_and(|vm| if mine { vm.wanted_on() } else { self.is_nobodys(vm) });
        if !holds || !owned {
            self.end_local(id, Local::Cancelling, Action::EndCopy);
        }
    }

    /// Whether nobody runs a VM that this host does not own: its holder was this host in an earlier life, or there is none.
    fn is_nobodys(&self, vm: &VmView) -> bool {
        vm.holder().is_none_or(|holder| holder.host == self.config.host)
    }

    pub(super) fn vm_copied(&mut self, vm: VmId, result: Result<Transaction, String>) {
        let local = self.locals.get(&vm).copied();
        // One that ran was saved for it, which its users may have noticed.
        if let (Err(reason), Some(Local::Copying | Local::Cancelling)) = (&result, local)
            && (local == Some(Local::Copying) || self.ended.contains_key(&vm))
        {
            self.tell(Notice::Stays { vm: vm.clone(), reason: reason.clone() });
        }
        match local {
            Some(Local::Copying) => {
                if let Some(copy) = self.copies.get_mut(&vm) {
                    copy.outcome = Some(result);
                }
            }
            Some(Local::Cancelling) => {
                self.copies.remove(&vm);
            }
            _ => return,
        }
        self.locals.remove(&vm);
        // Others have their turn.
        self.look_at_all();
        self.todo.insert(vm);
    }

    /// A transaction was done, or not: what was copied was given away, or the program says anew what else is to be changed.
    pub(super) fn copy_committed(&mut self, vm: &VmId, done: bool) {
        if done {
            self.copies.remove(vm);
        } else if let Some(copy) = self.copies.get_mut(vm)
            && let Some(Ok(_)) = copy.outcome
        {
            copy.outcome = None;
        }
    }

    /// Sends a VM on that is off and nobody's, if it is to go elsewhere and its files are here.
    pub(super) fn hand_over(&mut self, id: &VmId) {
        let Some(view) = self.view.vm(id).filter(|vm| self.lease.held().is_some() && self.is_nobodys(vm)) else {
            return self.call_off(id);
        };
        let Some(moving) = view.moving.clone().filter(|_| self.files_are_here(id) && !view.unreadable) else {
            return self.call_off(id);
        };
        let owner = view.owner.as_ref().map(|owner| owner.revision);
        if !self.copies.contains_key(id) && self.copying() >= self.config.parallel_copies {
            return;
        }
        let (key, of_move) = (owner_key(id), move_key(id));
        let transaction = match owner {
            Some(revision) => Transaction::new().unchanged(key, revision),
            None => Transaction::new().absent(key),
        };
        let transaction = transaction.unchanged(of_move.clone(), moving.revision).delete(of_move);
        match self.files(id) {
            Files::OnTheWay => {}
            Files::There(more) => {
                let to = &moving.record.to;
                let Some(alive) = self.view.host(to).and_then(|host| host.alive.as_ref()) else { return };
                let transaction = transaction.unchanged(alive_key(to), alive.revision);
                self.commit_vm(id, transaction.and(more));
            }
            // The coordinator calls a move off whose end is not there.
            Files::Here if !self.copies.contains_key(id) => {}
            Files::Here => self.commit_vm(id, transaction),
        }
    }
}
