//! What one host knows of the cluster: the records, and indexes over them that follow each change.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use store::record::{Record, RecordError, Stored, from_bytes};
use store::{Changed, LeaseId, Revision, Snapshot};

use crate::placement::{Closed, History, Inventory, Needs, Outlook, Slot, Verdict, Way};
use crate::records::{
    AliveRecord, COORDINATOR_KEY, CoordinatorRecord, Fencing, Holder, HostRecord, HostWanted, MoveRecord, OwnerRecord,
    POLICY_KEY, PlacementRecord, PolicyRecord, Power, Priority, RenewalRecord,
};
use crate::{HostId, VmId};

/// What the keys begin with of all that a node knows of the store.
pub const PREFIXES: [&str; 7] = ["alive/", "cluster/", "hosts/", "moves/", "owners/", "placements/", "renewals/"];

/// Whether a node knows what is stored under this key.
pub fn is_known(key: &str) -> bool {
    PREFIXES.iter().any(|prefix| key.starts_with(prefix))
}

/// What is known of a host.
#[derive(Clone, Debug, Default)]
pub struct HostView {
    /// What it has.
    pub record: Option<Stored<HostRecord>>,
    /// That its lease lives.
    pub alive: Option<Stored<AliveRecord>>,
    /// The last renewal of its lease.
    pub renewed: Option<Stored<RenewalRecord>>,
    /// VMs whose record names it as the holder, in whichever life.
    pub vms: BTreeSet<VmId>,
    /// VMs that are to come to it.
    pub arriving: BTreeSet<VmId>,
    /// VMs with files that only it reaches.
    pub keeps: BTreeSet<VmId>,
}

impl HostView {
    /// Whether it is to run VMs.
    pub fn is_active(&self) -> bool {
        self.record.as_ref().is_some_and(|host| host.record.wanted == HostWanted::Active)
    }

    /// Whether it is about to be switched off.
    pub fn goes_down(&self) -> bool {
        self.record.as_ref().is_some_and(|host| host.record.going_down.is_some())
    }

    /// Whether it holds a lease, and is to run VMs.
    pub fn is_ready(&self) -> bool {
        self.alive.is_some() && self.is_active()
    }

    /// Whether its VMs wait for somebody's word after its lease has ended.
    fn needs_confirmation(&self) -> bool {
        self.alive.is_none() && self.record.as_ref().is_some_and(|host| host.record.fencing == Fencing::Manual)
    }
}

/// What is known of a VM.
#[derive(Clone, Debug, Default)]
pub struct VmView {
    /// What it needs, and whether it is to run.
    pub placement: Option<Stored<PlacementRecord>>,
    /// Who may run it.
    pub owner: Option<Stored<OwnerRecord>>,
    /// Where it is to go.
    pub moving: Option<Stored<MoveRecord>>,
    /// Its owner record, or what it needs, cannot be read: nothing is decided of it.
    pub unreadable: bool,
    needs: Needs,
    /// Where it is counted in the inventory.
    counted: Vec<Slot>,
}

impl VmView {
    /// Whether it is to run.
    pub fn wanted_on(&self) -> bool {
        self.placement.as_ref().is_some_and(|placement| placement.record.power == Power::On)
    }

    /// Who may run it.
    pub fn holder(&self) -> Option<&Holder> {
        self.owner.as_ref().and_then(|owner| owner.record.holder.as_ref())
    }

    /// Whether only its holder's host may change who owns it.
    pub fn is_bound(&self) -> bool {
        self.owner.as_ref().is_some_and(|owner| owner.record.bound)
    }

    /// Whether it is bound to this host, in whatever life.
    pub fn is_bound_to(&self, host: &HostId) -> bool {
        self.is_bound() && self.holder().is_some_and(|holder| holder.host == *host)
    }

    /// The only host that reaches all of its files, if some of them are on a volume of that host's own.
    pub fn files_on(&self) -> Option<&HostId> {
        self.placement.as_ref().and_then(|placement| placement.record.local.as_ref()).map(|local| &local.host)
    }

    fn is_nothing(&self) -> bool {
        self.placement.is_none() && self.owner.is_none() && self.moving.is_none() && !self.unreadable
    }
}

