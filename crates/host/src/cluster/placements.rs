//! What a VM's record says to those that place VMs: `placements/VM`, which changes with it, in the same transaction.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;

use cluster::HostId;
use cluster::baseline::baseline;
use cluster::records::{HostRecord, LocalFiles, MoveRecord, OwnerRecord, PlacementRecord, Power, own_volume};
use store::record::{self, Record, Stored};
use store::{Change, Transaction};
use uuid::Uuid;

use crate::copies::files;
use crate::images;
use crate::records::{FileRef, TreeRecord, VmRecord, VolumeRecord};
use crate::state::{State, StateError};
use crate::vm::checkpoints;
use crate::volumes::Volumes;

/// What a monitor takes beside its guest's memory, in MiB.
const MONITOR_MIB: u64 = 32;

/// Volumes of which this cluster's hosts see the same files.
pub fn shared_volumes(state: &State) -> Result<BTreeSet<String>, StateError> {
    let volumes = state.all::<VolumeRecord>()?.into_iter().map(|stored| stored.record);
    Ok(volumes.filter(|volume| volume.shared.is_some()).map(|volume| volume.name).collect())
}

/// The volumes that a VM has files in.
pub fn volumes(vm: &VmRecord) -> BTreeSet<&str> {
    let boot = [Some(&vm.boot.kernel), vm.boot.initrd.as_ref()].into_iter().flatten();
    let disks = vm.disks.iter().flat_map(|disk| disk.parents.iter().map(|parent| &parent.file).chain([&disk.file]));
    let saved = vm.saved.iter().map(|saved| &saved.file);
    boot.chain(disks).chain(&vm.own_files).chain(saved).map(|file: &FileRef| file.volume.as_str()).collect()
}

/// The name under which a host says that it reaches a volume. One that only this host sees is another one on each.
pub fn reach(volume: &str, host: &str, shared: &BTreeSet<String>) -> String {
    if shared.contains(volume) { volume.into() } else { own_volume(volume, &host.into()) }
}

/// What is free on volumes that only this host reaches, in MiB, without what is kept for its VMs. `before` is what was told last: small changes are not
/// told, since each is a write to the cluster's store.
pub fn room(volumes: &Volumes, shared: &BTreeSet<String>, before: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let own = volumes.names().into_iter().filter(|name| !shared.contains(name));
    let free = own.filter_map(|name| {
        let space = volumes.space(&name)?.ok()?;
        let free = if space.is_known() { space.free.saturating_sub(images::reserve(space)) } else { u64::MAX } >> 20;
        let told = before.get(&name).copied().unwrap_or(0);
        Some((name, if is_notable(free, told) { free } else { told }))
    });
    free.collect()
}

/// Whether a number of MiB is so far from what was told of it that it is worth telling.
fn is_notable(mib: u64, told: u64) -> bool {
    mib.abs_diff(told) > (told / 16).max(16)
}

/// Tells what the VMs of this host take of volumes that only it reaches, as far as that has changed.
pub fn measure(state: &State, volumes: &Volumes) -> Result<(), StateError> {
    let (Some(own), shared) = (state.own_host(), shared_volumes(state)?) else { return Ok(()) };
    for vm in state.vms_here()?.into_iter().map(|stored| stored.record) {
        let id = vm.id.to_string();
        let Some(stored) = state.read::<PlacementRecord>(&id)? else { continue };
        let mut placement = stored.record.clone();
        follow(&mut placement, &vm, own, &shared);
        if let Some(local) = &mut placement.local {
            let taken = taken(&vm, &checkpoints::tree(state, vm.id)?, volumes);
            for (volume, told) in &mut local.volumes {
                let mib = taken.get(volume).map_or(0, |bytes| bytes.div_ceil(1 << 20));
                if is_notable(mib, *told) {
                    *told = mib;
                }
            }
        }
        // Changed meanwhile: the next look sees that.
        if placement != stored.record {
            state.commit(&write(Transaction::new(), &id, &placement, Some(&stored)))?;
        }
    }
    Ok(())
}

