//! A guest agent that does what it is told to, and the real one where it is there.

use std::sync::atomic::{AtomicU32, Ordering};

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

use super::*;

/// What a fake agent has done.
#[derive(Default)]
struct Doings {
    frozen: AtomicU32,
    thaws: AtomicU32,
    /// Answers to `guest-fsfreeze-*` that stay away.
    silent: AtomicU32,
}

/// A fake agent behind a `Guest`.
async fn guest(doings: Arc<Doings>) -> Arc<Guest> {
    let (ours, theirs) = UnixStream::pair().unwrap();
    tokio::spawn(async move {
        let (read, mut write) = theirs.into_split();
        let mut lines = BufReader::new(read).split(b'\n');
        while let Ok(Some(line)) = lines.next_segment().await {
            let line: Vec<u8> = line.into_iter().filter(|byte| *byte != 0xff).collect();
            let request: Value = serde_json::from_slice(&line).unwrap();
            let command = request["execute"].as_str().unwrap();
            if command.starts_with("guest-fsfreeze-") && command != "guest-fsfreeze-status" {
                let is_freeze = command == "guest-fsfreeze-freeze";
                let was = doings.frozen.swap(u32::from(is_freeze) * 2, Ordering::SeqCst);
                doings.thaws.fetch_add(u32::from(!is_freeze), Ordering::SeqCst);
                if doings.silent.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() {
                    continue;
                }
                let answer = json!({ "return": if is_freeze { 2 } else { was } }).to_string() + "\n";
                write.write_all(answer.as_bytes()).await.unwrap();
                continue;
            }
            let value = match command {
                "guest-sync-delimited" => {
                    write.write_all(&[0xff]).await.unwrap();
                    request["arguments"]["id"].clone()
                }
                "guest-fsfreeze-status" if doings.frozen.load(Ordering::SeqCst) > 0 => json!("frozen"),
                "guest-fsfreeze-status" => json!("thawed"),
                "guest-info" => json!({"version": "7.2\u{7}", "supported_commands": []}),
                "guest-get-host-name" => json!({"host-name": "web"}),
                "guest-network-get-interfaces" => json!([
                    {"name": "eth0", "hardware-address": "52:54:00:00:00:01", "ip-addresses": [
                        {"ip-address": "10.0.0.5", "ip-address-type": "ipv4", "prefix": 24},
                        {"ip-address": "; rm -rf /", "ip-address-type": "ipv4", "prefix": 24},
                    ]},
                    {"name": "tunl0"},
                ]),
                "guest-ping" => json!({}),
                _ => {
                    write.write_all(b"{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"unknown\"}}\n").await.unwrap();
                    continue;
                }
            };
            write.write_all((json!({ "return": value }).to_string() + "\n").as_bytes()).await.unwrap();
        }
    });
    let guest = Arc::new(Guest::default());
    guest.attach(ours, true).await;
    guest
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(std::time::Instant::now() < deadline, "timed out: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn what_the_guest_tells_is_known_while_its_agent_is_there() {
    let guest = guest(Arc::default()).await;
    until("the guest was looked at", || guest.info().is_some()).await;
    let card = |name: &str, mac: Option<&str>, addresses: &[&str]| api::GuestNet {
        name: name.into(),
        mac: mac.map(String::from),
        addresses: addresses.iter().map(ToString::to_string).collect(),
    };
    let nets = vec![card("eth0", Some("52:54:00:00:00:01"), &["10.0.0.5"]), card("tunl0", None, &[])];
    let expected = api::Guest { agent_version: "7.2".into(), host_name: Some("web".into()), os: None, nets };
    assert_eq!(guest.info(), Some(expected));
    assert!(matches!(guest.shut_down().await, Err(AgentError::Refused(_))));
    guest.set_open(false);
    assert_eq!(guest.info(), None);
    assert!(matches!(guest.shut_down().await, Err(AgentError::Absent)));
    assert!(matches!(guest.freeze(FREEZE).await, Err(AgentError::Absent)));
}

#[tokio::test]
async fn a_frozen_guest_is_thawed_by_who_asked_by_a_drop_and_by_the_time_limit() {
    let doings = Arc::new(Doings::default());
    let guest = guest(doings.clone()).await;
    let frozen = guest.freeze(FREEZE).await.unwrap();
    assert_eq!((frozen.file_systems, doings.frozen.load(Ordering::SeqCst)), (2, 2));
    assert!(frozen.thaw().await);
    assert_eq!(doings.frozen.load(Ordering::SeqCst), 0);

    drop(guest.freeze(FREEZE).await.unwrap());
    until("a dropped guard thaws", || doings.frozen.load(Ordering::SeqCst) == 0).await;

    let frozen = guest.freeze(Duration::ZERO).await.unwrap();
    until("the time limit thaws", || doings.frozen.load(Ordering::SeqCst) == 0).await;
    assert!(!frozen.thaw().await, "it was not frozen all the time");
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_does_not_answer_a_freeze_is_thawed_all_the_same() {
    let doings = Arc::new(Doings::default());
    let guest = guest(doings.clone()).await;
    doings.silent.store(3, Ordering::SeqCst);
    assert!(matches!(guest.freeze(FREEZE).await, Err(AgentError::Silent(_))));
    until("it is thawed, at the third try", || doings.thaws.load(Ordering::SeqCst) >= 3).await;
    assert_eq!(doings.frozen.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_guest_that_was_left_frozen_is_thawed_when_it_is_found() {
    let doings = Arc::new(Doings::default());
    doings.frozen.store(2, Ordering::SeqCst);
    let _guest = guest(doings.clone()).await;
    until("it is thawed", || doings.frozen.load(Ordering::SeqCst) == 0).await;
}