/// Where a VM stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is off, and nobody owns it.
    Off,
    /// It is off, and a record of its owner is left that nobody alive takes away.
    Leftover,
    /// It is to run and needs a host.
    Homeless,
    /// It is to run, and is not started again by itself.
    GaveUp,
    /// A host that lives owns it.
    Held(HostId),
    /// It is bound to a host that has no lease, and may run there.
    OutOfTouch(HostId),
    /// A record of it cannot be read, by this program at least.
    Unreadable,
    /// The host that owned it has no lease and no watchdog: someone has to confirm that it is dead.
    Unconfirmed(HostId),
}

/// What a change was about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Touched {
    /// A host.
    Host(HostId),
    /// That a host renewed its lease, and nothing else of it.
    Renewal(HostId),
    /// A VM.
    Vm(VmId),
    /// The cluster as a whole.
    Cluster,
}

/// What one host knows of the cluster.
#[derive(Clone, Debug, Default)]
pub struct View {
    revision: Revision,
    policy: Option<Stored<PolicyRecord>>,
    coordinator: Option<Stored<CoordinatorRecord>>,
    hosts: BTreeMap<HostId, HostView>,
    vms: BTreeMap<VmId, VmView>,
    inventory: Inventory,
    homeless: BTreeSet<(Reverse<Priority>, VmId)>,
    leftover: BTreeSet<VmId>,
    moving: BTreeSet<VmId>,
    /// Held by another host than the one that they go back to.
    away: BTreeSet<VmId>,
    /// Records that cannot be read. What was known before them holds on, but for owners: of them, nothing is known then.
    unreadable: BTreeMap<String, Revision>,
}

impl View {
    /// The last transaction that it knows.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// What holds for the cluster.
    pub fn survive_failures(&self) -> u32 {
        self.policy.as_ref().map_or(0, |policy| policy.record.survive_failures)
    }

    /// Who gives VMs to hosts.
    pub fn coordinator(&self) -> Option<&Stored<CoordinatorRecord>> {
        self.coordinator.as_ref()
    }

    /// All hosts.
    pub fn hosts(&self) -> impl Iterator<Item = (&HostId, &HostView)> {
        self.hosts.iter()
    }

    /// One host.
    pub fn host(&self, host: &HostId) -> Option<&HostView> {
        self.hosts.get(host)
    }

    /// All VMs.
    pub fn vms(&self) -> impl Iterator<Item = (&VmId, &VmView)> {
        self.vms.iter()
    }

    /// One VM.
    pub fn vm(&self, vm: &VmId) -> Option<&VmView> {
        self.vms.get(vm)
    }

    /// VMs that need a host, in the order in which they are started.
    pub fn homeless(&self) -> impl Iterator<Item = &VmId> {
        self.homeless.iter().map(|(_, vm)| vm)
    }

    /// VMs that are off and whose owner is gone.
    pub fn leftover(&self) -> impl Iterator<Item = &VmId> {
        self.leftover.iter()
    }

    /// VMs that are to go to another host.
    pub fn moving(&self) -> impl Iterator<Item = &VmId> {
        self.moving.iter()
    }

    /// VMs that are not where they go back to.
    pub fn away(&self) -> impl Iterator<Item = &VmId> {
        self.away.iter()
    }

    /// The record of a host's lease in this life, if it is there.
    pub fn alive(&self, host: &HostId, incarnation: LeaseId) -> Option<&Stored<AliveRecord>> {
        self.hosts.get(host)?.alive.as_ref().filter(|alive| alive.record.incarnation == incarnation)
    }

    /// Whether a holder's lease lives.
    pub fn lives(&self, holder: &Holder) -> bool {
        self.alive(&holder.host, holder.incarnation).is_some()
    }

    /// Where a VM stands.
    pub fn standing(&self, vm: &VmId) -> Standing {
        self.vms.get(vm).map_or(Standing::Off, |view| self.stands(view))
    }

    fn stands(&self, vm: &VmView) -> Standing {
        if vm.unreadable {
            return Standing::Unreadable;
        }
        if let Some(holder) = vm.holder() {
            if self.lives(holder) {
                return Standing::Held(holder.host.clone());
            }
            if vm.is_bound() {
                return Standing::OutOfTouch(holder.host.clone());
            }
            if self.hosts.get(&holder.host).is_some_and(HostView::needs_confirmation) {
                return Standing::Unconfirmed(holder.host.clone());
            }
        }
        match (&vm.placement, &vm.owner) {
            (Some(placement), owner) if placement.record.power == Power::On => match owner {
                Some(owner) if owner.record.gave_up.is_some() && owner.record.start == placement.record.start => Standing::GaveUp,
                _ => Standing::Homeless,
            },
            (_, Some(_)) => Standing::Leftover,
            (_, None) => Standing::Off,
        }
    }

