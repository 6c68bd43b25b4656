//! What a store in a file promises.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use proptest::prelude::*;

use super::*;

fn committed(outcome: Outcome) -> Revision {
    match outcome {
        Outcome::Committed(revision) => revision,
        Outcome::Conflict { key, found } => panic!("conflict at {key}: {found:?}"),
    }
}

fn put(store: &FileStore, key: &str, value: &str) -> Revision {
    committed(store.commit(&Transaction::new().put(key, value)).unwrap())
}

/// Keys, values and revisions.
type Content = BTreeMap<String, (Vec<u8>, Revision)>;

fn content(store: &FileStore) -> Content {
    store.range("").unwrap().entries.into_iter().map(|entry| (entry.key, (entry.value, entry.revision))).collect()
}

#[derive(Clone, Debug)]
struct Step {
    /// A key, and whether it must be absent or be as it is known to be, give or take some revisions.
    condition: Option<(usize, Option<u64>)>,
    changes: Vec<(usize, Option<u8>)>,
    reopen: bool,
}

fn key(number: usize) -> String {
    format!("{}/{number}", if number.is_multiple_of(2) { "even" } else { "odd" })
}

fn step() -> impl Strategy<Value = Step> {
    let condition = proptest::option::of((0..6usize, proptest::option::of(0..2u64)));
    let changes = proptest::collection::vec((0..6usize, proptest::option::of(any::<u8>())), 0..4);
    (condition, changes, proptest::bool::weighted(0.1)).prop_map(|(condition, changes, reopen)| Step {
        condition,
        changes,
        reopen,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn a_store_is_a_map_whose_watchers_end_up_with_the_same_map(steps in proptest::collection::vec(step(), 1..30), from in 0..30u64) {
        let directory = tempfile::tempdir().unwrap();
        let mut store = FileStore::open(directory.path()).unwrap();
        let mut model = Content::new();
        let mut history = vec![model.clone()];
        for step in steps {
            if step.reopen {
                drop(store);
                store = FileStore::open(directory.path()).unwrap();
            }
            let mut transaction = Transaction::new();
            let mut holds = true;
            if let Some((number, off)) = step.condition {
                let known = model.get(&key(number)).map(|(_, revision)| *revision);
                match (known, off) {
                    (Some(revision), Some(off)) => {
                        transaction = transaction.unchanged(key(number), Revision(revision.0 + off));
                        holds = off == 0;
                    }
                    (known, _) => {
                        transaction = transaction.absent(key(number));
                        holds = known.is_none();
                    }
                }
            }
            for (number, value) in &step.changes {
                transaction = match value {
                    Some(value) => transaction.put(key(*number), vec![*value]),
                    None => transaction.delete(key(*number)),
                };
            }
            match store.commit(&transaction).unwrap() {
                Outcome::Committed(revision) => {
                    prop_assert!(holds);
                    let next = Revision(history.len() as u64);
                    // What changes nothing has no revision of its own.
                    let last: BTreeMap<_, _> = step.changes.into_iter().collect();
                    let mut changes_something = false;
                    for (number, value) in last {
                        changes_something |= match value {
                            Some(value) => { model.insert(key(number), (vec![value], next)); true }
                            None => model.remove(&key(number)).is_some(),
                        };
                    }
                    if changes_something {
                        history.push(model.clone());
                    }
                    prop_assert_eq!(revision.0, history.len() as u64 - 1);
                }
                Outcome::Conflict { found, .. } => {
                    prop_assert!(!holds);
                    let (number, _) = step.condition.unwrap();
                    prop_assert_eq!(found, model.get(&key(number)).map(|(_, revision)| *revision));
                }
            }
            prop_assert_eq!(&content(&store), &model);
        }
        // Whoever knew the map at some revision, and watches from there, knows it now.
        let from = from.min(history.len() as u64 - 1);
        let mut seen = history.swap_remove(from as usize);
        let mut watch = store.watch("even/", Revision(from)).unwrap();
        let mut last = Revision(0);
        while let Some(changed) = watch.next_within(Duration::ZERO) {
            prop_assert!(changed.key.starts_with("even/") && changed.revision > Revision(from) && changed.revision >= last);
            last = changed.revision;
            match changed.value {
                Some(value) => { seen.insert(changed.key, (value, changed.revision)); }
                None => { seen.remove(&changed.key); }
            }
        }
        seen.retain(|key, _| key.starts_with("even/"));
        model.retain(|key, _| key.starts_with("even/"));
        prop_assert_eq!(seen, model);
    }
}

#[test]
fn a_watch_hears_of_each_later_change_in_order_and_ends_with_the_store() {
    let directory = tempfile::tempdir().unwrap();
    let store = FileStore::open(directory.path()).unwrap();
    let mut watch = store.watch("a/", Revision(0)).unwrap();
    put(&store, "a/1", "one");
    put(&store, "b/1", "other");
    store.commit(&Transaction::new().put("a/2", "two").delete("a/1")).unwrap();
    let mut heard = || watch.next_change().map(|change| (change.key, change.value, change.revision.0));
    assert_eq!(heard(), Some(("a/1".into(), Some(b"one".to_vec()), 1)));
    assert_eq!(heard(), Some(("a/2".into(), Some(b"two".to_vec()), 3)));
    assert_eq!(heard(), Some(("a/1".into(), None, 3)));
    drop(store);
    assert_eq!(heard(), None);
}

#[test]
fn a_watch_from_the_future_or_a_forgotten_past_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let store = FileStore::open(directory.path()).unwrap();
    put(&store, "a", "1");
    assert!(matches!(store.watch("", Revision(2)), Err(StoreError::NotKnown { newest: Revision(1), .. })));
    let writing = store.database.begin_write().unwrap();
    writing.open_table(META).unwrap().insert(REVISION, MEMORY + 9).unwrap();
    writing.commit().unwrap();
    put(&store, "a", "2");
    assert!(matches!(store.watch("", Revision(9)), Err(StoreError::NotKnown { .. })));
    assert!(store.watch("", Revision(10)).is_ok());
}

#[test]
fn what_is_too_long_is_refused_and_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = FileStore::open(directory.path()).unwrap();
    for refused in [
        Transaction::new().put("fine", "x").put("", "x"),
        Transaction::new().put("fine", "x").put("k".repeat(MAX_KEY_AND_ONE), "x"),
        Transaction::new().put("fine", "x").put("v", vec![0; crate::MAX_VALUE + 1]),
    ] {
        store.commit(&refused).unwrap_err();
    }
    assert_eq!(store.revision().unwrap(), Revision(0));
}

