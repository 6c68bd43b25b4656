//! Checkpoints, with disks that are real and monitors that are not.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use api::VmState;
use api::client::Client;
use disk::Format;
use disk::tool::{self, AnyFormat, Existing, Job, NewDisk, RebaseContent};
use serde_json::json;
use support::{Asking, TestHost, spec, until};

const SIZE: u64 = 1 << 20;
const VHDX: AnyFormat = AnyFormat::Own(Format::Vhdx);

fn disk(format: Format) -> NewDisk {
    NewDisk { format, ..NewDisk::default() }
}

fn with_disk(host: &TestHost) -> Client {
    let client = host.client();
    tool::create(&host.volume("root.vhdx"), &NewDisk { size: Some(SIZE), ..disk(Format::Vhdx) }).unwrap();
    let mut wanted = spec("web", "");
    wanted["disks"] = json!([{"file": "local:root.vhdx"}]);
    client.create(&wanted);
    client
}

fn leaf(host: &TestHost, client: &Client) -> PathBuf {
    leaf_of(host, client, "web")
}

fn leaf_of(host: &TestHost, client: &Client, vm: &str) -> PathBuf {
    let file = client.vm(vm).spec.disks[0].file.clone();
    host.volume(file.strip_prefix("local:").unwrap())
}

/// Makes the disk hold this byte everywhere, as a guest would: only its own file changes.
fn fill(host: &TestHost, client: &Client, byte: u8) {
    let (leaf, work) = (leaf(host, client), host.directory.path());
    let (raw, whole, new) = (work.join("fill.raw"), work.join("fill.vhdx"), leaf.with_extension("new.avhdx"));
    fs::write(&raw, vec![byte; SIZE as usize]).unwrap();
    tool::convert((&raw, AnyFormat::Own(Format::Raw)), &whole, &disk(Format::Vhdx), Existing::Replace, &Job::default()).unwrap();
    match tool::info(&leaf, VHDX).unwrap().get(1) {
        None => fs::rename(&whole, &leaf).unwrap(),
        Some(parent) => {
            let parent = parent.path.canonicalize().unwrap();
            tool::create(&new, &NewDisk { parent: Some((whole, Format::Vhdx)), ..disk(Format::Vhdx) }).unwrap();
            tool::rebase(&new, Format::Vhdx, &parent, RebaseContent::Keep, &Job::default()).unwrap();
            fs::rename(&new, &leaf).unwrap();
        }
    }
}

/// The one byte that the VM's disk holds everywhere.
fn content(host: &TestHost, client: &Client) -> u8 {
    content_of(host, client, "web")
}

fn content_of(host: &TestHost, client: &Client, vm: &str) -> u8 {
    let (leaf, raw) = (leaf_of(host, client, vm), host.directory.path().join("look.raw"));
    tool::convert((&leaf, VHDX), &raw, &disk(Format::Raw), Existing::Replace, &Job::default()).unwrap();
    let bytes = fs::read(raw).unwrap();
    assert!(bytes.len() == SIZE as usize && bytes.iter().all(|byte| *byte == bytes[0]));
    bytes[0]
}

fn files_below(directory: &Path) -> usize {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| if entry.path().is_dir() { files_below(&entry.path()) } else { 1 }).sum()
}

fn checkpoint(client: &Client, name: &str) {
    posted(client, "/vms/web/checkpoints", &json!({ "name": name }));
}

fn posted(client: &Client, path: &str, body: &serde_json::Value) {
    let task: api::Task = client.call("POST".parse().unwrap(), path, Some(body)).unwrap();
    client.wait(task, |_| {}).unwrap();
}

fn list(client: &Client) -> Vec<api::Checkpoint> {
    client.list("/vms/web/checkpoints").unwrap()
}

#[test]
fn each_branch_of_a_tree_keeps_its_bytes_through_apply_and_merge() {
    let host = TestHost::new();
    let client = with_disk(&host);
    fill(&host, &client, 1);
    checkpoint(&client, "one");
    fill(&host, &client, 2);
    checkpoint(&client, "two");
    fill(&host, &client, 3);
    client.does("POST /vms/web/checkpoints/one/apply?before=three");
    assert_eq!(content(&host, &client), 1);
    fill(&host, &client, 4);
    checkpoint(&client, "four");
    let tree = list(&client);
    let parent = |name: &str| {
        let parent = tree.iter().find(|it| it.name == name).unwrap().parent?;
        tree.iter().find(|it| it.id == parent).map(|it| it.name.clone())
    };
    assert_eq!(["one", "two", "three", "four"].map(parent), [None, Some("one".into()), Some("two".into()), Some("one".into())]);
    assert!(tree.iter().all(|it| it.disks[0].bytes > 0 && it.kind == api::CheckpointKind::Off));
    let chain = client.vm("web").chains.remove(0);
    assert_eq!((chain.files.len(), chain.files.last().unwrap().file.as_str()), (3, "local:root.vhdx"));

    client.does("DELETE /vms/web/checkpoints/two");
    for (name, byte) in [("three", 3), ("four", 4), ("one", 1)] {
        client.does(&format!("POST /vms/web/checkpoints/{name}/apply"));
        assert_eq!(content(&host, &client), byte, "{name}");
    }
    client.does("POST /vms/web/checkpoints/three/apply");
    client.does("DELETE /vms/web/checkpoints/one?subtree=true");
    assert_eq!((content(&host, &client), list(&client).len(), files_below(&host.volume("vms"))), (3, 0, 0));
    assert_eq!(leaf(&host, &client), host.volume("root.vhdx"));
}