    /// Takes all entries anew, unless they are older than what is known. Returns what changed, and the records that cannot be read.
    pub fn replace(&mut self, snapshot: &Snapshot) -> (BTreeSet<Touched>, Vec<RecordError>) {
        let (mut touched, mut errors) = (BTreeSet::new(), Vec::new());
        if snapshot.revision < self.revision {
            return (touched, errors);
        }
        let there: BTreeSet<&str> = snapshot.entries.iter().map(|entry| entry.key.as_str()).collect();
        for key in self.keys().into_iter().filter(|key| !there.contains(key.as_str())) {
            self.apply(&key, None, snapshot.revision, &mut touched, &mut errors);
        }
        for entry in &snapshot.entries {
            if self.known(&entry.key) != Some(entry.revision) {
                self.apply(&entry.key, Some(&entry.value), entry.revision, &mut touched, &mut errors);
            }
        }
        self.revision = snapshot.revision;
        (touched, errors)
    }

    /// Takes the changes of a transaction, unless it is known. Returns what changed, and the records that cannot be read.
    pub fn change(&mut self, revision: Revision, changes: &[Changed]) -> (BTreeSet<Touched>, Vec<RecordError>) {
        let (mut touched, mut errors) = (BTreeSet::new(), Vec::new());
        if revision > self.revision {
            for change in changes {
                self.apply(&change.key, change.value.as_deref(), revision, &mut touched, &mut errors);
            }
            self.revision = revision;
        }
        (touched, errors)
    }

    /// The keys of all records.
    fn keys(&self) -> Vec<String> {
        let mut keys = Vec::new();
        keys.extend(self.unreadable.keys().cloned());
        keys.extend(self.policy.is_some().then(|| POLICY_KEY.to_owned()));
        keys.extend(self.coordinator.is_some().then(|| COORDINATOR_KEY.to_owned()));
        for (id, host) in &self.hosts {
            keys.extend(host.record.is_some().then(|| HostRecord::key(id.as_str())));
            keys.extend(host.alive.is_some().then(|| AliveRecord::key(id.as_str())));
            keys.extend(host.renewed.is_some().then(|| RenewalRecord::key(id.as_str())));
        }
        for (id, vm) in &self.vms {
            keys.extend(vm.placement.is_some().then(|| PlacementRecord::key(id.as_str())));
            keys.extend(vm.owner.is_some().then(|| OwnerRecord::key(id.as_str())));
            keys.extend(vm.moving.is_some().then(|| MoveRecord::key(id.as_str())));
        }
        keys
    }

    /// The revision that a record is known with.
    fn known(&self, key: &str) -> Option<Revision> {
        if let Some(revision) = self.unreadable.get(key) {
            return Some(*revision);
        }
        let (prefix, name) = split(key);
        let vm = || self.vms.get(&VmId::from(name));
        let host = || self.hosts.get(&HostId::from(name));
        match prefix {
            OwnerRecord::PREFIX => vm()?.owner.as_ref().map(|record| record.revision),
            PlacementRecord::PREFIX => vm()?.placement.as_ref().map(|record| record.revision),
            MoveRecord::PREFIX => vm()?.moving.as_ref().map(|record| record.revision),
            AliveRecord::PREFIX => host()?.alive.as_ref().map(|record| record.revision),
            RenewalRecord::PREFIX => host()?.renewed.as_ref().map(|record| record.revision),
            HostRecord::PREFIX => host()?.record.as_ref().map(|record| record.revision),
            _ if key == POLICY_KEY => self.policy.as_ref().map(|record| record.revision),
            _ if key == COORDINATOR_KEY => self.coordinator.as_ref().map(|record| record.revision),
            _ => None,
        }
    }

