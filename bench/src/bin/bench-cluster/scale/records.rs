//! What `marud` writes itself when a VM starts or is saved: as many transactions, with as many bytes, as text that says nothing.
//!
//! | | before | after |
//! |---|---|---|
//! | start | the VM is taken over, with a task; the task runs | the VM's usage; the task is done, with an event |
//! | save | a task; it runs; the VM is about to be saved | the VM's usage; the task is done, with an event |

use std::sync::atomic::{AtomicU64, Ordering};

use cluster::VmId;
use store::Transaction;

use super::host::Work;

/// About as many bytes as `crates/host/src/records/golden` has of each kind; a VM with one disk and one network card has half of the one there.
const VM: usize = 1000;
const TASK: usize = 514;
const EVENT: usize = 208;
const USAGE: usize = 413;

fn text(length: usize) -> Vec<u8> {
    vec![b' '; length]
}

fn vm(transaction: Transaction, vm: &VmId) -> Transaction {
    transaction.put(format!("vms/{vm}"), text(VM))
}

/// Each VM has one task: finished ones are forgotten in the end.
fn task(transaction: Transaction, vm: &VmId) -> Transaction {
    transaction.put(format!("tasks/{vm}"), text(TASK))
}

fn event(transaction: Transaction) -> Transaction {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    transaction.put(format!("events/{number:08x}-0000-7000-8000-000000000000"), text(EVENT))
}

/// What users are told by the core.
pub fn notice() -> Transaction {
    event(Transaction::new())
}

/// What is written before a VM starts, or is saved.
pub fn before(id: &VmId, work: Work) -> Vec<Transaction> {
    match work {
        Work::Start => vec![task(vm(Transaction::new(), id), id), task(vm(Transaction::new(), id), id)],
        Work::Save => vec![task(Transaction::new(), id), task(vm(Transaction::new(), id), id), vm(Transaction::new(), id)],
    }
}

/// What is written after that.
pub fn after(id: &VmId, _work: Work) -> Vec<Transaction> {
    vec![Transaction::new().put(format!("usage/{id}"), text(USAGE)), event(task(vm(Transaction::new(), id), id))]
}