#[test]
fn nobody_else_may_stand_on_what_checkpoints_change_and_what_they_stand_on_stays() {
    let host = TestHost::new();
    let client = with_disk(&host);
    fill(&host, &client, 1);
    checkpoint(&client, "one");
    let json = ("content-type", "application/json");
    let refused = |path: &str, body: serde_json::Value| client.refusal("POST", path, &[json], body.to_string().as_bytes());
    for file in ["root.vhdx", "child.vhdx"] {
        let parent = Some((host.volume("root.vhdx"), Format::Vhdx));
        let _ = tool::create(&host.volume("child.vhdx"), &NewDisk { parent, ..disk(Format::Vhdx) });
        for read_only in [false, true] {
            let mut other = spec("other", "");
            other["disks"] = json!([{"file": format!("local:{file}"), "read_only": read_only}]);
            assert_eq!(refused("/vms", other), (409, "disk-in-use".into()), "{file}, {read_only}");
        }
    }
    fs::remove_file(host.volume("child.vhdx")).unwrap();
    let body = json!({"disks": [{"file": client.vm("web").spec.disks[0].file}, {"file": "local:root.vhdx"}]});
    let patched =
        client.refusal("PATCH", "/vms/web", &[("content-type", "application/merge-patch+json")], body.to_string().as_bytes());
    assert_eq!(patched, (409, "disk-in-use".into()));
    assert_eq!(refused("/vms/web/clone", json!({"name": "twin", "linked": true})), (409, "has-checkpoints".into()));
    posted(&client, "/vms/web/clone", &json!({"name": "copy"}));
    assert_eq!(content_of(&host, &client, "copy"), 1);

    // A linked clone's checkpoint needs what it was made from, though the clone itself has other disks now.
    client.does("DELETE /vms/web/checkpoints/one");
    posted(&client, "/vms/web/clone", &json!({"name": "twin", "linked": true}));
    fill(&host, &client, 2);
    checkpoint(&client, "two");
    posted(&client, "/vms/twin/checkpoints", &json!({"name": "old"}));
    let no_disks = serde_json::to_vec(&json!({"disks": []})).unwrap();
    let task = client.send(
        "PATCH".parse().unwrap(),
        "/vms/twin?wait=20",
        &[("content-type", "application/merge-patch+json")],
        &no_disks,
    );
    assert_eq!(task.unwrap().status(), 200);
    client.does("DELETE /vms/web?disks=delete");
    client.does("POST /vms/twin/checkpoints/old/apply");
    assert_eq!(content_of(&host, &client, "twin"), 1);
    client.does("DELETE /vms/twin?disks=delete");
    client.does("DELETE /vms/copy?disks=delete");
    assert_eq!(files_below(&host.volume("")), 1, "the kernel");
}

#[test]
fn a_running_vm_is_paused_for_a_checkpoint_with_its_memory_and_goes_back_to_it() {
    let host = TestHost::new();
    let client = with_disk(&host);
    client.does("POST /vms/web/start");
    checkpoint(&client, "ran");
    let ran = list(&client).remove(0);
    assert_eq!((ran.kind, ran.memory_bytes.is_some(), ran.pause_ms.is_some()), (api::CheckpointKind::Standard, true, true));
    assert_eq!(client.vm("web").state, VmState::Running);
    assert_eq!(client.refusal("POST", "/vms/web/checkpoints/ran/apply", &[], b""), (409, "vm-running".into()));
    client.does("POST /vms/web/stop?force=true");
    client.does("POST /vms/web/checkpoints/ran/apply");
    assert_eq!(client.vm("web").state, VmState::Saved);
    client.does("POST /vms/web/discard-saved");
    client.does("POST /vms/web/start");
    // Merged while it runs: its leaf goes into what was frozen.
    client.does("DELETE /vms/web/checkpoints/ran");
    assert_eq!((client.vm("web").state, leaf(&host, &client)), (VmState::Running, host.volume("root.vhdx")));
    assert_eq!(files_below(&host.volume("vms")), 0);
}

