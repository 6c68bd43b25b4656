//! Hosts that are drained: VMs leave them, also those that are off and whose files nobody else has.

use std::collections::BTreeSet;

use super::{Node, Plan};
use crate::placement::Way;
use crate::records::{HostWanted, MoveReason};
use crate::view::{HostView, Standing};
use crate::{HostId, Notice, VmId};

impl Node {
    /// Sends VMs off hosts that are drained.
    pub(super) fn plan_drains(&mut self, plan: &mut Plan) {
        let drained = |host: &HostView| host.record.as_ref().is_some_and(|host| host.record.wanted == HostWanted::Drained);
        let draining: Vec<HostId> = self.view.hosts().filter(|(_, host)| drained(host)).map(|(id, _)| id.clone()).collect();
        let view = &self.view;
        let stays =
            |vm: &VmId, host: &HostId| view.host(host).is_some_and(|host| host.vms.contains(vm) || host.keeps.contains(vm));
        self.coordination.tried.retain(|vm, (host, _)| draining.contains(host) && stays(vm, host));
        for host in draining {
            let Some(leaving) = self.leaving(&host) else {
                if self.coordination.drained.insert(host.clone()) {
                    self.tell(Notice::Drained(host));
                }
                continue;
            };
            self.send_away(plan, &host, leaving);
        }
    }

    /// VMs that have still to leave a host and do not do so yet; nothing if there are none, and none is on its way.
    fn leaving(&self, host: &HostId) -> Option<Vec<VmId>> {
        let view = self.view.host(host)?;
        let waits = |vm: &VmId| self.coordination.waiting.contains(vm);
        // A host that is only started anew has them again sooner than copies would be made.
        let stays = |vm: &VmId| view.goes_down() && self.is_copied(vm);
        let running = view.vms.iter().filter(|vm| !waits(vm) && self.movable(vm) && !stays(vm));
        // Those that are off take nothing of it, but without it nobody has their files. Only the host itself can send these.
        let rest = view.keeps.iter().filter(|vm| view.alive.is_some() && self.rests(vm) && !stays(vm));
        let rest: Vec<&VmId> = rest.filter(|vm| !waits(vm) || self.view.standing(vm) == Standing::Homeless).collect();
        let moving = view.keeps.iter().any(|vm| self.view.vm(vm).is_some_and(|vm| vm.moving.is_some()));
        if view.vms.is_empty() && rest.is_empty() && !moving {
            return None;
        }
        Some(running.chain(rest).cloned().collect())
    }

    /// Sends VMs off a host, as many as may leave it at once: those with files to copy have a count of their own, so that the others need
    /// not wait for them.
    fn send_away(&mut self, plan: &mut Plan, host: &HostId, leaving: Vec<VmId>) {
        let Some(view) = self.view.host(host) else { return };
        let moving: BTreeSet<&VmId> = view.vms.union(&view.keeps).filter(|vm| self.is_moving(vm)).collect();
        let copied = moving.iter().filter(|vm| self.is_copied(vm)).count();
        let mut room = self.config.parallel_moves.saturating_sub(moving.len() - copied);
        let mut copies = self.config.parallel_copies.saturating_sub(copied);
        for vm in leaving {
            if plan.is_full(self.config.batch) {
                break;
            }
            let (unix_s, copied) = (self.unix_s(), self.is_copied(&vm));
            let room = if copied { &mut copies } else { &mut room };
            if *room == 0 || self.coordination.tried.contains_key(&vm) || plan.reserved.contains(&vm) {
                continue;
            }
            let runs = matches!(self.view.standing(&vm), Standing::Held(_));
            match self.view.best_host(&vm, unix_s, Way::Move { volume: None, runs }) {
                Ok(to) if copied && self.copies_to(plan, &to) >= self.config.parallel_copies => {}
                Ok(to) => {
                    *room -= 1;
                    self.plan_move(plan, &vm, to, MoveReason::Drain);
                }
                Err(reason) => {
                    self.coordination.waiting.insert(vm.clone());
                    if self.coordination.told.insert(vm.clone()) {
                        self.tell(Notice::Stays { vm, reason });
                    }
                }
            }
        }
    }

    fn is_moving(&self, id: &VmId) -> bool {
        self.view.vm(id).is_some_and(|vm| vm.moving.is_some())
    }

    /// Whether a VM can go elsewhere only with copies of its files.
    fn is_copied(&self, id: &VmId) -> bool {
        self.view.vm(id).is_some_and(|vm| vm.files_on().is_some())
    }

    /// How many VMs a host gets, or is to get by this plan, whose files are copied to it.
    fn copies_to(&self, plan: &Plan, host: &HostId) -> usize {
        let arriving = self.view.host(host).map_or(0, |host| host.arriving.iter().filter(|vm| self.is_copied(vm)).count());
        arriving + plan.copies.iter().filter(|(_, to)| to == host).count()
    }

    /// Whether a VM that nobody runs does not go anywhere yet.
    fn rests(&self, id: &VmId) -> bool {
        let off = matches!(self.view.standing(id), Standing::Off | Standing::GaveUp | Standing::Homeless);
        off && !self.is_moving(id)
    }
}
