//! What users ask for, as transactions. The API commits them; nodes follow the records.

use store::Transaction;
use store::record::{Stored, to_bytes};

use crate::records::{
    GoingDown, HostRecord, HostWanted, MoveReason, MoveRecord, OwnerRecord, PlacementRecord, Power, alive_key, host_key,
    move_key, owner_key, placement_key,
};
use crate::view::Standing;
use crate::{HostId, View, VmId};

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// No such host.
    #[error("there is no host '{0}' in this cluster")]
    NoHost(HostId),
    /// No such VM.
    #[error("there is no VM '{0}' in this cluster")]
    NoVm(VmId),
    /// A host that lives is not dead.
    #[error(
        "{0} holds a lease, so it is not dead: drain it with `maru host drain {0}`, or cut its power and wait for its lease to end"
    )]
    Alive(HostId),
    /// A VM that does not run cannot go elsewhere.
    #[error(
        "{0} does not run, and no files of it are on another host alone: start it, and it goes to the host that suits it best"
    )]
    NotRunning(VmId),
    /// A VM that may run on a host which cannot be asked.
    #[error("{0} may run on {1}, which is out of touch: when that host is back, ask again")]
    OutOfTouch(VmId, HostId),
    /// A host that cannot take it.
    #[error("{0} cannot take it now: it holds no lease, or is drained")]
    NotReady(HostId),
}

fn host<'a>(view: &'a View, host: &HostId) -> Result<&'a Stored<HostRecord>, RequestError> {
    view.host(host).and_then(|host| host.record.as_ref()).ok_or_else(|| RequestError::NoHost(host.clone()))
}

fn placement<'a>(view: &'a View, vm: &VmId) -> Result<&'a Stored<PlacementRecord>, RequestError> {
    view.vm(vm).and_then(|vm| vm.placement.as_ref()).ok_or_else(|| RequestError::NoVm(vm.clone()))
}

fn change_host(view: &View, id: &HostId, change: impl FnOnce(&mut HostRecord)) -> Result<Transaction, RequestError> {
    let Stored { record, revision } = host(view, id)?;
    let mut record = record.clone();
    change(&mut record);
    Ok(Transaction::new().unchanged(host_key(id), *revision).put(host_key(id), to_bytes(&record)))
}

/// A host gives its VMs away and takes none, until someone resumes it.
pub fn drain(view: &View, id: &HostId) -> Result<Transaction, RequestError> {
    change_host(view, id, |host| {
        host.wanted = HostWanted::Drained;
        host.going_down.iter_mut().for_each(|going_down| going_down.resumes = false);
    })
}

/// A host is about to be switched off: it is drained until it is back, under another boot id than this one. What cannot leave it is saved.
pub fn go_down(view: &View, id: &HostId, boot_id: &str) -> Result<Transaction, RequestError> {
    change_host(view, id, |host| {
        let resumes = host.going_down.as_ref().map_or(host.wanted == HostWanted::Active, |before| before.resumes);
        host.wanted = HostWanted::Drained;
        host.going_down = Some(GoingDown { boot_id: boot_id.into(), resumes });
    })
}

/// A host takes VMs again, and gets those back that left when it was drained.
pub fn resume(view: &View, id: &HostId) -> Result<Transaction, RequestError> {
    change_host(view, id, |host| (host.wanted, host.going_down) = (HostWanted::Active, None))
}

fn want_power(view: &View, id: &VmId, power: Power) -> Result<Transaction, RequestError> {
    let Stored { record, revision } = placement(view, id)?;
    let mut record = record.clone();
    // A start of a VM that was given up is a new one; a second start of one that runs is none.
    if power == Power::On && (record.power == Power::Off || view.standing(id) == Standing::GaveUp) {
        record.start += 1;
    }
    record.power = power;
    Ok(Transaction::new().unchanged(placement_key(id), *revision).put(placement_key(id), to_bytes(&record)))
}

/// A VM is to run.
pub fn start(view: &View, id: &VmId) -> Result<Transaction, RequestError> {
    want_power(view, id, Power::On)
}

/// A VM is to be off.
pub fn stop(view: &View, id: &VmId) -> Result<Transaction, RequestError> {
    want_power(view, id, Power::Off)
}

/// A VM is to run on another host, or, if it is off, its files are to be there. Those that only its host reaches are copied, all to this volume, or to
/// those of the same names.
pub fn move_vm(view: &View, id: &VmId, to: &HostId, volume: Option<&str>) -> Result<Transaction, RequestError> {
    host(view, to)?;
    placement(view, id)?;
    let vm = view.vm(id).ok_or_else(|| RequestError::NoVm(id.clone()))?;
    match view.standing(id) {
        Standing::Held(_) => {}
        Standing::Off | Standing::GaveUp | Standing::Homeless if vm.files_on().is_some_and(|host| host != to) => {}
        Standing::OutOfTouch(host) => return Err(RequestError::OutOfTouch(id.clone(), host)),
        _ => return Err(RequestError::NotRunning(id.clone())),
    }
    let target = view.host(to).filter(|host| host.is_active()).and_then(|host| host.alive.as_ref());
    let alive = target.ok_or_else(|| RequestError::NotReady(to.clone()))?;
    let record = MoveRecord { to: to.clone(), reason: MoveReason::User, volume: volume.map(String::from) };
    let transaction = match &vm.owner {
        Some(owner) => Transaction::new().unchanged(owner_key(id), owner.revision),
        None => Transaction::new().absent(owner_key(id)),
    };
    let transaction = transaction.unchanged(alive_key(to), alive.revision);
    Ok(transaction.put(move_key(id), to_bytes(&record)))
}

/// Someone vouches that a host without a lease runs nothing: it has no power, or its VMs were seen to be gone. Its VMs are started
/// elsewhere. **If that is not true, VMs run twice.** Returns transactions of at most `batch` VMs each.
pub fn confirm_dead(view: &View, id: &HostId, batch: usize) -> Result<Vec<Transaction>, RequestError> {
    host(view, id)?;
    let Some(dead) = view.host(id).filter(|host| host.alive.is_none()) else { return Err(RequestError::Alive(id.clone())) };
    let owned: Vec<&VmId> = dead.vms.iter().collect();
    let transactions = owned.chunks(batch.max(1)).map(|vms| {
        let owners = vms.iter().filter_map(|vm| Some((*vm, view.vm(vm)?.owner.as_ref()?)));
        owners.fold(Transaction::new().absent(alive_key(id)), |transaction, (vm, owner)| {
            let record = OwnerRecord { holder: None, bound: false, ..owner.record.clone() };
            transaction.unchanged(owner_key(vm), owner.revision).put(owner_key(vm), to_bytes(&record))
        })
    });
    Ok(transactions.collect())
}
