//! Starting VMs with their host: once for each start of the host, however often `marud` is started.
//!
//! ```text
//!   another boot id than the last one ──▶ boots/last: who is to be started, and when ──(at that time)──▶ a task, and one fewer there
//! ```

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use store::record::Stored;
use store::{Outcome, Transaction};
use time::OffsetDateTime;
use tokio::time::sleep;

use crate::host::Host;
use crate::records::{
    AutoStartPolicyRecord, BootedRecord, EventKind, EventRecord, OperationRecord, PendingStart, Power, TaskRecord, VmRecord,
};
use crate::state::{Records, State, StateError};

/// The record's name.
const LAST: &str = "last";
/// Who such tasks are by: no token is called so.
const BY: &str = "(auto-start)";
/// Between two tries to use a store that cannot be used.
const STORE_AGAIN: Duration = Duration::from_secs(2);

/// What the kernel calls this start of the host.
pub fn boot_id(path: &Path) -> io::Result<String> {
    Ok(std::fs::read_to_string(path)?.trim().to_owned())
}

/// Notes who is to be started, if the host has started since the last time. Before anyone looks whether VMs run: whether they did is what is
/// stored of them.
pub fn note(state: &State, vms: &[Stored<VmRecord>], boot_id: &str) -> Result<(), StateError> {
    let known = state.read::<BootedRecord>(LAST)?;
    if known.is_some_and(|known| known.record.boot_id == boot_id) {
        return Ok(());
    }
    let record = BootedRecord { boot_id: boot_id.into(), pending: plan(vms, OffsetDateTime::now_utc()) };
    state.commit(&Transaction::new().write(LAST, &record)).map(drop)
}

fn plan(vms: &[Stored<VmRecord>], now: OffsetDateTime) -> Vec<PendingStart> {
    let starts = |vm: &&VmRecord| match vm.auto_start.policy {
        AutoStartPolicyRecord::Never => false,
        AutoStartPolicyRecord::Always => true,
        AutoStartPolicyRecord::IfItRan => vm.power == Power::On,
    };
    let mut vms: Vec<&VmRecord> = vms.iter().map(|vm| &vm.record).filter(starts).collect();
    vms.sort_by_key(|vm| (vm.auto_start.order, &vm.name));
    let mut at = now;
    let pending = vms.into_iter().map(|vm| {
        at += Duration::from_secs(vm.auto_start.delay_seconds.into());
        PendingStart { vm: vm.id, at }
    });
    pending.collect()
}

/// Starts those that are noted, each at its time.
pub async fn run(host: Arc<Host>) {
    loop {
        match host.state.run(start_due).await {
            Ok(None) | Err(StateError::Ending) => return,
            Ok(Some(at)) => sleep((at - OffsetDateTime::now_utc()).try_into().unwrap_or_default()).await,
            Err(error) => {
                tracing::error!("VMs that are to be started with the host wait: {error}");
                sleep(STORE_AGAIN).await;
            }
        }
    }
}

/// Makes tasks for those whose time has come; tells when the next one's comes.
fn start_due(state: &State) -> Result<Option<OffsetDateTime>, StateError> {
    loop {
        let Some(stored) = state.read::<BootedRecord>(LAST)? else { return Ok(None) };
        let Some(first) = stored.record.pending.first() else { return Ok(None) };
        if first.at > OffsetDateTime::now_utc() {
            return Ok(Some(first.at));
        }
        let pending = stored.record.pending[1..].to_vec();
        let record = BootedRecord { pending, ..stored.record.clone() };
        let mut transaction = Transaction::new().if_still(LAST, &stored).write(LAST, &record);
        // It may have been deleted.
        if let Some(vm) = state.read::<VmRecord>(&first.vm.to_string())? {
            let task = TaskRecord::new(vm.record.id, vm.record.name.clone(), OperationRecord::Start, BY.into());
            let event = EventRecord::now(EventKind::VmAutoStart, "it is started with its host");
            transaction = transaction
                .if_still(&first.vm.to_string(), &vm)
                .write(&task.id.to_string(), &task)
                .tell(&event.of_vm(vm.record.id, &vm.record.name).by_task(Some(task.id)));
        }
        // Whoever changed the VM meanwhile does not change that.
        let (Outcome::Committed(_) | Outcome::Conflict { .. }) = state.commit(&transaction)?;
    }
}