/// Bytes that a VM takes of volumes, with what it would be saved to if it runs.
fn taken(vm: &VmRecord, tree: &TreeRecord, volumes: &Volumes) -> BTreeMap<String, u64> {
    let mut taken = BTreeMap::<String, u64>::new();
    for file in files::all(vm, tree).into_keys() {
        let Some(metadata) = volumes.find(&file).ok().and_then(|path| path.metadata().ok()) else { continue };
        *taken.entry(file.volume).or_default() += (metadata.blocks() * 512).min(metadata.len());
    }
    if vm.power == crate::records::Power::On {
        *taken.entry(vm.own_directory().volume).or_default() += vm.memory_bytes;
    }
    taken
}

/// What a VM can be promised of the processors, that may run on any host of the cluster; nothing, if none has said what it has.
fn promise(state: &State) -> Result<Option<BTreeSet<String>>, StateError> {
    let hosts = state.named::<HostRecord>()?.into_iter().map(|(name, stored)| (HostId::from(name), stored.record));
    let hosts: Vec<_> = hosts.collect();
    let common = baseline(hosts.iter().map(|(id, record)| (id, record))).features;
    Ok(Some(common).filter(|common| !common.is_empty()))
}

/// Takes up in a placement what a VM's record says.
fn follow(placement: &mut PlacementRecord, vm: &VmRecord, own: &str, shared: &BTreeSet<String>) {
    let host = vm.host.as_deref().unwrap_or(own);
    placement.memory_mib = vm.memory_bytes.div_ceil(1 << 20) + MONITOR_MIB;
    placement.vcpus = vm.cpus;
    placement.cpu_features = vm.cpu_features.clone().unwrap_or_default();
    let (all, before) = (volumes(vm), placement.local.take());
    placement.volumes = all.iter().map(|volume| reach(volume, host, shared)).collect();
    let own = all.into_iter().filter(|volume| !shared.contains(*volume));
    let told = |volume: &str| before.as_ref().and_then(|local| local.volumes.get(volume)).copied().unwrap_or(0);
    let own: BTreeMap<String, u64> = own.map(|volume| (volume.to_owned(), told(volume))).collect();
    placement.local = (!own.is_empty()).then(|| LocalFiles { host: host.into(), volumes: own });
}

/// The placement as a transaction makes it, or as it is stored; with the latter.
fn read(
    state: &State,
    transaction: &Transaction,
    vm: &str,
) -> Result<(PlacementRecord, Option<Stored<PlacementRecord>>), StateError> {
    let stored = state.read::<PlacementRecord>(vm)?;
    let key = PlacementRecord::key(vm);
    let put = transaction.changes().iter().rev().find_map(|change| match change {
        Change::Put { key: put, value, .. } if *put == key => Some(value),
        _ => None,
    });
    let record = match put {
        Some(value) => record::from_bytes(&key, value)?,
        None => stored.as_ref().map(|stored| stored.record.clone()).unwrap_or_default(),
    };
    Ok((record, stored))
}

fn write(transaction: Transaction, vm: &str, record: &PlacementRecord, stored: Option<&Stored<PlacementRecord>>) -> Transaction {
    let key = PlacementRecord::key(vm);
    let transaction = match stored {
        Some(stored) => transaction.unchanged(key.clone(), stored.revision),
        None => transaction.absent(key.clone()),
    };
    transaction.put(key, record::to_bytes(record))
}

/// Wants a VM to run, or not to run. A new wish that it run forgets why it did not.
pub fn want(state: &State, vm: Uuid, power: Power, transaction: Transaction) -> Result<Transaction, StateError> {
    if state.own_host().is_none() {
        return Ok(transaction);
    }
    let vm = vm.to_string();
    let (mut record, stored) = read(state, &transaction, &vm)?;
    record.start += u64::from(power == Power::On);
    record.power = power;
    Ok(write(transaction, &vm, &record, stored.as_ref()))
}

