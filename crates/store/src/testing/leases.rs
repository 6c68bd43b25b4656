//! Leases.

use super::*;

/// The shortest that etcd grants.
const TTL: Duration = Duration::from_secs(2);
/// Longer than any lease here lives.
const LONG: Duration = Duration::from_secs(20);

fn assert_gone<T: std::fmt::Debug>(answer: Result<T, StoreError>, lease: LeaseId) {
    assert!(matches!(answer, Err(StoreError::NoLease(id)) if id == lease), "{answer:?}");
}

pub fn entries_end_with_their_lease_at_once_and_watchers_are_told(subject: &impl LeaseSubject) {
    let (store, leases) = (subject.store(), subject.leases());
    let lease = leases.grant(TTL).unwrap();
    assert!(lease.ttl >= TTL);
    let under = Transaction::new().put_under("l/b", "1", lease.id).put_under("l/a", "1", lease.id).put("l/c", "stays");
    let begin = committed(store, &under);
    assert_eq!(store.get("l/a").unwrap().unwrap().lease, Some(lease.id));
    assert_eq!(store.get("l/c").unwrap().unwrap().lease, None);
    let mut watch = store.watch("l/", begin).unwrap();
    let first = subject.hear_for(&mut watch, LONG).unwrap();
    assert_eq!((first.key.as_str(), first.value), ("l/a", None));
    assert_eq!(heard(&mut watch), told("l/b", None, first.revision));
    assert_eq!(store.range("l/").unwrap().entries.len(), 1);
    assert_gone(leases.keep_alive(lease.id), lease.id);
}

pub fn a_lease_lives_as_long_as_it_is_kept_alive(subject: &impl LeaseSubject) {
    let (store, leases) = (subject.store(), subject.leases());
    let lease = leases.grant(TTL).unwrap();
    let begin = committed(store, &Transaction::new().put_under("a", "1", lease.id));
    let mut watch = store.watch("a", begin).unwrap();
    for _ in 0..8 {
        assert_eq!(leases.keep_alive(lease.id).unwrap(), lease.ttl);
        assert_eq!(subject.hear_for(&mut watch, TTL / 4), None);
    }
    assert_eq!(subject.hear_for(&mut watch, LONG).unwrap().value, None);
}

pub fn a_revoked_lease_is_gone_with_its_entries(subject: &impl LeaseSubject) {
    let (store, leases) = (subject.store(), subject.leases());
    let (lease, other) = (leases.grant(LONG).unwrap(), leases.grant(LONG).unwrap());
    assert_ne!(lease.id, other.id);
    let begin = committed(store, &Transaction::new().put_under("a", "1", lease.id).put_under("b", "1", other.id));
    let mut watch = store.watch("", begin).unwrap();
    leases.revoke(lease.id).unwrap();
    assert_eq!(store.get("a").unwrap(), None);
    let end = store.range("").unwrap().revision;
    assert_eq!(heard(&mut watch), told("a", None, end));
    assert_gone(leases.revoke(lease.id), lease.id);
    assert_gone(leases.keep_alive(lease.id), lease.id);
    assert_gone(store.commit(&Transaction::new().put("c", "").put_under("a", "2", lease.id)), lease.id);
    assert_gone(store.commit(&Transaction::new().put_under("c", "", other.id).put_under("a", "2", lease.id)), lease.id);
    assert_eq!(store.range("").unwrap().entries.len(), 1);
    assert_eq!(leases.keep_alive(other.id).unwrap(), other.ttl);
    nothing_before(store, &mut watch, "z");
}

pub fn the_last_put_decides_whose_an_entry_is(subject: &impl LeaseSubject) {
    let (store, leases) = (subject.store(), subject.leases());
    let (first, second) = (leases.grant(LONG).unwrap(), leases.grant(LONG).unwrap());
    committed(store, &["a", "b", "c"].into_iter().fold(Transaction::new(), |all, key| all.put_under(key, "1", first.id)));
    committed(store, &Transaction::new().put("a", "2").put_under("b", "2", second.id));
    leases.revoke(first.id).unwrap();
    let left: Vec<_> = store.range("").unwrap().entries.into_iter().map(|entry| (entry.key, entry.lease)).collect();
    assert_eq!(left, [("a".into(), None), ("b".into(), Some(second.id))]);
    leases.revoke(second.id).unwrap();
    assert_eq!(store.range("").unwrap().entries.len(), 1);
}

pub fn a_condition_that_does_not_hold_comes_before_a_lease_that_is_gone(subject: &impl LeaseSubject) {
    a_put_under_a_lease_that_is_not_there_is_refused(subject);
}

pub fn a_put_under_a_lease_that_is_not_there_is_refused(subject: &impl Subject) {
    let store = subject.store();
    let revision = put(store, "a", "1");
    let nobody = LeaseId(12345);
    let transaction = Transaction::new().put("b", "").put_under("a", "2", nobody);
    assert_gone(store.commit(&transaction), nobody);
    assert_eq!(store.commit(&transaction.absent("a")).unwrap(), conflict("a", Some(revision)));
    assert_eq!(store.range("").unwrap().revision, revision);
}