#[test]
fn what_cannot_be_is_refused_with_the_way_out() {
    let host = TestHost::new();
    let client = host.client();
    fs::write(host.volume("root.raw"), [0; 4096]).unwrap();
    let mut wanted = spec("web", "");
    wanted["disks"] = json!([{"file": "local:root.raw"}]);
    client.create(&wanted);
    let make = |body: serde_json::Value| {
        let task: api::Task = client.call("POST".parse().unwrap(), "/vms/web/checkpoints?wait=20", Some(&body)).unwrap();
        task.error.unwrap().code
    };
    assert_eq!(make(json!({})), "no-layers");
    assert_eq!(client.refusal("GET", "/vms/web/checkpoints/none", &[], b""), (404, "not-found".into()));
    assert_eq!(client.refusal("DELETE", "/vms/web/checkpoints/none", &[], b""), (404, "not-found".into()));
    let json = ("content-type", "application/json");
    assert_eq!(client.refusal("POST", "/vms/web/checkpoints", &[json], br#"{"name":""}"#), (422, "bad-name".into()));
    assert!(list(&client).is_empty());
}

#[test]
fn a_kill_of_marud_leaves_a_whole_tree_and_no_other_file() {
    let mut host = TestHost::new();
    let client = with_disk(&host);
    fill(&host, &client, 1);
    let rounds = std::env::var("MARU_KILL_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(40);
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    for round in 0..rounds {
        let steps = [
            ("POST", "/vms/web/checkpoints", Some(json!({"name": "a"}))),
            ("POST", "/vms/web/start", None),
            ("POST", "/vms/web/checkpoints", Some(json!({"name": "b"}))),
            ("DELETE", "/vms/web/checkpoints/a", None),
            ("POST", "/vms/web/stop?force=true", None),
            ("POST", "/vms/web/checkpoints/b/apply", None),
            ("POST", "/vms/web/discard-saved", None),
            ("DELETE", "/vms/web/checkpoints/b", None),
        ];
        let (method, path, body) = steps[round % steps.len()].clone();
        let client = host.client();
        let asked = body.clone();
        let asking = std::thread::spawn(move || client.call::<api::Task>(method.parse().unwrap(), path, asked.as_ref()));
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        std::thread::sleep(Duration::from_micros((random >> 33) % 40_000));
        host.kill();
        let answered = asking.join().unwrap();
        host.start();
        let client = host.client();
        until("the VM was looked at", || (client.vm("web").state != VmState::Unknown).then_some(()));
        for task in client.list::<api::Task>("/tasks").unwrap().into_iter().filter(|task| !task.state.is_final()) {
            client.wait(task, |_| {}).unwrap_or_else(|error| panic!("round {round}, {method} {path}: {error}"));
        }
        if answered.is_err() && !has_been_done(&client, path) {
            let task: api::Task = client.call(method.parse().unwrap(), path, body.as_ref()).unwrap();
            client.wait(task, |_| {}).unwrap_or_else(|error| panic!("round {round}, {method} {path}: {error}"));
        }
        let names: Vec<String> = list(&client).into_iter().map(|it| it.name).collect();
        let expected: [&[&str]; 8] = [&["a"], &["a"], &["a", "b"], &["b"], &["b"], &["b"], &["b"], &[]];
        assert_eq!(names, expected[round % steps.len()], "round {round}, {method} {path}");
        // A child for each checkpoint of a chain; the memory of b; what the VM was saved to.
        let files = [1, 1, 3, 2, 2, 3, 2, 0][round % steps.len()];
        assert_eq!(files_below(&host.volume("vms")), files, "round {round}, {method} {path}");
        if host.monitors().is_empty() {
            assert_eq!(content(&host, &client), 1, "round {round}, {method} {path}");
        }
    }
}

/// Whether a request whose answer was lost was done.
fn has_been_done(client: &Client, path: &str) -> bool {
    let tasks = client.list::<api::Task>("/tasks").unwrap();
    let wanted = match path {
        _ if path.ends_with("/apply") => api::Operation::ApplyCheckpoint,
        _ if path.contains("start") => api::Operation::Start,
        _ if path.contains("stop") => api::Operation::Stop,
        _ if path.contains("discard") => api::Operation::DiscardSaved,
        "/vms/web/checkpoints" => api::Operation::CreateCheckpoint,
        _ => api::Operation::DeleteCheckpoint,
    };
    tasks.last().is_some_and(|task| task.operation == wanted)
}
