//! The rest of a VM's life as clients of `marud` see it, with fake monitors: clones, exports, changes.

mod support;

use std::fs;
use std::path::Path;

use api::client::Client;
use api::{TaskState, VmState};
use serde_json::{Value, json};
use support::{Asking, TestHost, spec, until};

const JSON: (&str, &str) = ("content-type", "application/json");

/// A VM `web` with one raw disk of these bytes.
fn with_disk(host: &TestHost, client: &Client, bytes: &[u8]) -> api::Vm {
    fs::write(host.volume("root.raw"), bytes).unwrap();
    let mut wanted = spec("web", "");
    wanted["disks"] = json!([{"file": "local:root.raw"}]);
    wanted["nets"] = json!([{"tap": "tap0"}]);
    client.create(&wanted)
}

/// Posts a body, and waits for the task's end.
fn posted(client: &Client, path: &str, body: &Value) -> api::Task {
    let task = client.call("POST".parse().unwrap(), path, Some(body)).unwrap();
    client.wait(task, |_| {}).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn refusal(client: &Client, path: &str, body: &Value) -> (u16, String) {
    client.refusal("POST", path, &[JSON], &serde_json::to_vec(body).unwrap())
}

/// Files in the volume, with those of its directories.
fn files(host: &TestHost) -> Vec<String> {
    fn add(root: &Path, directory: &Path, found: &mut Vec<String>) {
        for entry in fs::read_dir(directory).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                add(root, &path, found);
            } else {
                found.push(path.strip_prefix(root).unwrap().to_str().unwrap().into());
            }
        }
    }
    let (root, mut found) = (host.volume(""), Vec::new());
    add(&root, &root, &mut found);
    found.sort();
    found
}

#[test]
fn a_clone_is_a_vm_of_its_own() {
    let host = TestHost::new();
    let client = host.client();
    let source = with_disk(&host, &client, &[7; 1 << 20]);
    let task = posted(&client, "/vms/web/clone", &json!({"name": "web2"}));
    assert_eq!(task.progress.map(|progress| (progress.done, progress.total)), Some((1 << 20, 1 << 20)));
    let clone = client.vm("web2");
    assert_eq!((Some(clone.id), clone.state), (task.makes, VmState::Off));
    assert_ne!((clone.id, &clone.spec.nets[0].mac), (source.id, &source.spec.nets[0].mac));
    assert_eq!(clone.spec.disks[0].file, "local:web2/disk0.raw");
    assert_eq!(fs::read(host.volume("web2/disk0.raw")).unwrap(), [7; 1 << 20]);
    fs::write(host.volume("root.raw"), "changed").unwrap();
    client.does("POST /vms/web2/start");
    assert_eq!(refusal(&client, "/vms/web2/clone", &json!({"name": "web3"})), (409, "vm-running".into()));
    client.does("POST /vms/web2/stop");
    assert_eq!(refusal(&client, "/vms/web/clone", &json!({"name": "web2"})), (409, "name-taken".into()));
    assert_eq!(refusal(&client, "/vms/web/clone", &json!({"name": "a/b"})), (422, "bad-name".into()));
    assert_eq!(refusal(&client, "/vms/web/clone", &json!({"name": "web3", "volume": "no"})), (422, "no-volume".into()));
    // What is there is not overwritten, and not removed either.
    fs::create_dir(host.volume("web3")).unwrap();
    fs::write(host.volume("web3/disk0.raw"), "theirs").unwrap();
    let task: api::Task = client.call("POST".parse().unwrap(), "/vms/web/clone?wait=20", Some(&json!({"name": "web3"}))).unwrap();
    assert_eq!((task.state, task.error.unwrap().code), (TaskState::Failed, "file-exists".into()));
    client.does("DELETE /vms/web2?disks=delete");
    assert_eq!(files(&host), ["root.raw", "vmlinuz", "web3/disk0.raw"]);
    assert_eq!(fs::read(host.volume("web3/disk0.raw")).unwrap(), b"theirs");
}

#[test]
fn a_clone_that_is_cancelled_or_killed_leaves_nothing_half_made() {
    let mut host = TestHost::new();
    let client = host.client();
    let source = fs::File::create(host.volume("root.raw")).unwrap();
    // Enough to be still at it.
    source.set_len(3 << 30).unwrap();
    drop(source);
    let mut wanted = spec("web", "");
    wanted["disks"] = json!([{"file": "local:root.raw"}]);
    client.create(&wanted);
    for round in 0..20_u64 {
        let client = host.client();
        let task: api::Task =
            client.call("POST".parse().unwrap(), "/vms/web/clone", Some(&json!({"name": format!("c{round}")}))).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(round * 3 % 20));
        if round % 2 == 0 {
            // Cancelled, done or both at once: it says which, and that is so.
            let _ = client.send("POST".parse().unwrap(), &format!("/tasks/{}/cancel", task.id), &[], b"").unwrap();
        }
        host.kill();
        host.start();
        let client = host.client();
        let task = until("the clone's end", || {
            let task: api::Task = client.get(&format!("/tasks/{}?wait=20", task.id)).unwrap();
            task.state.is_final().then_some(task)
        });
        let made = client.list::<api::Vm>("/vms").unwrap().len() == 2;
        assert_eq!((task.state == TaskState::Done, made), (made, made), "{task:?}");
        if made {
            client.does(&format!("DELETE /vms/c{round}?disks=delete"));
        }
        assert_eq!(files(&host), ["root.raw", "vmlinuz"], "round {round}: {task:?}");
        let left: Vec<_> = fs::read_dir(host.volume("")).unwrap().flatten().map(|entry| entry.file_name()).collect();
        assert_eq!(left.len(), 2, "{left:?}");
    }
}