const MAX_KEY_AND_ONE: usize = crate::MAX_KEY + 1;

#[test]
fn a_store_belongs_to_one_process() {
    let directory = tempfile::tempdir().unwrap();
    let store = FileStore::open(directory.path()).unwrap();
    assert!(matches!(FileStore::open(directory.path()), Err(OpenError::InUse(_))));
    drop(store);
    FileStore::open(directory.path()).unwrap();
}

#[test]
fn a_backup_has_everything_and_old_ones_go() {
    let directory = tempfile::tempdir().unwrap();
    let store = FileStore::open(directory.path()).unwrap();
    for number in 0..15 {
        put(&store, &format!("k{number}"), "v");
        let path = store.backup().unwrap();
        assert_eq!(store.backup().unwrap(), path, "nothing has changed: the same backup");
    }
    let before = content(&store);
    drop(store);
    let backups = backup::list(directory.path());
    assert_eq!(backups.len(), 10);
    // As the error message says.
    let path = directory.path().join("store.redb");
    std::fs::remove_file(&path).unwrap();
    let Err(OpenError::Gone { backups: named, .. }) = FileStore::open(directory.path()) else { panic!("a silent reset") };
    assert_eq!(named, backups);
    std::fs::copy(&named[9], &path).unwrap();
    assert_eq!(content(&FileStore::open(directory.path()).unwrap()), before);
}

