//! What every store promises, as tests that all of them pass.

mod leases;
mod races;
mod stores;
mod transactions;
mod watches;

use std::time::Duration;

use crate::{Changed, Entry, LeaseId, Leases, Outcome, Revision, Store, StoreError, Transaction, Watch};

/// A store to be tested, empty.
pub trait Subject: Sync {
    fn store(&self) -> &dyn Store;

    /// Forgets changes up to a revision.
    fn compact(&self, up_to: Revision);
}

/// One with leases.
pub trait LeaseSubject: Subject {
    fn leases(&self) -> &dyn Leases;

    /// What is heard while time passes.
    fn hear_for(&self, watch: &mut Watch, time: Duration) -> Option<Changed>;
}

/// Makes tests of properties.
macro_rules! suite {
    ($($module:ident::$property:ident),* $(,)?) => {
        $(#[test]
        fn $property() {
            $module::$property(&subject());
        })*
    };
}
pub(crate) use suite;

pub fn committed(store: &dyn Store, transaction: &Transaction) -> Revision {
    match store.commit(transaction).unwrap() {
        Outcome::Committed(revision) => revision,
        Outcome::Conflict { key, found } => panic!("conflict at {key}: {found:?}"),
    }
}

pub fn put(store: &dyn Store, key: &str, value: &str) -> Revision {
    committed(store, &Transaction::new().put(key, value))
}

/// The next change, which is to come soon, as its key, its value and its revision.
fn heard(watch: &mut Watch) -> (String, Option<String>, Revision) {
    let changed = watch.next_within(Duration::from_secs(20)).unwrap_or_else(|| panic!("nothing, {:?}", watch.ended()));
    (changed.key, changed.value.map(|value| String::from_utf8(value).unwrap()), changed.revision)
}

fn told(key: &str, value: Option<&str>, revision: Revision) -> (String, Option<String>, Revision) {
    (key.into(), value.map(String::from), revision)
}

/// Nothing was told before this: a change is made, and it is the next one that is heard.
fn nothing_before(store: &dyn Store, watch: &mut Watch, key: &str) {
    let revision = put(store, key, "marks the end");
    assert_eq!(heard(watch), told(key, Some("marks the end"), revision));
}

fn conflict(key: &str, found: Option<Revision>) -> Outcome {
    Outcome::Conflict { key: key.into(), found }
}