    fn apply(
        &mut self,
        key: &str,
        value: Option<&[u8]>,
        revision: Revision,
        touched: &mut BTreeSet<Touched>,
        errors: &mut Vec<RecordError>,
    ) {
        let mut read = Reading { key, value, revision, error: None };
        let (prefix, name) = split(key);
        match prefix {
            OwnerRecord::PREFIX => {
                let record = read.record(None);
                let unreadable = read.error.is_some() || self.unreadable.contains_key(&PlacementRecord::key(name));
                self.change_vm(name.into(), touched, |vm, _| (vm.owner, vm.unreadable) = (record, unreadable));
            }
            PlacementRecord::PREFIX => {
                let owner = self.unreadable.contains_key(&OwnerRecord::key(name));
                self.change_vm(name.into(), touched, |vm, inventory| {
                    vm.placement = read.record(vm.placement.take());
                    vm.unreadable = read.error.is_some() || owner;
                    vm.needs = vm.placement.as_ref().map(|placement| inventory.needs(&placement.record)).unwrap_or_default();
                });
            }
            MoveRecord::PREFIX => self.change_vm(name.into(), touched, |vm, _| vm.moving = read.record(vm.moving.take())),
            AliveRecord::PREFIX => self.change_host(name.into(), touched, |host| host.alive = read.record(host.alive.take())),
            // No VM is affected.
            RenewalRecord::PREFIX => {
                let host = self.hosts.entry(name.into()).or_default();
                host.renewed = read.record(host.renewed.take());
                touched.insert(Touched::Renewal(name.into()));
            }
            HostRecord::PREFIX => self.change_host(name.into(), touched, |host| host.record = read.record(host.record.take())),
            _ if key == POLICY_KEY => {
                self.policy = read.record(self.policy.take());
                touched.insert(Touched::Cluster);
            }
            _ if key == COORDINATOR_KEY => {
                self.coordinator = read.record(self.coordinator.take());
                touched.insert(Touched::Cluster);
            }
            // Other programs' keys.
            _ => {}
        }
        match read.error {
            Some(error) => {
                self.unreadable.insert(key.into(), revision);
                errors.push(error);
            }
            None => {
                self.unreadable.remove(key);
            }
        }
    }

    fn change_vm(&mut self, id: VmId, touched: &mut BTreeSet<Touched>, change: impl FnOnce(&mut VmView, &mut Inventory)) {
        let mut vm = self.vms.remove(&id).unwrap_or_default();
        self.unindex(&id, &mut vm);
        change(&mut vm, &mut self.inventory);
        self.index(&id, &mut vm);
        if !vm.is_nothing() {
            self.vms.insert(id.clone(), vm);
        }
        touched.insert(Touched::Vm(id));
    }

    fn change_host(&mut self, id: HostId, touched: &mut BTreeSet<Touched>, change: impl FnOnce(&mut HostView)) {
        let host = self.hosts.entry(id.clone()).or_default();
        let affected: Vec<VmId> = host.vms.union(&host.arriving).cloned().collect();
        let mut taken: Vec<(VmId, VmView)> = Vec::with_capacity(affected.len());
        for vm in affected {
            if let Some(mut view) = self.vms.remove(&vm) {
                self.unindex(&vm, &mut view);
                taken.push((vm, view));
            }
        }
        let host = self.hosts.entry(id.clone()).or_default();
        change(host);
        let closed = match (host.is_active(), &host.alive) {
            (_, None) => Some(Closed::Dead),
            (false, Some(_)) => Some(Closed::Drained),
            (true, Some(_)) => None,
        };
        self.inventory.set_host(&id, host.record.as_ref().map(|host| &host.record), closed);
        for (vm, mut view) in taken {
            self.index(&vm, &mut view);
            self.vms.insert(vm.clone(), view);
            touched.insert(Touched::Vm(vm));
        }
        touched.insert(Touched::Host(id));
    }

    /// Takes a VM out of all indexes.
    fn unindex(&mut self, id: &VmId, vm: &mut VmView) {
        for slot in vm.counted.drain(..) {
            self.inventory.take(&vm.needs, slot);
        }
        if let Some(host) = vm.holder().and_then(|holder| self.hosts.get_mut(&holder.host)) {
            host.vms.remove(id);
        }
        if let Some(host) = vm.moving.as_ref().and_then(|moving| self.hosts.get_mut(&moving.record.to)) {
            host.arriving.remove(id);
        }
        if let Some(host) = vm.files_on().and_then(|host| self.hosts.get_mut(host)) {
            host.keeps.remove(id);
        }
        let priority = vm.placement.as_ref().map(|placement| placement.record.priority).unwrap_or_default();
        self.homeless.remove(&(Reverse(priority), id.clone()));
        self.leftover.remove(id);
        self.moving.remove(id);
        self.away.remove(id);
    }

