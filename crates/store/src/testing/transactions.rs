//! Entries, conditions, revisions, limits.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;

use super::*;
use crate::{MAX_KEY, MAX_OPERATIONS, MAX_TRANSACTION, MAX_VALUE};

fn value_of(store: &dyn Store, key: &str) -> Option<String> {
    store.get(key).unwrap().map(|entry| String::from_utf8(entry.value).unwrap())
}

pub fn a_transaction_is_done_only_if_all_its_conditions_hold(subject: &impl Subject) {
    let store = subject.store();
    let first = committed(store, &Transaction::new().absent("a").put("a", "1"));
    assert_eq!(store.get("a").unwrap(), Some(Entry { key: "a".into(), value: "1".into(), revision: first, lease: None }));
    let take = Transaction::new().unchanged("a", first).absent("b").put("a", "2").put("b", "2");
    let second = committed(store, &take);
    // Each of them alone does not hold any more.
    assert_eq!(store.commit(&take).unwrap(), conflict("a", Some(second)));
    assert_eq!(store.commit(&Transaction::new().absent("b").put("b", "3")).unwrap(), conflict("b", Some(second)));
    assert_eq!((value_of(store, "a").as_deref(), value_of(store, "b").as_deref()), (Some("2"), Some("2")));
    committed(store, &Transaction::new().unchanged("a", second).delete("a").delete("b"));
    assert_eq!((store.get("a").unwrap(), store.get("b").unwrap()), (None, None));
    assert_eq!(store.commit(&Transaction::new().unchanged("a", second).put("a", "4")).unwrap(), conflict("a", None));
}

pub fn a_conflict_names_the_first_condition_that_does_not_hold_and_what_is_there(subject: &impl Subject) {
    let store = subject.store();
    let revision = put(store, "a", "1");
    let before = store.range("").unwrap();
    let several = Transaction::new().unchanged("a", revision).unchanged("x", revision).absent("a").delete("a").put("z", "");
    assert_eq!(store.commit(&several).unwrap(), conflict("x", None));
    assert_eq!(store.commit(&Transaction::new().absent("x").absent("a")).unwrap(), conflict("a", Some(revision)));
    // No entry has this revision, whether there is one or not.
    for (key, found) in [("a", Some(revision)), ("x", None)] {
        for never in [Revision(0), Revision(revision.0 + 1), Revision(u64::MAX)] {
            assert_eq!(store.commit(&Transaction::new().unchanged(key, never).put("z", "")).unwrap(), conflict(key, found));
        }
    }
    assert_eq!(store.range("").unwrap(), before);
}

pub fn each_change_has_a_revision_higher_than_all_before(subject: &impl Subject) {
    let store = subject.store();
    let mut last = store.range("").unwrap().revision;
    for round in 0..5 {
        let revision = committed(store, &Transaction::new().put("a", round.to_string()).put("b", "").delete("c"));
        assert!(revision > last);
        let snapshot = store.range("").unwrap();
        assert_eq!(snapshot.revision, revision);
        assert!(snapshot.entries.iter().all(|entry| entry.revision == revision));
        last = put(store, "c", "");
        assert!(last > revision);
        assert_eq!(store.get("a").unwrap().unwrap().revision, revision);
    }
}

pub fn what_changes_nothing_has_no_revision(subject: &impl Subject) {
    let store = subject.store();
    let revision = put(store, "a", "1");
    for nothing in
        [Transaction::new(), Transaction::new().delete("x"), Transaction::new().unchanged("a", revision).absent("x").delete("y")]
    {
        assert_eq!(store.commit(&nothing).unwrap(), Outcome::Committed(revision));
    }
    assert_eq!(store.range("").unwrap().revision, revision);
    // The same value once more is a change.
    assert!(put(store, "a", "1") > revision);
}

pub fn of_several_changes_of_a_key_the_last_counts(subject: &impl Subject) {
    let store = subject.store();
    let before = store.range("").unwrap().revision;
    let mut watch = store.watch("", before).unwrap();
    let revision =
        committed(store, &Transaction::new().put("a", "1").put("b", "1").delete("a").put("c", "1").put("a", "2").delete("c"));
    assert_eq!((value_of(store, "a").as_deref(), value_of(store, "c")), (Some("2"), None));
    assert_eq!(heard(&mut watch), told("b", Some("1"), revision));
    assert_eq!(heard(&mut watch), told("a", Some("2"), revision));
    nothing_before(store, &mut watch, "z");
}

pub fn a_range_has_the_keys_that_begin_so_in_their_order(subject: &impl Subject) {
    let store = subject.store();
    let mut keys = ["a", "a/", "a/1", "a/10", "a/2", "a0", "a/\u{10ffff}", "a/\u{10ffff}\u{10ffff}", "ä", "\u{10ffff}", "\u{1}"];
    for key in keys {
        put(store, key, key);
    }
    keys.sort_unstable();
    for prefix in ["", "a", "a/", "a/1", "a/\u{10ffff}", "\u{10ffff}", "nobody"] {
        let found: Vec<String> = store.range(prefix).unwrap().entries.into_iter().map(|entry| entry.key).collect();
        let expected: Vec<&str> = keys.into_iter().filter(|key| key.starts_with(prefix)).collect();
        assert_eq!(found, expected, "{prefix:?}");
    }
}

