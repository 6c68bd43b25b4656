//! `marud` as its clients see it, with fake monitors.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::sync::mpsc::channel;
use std::time::Duration;

use api::client::{Client, ClientError, WebSocket};
use api::{ConsoleEvent, EventKind, TaskState, VmState};
use rustls::StreamOwned;
use serde_json::json;
use support::{Asking, PATIENCE, TestHost, end, spec, until};
use tungstenite::Message;

const JSON: (&str, &str) = ("content-type", "application/json");

fn kinds(client: &Client) -> Vec<EventKind> {
    let events = client.list::<api::Event>("/events").unwrap().into_iter().map(|event| event.kind);
    // How full the disks of this machine are is another matter.
    events.filter(|kind| !matches!(kind, EventKind::VolumeAlarm | EventKind::VolumeRecovered)).collect()
}

#[test]
fn a_vm_lives_and_leaves_nothing_behind() {
    let host = TestHost::new();
    let client = host.client();
    fs::write(host.volume("root.raw"), [0; 4096]).unwrap();
    let mut wanted = spec("web", "quiet");
    wanted["disks"] = json!([{"file": "local:root.raw"}]);
    let vm = client.create(&wanted);
    assert_eq!((vm.state, vm.pid, vm.spec.name.as_str()), (VmState::Off, None, "web"));

    client.does("POST /vms/web/start");
    let running = client.vm(&vm.id.to_string());
    assert_eq!((running.state, running.pid), (VmState::Running, host.monitors().first().copied()));
    client.does("POST /vms/web/start");
    assert_eq!(client.vm("web").pid, running.pid, "it ran already");
    client.does("POST /vms/web/pause");
    assert_eq!(client.vm("web").state, VmState::Paused);
    assert_eq!(client.refusal("POST", "/vms/web/stop", &[], b""), (409, "vm-paused".into()));
    client.does("POST /vms/web/resume");
    client.does("POST /vms/web/reset");
    assert_eq!(client.refusal("DELETE", "/vms/web?disks=keep", &[], b""), (409, "vm-running".into()));
    client.does("POST /vms/web/stop");
    let off = client.vm("web");
    assert_eq!((off.state, off.pid), (VmState::Off, None));
    assert_eq!(off.last_end.map(|end| (end.reason, end.failed)), Some(("the guest powered off".into(), false)));
    assert_eq!((host.monitors().len(), host.run_directories()), (0, 0));

    assert_eq!(client.refusal("DELETE", "/vms/web", &[], b""), (422, "disks".into()));
    client.does("DELETE /vms/web?disks=delete");
    assert!(!host.volume("root.raw").exists() && host.volume("vmlinuz").exists());
    assert_eq!(client.refusal("GET", "/vms/web", &[], b""), (404, "not-found".into()));
    use EventKind::{HostStarted, VmCreated, VmDeleted, VmPaused, VmReset, VmResumed, VmStarted, VmStopped};
    let expected = [HostStarted, VmCreated, VmStarted, VmPaused, VmResumed, VmReset, VmStopped, VmDeleted];
    assert_eq!(kinds(&client), expected);
}

#[test]
fn a_guest_that_does_not_shut_down_is_ended_by_force_when_its_time_is_over_and_not_before() {
    let host = TestHost::new();
    let client = host.client();
    client.create(&spec("deaf", "fake=deaf"));
    client.does("POST /vms/deaf/start");
    // Cancelled, it goes on.
    let task: api::Task = client.post("/vms/deaf/stop?grace=3600").unwrap();
    until("the guest was asked", || (client.vm("deaf").state == VmState::Stopping).then_some(()));
    let task: api::Task = client.post(&format!("/tasks/{}/cancel?wait=20", task.id)).unwrap();
    assert_eq!((task.state, client.vm("deaf").state), (TaskState::Cancelled, VmState::Running));
    // Ended by force when the time is over.
    let task = client.does("POST /vms/deaf/stop?grace=0");
    assert!(task.log.iter().any(|line| line.text.contains("has not shut down in time")), "{task:?}");
    assert_eq!(client.vm("deaf").state, VmState::Off);
    // Force overtakes a request that waits.
    client.does("POST /vms/deaf/start");
    let patient: api::Task = client.post("/vms/deaf/stop?grace=3600").unwrap();
    client.does("POST /vms/deaf/stop?force=true");
    assert_eq!(client.wait(patient, |_| {}).unwrap().state, TaskState::Done);
    assert_eq!((client.vm("deaf").state, host.monitors().len()), (VmState::Off, 0));
}

