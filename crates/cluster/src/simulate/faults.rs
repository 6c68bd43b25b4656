//! What goes wrong, and what users do.

use std::fmt;
use std::time::Duration;

use store::Transaction;
use store::record::{Stored, to_bytes};

use super::machine::Doing;
use super::world::World;
use crate::records::host_key;
use crate::requests::{self, RequestError};
use crate::{Ending, HostId, Network, View, VmId};

/// Something that goes wrong, is mended, or is asked for. Machines are numbered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A machine loses its power.
    PowerCut(usize),
    /// It gets it back, and boots.
    PowerOn(usize),
    /// Nothing on a machine goes on for a time.
    Freeze(usize, Duration),
    /// `marud` crashes and is started again after a time.
    DaemonCrash(usize, Duration),
    /// `marud` is stopped for a time.
    DaemonFreeze(usize, Duration),
    /// The guard is stopped for a time.
    GuardAway(usize, Duration),
    /// The store's member on a machine ends.
    MemberCrash(usize),
    /// It starts.
    MemberStart(usize),
    /// It is stopped for a time.
    MemberFreeze(usize, Duration),
    /// One direction between two machines is cut.
    Cut(Network, usize, usize),
    /// It is mended.
    Mend(Network, usize, usize),
    /// So many percent of the messages are lost.
    Loss(Network, u32),
    /// Disks and networks are slow for a time.
    Slow(Duration),
    /// All cables are mended, and nothing is lost.
    Heal,
    /// A VM's guest powers it off.
    GuestPowersOff(VmId),
    /// A VM's process dies.
    VmCrash(VmId),
    /// A user starts a VM.
    Start(VmId),
    /// A user stops a VM.
    Stop(VmId),
    /// A user wants a VM elsewhere.
    Move(VmId, HostId),
    /// A user drains a host.
    Drain(HostId),
    /// It is about to be switched off.
    GoDown(HostId),
    /// A user lets it take VMs again.
    Resume(HostId),
    /// A user says that a host is dead.
    ConfirmDead(HostId),
}

/// Names machines by their numbers.
pub(super) struct Named<'a>(pub(super) &'a Fault, pub(super) &'a dyn Fn(usize) -> HostId);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Named(fault, name) = self;
        match fault {
            Fault::PowerCut(machine) => write!(f, "power cut of {}", name(*machine)),
            Fault::PowerOn(machine) => write!(f, "{} gets power", name(*machine)),
            Fault::Freeze(machine, time) => write!(f, "{} is frozen for {time:?}", name(*machine)),
            Fault::DaemonCrash(machine, time) => write!(f, "marud of {} crashes, back after {time:?}", name(*machine)),
            Fault::DaemonFreeze(machine, time) => write!(f, "marud of {} is stopped for {time:?}", name(*machine)),
            Fault::GuardAway(machine, time) => write!(f, "the guard of {} is stopped for {time:?}", name(*machine)),
            Fault::MemberCrash(machine) => write!(f, "the store's member on {} ends", name(*machine)),
            Fault::MemberStart(machine) => write!(f, "the store's member on {} starts", name(*machine)),
            Fault::MemberFreeze(machine, time) => write!(f, "the store's member on {} is stopped for {time:?}", name(*machine)),
            Fault::Cut(network, from, to) => write!(f, "nothing from {} to {} on {network}", name(*from), name(*to)),
            Fault::Mend(network, from, to) => write!(f, "{} to {} on {network} is mended", name(*from), name(*to)),
            Fault::Loss(network, percent) => write!(f, "{percent} % is lost on {network}"),
            Fault::Slow(time) => write!(f, "disks and networks are slow for {time:?}"),
            Fault::Heal => f.write_str("all cables are mended"),
            Fault::GuestPowersOff(vm) => write!(f, "the guest of {vm} powers off"),
            Fault::VmCrash(vm) => write!(f, "the process of {vm} dies"),
            Fault::Start(vm) => write!(f, "start {vm}"),
            Fault::Stop(vm) => write!(f, "stop {vm}"),
            Fault::Move(vm, host) => write!(f, "move {vm} to {host}"),
            Fault::Drain(host) => write!(f, "drain {host}"),
            Fault::GoDown(host) => write!(f, "{host} is to be switched off"),
            Fault::Resume(host) => write!(f, "resume {host}"),
            Fault::ConfirmDead(host) => write!(f, "confirm-dead {host}"),
        }
    }
}