/// A store with some history, its content, and its file.
fn sample(directory: &Path) -> (Content, Vec<u8>) {
    let store = FileStore::open(directory).unwrap();
    for number in 0..40 {
        put(&store, &format!("k{}", number % 25), &"v".repeat(number * 30));
        store.commit(&Transaction::new().delete(format!("k{}", number / 2))).unwrap();
    }
    let before = content(&store);
    drop(store);
    // Leaves a backup.
    drop(FileStore::open(directory).unwrap());
    (before, std::fs::read(directory.join("store.redb")).unwrap())
}

/// Opens a store whose file has these bytes: all is there, or it is refused in words, unchanged, with a backup.
fn opens_whole_or_is_refused(directory: &Path, bytes: &[u8], before: &Content) -> bool {
    let path = directory.join("store.redb");
    std::fs::write(&path, bytes).unwrap();
    match FileStore::open(directory) {
        Ok(store) => {
            assert_eq!(content(&store), *before);
            false
        }
        Err(error @ OpenError::Damaged { .. }) => {
            let text = error.to_string();
            assert!(text.contains("automatic backups is") && text.contains("store.redb"), "{text}");
            assert_eq!(std::fs::read(&path).unwrap(), bytes, "what is left of it is evidence");
            true
        }
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn a_damaged_file_is_refused_and_left_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let (before, good) = sample(directory.path());
    assert!(opens_whole_or_is_refused(directory.path(), b"", &before));
    assert!(opens_whole_or_is_refused(directory.path(), &vec![0; good.len()], &before));
    assert!(opens_whole_or_is_refused(directory.path(), &good[..good.len() / 2], &before));
    let mut refused = 0;
    // Every place, with a step that meets headers, pages and their ends.
    let step = (good.len() / 150) | 1;
    for offset in (0..good.len()).step_by(step) {
        let mut bytes = good.clone();
        bytes[offset] ^= 0x55;
        refused += u32::from(opens_whole_or_is_refused(directory.path(), &bytes, &before));
    }
    assert!(refused > 0, "no place mattered");
    let backups = backup::list(directory.path());
    std::fs::copy(backups.last().unwrap(), directory.path().join("store.redb")).unwrap();
    assert_eq!(content(&FileStore::open(directory.path()).unwrap()), before);
}

const CHILD: &str = "MARU_STORE_CHILD";

/// Not a test of its own: what [`what_was_acknowledged_survives_a_kill`] kills.
#[test]
fn child() {
    let Some(directory) = std::env::var_os(CHILD) else { return };
    let store = FileStore::open(Path::new(&directory)).unwrap();
    let first = store.revision().unwrap().0;
    for number in first.. {
        let revision =
            committed(store.commit(&Transaction::new().put("a", number.to_string()).put("b", number.to_string())).unwrap());
        println!("acknowledged {revision}");
    }
}

#[test]
fn what_was_acknowledged_survives_a_kill() {
    let directory = tempfile::tempdir().unwrap();
    let mut known = 0;
    for round in 1..=10u64 {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "--nocapture", "file::tests::child"]).env(CHILD, directory.path()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let acknowledged = |line: String| line.split_once("acknowledged ").and_then(|(_, number)| number.parse::<u64>().ok());
        let target = known + round * 7;
        known = lines.by_ref().filter_map(acknowledged).find(|number| *number >= target).expect("it goes on for ever");
        child.kill().unwrap();
        child.wait().unwrap();
        known = lines.filter_map(acknowledged).last().unwrap_or(known);
        let store = FileStore::open(directory.path()).unwrap();
        let now = store.revision().unwrap().0;
        assert!(now == known || now == known + 1, "acknowledged {known}, found {now}");
        let content = content(&store);
        assert_eq!(content["a"], content["b"], "half of a transaction");
        assert_eq!(content["a"].0, (now - 1).to_string().as_bytes());
        known = now;
    }
}