#[test]
fn a_monitor_that_does_not_obey_is_killed() {
    let host = TestHost::new();
    let client = host.client();
    client.create(&spec("stubborn", "fake=stubborn"));
    client.does("POST /vms/stubborn/start");
    client.does("POST /vms/stubborn/stop?force=true");
    assert_eq!((client.vm("stubborn").state, host.monitors().len()), (VmState::Off, 0));
}

#[test]
fn a_vm_that_cannot_start_is_off_and_says_why() {
    let host = TestHost::new();
    let client = host.client();
    client.create(&spec("broken", "fake=fail"));
    let task: api::Task = client.post("/vms/broken/start?wait=20").unwrap();
    assert_eq!(task.state, TaskState::Failed);
    let message = task.error.unwrap().message;
    assert!(message.contains("cannot open the kernel: it has no head"), "{message}");
    assert_eq!((client.vm("broken").state, host.run_directories()), (VmState::Off, 0));
    fs::remove_file(host.volume("vmlinuz")).unwrap();
    let task: api::Task = client.post("/vms/broken/start?wait=20").unwrap();
    assert_eq!(task.error.unwrap().code, "no-file");
}

#[test]
fn vms_do_not_notice_that_marud_was_killed() {
    let mut host = TestHost::new();
    let client = host.client();
    for name in ["a", "b", "c"] {
        client.create(&spec(name, ""));
        client.does(&format!("POST /vms/{name}/start"));
    }
    client.does("POST /vms/b/pause");
    let before = ["a", "b", "c"].map(|name| (client.vm(name).pid, client.vm(name).state));
    host.kill();
    // One ends while nobody looks.
    end(before[2].0.unwrap());
    host.start();
    let client = host.client();
    let settled = || !client.list::<api::Vm>("/vms").unwrap().iter().any(|vm| vm.state == VmState::Unknown);
    until("all VMs were looked at", || settled().then_some(()));
    assert_eq!(["a", "b"].map(|name| (client.vm(name).pid, client.vm(name).state)), before[..2]);
    let gone = client.vm("c");
    assert_eq!(gone.state, VmState::Off);
    let reason = gone.last_end.unwrap().reason;
    assert!(reason.contains("while marud was not running"), "{reason}");
    // They are this marud's now: it hears what becomes of them.
    client.does("POST /vms/b/resume");
    client.does("POST /vms/a/stop");
    end(before[1].0.unwrap());
    until("the end of a VM", || (client.vm("b").state == VmState::Off).then_some(()));
    assert!(client.vm("b").last_end.unwrap().failed);
    assert_eq!((host.monitors().len(), host.run_directories()), (0, 0));
}