/// Whether a VM is to run, on whichever host.
pub fn is_wanted_on(state: &State, vm: Uuid) -> Result<bool, StateError> {
    Ok(state.read::<PlacementRecord>(&vm.to_string())?.is_some_and(|placement| placement.record.power == Power::On))
}

/// Lets what follows from VMs' records follow from them: where they are made, changed or deleted. A VM that is made is this host's, and is
/// promised what the processors of all hosts have in common.
pub fn complete(state: &State, own: &str, mut transaction: Transaction) -> Result<Transaction, StateError> {
    let changes: Vec<Change> =
        transaction.changes().iter().filter(|change| change.key().starts_with(VmRecord::PREFIX)).cloned().collect();
    if changes.is_empty() {
        return Ok(transaction);
    }
    let shared = shared_volumes(state)?;
    for change in changes {
        let id = change.key().trim_start_matches(VmRecord::PREFIX).to_owned();
        match change {
            Change::Put { key, value, .. } => {
                let mut vm: VmRecord = record::from_bytes(&key, &value)?;
                if vm.host.is_none() {
                    vm.host = Some(own.into());
                    // One that there was before the cluster keeps what it has: a guest that runs, or was saved, has seen it.
                    if vm.cpu_features.is_none() && state.read::<VmRecord>(&id)?.is_none() {
                        vm.cpu_features = promise(state)?;
                    }
                    transaction = transaction.put(key, record::to_bytes(&vm));
                }
                let (before, stored) = read(state, &transaction, &id)?;
                let mut placement = before.clone();
                follow(&mut placement, &vm, own, &shared);
                if placement != before || stored.is_none() {
                    transaction = write(transaction, &id, &placement, stored.as_ref());
                }
            }
            Change::Delete(_) => {
                for key in [PlacementRecord::key(&id), OwnerRecord::key(&id), MoveRecord::key(&id)] {
                    transaction = transaction.delete(key);
                }
            }
        }
    }
    Ok(transaction)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use store::{MemoryStore, Outcome};

    use super::*;
    use crate::records::NameRecord;
    use crate::state::Records;
    use crate::vm::checkpoints::tests::vm;

    fn placement(state: &State, vm: &VmRecord) -> Option<PlacementRecord> {
        state.read::<PlacementRecord>(&vm.id.to_string()).unwrap().map(|stored| stored.record)
    }

    #[test]
    fn a_placement_follows_its_vm_and_keeps_what_is_its_own() {
        let state = State::of_cluster(Arc::new(MemoryStore::new()), "h1");
        let mut vm = vm("web/root.vhdx");
        vm.memory_bytes = 256 << 20;
        assert!(matches!(state.commit(&Transaction::new().create(&vm)).unwrap(), Outcome::Committed(_)));
        let made = placement(&state, &vm).unwrap();
        assert_eq!((made.memory_mib, made.power), (256 + MONITOR_MIB, Power::Off));
        let local: Vec<&str> = made.volumes.iter().map(String::as_str).collect();
        assert!(!local.is_empty() && local.iter().all(|volume| volume.ends_with("@h1")), "{local:?}");
        let files = made.local.unwrap();
        assert_eq!((files.host.as_str(), files.volumes), ("h1", [("local".to_owned(), 0)].into()));
        let stored = state.read::<VmRecord>(&vm.id.to_string()).unwrap().unwrap();
        assert_eq!(stored.record.host.as_deref(), Some("h1"));

        let wanted = want(&state, vm.id, Power::On, Transaction::new()).unwrap();
        state.commit(&wanted).unwrap();
        let vm = VmRecord { memory_bytes: 512 << 20, ..stored.record.clone() };
        let id = vm.id.to_string();
        state.commit(&Transaction::new().if_still(&id, &stored).write(&id, &vm)).unwrap();
        let now = placement(&state, &vm).unwrap();
        assert_eq!((now.memory_mib, now.power, now.start), (512 + MONITOR_MIB, Power::On, 1));
        // A wish and a change at once: both are done.
        let stored = state.read::<VmRecord>(&id).unwrap().unwrap();
        let vm = VmRecord { memory_bytes: 128 << 20, ..vm };
        let both = want(&state, vm.id, Power::Off, Transaction::new().if_still(&id, &stored).write(&id, &vm)).unwrap();
        assert!(matches!(state.commit(&both).unwrap(), Outcome::Committed(_)));
        let now = placement(&state, &vm).unwrap();
        assert_eq!((now.memory_mib, now.power), (128 + MONITOR_MIB, Power::Off));

        state.commit(&Transaction::new().forget::<VmRecord>(&id).forget::<NameRecord>(&vm.name)).unwrap();
        assert_eq!(placement(&state, &vm), None);
    }

    #[test]
    fn a_vm_that_is_made_is_promised_what_all_hosts_have_and_keeps_that() {
        let state = State::of_cluster(Arc::new(MemoryStore::new()), "h1");
        let add = |host: &str, features: &[&str]| {
            let cpu_features = features.iter().map(|name| name.to_string()).collect();
            let record = HostRecord { memory_mib: 1024, cpu_features, ..HostRecord::default() };
            state.commit(&Transaction::new().write(host, &record)).unwrap();
        };
        let (before, vm) = (vm("web/root.vhdx"), vm("web/root.vhdx"));
        state.commit(&Transaction::new().create(&before)).unwrap();
        assert!(placement(&state, &before).unwrap().cpu_features.is_empty());
        add("h1", &["avx", "sse2"]);
        add("h2", &["sse2", "xop"]);
        let vm = VmRecord { name: "other".into(), id: Uuid::new_v4(), ..vm };
        state.commit(&Transaction::new().create(&vm)).unwrap();
        let promised = || placement(&state, &vm).unwrap().cpu_features;
        assert_eq!(promised(), BTreeSet::from(["sse2".to_owned()]));

        // A host that comes later changes nothing of it, nor does a change of the VM.
        add("h3", &["avx"]);
        let id = vm.id.to_string();
        let stored = state.read::<VmRecord>(&id).unwrap().unwrap();
        assert_eq!(stored.record.cpu_features, Some(promised()));
        let changed = VmRecord { memory_bytes: 512 << 20, ..stored.record.clone() };
        state.commit(&Transaction::new().if_still(&id, &stored).write(&id, &changed)).unwrap();
        assert_eq!(promised(), BTreeSet::from(["sse2".to_owned()]));
    }

    #[test]
    fn of_two_that_change_a_placement_at_once_one_is_refused() {
        let state = State::of_cluster(Arc::new(MemoryStore::new()), "h1");
        let vm = vm("web/root.vhdx");
        state.commit(&Transaction::new().create(&vm)).unwrap();
        let on = want(&state, vm.id, Power::On, Transaction::new()).unwrap();
        let off = want(&state, vm.id, Power::Off, Transaction::new()).unwrap();
        assert!(matches!(state.commit(&on).unwrap(), Outcome::Committed(_)));
        assert!(matches!(state.commit(&off).unwrap(), Outcome::Conflict { .. }));
    }

    #[test]
    fn a_host_that_lost_a_vm_has_no_say_in_it() {
        let store = Arc::new(MemoryStore::new());
        let (one, other) = (State::of_cluster(store.clone(), "h1"), State::of_cluster(store, "h2"));
        let vm = vm("web/root.vhdx");
        one.commit(&Transaction::new().create(&vm)).unwrap();
        assert!(one.change(vm.id, None, |_, _| None).is_ok());
        assert!(matches!(other.change(vm.id, None, |_, _| None), Err(StateError::Gone(_))));
        assert_eq!((one.vms_here().unwrap().len(), other.vms_here().unwrap().len()), (1, 0));
    }
}