impl World {
    pub(super) fn fault(&mut self, fault: Fault) {
        let machines = &self.machines;
        self.log.line(self.now, "*", || Named(&fault, &|machine| machines[machine].id.clone()).to_string());
        match fault {
            Fault::PowerCut(machine) => self.lose_power(machine),
            Fault::PowerOn(machine) => {
                self.get_power(machine);
                self.has_started(machine);
            }
            Fault::Freeze(machine, time) => {
                let until = self.now + time;
                let there = &mut self.machines[machine];
                if there.powered {
                    there.frozen_until = there.frozen_until.max(Some(until));
                    self.thaws_at(machine, until);
                    self.watch_leader();
                }
            }
            Fault::DaemonCrash(machine, time) => {
                self.machines[machine].daemon = None;
                self.machines[machine].copies.clear();
                self.machines[machine].daemon_frozen_until = None;
                self.daemon_restarts_at(machine, self.now + time);
            }
            Fault::DaemonFreeze(machine, time) => {
                let there = &mut self.machines[machine];
                there.daemon_frozen_until = there.daemon_frozen_until.max(Some(self.now + time));
            }
            Fault::GuardAway(machine, time) => self.guard_away(machine, time),
            Fault::MemberCrash(machine) => {
                self.machines[machine].member_up = false;
                self.watch_leader();
            }
            Fault::MemberStart(machine) => {
                self.machines[machine].member_up = true;
                self.watch_leader();
            }
            Fault::MemberFreeze(machine, time) => {
                let there = &mut self.machines[machine];
                there.member_frozen_until = there.member_frozen_until.max(Some(self.now + time));
                self.watch_leader();
            }
            Fault::Cut(network, from, to) => {
                self.links.set(network, from, to, true);
                self.watch_leader();
            }
            Fault::Mend(network, from, to) => self.links.set(network, from, to, false),
            Fault::Loss(network, percent) => self.links.loss[network as usize] = percent,
            Fault::Slow(time) => self.slow_until = self.slow_until.max(self.now + time),
            Fault::Heal => self.links.heal(),
            Fault::GuestPowersOff(vm) => self.vm_fault(&vm, &Ending::PoweredOff),
            Fault::VmCrash(vm) => self.vm_fault(&vm, &Ending::Crashed("its process died".into())),
            Fault::Start(vm) => self.user(|view| Ok(vec![requests::start(view, &vm)?])),
            Fault::Stop(vm) => self.user(|view| Ok(vec![requests::stop(view, &vm)?])),
            Fault::Move(vm, host) => self.user(|view| Ok(vec![requests::move_vm(view, &vm, &host, None)?])),
            Fault::Drain(host) => self.user(|view| Ok(vec![requests::drain(view, &host)?])),
            Fault::GoDown(host) => {
                let boot_id = self.machines.iter().find(|machine| machine.id == host).map(|machine| machine.boot.to_string());
                self.user(|view| Ok(vec![requests::go_down(view, &host, &boot_id.unwrap_or_default())?]));
            }
            Fault::Resume(host) => self.user(|view| Ok(vec![requests::resume(view, &host)?])),
            Fault::ConfirmDead(host) => self.user(|view| requests::confirm_dead(view, &host, 32)),
        }
    }

    /// What `marud` does when its host has started: one that was to be switched off takes VMs again.
    fn has_started(&mut self, machine: usize) {
        let (host, boot_id) = (self.machines[machine].id.clone(), self.machines[machine].boot.to_string());
        let truth = self.truth();
        let Some(Stored { record, revision }) = truth.host(&host).and_then(|host| host.record.as_ref()) else { return };
        let started = record.clone().started(&boot_id);
        if self.leads() && started != *record {
            let key = host_key(&host);
            self.request(&Transaction::new().unchanged(key.clone(), *revision).put(key, to_bytes(&started)));
        }
    }

    fn vm_fault(&mut self, vm: &VmId, ending: &Ending) {
        for machine in 0..self.machines.len() {
            let there = &self.machines[machine];
            if there.goes(self.now) && there.vms.get(vm).is_some_and(|process| process.doing == Doing::Running) {
                self.end_vm(machine, vm, Doing::Stopping, ending.clone());
            }
        }
    }

    fn user(&mut self, ask: impl FnOnce(&View) -> Result<Vec<Transaction>, RequestError>) {
        if !self.leads() {
            self.log.line(self.now, "*", || "refused: the store has no quorum; bring back one of its members".into());
            return;
        }
        match ask(&self.truth()) {
            Ok(transactions) => transactions.iter().for_each(|transaction| self.request(transaction)),
            Err(error) => self.log.line(self.now, "*", || format!("refused: {error}")),
        }
    }
}
