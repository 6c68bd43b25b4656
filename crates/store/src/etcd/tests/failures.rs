//! Members that die, freeze, lose each other, or are not who they should be.

use std::thread;
use std::time::{Duration, Instant};

use super::*;
use crate::testing::{committed, put};
use crate::{Changed, Leases, Outcome, Revision, Store, StoreError, Transaction, Watch};

/// Changes a key until the store says that it was done: whether an attempt whose outcome is not known was done is seen by its condition.
fn put_surely(store: &dyn Store, key: &str, value: &str) -> Revision {
    let known = loop {
        match store.get(key) {
            Ok(entry) => break entry.map(|entry| entry.revision),
            Err(StoreError::Unavailable { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    };
    let transaction = match known {
        Some(revision) => Transaction::new().unchanged(key, revision),
        None => Transaction::new().absent(key),
    };
    let transaction = transaction.put(key, value);
    let mut unknown = false;
    loop {
        match store.commit(&transaction) {
            Ok(Outcome::Committed(revision)) => return revision,
            // Nobody else changes it.
            Ok(Outcome::Conflict { found: Some(revision), .. }) if unknown => return revision,
            Err(StoreError::Unknown(_)) => unknown = true,
            Err(StoreError::Unavailable { .. }) => {}
            other => panic!("{other:?}"),
        }
    }
}

fn next(watch: &mut Watch) -> Changed {
    watch.next_within(LONG).unwrap_or_else(|| panic!("nothing was told: {:?}", watch.ended()))
}

#[test]
fn whoever_is_killed_nothing_is_lost_and_nothing_told_twice() {
    let mut cluster = Cluster::of(3);
    let store = cluster.client();
    let begin = put(&store, "k", "begin");
    let mut watches: Vec<Watch> = (0..3)
        .map(|first| cluster.client_from(first))
        .map(|client| {
            let watch = client.watch("k", begin).unwrap();
            // It lives as long as the test.
            std::mem::forget(client);
            watch
        })
        .collect();
    let mut expected = Vec::new();
    for round in 0..2 {
        let leader = cluster.leader();
        // The leader, and one that follows.
        let victim = if round == 0 { leader } else { (leader + 1) % 3 };
        cluster.kill(victim);
        let started = Instant::now();
        for number in 0..5 {
            let value = format!("{round}/{number}");
            expected.push((put_surely(&store, "k", &value), value));
            if number == 0 {
                println!("first write {:?} after the kill of the {}", started.elapsed(), ["leader", "follower"][round]);
            }
        }
        cluster.start(victim);
        cluster.wait_ready(victim);
    }
    for watch in &mut watches {
        for (revision, value) in &expected {
            let changed = next(watch);
            assert_eq!((changed.revision, changed.value.as_deref()), (*revision, Some(value.as_bytes())));
        }
        assert_eq!(watch.try_next(), None);
    }
}

#[test]
fn a_frozen_member_is_left_by_calls_and_watches_and_changes_nothing_when_it_thaws() {
    let cluster = Cluster::of(3);
    for frozen in [cluster.leader(), (cluster.leader() + 1) % 3] {
        // Everything of this client is at the member that freezes.
        let client = cluster.client_from(frozen);
        let begin = put_surely(&client, "k", "begin");
        let mut watch = client.watch("k", begin).unwrap();
        let ice = cluster.freeze(frozen);
        let started = Instant::now();
        let other = cluster.client_from((frozen + 1) % 3);
        let revision = put_surely(&other, "k", "while frozen");
        println!("written by another client after {:?}", started.elapsed());
        // One that gets no connection to it has sent nothing, and goes on to the next.
        put(&cluster.client_from(frozen), "elsewhere", "");
        println!("written by a new client of the frozen member after {:?}", started.elapsed());
        let entry = client.get("k").unwrap().unwrap();
        assert_eq!(entry.revision, revision);
        println!("read after {:?}", started.elapsed());
        assert_eq!(next(&mut watch).revision, revision);
        println!("told after {:?}", started.elapsed());
        let again = put_surely(&client, "k", "again");
        assert_eq!(next(&mut watch).revision, again);
        drop(ice);
        cluster.wait_ready(frozen);
        // It does not say anything that it had heard before, and is as good as the others.
        let thawed = cluster.client_with(vec![cluster.url(frozen).into()], Duration::from_secs(6), cluster.authority.client());
        assert_eq!(thawed.get("k").unwrap().unwrap().revision, again);
        let end = put_surely(&thawed, "k", "end");
        assert_eq!(next(&mut watch).revision, end);
        assert_eq!(watch.try_next(), None);
    }
}

#[test]
fn what_is_not_known_to_be_done_is_said_to_be_unknown_and_its_condition_tells() {
    let cluster = Cluster::of(1);
    let client = cluster.client_with(vec![cluster.url(0).into()], Duration::from_secs(1), cluster.authority.client());
    let known = put(&client, "k", "before");
    let change = Transaction::new().unchanged("k", known).put("k", "after");
    let ice = cluster.freeze(0);
    let started = Instant::now();
    assert!(matches!(client.commit(&change), Err(StoreError::Unknown(_))));
    assert!(matches!(client.get("k"), Err(StoreError::Unavailable { .. })));
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
    // Nobody has heard of this one: there was no connection.
    let stranger = cluster.client_with(vec![cluster.url(0).into()], Duration::from_secs(1), cluster.authority.client());
    assert!(matches!(stranger.commit(&change), Err(StoreError::Unavailable { .. })));
    drop(ice);
    let done = put_surely(&client, "elsewhere", "");
    match client.commit(&change).unwrap() {
        // It was not done before, or just then.
        Outcome::Committed(revision) => assert!(revision > known),
        Outcome::Conflict { found: Some(revision), .. } => assert!(revision > known && revision != done),
        gone @ Outcome::Conflict { .. } => panic!("{gone:?}"),
    }
    assert_eq!(client.get("k").unwrap().unwrap().value, b"after");
    assert!(matches!(client.commit(&change).unwrap(), Outcome::Conflict { .. }));
}

#[test]
fn a_leader_without_the_others_prolongs_no_lease() {
    let cluster = Cluster::of(3);
    let leader = cluster.leader();
    let client = cluster.client_with(vec![cluster.url(leader).into()], Duration::from_secs(4), cluster.authority.client());
    let lease = client.grant(Duration::from_secs(60)).unwrap();
    assert_eq!(client.keep_alive(lease.id).unwrap(), lease.ttl);
    let ice = [cluster.freeze((leader + 1) % 3), cluster.freeze((leader + 2) % 3)];
    // At first it does not know that it is alone, and answers.
    for _ in 0..2 {
        let kept = client.keep_alive(lease.id);
        assert!(matches!(kept, Err(StoreError::Unavailable { .. })), "{kept:?}");
    }
    let written = Transaction::new().put_under("k", "", lease.id);
    let kept = client.keep_alive_by(lease.id, &written);
    assert!(matches!(kept, Err(StoreError::Unavailable { .. } | StoreError::Unknown(_))), "{kept:?}");
    drop(ice);
    until("quorum", || client.keep_alive(lease.id).ok());
    assert!(matches!(client.keep_alive_by(lease.id, &written), Ok(Outcome::Committed(_))));
    let conflict = client.keep_alive_by(lease.id, &written.clone().absent("k")).unwrap();
    assert!(matches!(conflict, Outcome::Conflict { found: Some(_), .. }), "{conflict:?}");
    client.revoke(lease.id).unwrap();
    let gone = client.keep_alive_by(lease.id, &written);
    assert!(matches!(gone, Err(StoreError::NoLease(id)) if id == lease.id), "{gone:?}");
}

#[test]
fn a_lease_outlives_its_leader_and_ends_under_the_next() {
    let mut cluster = Cluster::of(3);
    let store = cluster.client();
    let lease = store.grant(Duration::from_secs(2)).unwrap();
    let begin = committed(&store, &Transaction::new().put_under("k", "", lease.id));
    let mut watch = store.watch("k", begin).unwrap();
    let sent = Instant::now();
    until("a proof", || store.keep_alive(lease.id).ok());
    cluster.kill(cluster.leader());
    let gone = next(&mut watch);
    println!("a lease of {:?} ended {:?} after its last keep-alive and the kill of the leader", lease.ttl, sent.elapsed());
    assert_eq!(gone.value, None);
    assert!(sent.elapsed() >= lease.ttl, "{:?}", sent.elapsed());
}

#[test]
fn who_has_no_certificate_of_the_cluster_is_refused_and_so_is_a_member_that_has_none() {
    let cluster = Cluster::of(1);
    let strangers = Authority::new();
    let client = |tls| cluster.client_with(vec![cluster.url(0).into()], Duration::from_secs(1), tls);
    let (good, wrong) = (cluster.authority.client(), strangers.client());
    put(&client(good.clone()), "k", "1");
    let mut foreign = wrong.clone();
    foreign.authority.clone_from(&good.authority);
    let refused = client(foreign).get("k").unwrap_err();
    assert!(matches!(refused, StoreError::Unavailable { .. }) && refused.to_string().contains("ertificate"), "{refused}");
    let mut distrustful = good;
    distrustful.authority = wrong.authority;
    let refused = client(distrustful).get("k").unwrap_err();
    assert!(matches!(refused, StoreError::Unavailable { .. }) && refused.to_string().contains("ertificate"), "{refused}");
}

#[test]
fn writers_and_watchers_agree_while_members_freeze_and_die_in_turn() {
    let mut cluster = Cluster::of(3);
    let begin = put(&cluster.client(), "counter", "0");
    let clients: Vec<_> = (0..2).map(|first| cluster.client_from(first)).collect();
    let watcher = cluster.client_from(2);
    let mut watch = watcher.watch("counter", begin).unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let mut acknowledged: Vec<(u64, Revision)> = thread::scope(|scope| {
        let writers: Vec<_> = clients.iter().map(|client| scope.spawn(|| increment_until(client, &stop))).collect();
        for victim in 0..3 {
            let ice = cluster.freeze(victim);
            let seen = watch.next_within(LONG).map(|changed| changed.revision);
            assert!(seen.is_some(), "{:?}", watch.ended());
            thread::sleep(Duration::from_secs(2));
            drop(ice);
            cluster.kill((victim + 1) % 3);
            cluster.start((victim + 1) % 3);
            cluster.wait_ready((victim + 1) % 3);
        }
        stop.store(true, Ordering::Relaxed);
        writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect()
    });
    acknowledged.sort_unstable();
    println!("{} increments were acknowledged", acknowledged.len());
    assert!(acknowledged.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 < pair[1].1), "{acknowledged:?}");
    // Every number was told once, in order, whether its writer has heard of it or not.
    let mut again = watcher.watch("counter", begin).unwrap();
    let end = watcher.get("counter").unwrap().unwrap();
    let mut number = 0;
    loop {
        let changed = next(&mut again);
        number += 1;
        assert_eq!(changed.value.unwrap(), number.to_string().as_bytes());
        if let Ok(index) = acknowledged.binary_search_by_key(&number, |(number, _)| *number) {
            assert_eq!(acknowledged[index].1, changed.revision);
        }
        if changed.revision == end.revision {
            break;
        }
    }
    assert!(acknowledged.last().unwrap().0 <= number);
}

/// Counts on until it is told to stop; the numbers that were acknowledged.
fn increment_until(store: &dyn Store, stop: &std::sync::atomic::AtomicBool) -> Vec<(u64, Revision)> {
    let mut done = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let entry = match store.get("counter") {
            Ok(entry) => entry.unwrap(),
            Err(StoreError::Unavailable { .. }) => continue,
            Err(error) => panic!("{error}"),
        };
        let next = String::from_utf8(entry.value).unwrap().parse::<u64>().unwrap() + 1;
        match store.commit(&Transaction::new().unchanged("counter", entry.revision).put("counter", next.to_string())) {
            Ok(Outcome::Committed(revision)) => done.push((next, revision)),
            Ok(Outcome::Conflict { .. }) | Err(StoreError::Unknown(_) | StoreError::Unavailable { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
    done
}