    /// Puts a VM into the indexes that it belongs to.
    fn index(&mut self, id: &VmId, vm: &mut VmView) {
        if let Some(holder) = vm.holder() {
            self.hosts.entry(holder.host.clone()).or_default().vms.insert(id.clone());
            vm.counted.push(self.inventory.slot(&holder.host));
        }
        if let Some(moving) = &vm.moving {
            self.moving.insert(id.clone());
            self.hosts.entry(moving.record.to.clone()).or_default().arriving.insert(id.clone());
            let slot = self.inventory.slot(&moving.record.to);
            // One that is off takes nothing there.
            if vm.holder().is_some() && !vm.counted.contains(&slot) {
                vm.counted.push(slot);
            }
        }
        if let Some(host) = vm.files_on() {
            self.hosts.entry(host.clone()).or_default().keeps.insert(id.clone());
        }
        for slot in &vm.counted {
            self.inventory.put(&vm.needs, *slot);
        }
        match self.stands(vm) {
            Standing::Homeless => {
                let priority = vm.placement.as_ref().map(|placement| placement.record.priority).unwrap_or_default();
                self.homeless.insert((Reverse(priority), id.clone()));
            }
            Standing::Leftover => {
                self.leftover.insert(id.clone());
            }
            Standing::Held(host) => {
                let home = vm.owner.as_ref().and_then(|owner| owner.record.home.as_ref());
                if home.is_some_and(|home| home.host != host) {
                    self.away.insert(id.clone());
                }
            }
            Standing::Off | Standing::GaveUp | Standing::Unreadable | Standing::Unconfirmed(_) | Standing::OutOfTouch(_) => {}
        }
    }

    /// What a VM went through, for its placement.
    fn history(&self, vm: &VmView, unix_s: u64) -> History {
        let Some(owner) = &vm.owner else { return History::default() };
        let period = vm.placement.as_ref().map_or(0, |placement| placement.record.restart.period_s);
        let lately = owner.record.failures.iter().filter(|failure| failure.at_s.saturating_add(period) > unix_s);
        History {
            last: vm.holder().and_then(|holder| self.inventory.find(&holder.host)),
            failed: lately.filter_map(|failure| self.inventory.find(&failure.host)).collect(),
        }
    }

    /// Calls a function with the inventory as it is without a VM, which is not counted twice then.
    fn without<T>(&mut self, id: &VmId, call: impl FnOnce(&mut View, &mut VmView) -> T) -> Option<T> {
        let mut vm = self.vms.remove(id)?;
        self.unindex(id, &mut vm);
        let answer = call(self, &mut vm);
        self.index(id, &mut vm);
        self.vms.insert(id.clone(), vm);
        Some(answer)
    }

    /// The best host for a VM as if it ran nowhere, or why there is none.
    pub fn best_host(&mut self, id: &VmId, unix_s: u64, way: Way<'_>) -> Result<HostId, String> {
        let best = self.without(id, |view, vm| {
            let history = view.history(vm, unix_s);
            match view.inventory.best(&vm.needs, &history, way) {
                Some(slot) => Ok(view.inventory.host(slot).clone()),
                None => Err(view.inventory.refusal(&vm.needs, &history, way)),
            }
        });
        best.unwrap_or_else(|| Err("there is no such VM".into()))
    }

    /// Whether one host could take a VM, with its files where they are.
    pub fn suits(&mut self, id: &VmId, host: &HostId, unix_s: u64) -> bool {
        let suits = self.without(id, |view, vm| {
            let (history, slot) = (view.history(vm, unix_s), view.inventory.find(host));
            slot.is_some_and(|slot| view.inventory.score(&vm.needs, &history, slot, Way::Start).is_some())
        });
        suits.unwrap_or(false)
    }

    /// Why a VM's start would leave too little memory for hosts that fail.
    pub fn not_admitted(&self, id: &VmId) -> Option<String> {
        let failures = self.survive_failures();
        let vm = self.vms.get(id)?;
        let missing = self.inventory.missing_for_failures(&vm.needs, failures)?;
        Some(format!(
            "the cluster is to survive the failure of {failures} host(s), and {missing} MiB would be missing then: stop VMs, add memory or \
             hosts, or lower the number"
        ))
    }

    /// What speaks for and against each host for a VM, the best first.
    pub fn explain(&self, id: &VmId, unix_s: u64) -> Vec<Verdict> {
        self.explain_way(id, unix_s, Way::Start)
    }

