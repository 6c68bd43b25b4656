//! Members, backups, space.

use std::time::Duration;

use super::*;
use crate::etcd::admin::Alarm;
use crate::etcd::server::{ServerError, restore};
use crate::testing::{committed, put};
use crate::{Store, StoreError, Transaction};

#[test]
fn a_member_joins_as_a_learner_gets_a_vote_and_another_one_leaves() {
    let mut cluster = Cluster::of(1);
    let store = cluster.client();
    let begin = put(&store, "k", "before");
    let mut watch = store.watch("k", begin).unwrap();
    for joined in 1..=2 {
        let id = cluster.join(&store);
        cluster.wait_ready(joined);
        let learner = |store: &EtcdStore| store.members().unwrap().into_iter().find(|member| member.id == id).unwrap().learner;
        assert!(learner(&store));
        until("the learner in step", || store.promote(id).unwrap().then_some(()));
        assert!(!learner(&store));
        // It is none any more. Before it says so, etcd looks whether it is in step, and with its vote there may be an election first.
        until("a refusal", || match store.promote(id) {
            Err(StoreError::Refused(_)) => Some(()),
            Ok(false) | Err(StoreError::Unknown(_) | StoreError::Unavailable { .. }) => None,
            other => panic!("{other:?}"),
        });
    }
    // The first member leaves, and hands over before: nobody waits for an election.
    let all: Vec<String> = cluster.configs.iter().map(|config| config.client_url.clone()).collect();
    store.set_endpoints(&all).unwrap();
    let first = store.status(&all[0]).unwrap();
    assert_eq!(first.leader, Some(first.id));
    let heir = store.status(&all[1]).unwrap().id;
    store.move_leader(&all[0], heir).unwrap();
    assert_eq!(store.status(&all[1]).unwrap().leader, Some(heir));
    store.remove(first.id).unwrap();
    until("the end of a member that was removed", || cluster.server(0).ended());
    store.set_endpoints(&all[1..]).unwrap();
    let after = put(&store, "k", "after");
    assert_eq!(watch.next_within(LONG).map(|changed| changed.revision), Some(after));
    let names: Vec<String> = store.members().unwrap().into_iter().map(|member| member.name).collect();
    assert_eq!(names.len(), 2);
    assert!(cluster.configs[1..].iter().all(|config| names.contains(&config.name)));
    // Two members without one of them are no majority: it cannot be removed by accident.
    let missing = store.status(&all[2]).unwrap().id;
    cluster.kill(2);
    assert!(store.remove(missing).is_err());
}

#[test]
fn a_backup_brings_back_what_there_was_and_clients_see_that_it_is_another_cluster() {
    let mut cluster = Cluster::of(1);
    let store = cluster.client();
    for number in 0..50 {
        put(&store, &format!("k/{number}"), &"v".repeat(number * 100));
    }
    let before = store.range("").unwrap();
    let backup = cluster.directory.path().join("backup.db");
    store.snapshot(cluster.url(0), &backup).unwrap();
    let mut watch = store.watch("k/", put(&store, "k/later", "")).unwrap();
    cluster.kill(0);
    // The same member, empty, from the backup.
    let mut config = cluster.configs[0].clone();
    config.directory = cluster.directory.path().join("restored");
    config.membership = Membership::Create { token: "another".into() };
    let damaged = cluster.directory.path().join("damaged.db");
    let mut bytes = std::fs::read(&backup).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&damaged, bytes).unwrap();
    let refused = restore(&cluster.programs, &damaged, &config).unwrap_err().to_string();
    assert!(refused.contains("damaged.db") && refused.contains("sha256"), "{refused}");
    restore(&cluster.programs, &backup, &config).unwrap();
    assert!(matches!(restore(&cluster.programs, &backup, &config), Err(ServerError::Restore { .. })), "over another's data");
    cluster.configs[0] = config;
    cluster.start(0);
    cluster.wait_ready(0);
    assert_eq!(watch.next_within(LONG), None);
    assert!(matches!(watch.ended(), Some(StoreError::NotKnown { .. })), "{:?}", watch.ended());
    assert_eq!(store.range("").unwrap(), before);
    assert!(put(&store, "k/new", "") > before.revision);
}