#[test]
fn whatever_marud_was_doing_when_it_was_killed_is_done_afterwards_and_nothing_twice() {
    let mut host = TestHost::new();
    let mut wanted = spec("x", "");
    wanted["disks"] = json!([{"file": "local:root.raw"}]);
    fs::write(host.volume("root.raw"), "").unwrap();
    let rounds = std::env::var("MARU_KILL_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(100);
    // A sequence that visits different moments of each operation.
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut delay = |limit_us: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        Duration::from_micros((random >> 33) % limit_us)
    };
    for round in 0..rounds {
        let client = host.client();
        let (operation, expected) = [
            ("create", Some(VmState::Off)),
            ("POST /vms/x/start", Some(VmState::Running)),
            ("POST /vms/x/pause", Some(VmState::Paused)),
            ("POST /vms/x/resume", Some(VmState::Running)),
            ("POST /vms/x/save", Some(VmState::Saved)),
            ("POST /vms/x/start", Some(VmState::Running)),
            ("POST /vms/x/save", Some(VmState::Saved)),
            ("POST /vms/x/discard-saved", Some(VmState::Off)),
            ("POST /vms/x/start", Some(VmState::Running)),
            ("POST /vms/x/stop", Some(VmState::Off)),
            ("DELETE /vms/x?disks=keep", None),
        ][round % 11];
        let body = wanted.clone();
        let asking = std::thread::spawn(move || match operation {
            "create" => client.call::<api::Vm>("POST".parse().unwrap(), "/vms", Some(&body)).map(|vm| vm.id),
            other => {
                let (method, path) = other.split_once(' ').unwrap();
                client.call::<api::Task>(method.parse().unwrap(), path, None::<&()>).map(|task| task.id)
            }
        });
        std::thread::sleep(delay(25_000));
        host.kill();
        let answered = asking.join().unwrap();
        host.start();
        let client = host.client();
        until("the VM was looked at", || {
            client.list::<api::Vm>("/vms").unwrap().iter().all(|vm| vm.state != VmState::Unknown).then_some(())
        });
        // What was answered is known; what was not was done or not, and can be done now.
        let vms = client.list::<api::Vm>("/vms").unwrap();
        match (operation, &answered) {
            ("create", Ok(id)) => assert_eq!(vms[0].id, *id),
            ("create", Err(_)) if vms.is_empty() => drop(client.create(&wanted)),
            ("create", Err(_)) => {}
            (_, Ok(task)) => {
                let task: api::Task = client.get(&format!("/tasks/{task}")).unwrap();
                client.wait(task, |_| {}).unwrap_or_else(|error| panic!("round {round}, {operation}: {error}"));
            }
            (_, Err(_)) => {
                for task in client.list::<api::Task>("/tasks").unwrap().into_iter().filter(|task| !task.state.is_final()) {
                    client.wait(task, |_| {}).unwrap_or_else(|error| panic!("round {round}, {operation}: {error}"));
                }
                if client.list::<api::Vm>("/vms").unwrap().first().map(|vm| vm.state) != expected {
                    client.does(operation);
                }
            }
        }
        let vms = client.list::<api::Vm>("/vms").unwrap();
        assert_eq!(vms.first().map(|vm| vm.state), expected, "round {round}, {operation}, {answered:?}");
        let runs = usize::from(matches!(expected, Some(VmState::Running | VmState::Paused)));
        assert_eq!(files_below(&host.volume("vms")), usize::from(expected == Some(VmState::Saved)), "round {round}, {operation}");
        assert_eq!(
            (vms.len() <= 1, host.monitors().len(), host.run_directories()),
            (true, runs, runs),
            "round {round}, {operation}"
        );
    }
    let diary = fs::read_to_string(host.volume("root.raw")).unwrap();
    let states: std::collections::BTreeSet<&str> = diary.lines().collect();
    assert_eq!(diary.lines().count(), states.len(), "a guest went on twice from one state: {diary}");
    assert!(rounds < 11 || !states.is_empty());
}

/// Files below a directory, which need not be there.
fn files_below(directory: &std::path::Path) -> usize {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| if entry.path().is_dir() { files_below(&entry.path()) } else { 1 }).sum()
}

