//! What watchers hear.

use std::collections::BTreeMap;

use super::*;

pub fn a_watch_hears_of_later_changes_below_its_prefix_in_their_order(subject: &impl Subject) {
    let store = subject.store();
    let before = put(store, "a/0", "before");
    let mut watch = store.watch("a/", before).unwrap();
    let first = put(store, "a/1", "one");
    put(store, "b/1", "other");
    let second = committed(store, &Transaction::new().put("a/2", "two").put("b/2", "other").delete("a/1"));
    let third = put(store, "a/2", "again");
    assert_eq!(heard(&mut watch), told("a/1", Some("one"), first));
    assert_eq!(heard(&mut watch), told("a/2", Some("two"), second));
    assert_eq!(heard(&mut watch), told("a/1", None, second));
    assert_eq!(heard(&mut watch), told("a/2", Some("again"), third));
    nothing_before(store, &mut watch, "a/3");
    assert!(watch.ended().is_none());
}

pub fn a_watch_from_any_revision_leads_to_what_is_there_now(subject: &impl Subject) {
    let store = subject.store();
    let content = |store: &dyn Store| {
        let snapshot = store.range("w/").unwrap();
        let entries = snapshot.entries.into_iter().map(|entry| (entry.key, entry.value));
        (snapshot.revision, entries.collect::<BTreeMap<_, _>>())
    };
    let mut history = vec![content(store)];
    for number in 0..12usize {
        let key = |by: usize| format!("w/{}", number * by % 5);
        let transaction = Transaction::new().put(key(1), number.to_string()).delete(key(3)).put("elsewhere", "");
        committed(store, &transaction);
        history.push(content(store));
    }
    let now = history.last().unwrap().1.clone();
    for (after, mut known) in history {
        let mut watch = store.watch("w/", after).unwrap();
        let end = put(store, "w/end", "");
        let mut last = after;
        loop {
            let (key, value, revision) = heard(&mut watch);
            assert!(revision > after && revision >= last, "{revision} after {last}, from {after}");
            last = revision;
            if revision == end {
                break;
            }
            match value {
                Some(value) => known.insert(key, value.into_bytes()),
                None => known.remove(&key),
            };
        }
        known.remove("w/end");
        assert_eq!(known, now, "from {after}");
    }
}

pub fn a_watch_from_a_forgotten_past_or_from_the_future_is_refused(subject: &impl Subject) {
    let store = subject.store();
    let revisions: Vec<Revision> = (0..10).map(|number| put(store, "a", &number.to_string())).collect();
    subject.compact(revisions[5]);
    let newest = revisions[9];
    for refused in [Revision(0), revisions[0], revisions[4], Revision(newest.0 + 1), Revision(u64::MAX)] {
        match store.watch("a", refused) {
            Err(StoreError::NotKnown { after, newest: told }) => assert_eq!((after, told), (refused, newest)),
            Err(error) => panic!("{refused}: {error}"),
            Ok(_) => panic!("{refused} is known"),
        }
    }
    for known in [revisions[5], revisions[8]] {
        let mut watch = store.watch("a", known).unwrap();
        while heard(&mut watch).2 < newest {}
    }
    nothing_before(store, &mut store.watch("a", newest).unwrap(), "a");
}

pub fn a_watch_that_is_dropped_disturbs_no_other(subject: &impl Subject) {
    // Whoever drops a watch leaves nothing behind that would disturb others.
    let store = subject.store();
    let before = store.range("").unwrap().revision;
    drop(store.watch("", before).unwrap());
    let mut watch = store.watch("", before).unwrap();
    nothing_before(store, &mut watch, "a");
}
