use serde_json::{Value, json};
use time::OffsetDateTime;

use super::*;
use crate::testing::{Act, Authority, Request as Seen, Server};
use crate::{EventKind, Operation, TaskState};

fn fine(_: &Seen) -> Act {
    Act::Answer(200, json!({"fine": true}).to_string())
}

fn client(authority: &Authority, servers: &[&Server]) -> Client {
    let servers = servers.iter().map(|server| server.url.clone()).collect();
    Client::of_cluster(servers, authority.pem().as_bytes(), "secret").unwrap()
}

fn task(state: TaskState) -> Task {
    Task {
        id: Uuid::nil(),
        vm: None,
        vm_name: Some("web".into()),
        image: None,
        operation: Operation::Start,
        state,
        progress: None,
        makes: None,
        created_by: "admin".into(),
        created_at: OffsetDateTime::UNIX_EPOCH,
        started_at: None,
        ended_at: None,
        error: None,
        log: Vec::new(),
    }
}

fn event(id: u64) -> String {
    json!({"id": id, "at": "2026-11-28T08:00:00Z", "kind": "vm-started", "text": "it runs"}).to_string()
}

#[test]
fn a_host_that_is_not_there_costs_its_time_once() {
    let authority = Authority::default();
    let (dead, alive) = (authority.server(fine), authority.server(fine));
    let client = client(&authority, &[&dead, &alive]);
    dead.die();
    for _ in 0..2 {
        assert_eq!(client.get::<Value>("/host").unwrap()["fine"], true);
    }
    assert_eq!(alive.asked().len(), 2);
}

#[test]
fn a_host_that_proves_itself_by_another_authority_is_asked_nothing() {
    let (authority, other) = (Authority::default(), Authority::default());
    let (stranger, own) = (other.server(fine), authority.server(fine));
    client(&authority, &[&stranger, &own]).post::<Value>("/volumes").unwrap();
    assert_eq!((stranger.asked().len(), own.asked().len()), (0, 1));
    let error = client(&authority, &[&stranger, &stranger]).get::<Value>("/host").unwrap_err().to_string();
    assert!(error.starts_with("none of 2 hosts answers") && error.contains("certificate"), "{error}");
}

#[test]
fn what_only_looks_is_asked_again_when_a_host_goes_in_the_middle_of_it() {
    let authority = Authority::default();
    let (dying, alive) = (authority.server(|_| Act::HangUp), authority.server(fine));
    assert_eq!(client(&authority, &[&dying, &alive]).get::<Value>("/vms").unwrap()["fine"], true);
    assert_eq!((dying.asked().len(), alive.asked().len()), (1, 1));
}

#[test]
fn what_is_done_once_for_a_key_is_asked_again_with_the_same_key() {
    let authority = Authority::default();
    let (dying, alive) = (authority.server(|_| Act::HangUp), authority.server(fine));
    client(&authority, &[&dying, &alive]).post::<Value>("/vms/web/start").unwrap();
    let (first, second) = (dying.asked(), alive.asked());
    assert!(first[0].key.is_some());
    assert_eq!(first, second);
    // Who has one server asks once, and needs none.
    client(&authority, &[&alive]).post::<Value>("/vms/web/start").unwrap();
    assert_eq!(alive.asked()[1].key, None);
}

#[test]
fn what_may_not_be_done_twice_is_asked_once_and_said_to_be_unknown() {
    let authority = Authority::default();
    let (dying, alive) = (authority.server(|_| Act::HangUp), authority.server(fine));
    let error = client(&authority, &[&dying, &alive]).post::<Value>("/tokens").unwrap_err();
    assert!(matches!(error, ClientError::Unknown { .. }) && error.to_string().contains("`maru token list`"), "{error}");
    assert_eq!((dying.asked().len(), alive.asked().len()), (1, 0));
}

#[test]
fn a_task_is_waited_for_when_the_host_that_was_asked_has_gone() {
    let authority = Authority::default();
    let running = serde_json::to_string(&task(TaskState::Running)).unwrap();
    let done = serde_json::to_string(&task(TaskState::Done)).unwrap();
    let dying = authority.server(move |_| Act::Answer(200, running.clone()));
    // It does not know yet who leads, and then it does.
    let asked = std::sync::atomic::AtomicUsize::new(0);
    let alive = authority.server(move |_| match asked.fetch_add(1, std::sync::atomic::Ordering::SeqCst) {
        0 => Act::Answer(503, json!({"code": "no-quorum", "message": "no", "way_out": "wait"}).to_string()),
        _ => Act::Answer(200, done.clone()),
    });
    let mut looks = 0;
    let ended = client(&authority, &[&dying, &alive]).wait(task(TaskState::Running), |_| {
        looks += 1;
        if looks == 3 {
            dying.die();
        }
    });
    assert_eq!((ended.unwrap().state, looks), (TaskState::Done, 4));
}

#[test]
fn events_go_on_behind_the_last_one_at_another_host() {
    let authority = Authority::default();
    let dying = authority.server(|_| Act::Events(vec![event(5), event(6)]));
    let alive = authority.server(|_| Act::Events(vec![event(7)]));
    let mut seen = Vec::new();
    let follow = client(&authority, &[&dying, &alive]).follow(None, |event| {
        assert_eq!(event.kind, EventKind::VmStarted);
        seen.push(event.id);
        if event.id == 6 {
            dying.die();
        }
        event.id < 7
    });
    follow.unwrap();
    assert_eq!(seen, [5, 6, 7]);
    assert_eq!(alive.asked()[0].line, "GET /events/stream?after=6");
}

#[test]
fn who_is_told_of_moves_is_told_once_for_each() {
    let authority = Authority::default();
    let (dead, alive) = (authority.server(fine), authority.server(fine));
    dead.die();
    let (sender, moves) = std::sync::mpsc::channel();
    let client = client(&authority, &[&dead, &alive]).when_moved(move |server| sender.send(server.to_owned()).unwrap());
    for _ in 0..3 {
        client.get::<Value>("/host").unwrap();
    }
    drop(client);
    assert_eq!(moves.iter().collect::<Vec<_>>(), vec![alive.url.clone()]);
}