#[test]
fn a_full_store_says_so_and_has_room_again_when_it_was_cleared() {
    let cluster = Cluster::with_quota(1, 2 << 20);
    let store = cluster.client();
    let value = vec![7; 200_000];
    // It looks at its file, to which it writes some times in a second.
    let refused = (0..1000).find_map(|number| store.commit(&Transaction::new().put(format!("k{number}"), value.clone())).err());
    assert!(matches!(refused, Some(StoreError::Full)), "{refused:?}");
    let alarms = store.alarms().unwrap();
    assert!(matches!(alarms[..], [(_, Alarm::NoSpace)]), "{alarms:?}");
    // Reading and deleting go on.
    let keys: Vec<String> = store.range("k").unwrap().entries.into_iter().map(|entry| entry.key).collect();
    let revision = committed(&store, &keys.iter().fold(Transaction::new(), |all, key| all.delete(key)));
    store.compact(revision).unwrap();
    let full = store.status(cluster.url(0)).unwrap();
    store.defragment(cluster.url(0)).unwrap();
    let cleared = store.status(cluster.url(0)).unwrap();
    assert!(cleared.file_bytes < full.file_bytes / 4 && cleared.used_bytes <= cleared.file_bytes, "{full:?}, {cleared:?}");
    store.disarm(alarms[0].0, alarms[0].1).unwrap();
    put(&store, "k", "fits");
    assert_eq!(store.alarms().unwrap(), []);
}

#[test]
fn a_member_whose_data_differ_from_those_of_the_others_is_found_and_can_be_removed() {
    let mut cluster = Cluster::of(3);
    let store = cluster.client();
    let mark = "a mark in the file that is to be changed";
    put(&store, "k", mark);
    let victim = (cluster.leader() + 1) % 3;
    let id = store.status(cluster.url(victim)).unwrap().id;
    // It writes to its file when it ends, at the latest.
    cluster.servers[victim].take().unwrap().stop(LONG);
    let file = cluster.configs[victim].directory.join("member/snap/db");
    let mut bytes = std::fs::read(&file).unwrap();
    let places: Vec<usize> =
        bytes.windows(mark.len()).enumerate().filter(|(_, window)| *window == mark.as_bytes()).map(|(place, _)| place).collect();
    assert!(!places.is_empty());
    places.iter().for_each(|place| bytes[*place] ^= 1);
    std::fs::write(&file, bytes).unwrap();
    cluster.start(victim);
    let revision = store.revision().unwrap();
    let corrupt = |(_, alarm): &(MemberId, Alarm)| *alarm == Alarm::Corrupt;
    let (named, _) = until("an alarm", || store.alarms().ok()?.into_iter().find(corrupt));
    // etcd takes no more changes, and says why, until the member is gone.
    let refused = store.commit(&Transaction::new().put("k", "2")).unwrap_err();
    assert!(matches!(refused, StoreError::Refused(_)) && refused.to_string().contains("corrupt"), "{refused}");
    let hashes: Vec<u32> = (0..3).map(|index| store.hash(cluster.url(index), revision).unwrap().0).collect();
    let others = [(victim + 1) % 3, (victim + 2) % 3];
    assert!(hashes[others[0]] == hashes[others[1]] && hashes[others[0]] != hashes[victim], "{hashes:?}, not {victim}");
    until("a removal", || store.remove(id).ok());
    cluster.kill(victim);
    store.disarm(named, Alarm::Corrupt).unwrap();
    let others = cluster.client_from(others[0]);
    assert_eq!(others.get("k").unwrap().unwrap().value, mark.as_bytes());
    put(&others, "k", "2");
}

#[test]
fn a_member_that_cannot_run_says_why() {
    let mut cluster = Cluster::of(1);
    let mut second = cluster.config(64 << 20);
    // Its address is taken.
    second.client_url = cluster.url(0).into();
    cluster.configs.push(second);
    cluster.servers.push(None);
    cluster.start(1);
    let error = until("its end", || cluster.server(1).ended());
    assert!(error.to_string().contains("address already in use"), "{error}");
    // One that waits for others who never come is not ready, and runs.
    let mut lonely = cluster.config(64 << 20);
    lonely.members.push(("nobody".into(), "https://127.0.0.1:1".into()));
    let server = Server::start(&cluster.programs, &lonely).unwrap();
    let waiting = server.wait_ready(Some(&cluster.authority.client()), Duration::from_millis(500));
    assert!(matches!(waiting, Err(ServerError::NotReady { .. })), "{waiting:?}");
}
