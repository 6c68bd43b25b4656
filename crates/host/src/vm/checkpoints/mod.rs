//! Checkpoints of a VM: a tree of states, and the files that its disks are made of meanwhile.
//!
//! A checkpoint freezes the files that the VM's disks are in now; the VM goes on in new children of them. What is deleted is merged away, file
//! by file: a frozen file that no checkpoint needs takes over what its only child holds, and then that one's place. While it has several
//! children, it stays.
//!
//! Everything is in the store before it is done ([`TreeRecord`]), and each step can be done again. [`plan`] decides, without touching
//! anything; [`merge`] does.

pub mod files;
pub mod merge;
pub mod plan;
mod tell;

pub use tell::{chains, told};

use store::record::Stored;
use store::{Outcome, Transaction};
use uuid::Uuid;

use crate::records::{TreeRecord, VmRecord};
use crate::state::{Records, State, StateError};

/// Checkpoints that a VM may have.
pub const MAX_CHECKPOINTS: usize = 50;

/// The checkpoints of a VM.
pub fn tree(state: &State, vm: Uuid) -> Result<TreeRecord, StateError> {
    Ok(state.read::<TreeRecord>(&vm.to_string())?.map(|stored| stored.record).unwrap_or_default())
}

/// Changes a VM and its checkpoints: both or none. Done again when someone else was faster. `None` changes nothing.
pub fn edit<T>(
    state: &State,
    vm: Uuid,
    mut change: impl FnMut(&mut VmRecord, &mut TreeRecord) -> Option<T>,
) -> Result<Option<T>, StateError> {
    let name = vm.to_string();
    loop {
        let stored = state.read::<VmRecord>(&name)?.ok_or_else(|| StateError::Gone(format!("the VM {vm}")))?;
        let before = state.read::<TreeRecord>(&name)?;
        let (mut record, mut tree) = (stored.record.clone(), before.as_ref().map(|it| it.record.clone()).unwrap_or_default());
        let Some(result) = change(&mut record, &mut tree) else { return Ok(None) };
        let mut transaction = with_tree(Transaction::new().if_still(&name, &stored), &name, before.as_ref(), &tree);
        if record != stored.record {
            transaction = transaction.write(&name, &record);
        }
        if let Outcome::Committed(_) = state.commit(&transaction)? {
            return Ok(Some(result));
        }
    }
}

fn with_tree(transaction: Transaction, name: &str, before: Option<&Stored<TreeRecord>>, tree: &TreeRecord) -> Transaction {
    match before {
        None if tree.is_empty() => transaction.if_none::<TreeRecord>(name),
        None => transaction.if_none::<TreeRecord>(name).write(name, tree),
        Some(before) if before.record == *tree => transaction.if_still(name, before),
        Some(before) if tree.is_empty() => transaction.if_still(name, before).forget::<TreeRecord>(name),
        Some(before) => transaction.if_still(name, before).write(name, tree),
    }
}

#[cfg(test)]
pub(crate) mod tests;