    /// The same for a VM that is to be handed over, with copies of files where that is needed.
    pub fn explain_move(&self, id: &VmId, unix_s: u64, volume: Option<&str>) -> Vec<Verdict> {
        self.explain_way(id, unix_s, Way::Move { volume, runs: matches!(self.standing(id), Standing::Held(_)) })
    }

    fn explain_way(&self, id: &VmId, unix_s: u64, way: Way<'_>) -> Vec<Verdict> {
        let explained = self.clone().without(id, |view, vm| view.inventory.explain(&vm.needs, &view.history(vm, unix_s), way));
        explained.unwrap_or_default()
    }

    /// Where a VM stands, in words: what it waits for, and how to get out.
    pub fn why(&self, id: &VmId, unix_s: u64) -> String {
        match self.standing(id) {
            Standing::Off => "is off".into(),
            Standing::Leftover => "is off; what its host kept of it is about to be taken away".into(),
            Standing::Held(host) => match self.vms.get(id).and_then(|vm| vm.moving.as_ref()) {
                Some(moving) => format!("belongs to {host}, and goes to {}", moving.record.to),
                None => format!("belongs to {host}"),
            },
            Standing::GaveUp => {
                let reason = self.vms.get(id).and_then(|vm| vm.owner.as_ref()?.record.gave_up.clone()).unwrap_or_default();
                format!("is not started again: {reason}; `maru vm start {id}` tries anew")
            }
            Standing::Unreadable => "has a record that cannot be read here: use the program that wrote it, or a newer one".into(),
            Standing::OutOfTouch(host) => format!(
                "is bound to {host}, which is out of touch and alone has its files: it runs on there if that host does; if the host is gone for \
                 good, `maru host confirm-dead {host}` says so"
            ),
            Standing::Unconfirmed(host) => format!(
                "waits for {host}, which has no lease and no watchdog: bring it back, or, when it is certain that it runs nothing, \
                 `maru host confirm-dead {host}`"
            ),
            Standing::Homeless => {
                let new = self.vms.get(id).is_some_and(|vm| vm.owner.is_none());
                let refused = self.clone().best_host(id, unix_s, Way::Start).err();
                match self.not_admitted(id).filter(|_| new).or(refused) {
                    Some(reason) => format!("waits for a host: {reason}"),
                    None => "waits for the coordinator to give it a host".into(),
                }
            }
        }
    }

    /// Who would go where if hosts failed now.
    pub fn what_if(&self, down: &[HostId]) -> Outlook {
        let slots: Vec<Slot> = down.iter().filter_map(|host| self.inventory.find(host)).collect();
        let ids = down.iter().filter_map(|host| self.hosts.get(host)).flat_map(|host| &host.vms);
        let vms = ids.filter_map(|id| Some((id, self.vms.get(id)?))).filter(|(_, vm)| vm.wanted_on());
        let held = vms.filter_map(|(id, vm)| Some((id.clone(), vm.needs.clone(), self.inventory.find(&vm.holder()?.host)?)));
        self.inventory.what_if(&slots, held.collect())
    }

    /// Counts a VM on a host, for a plan that is being made; undone with [`View::unreserve`].
    pub(crate) fn reserve(&mut self, id: &VmId, host: &HostId) {
        let slot = self.inventory.slot(host);
        if let Some(vm) = self.vms.get_mut(id) {
            vm.counted.push(slot);
            self.inventory.put(&vm.needs, slot);
        }
    }

    /// Takes back [`View::reserve`].
    pub(crate) fn unreserve(&mut self, id: &VmId) {
        if let Some(vm) = self.vms.get_mut(id)
            && let Some(slot) = vm.counted.pop()
        {
            self.inventory.take(&vm.needs, slot);
        }
    }
}

/// One record that is read.
struct Reading<'a> {
    key: &'a str,
    value: Option<&'a [u8]>,
    revision: Revision,
    error: Option<RecordError>,
}

impl Reading<'_> {
    /// The record; what was known before if it cannot be read.
    fn record<T: Record>(&mut self, before: Option<Stored<T>>) -> Option<Stored<T>> {
        match from_bytes(self.key, self.value?) {
            Ok(record) => Some(Stored { record, revision: self.revision }),
            Err(error) => {
                self.error = Some(error);
                before
            }
        }
    }
}

/// A key's prefix with its slash, and its name.
fn split(key: &str) -> (&str, &str) {
    key.split_at(key.find('/').map_or(0, |slash| slash + 1))
}