#[test]
fn a_saved_vm_goes_on_where_it_was_and_leaves_no_file() {
    let host = TestHost::new();
    let client = host.client();
    fs::write(host.volume("root.raw"), "").unwrap();
    let mut wanted = spec("web", "");
    wanted["disks"] = json!([{"file": "local:root.raw"}]);
    client.create(&wanted);
    assert_eq!(client.refusal("POST", "/vms/web/save", &[], b""), (409, "vm-off".into()));
    assert_eq!(client.refusal("POST", "/vms/web/discard-saved", &[], b""), (409, "not-saved".into()));
    client.does("POST /vms/web/start");
    client.does("POST /vms/web/save");
    let saved = client.vm("web");
    assert_eq!((saved.state, saved.pid, host.monitors().len(), host.run_directories()), (VmState::Saved, None, 0, 0));
    let file = saved.saved.unwrap().file;
    assert!(host.volume(file.strip_prefix("local:").unwrap()).exists(), "{file}");
    for path in ["pause", "resume", "reset", "stop", "stop?force=true"] {
        let refusal = client.refusal("POST", &format!("/vms/web/{path}"), &[], b"");
        assert_eq!(refusal, (409, "vm-saved".into()), "{path}");
    }
    assert_eq!(client.refusal("DELETE", "/vms/web?disks=keep", &[], b""), (409, "vm-saved".into()));
    client.does("POST /vms/web/start");
    let state = |vm: api::Vm| (vm.state, vm.saved);
    assert_eq!((state(client.vm("web")), files_below(&host.volume("vms"))), ((VmState::Running, None), 0));
    assert_eq!(fs::read_to_string(host.volume("root.raw")).unwrap().lines().count(), 1, "its memory was restored");
    // Paused or not, and dropped.
    client.does("POST /vms/web/pause");
    client.does("POST /vms/web/save");
    client.does("POST /vms/web/discard-saved");
    assert_eq!((state(client.vm("web")), files_below(&host.volume("vms"))), ((VmState::Off, None), 0));
}

#[test]
fn a_vm_that_cannot_be_saved_goes_on_and_one_that_cannot_be_restored_stays_saved() {
    let host = TestHost::new();
    let client = host.client();
    client.create(&spec("full", "fake=unsavable"));
    client.does("POST /vms/full/start");
    let task: api::Task = client.post("/vms/full/save?wait=20").unwrap();
    assert_eq!((task.state, task.error.unwrap().code), (TaskState::Failed, "not-saved".into()));
    assert_eq!((client.vm("full").state, files_below(&host.volume("vms"))), (VmState::Running, 0));

    client.create(&spec("web", ""));
    client.does("POST /vms/web/start");
    client.does("POST /vms/web/save");
    let file = host.volume(client.vm("web").saved.unwrap().file.strip_prefix("local:").unwrap());
    let good = fs::read(&file).unwrap();
    fs::write(&file, "damaged").unwrap();
    let task: api::Task = client.post("/vms/web/start?wait=20").unwrap();
    assert_eq!((task.state, client.vm("web").state), (TaskState::Failed, VmState::Saved), "{task:?}");
    fs::write(&file, good).unwrap();
    client.does("POST /vms/web/start");
    assert_eq!(client.vm("web").state, VmState::Running);
}

/// Reads a console until its bytes have this text; gives what else was told.
fn hear(socket: &mut WebSocket, text: &str) -> Vec<ConsoleEvent> {
    let (mut bytes, mut events) = (Vec::new(), Vec::new());
    while !String::from_utf8_lossy(&bytes).contains(text) {
        match socket.read().unwrap() {
            Message::Binary(piece) => bytes.extend(piece),
            Message::Text(text) => events.push(serde_json::from_str(&text).unwrap()),
            other => panic!("{other:?} before '{text}'"),
        }
    }
    events
}

