//! Many at once.

use std::thread;

use super::*;

const THREADS: u64 = 4;
const ROUNDS: u64 = 25;

pub fn increments_of_many_threads_are_all_there_and_seen_in_order(subject: &impl Subject) {
    let store = subject.store();
    let begin = put(store, "counter", "0");
    let mut watch = store.watch("counter", begin).unwrap();
    let mut revisions: Vec<(u64, Revision)> = thread::scope(|scope| {
        let threads: Vec<_> =
            (0..THREADS).map(|_| scope.spawn(|| (0..ROUNDS).map(|_| increment(store)).collect::<Vec<_>>())).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    // Who saw a higher number did so later.
    revisions.sort_unstable();
    assert!(revisions.iter().map(|(number, _)| *number).eq(1..=THREADS * ROUNDS));
    assert!(revisions.is_sorted_by(|earlier, later| earlier.1 < later.1));
    for (number, revision) in revisions {
        assert_eq!(heard(&mut watch), told("counter", Some(&number.to_string()), revision));
    }
}

/// Adds one, however often others are faster.
fn increment(store: &dyn Store) -> (u64, Revision) {
    loop {
        let entry = store.get("counter").unwrap().unwrap();
        let next = String::from_utf8(entry.value).unwrap().parse::<u64>().unwrap() + 1;
        let transaction = Transaction::new().unchanged("counter", entry.revision).put("counter", next.to_string());
        if let Outcome::Committed(revision) = store.commit(&transaction).unwrap() {
            return (next, revision);
        }
    }
}