pub fn a_part_has_the_first_keys_behind_another_one(subject: &impl Subject) {
    let store = subject.store();
    for key in ["a/1", "a/2", "a/2/x", "a/3", "b/1"] {
        put(store, key, key);
    }
    let part = |behind, limit| {
        let entries = store.part("a/", behind, limit).unwrap().entries;
        entries.into_iter().map(|entry| String::from_utf8(entry.value).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(part(None, 2), ["a/1", "a/2"]);
    assert_eq!(part(Some("a/2"), 1), ["a/2/x"]);
    // Neither has to be there.
    assert_eq!(part(Some("a/10"), 9), ["a/2", "a/2/x", "a/3"]);
    assert_eq!(part(Some("0"), 1), ["a/1"]);
    assert_eq!(part(None, usize::MAX).len(), 4);
    for (behind, limit) in [(Some("a/3"), 9), (Some("c"), 9), (None, 0)] {
        assert_eq!(part(behind, limit), [""; 0], "{behind:?}");
    }
    assert_eq!(store.part("a/", None, 1).unwrap().revision, store.revision().unwrap());
}

pub fn what_is_too_long_or_too_much_is_refused_and_changes_nothing(subject: &impl Subject) {
    let store = subject.store();
    let fine = || Transaction::new().put("fine", "x");
    let longest = "k".repeat(MAX_KEY);
    let too_long = "k".repeat(MAX_KEY + 1);
    let many = |count: usize| (0..count).fold(Transaction::new(), |all, number| all.put(number.to_string(), "x"));
    let conditions = |count: usize| (0..count).fold(fine(), |all, number| all.absent(format!("no {number}")));
    for refused in [fine().put("", "x"), fine().delete(&too_long), fine().absent(""), fine().unchanged(&too_long, Revision(1))] {
        assert!(matches!(store.commit(&refused), Err(StoreError::Key(_))));
    }
    assert!(matches!(store.get(&too_long), Err(StoreError::Key(513))));
    let long = fine().put("v", vec![0; MAX_VALUE + 1]);
    assert!(matches!(store.commit(&long), Err(StoreError::Value { length, .. }) if length == MAX_VALUE + 1));
    for refused in [many(MAX_OPERATIONS + 1), conditions(MAX_OPERATIONS + 1)] {
        assert!(matches!(store.commit(&refused), Err(StoreError::Operations(129))));
    }
    let two = |second: usize| Transaction::new().put("a", vec![1; MAX_VALUE]).put("b", vec![1; second]);
    let room = MAX_TRANSACTION - MAX_VALUE - 2;
    assert!(matches!(store.commit(&two(room + 1)), Err(StoreError::Transaction(_))));
    assert_eq!(store.range("").unwrap().entries, []);
    // As much as may be, and all of it at once.
    let most = (0..MAX_OPERATIONS).fold(two(room - 126 * MAX_KEY), |all, number| all.absent(format!("{number:0>512}")));
    let most = (0..126).fold(most, |all, number| all.delete(format!("{number:0>512}")));
    committed(store, &most);
    assert_eq!(store.get("a").unwrap().unwrap().value.len(), MAX_VALUE);
    committed(store, &many(MAX_OPERATIONS));
    committed(store, &Transaction::new().absent(&longest).put(&longest, vec![0; MAX_VALUE]));
    assert_eq!(store.get(&longest).unwrap().unwrap().value.len(), MAX_VALUE);
}

/// Keys, values and revisions.
type Content = BTreeMap<String, (Vec<u8>, Revision)>;

fn content(store: &dyn Store, prefix: &str) -> Content {
    store.range(prefix).unwrap().entries.into_iter().map(|entry| (entry.key, (entry.value, entry.revision))).collect()
}

/// A key, and how far its revision is off what is known, if it is expected to be there.
type Expected = (u8, Option<u64>);
type Changes = Vec<(u8, Option<u8>)>;

fn steps() -> impl Strategy<Value = Vec<(Option<Expected>, Changes)>> {
    let condition = proptest::option::of((0..5u8, proptest::option::of(0..2u64)));
    let changes = proptest::collection::vec((0..5u8, proptest::option::of(any::<u8>())), 0..4);
    proptest::collection::vec((condition, changes), 1..20)
}

pub fn a_store_is_a_map(subject: &impl Subject) {
    let store = subject.store();
    let cases = AtomicUsize::new(0);
    proptest!(ProptestConfig::with_cases(12), |(steps in steps())| {
        let case = cases.fetch_add(1, Ordering::Relaxed);
        let key = |number: u8| format!("{case}/{number}");
        let mut model = Content::new();
        for (condition, changes) in steps {
            let mut transaction = Transaction::new();
            let mut holds = true;
            if let Some((number, off)) = condition {
                let known = model.get(&key(number)).map(|(_, revision)| revision.0);
                transaction = match (known, off) {
                    (Some(revision), Some(off)) => transaction.unchanged(key(number), Revision(revision + off)),
                    _ => transaction.absent(key(number)),
                };
                holds = if known.is_some() { off == Some(0) } else { true };
            }
            let mut next = model.clone();
            for (number, value) in changes {
                transaction = match value {
                    Some(value) => {
                        next.insert(key(number), (vec![value], Revision(0)));
                        transaction.put(key(number), vec![value])
                    }
                    None => {
                        next.remove(&key(number));
                        transaction.delete(key(number))
                    }
                };
            }
            match store.commit(&transaction).unwrap() {
                Outcome::Committed(revision) => {
                    prop_assert!(holds);
                    next.values_mut().filter(|(_, at)| *at == Revision(0)).for_each(|(_, at)| *at = revision);
                    model = next;
                }
                Outcome::Conflict { found, .. } => {
                    prop_assert!(!holds);
                    let known = condition.and_then(|(number, _)| model.get(&key(number))).map(|(_, revision)| *revision);
                    prop_assert_eq!(found, known);
                }
            }
            prop_assert_eq!(&content(store, &format!("{case}/")), &model);
        }
    });
}