fn event(socket: &mut WebSocket) -> ConsoleEvent {
    loop {
        match socket.read().unwrap() {
            Message::Text(text) => return serde_json::from_str(&text).unwrap(),
            Message::Binary(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_console_is_seen_by_several_typed_into_by_those_who_may_and_outlives_its_vm_and_marud() {
    let mut host = TestHost::new();
    let client = host.client();
    client.create(&spec("web", ""));
    let mut early = client.open("/vms/web/console").unwrap();
    assert_eq!(event(&mut early), ConsoleEvent::Off);
    client.does("POST /vms/web/start");
    let pid = client.vm("web").pid.unwrap();
    assert_eq!(hear(&mut early, &format!("process {pid} says hello")), [ConsoleEvent::On]);
    early.send(Message::binary(&b"typed here"[..])).unwrap();
    hear(&mut early, "TYPED HERE");

    // A viewer sees all of it, and types nothing.
    let body = json!({"name": "eve", "role": "viewer"});
    let eve = client.call::<api::CreatedToken>("POST".parse().unwrap(), "/tokens", Some(&body)).unwrap().secret;
    let eve = host.client_with(&eve);
    assert!(matches!(eve.open("/vms/web/console"), Err(ClientError::Refused { status: 403, error }) if error.code == "role"));
    let mut late = eve.open("/vms/web/console?read_only=true").unwrap();
    assert_eq!(hear(&mut late, "TYPED HERE"), [ConsoleEvent::On]);
    late.send(Message::binary(&b"not typed"[..])).unwrap();
    early.send(Message::binary(&b"both see this"[..])).unwrap();
    hear(&mut late, "BOTH SEE THIS");
    let log = String::from_utf8(eve.get_bytes("/vms/web/console/log").unwrap()).unwrap();
    assert!(log.contains("says hello") && log.ends_with("BOTH SEE THIS") && !log.contains("NOT TYPED"), "{log}");

    // The VM ends and starts.
    client.does("POST /vms/web/stop");
    assert_eq!(event(&mut late), ConsoleEvent::Off);
    client.does("POST /vms/web/start");
    let pid = client.vm("web").pid.unwrap();
    assert_eq!(hear(&mut late, &format!("process {pid} says hello")), [ConsoleEvent::On]);

    // marud is killed: its clients see that, the VM does not, and the next marud has its console again.
    host.kill();
    while late.read().is_ok() {}
    host.start();
    let client = host.client();
    until("the VM was looked at", || (client.vm("web").state == VmState::Running).then_some(()));
    assert_eq!(client.vm("web").pid, Some(pid));
    let mut again = client.open("/vms/web/console").unwrap();
    hear(&mut again, &format!("process {pid} says hello"));
    client.does("POST /vms/web/stop");
    client.does("DELETE /vms/web");
    let reason = loop {
        if let Message::Close(frame) = again.read().unwrap() {
            break frame.unwrap().reason;
        }
    };
    assert_eq!(reason.as_str(), "the VM was deleted");
    let audit = fs::read_to_string(host.directory.path().join("state/audit.log")).unwrap();
    assert!(audit.contains(r#""path":"/vms/web/console","status":101"#), "{audit}");
}

#[test]
fn bad_requests_get_a_status_a_reason_and_a_way_out() {
    let host = TestHost::new();
    let client = host.client();
    client.create(&spec("web", ""));
    let body = |value: serde_json::Value| serde_json::to_vec(&value).unwrap();
    let refused = |method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]| {
        let (status, code) = client.refusal(method, path, headers, body);
        format!("{status} {code}")
    };
    assert_eq!(refused("POST", "/vms", &[JSON], &body(spec("web", ""))), "409 name-taken");
    assert_eq!(refused("POST", "/vms", &[JSON], b"{"), "400 bad-body");
    assert_eq!(refused("POST", "/vms", &[JSON], b"{}"), "422 bad-body");
    assert_eq!(refused("PATCH", "/volumes/local", &[JSON], b"[null, null]"), "422 bad-body");
    assert_eq!(refused("POST", "/vms", &[], b"{}"), "415 not-json");
    assert_eq!(refused("POST", "/vms", &[JSON], &vec![b' '; 300 * 1024]), "413 too-long");
    let mut unknown = spec("a", "");
    unknown["memroy"] = 1.into();
    assert_eq!(refused("POST", "/vms", &[JSON], &body(unknown)), "422 bad-body");
    let mut huge = spec("a", "");
    huge["memory_bytes"] = (1_u64 << 60).into();
    assert_eq!(refused("POST", "/vms", &[JSON], &body(huge)), "422 no-memory");
    assert_eq!(refused("GET", "/vms?colour=red", &[], b""), "400 bad-parameter");
    assert_eq!(refused("GET", "/vms?limit=0", &[], b""), "400 bad-parameter");
    assert_eq!(refused("GET", "/vms/%ff", &[], b""), "400 bad-address");
    assert_eq!(refused("GET", "/nothing", &[], b""), "404 not-found");
    assert_eq!(refused("GET", &format!("/vms/{}", "x".repeat(600)), &[], b""), "404 not-found");
    assert_eq!(refused("PUT", "/vms", &[], b""), "405 no-method");
    assert_eq!(refused("POST", "/vms/web/pause", &[], b""), "409 vm-off");
    assert_eq!(refused("POST", "/vms/web/start", &[("if-match", "\"0\"")], b""), "412 changed");
    assert_eq!(refused("POST", "/vms/web/start?wait=301", &[], b""), "400 bad-parameter");
    assert_eq!(refused("GET", "/vms/web/console", &[], b""), "400 not-websocket");
    assert_eq!(refused("GET", "/vms/none/console/log", &[], b""), "404 not-found");
    assert_eq!(refused("GET", "/tasks/x", &[], b""), "404 not-found");
    assert_eq!(refused("GET", "/events?after=999999", &[], b""), "410 forgotten");
    assert_eq!(refused("GET", "/events/stream", &[("last-event-id", "x")], b""), "400 bad-parameter");
    let shared = |name: &str, read_only: bool| {
        let mut vm = spec(name, "");
        vm["disks"] = json!([{"file": "local:vmlinuz", "read_only": read_only}]);
        vm
    };
    client.create(&shared("reader", true));
    client.create(&shared("reader2", true));
    assert_eq!(refused("POST", "/vms", &[JSON], &body(shared("writer", false))), "409 disk-in-use");
    assert_eq!(client.list::<api::Vm>("/vms").unwrap().len(), 3, "nothing half done");
}

#[test]
fn half_of_a_request_does_nothing_and_one_that_was_begun_is_noted_though_its_client_goes_away() {
    let host = TestHost::new();
    let client = host.client();
    let secret = fs::read_to_string(host.directory.path().join("state/admin.token")).unwrap();
    let request = |path: &str, body: &str| {
        let head = format!("POST /api/v1{path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n");
        format!("{head}authorization: Bearer {}\r\ncontent-length: {}\r\n\r\n{body}", secret.trim(), body.len()).into_bytes()
    };
    let send = |bytes: &[u8]| {
        let mut stream = host.connect();
        stream.write_all(bytes).unwrap();
        stream.flush().unwrap();
        stream
    };
    let half = request("/vms", &spec("half", "").to_string());
    for length in (1..half.len()).step_by(16).chain([half.len() - 1]) {
        drop(send(&half[..length]));
    }
    let stalled_body = send(&half[..half.len() - 1]);
    let stalled_head = send(&half[..half.len() / 3]);

    client.create(&spec("deaf", "fake=deaf"));
    client.does("POST /vms/deaf/start");
    let waiting = send(&request("/vms/deaf/stop?grace=1&wait=60", ""));
    let stops = |task: api::Task| task.operation == api::Operation::Stop;
    until("the VM is being stopped", || client.list::<api::Task>("/tasks").unwrap().into_iter().any(stops).then_some(()));
    drop(waiting);
    until("the VM is off", || (client.vm("deaf").state == VmState::Off).then_some(()));
    let audit = || fs::read_to_string(host.directory.path().join("state/audit.log")).unwrap();
    until("it is in the audit log", || audit().contains(r#""path":"/vms/deaf/stop","status":200"#).then_some(()));

    let told = |mut stream: StreamOwned<_, _>| {
        let mut answer = String::new();
        // Whether the end is announced is not what this is about.
        let _ = stream.read_to_string(&mut answer);
        answer
    };
    let answer = told(stalled_body);
    assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("too-slow"), "{answer}");
    let answer = told(stalled_head);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert_eq!(client.list::<api::Vm>("/vms").unwrap().len(), 1, "the deaf one");
}

#[test]
fn everything_in_the_document_can_be_asked_for() {
    let host = TestHost::new();
    let client = host.client();
    let document: serde_json::Value = client.get("/openapi.json").unwrap();
    let mut count = 0;
    for (path, methods) in document["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys() {
            let (method, path) = (method.to_uppercase(), path.replace(['{', '}'], ""));
            let mut response = client.send(method.parse().unwrap(), &path, &[], b"").unwrap();
            count += 1;
            // The stream does not end.
            if path != "/events/stream" {
                let (status, text) = (response.status().as_u16(), response.body_mut().read_to_string().unwrap());
                assert!(
                    status < 500 && status != 405 && !text.contains("there is no address"),
                    "{method} {path}: {status} {text}"
                );
            }
        }
    }
    assert!(count >= 21, "{count} operations");
}

#[test]
fn roles_are_walls_and_secrets_are_nowhere_but_with_their_owners() {
    let host = TestHost::new();
    let admin = host.client();
    admin.create(&spec("web", ""));
    let token = |name: &str, role: &str| {
        let body = json!({"name": name, "role": role});
        admin.call::<api::CreatedToken>("POST".parse().unwrap(), "/tokens", Some(&body)).unwrap().secret
    };
    let (viewer, operator) = (token("eve", "viewer"), token("oscar", "operator"));
    let (viewing, operating) = (host.client_with(&viewer), host.client_with(&operator));
    assert_eq!(viewing.vm("web").state, VmState::Off);
    assert_eq!(viewing.refusal("POST", "/vms/web/start", &[], b""), (403, "role".into()));
    assert_eq!(viewing.refusal("GET", "/tokens", &[], b""), (403, "role".into()));
    assert_eq!(operating.does("POST /vms/web/start").created_by, "oscar");
    assert_eq!(operating.refusal("POST", "/tokens", &[JSON], b"{}"), (403, "role".into()));
    assert_eq!(host.client_with("maru-0").refusal("GET", "/vms", &[], b""), (401, "no-token".into()));
    assert_eq!(admin.refusal("DELETE", "/tokens/admin", &[], b""), (409, "own-token".into()));
    admin.call::<()>("DELETE".parse().unwrap(), "/tokens/eve", None::<&()>).unwrap();
    assert_eq!(viewing.refusal("GET", "/vms", &[], b""), (401, "no-token".into()));

    let state = host.directory.path().join("state");
    let audit = fs::read_to_string(state.join("audit.log")).unwrap();
    assert!(audit.contains(r#""token":"oscar""#) && audit.contains(r#""path":"/vms/web/start","status":202"#), "{audit}");
    assert!(audit.contains(r#""status":403"#) && audit.contains(r#""token":null"#), "{audit}");
    let first = fs::read_to_string(state.join("admin.token")).unwrap();
    let stored = fs::read(state.join("store.redb")).unwrap();
    for secret in [first.trim(), &viewer, &operator] {
        assert!(!audit.contains(secret));
        assert!(!stored.windows(secret.len()).any(|window| window == secret.as_bytes()), "a secret is stored");
    }
}

#[test]
fn a_request_that_is_sent_again_is_not_done_again() {
    let host = TestHost::new();
    let client = host.client();
    let body = serde_json::to_vec(&spec("web", "")).unwrap();
    let key = ("idempotency-key", "k1");
    let create = || {
        let mut response = client.send("POST".parse().unwrap(), "/vms", &[JSON, key], &body).unwrap();
        assert_eq!(response.status(), 201);
        serde_json::from_str::<api::Vm>(&response.body_mut().read_to_string().unwrap()).unwrap().id
    };
    assert_eq!(create(), create());
    let other = serde_json::to_vec(&spec("other", "")).unwrap();
    assert_eq!(client.refusal("POST", "/vms", &[JSON, key], &other), (422, "key-reused".into()));
    let start = || {
        let headers = [("idempotency-key", "k2")];
        let mut response = client.send("POST".parse().unwrap(), "/vms/web/start", &headers, b"").unwrap();
        serde_json::from_str::<api::Task>(&response.body_mut().read_to_string().unwrap()).unwrap().id
    };
    assert_eq!(start(), start());
    assert_eq!(client.list::<api::Task>("/tasks").unwrap().len(), 1);
}

#[test]
fn the_stream_of_events_goes_on_where_it_was_left_also_over_a_kill() {
    let mut host = TestHost::new();
    let client = host.client();
    client.create(&spec("a", ""));
    let newest = client.list::<api::Event>("/events").unwrap().last().unwrap().id;
    let (sender, receiver) = channel();
    let following = host.client();
    // Ends when marud is killed.
    let thread = std::thread::spawn(move || following.follow(Some(newest), |event| sender.send(event).is_ok()));
    client.does("POST /vms/a/start");
    let started = receiver.recv_timeout(PATIENCE).unwrap();
    assert_eq!((started.kind, started.vm_name.as_deref()), (EventKind::VmStarted, Some("a")));
    host.kill();
    let _ = thread.join().unwrap();
    host.start();
    let client = host.client();
    client.does("POST /vms/a/stop");
    let mut seen = Vec::new();
    let follow = client.follow(Some(started.id), |event| {
        seen.push(event.kind);
        event.kind != EventKind::VmStopped
    });
    follow.unwrap();
    assert_eq!(seen, [EventKind::HostStarted, EventKind::VmAdopted, EventKind::VmStopped]);
}

#[test]
fn a_thousand_requests_at_once_are_all_answered() {
    let host = TestHost::new();
    let client = host.client();
    let refused = std::thread::scope(|scope| {
        let many: Vec<_> = (0..1000)
            .map(|number| {
                let client = &client;
                // A hundred names for a thousand VMs: one request for each name is right.
                scope.spawn(move || {
                    client.call::<api::Vm>("POST".parse().unwrap(), "/vms", Some(&spec(&format!("vm{}", number % 100), "")))
                })
            })
            .collect();
        let answers = many.into_iter().map(|thread| thread.join().unwrap());
        answers
            .filter(|answer| match answer {
                Ok(_) => false,
                Err(ClientError::Refused { status: 409, .. }) => true,
                Err(other) => panic!("{other}"),
            })
            .count()
    });
    assert_eq!(refused, 900);
    assert_eq!(client.list::<api::Vm>("/vms").unwrap().len(), 100);
}

#[test]
fn a_hundred_vms_live_side_by_side() {
    let host = TestHost::new();
    let client = host.client();
    let names: Vec<String> = (0..100).map(|number| format!("vm{number}")).collect();
    let all = |what: &str| {
        let start = std::time::Instant::now();
        let path = |name: &String| what.replace("NAME", name);
        // All are asked for before any is waited for.
        let ask = |name| {
            let path = path(name);
            let (method, path) = path.split_once(' ').unwrap();
            client.call::<api::Task>(method.parse().unwrap(), path, None::<&()>).unwrap()
        };
        let tasks: Vec<api::Task> = names.iter().map(ask).collect();
        tasks.into_iter().for_each(|task| drop(client.wait(task, |_| {}).unwrap()));
        println!("{what}, a hundred times: {:?}", start.elapsed());
    };
    names.iter().for_each(|name| drop(client.create(&spec(name, ""))));
    all("POST /vms/NAME/start");
    assert_eq!(host.monitors().len(), 100);
    let start = std::time::Instant::now();
    let vms = client.list::<api::Vm>("/vms").unwrap();
    println!("a list of 100 VMs: {:?}", start.elapsed());
    assert!(vms.len() == 100 && vms.iter().all(|vm| vm.state == VmState::Running));
    all("POST /vms/NAME/stop");
    all("DELETE /vms/NAME");
    assert_eq!((host.monitors().len(), host.run_directories(), client.list::<api::Vm>("/vms").unwrap().len()), (0, 0, 0));
}

#[test]
fn a_damaged_store_is_refused_with_the_name_of_its_backup() {
    let mut host = TestHost::new();
    host.client().create(&spec("web", ""));
    host.kill();
    host.start();
    host.kill();
    let path = host.directory.path().join("state/store.redb");
    let good = fs::read(&path).unwrap();
    fs::write(&path, &good[..good.len() / 2]).unwrap();
    let said = host.refuses_to_start();
    let (_, rest) = said.split_once("automatic backups is ").unwrap_or_else(|| panic!("{said}"));
    fs::copy(rest.split(':').next().unwrap(), &path).unwrap();
    host.start();
    assert_eq!(host.client().vm("web").state, VmState::Off);
}
