//! VMs that go to another host with files that only theirs reaches: two hosts with `marud` and etcd as they are, and fake monitors.

mod support;

use std::fs;
use std::path::PathBuf;

use api::client::{Client, Method};
use api::{Operation, Task, TaskState, VmState};
use disk::Format;
use disk::tool::{AnyFormat, NewDisk};
use serde_json::{Value, json};
use support::cluster::{create, host, joined, post, until};
use support::{Asking, TestHost, spec};

/// Enough that it takes a moment.
const LARGE: usize = 256 << 20;

/// Two hosts that are a cluster. The first one keeps the store: without it, nothing goes on.
fn cluster() -> (TestHost, TestHost) {
    let (first, second) = (host(0), host(1));
    create(&first, "h1");
    joined(&first, &second, "h2");
    (first, second)
}

/// Makes a VM on a host, with a disk of these bytes.
fn with_disk(host: &TestHost, name: &str, bytes: &[u8]) -> api::Vm {
    let file = format!("{name}.raw");
    fs::write(host.volume(&file), bytes).unwrap();
    let mut wanted = spec(name, "");
    wanted["disks"] = json!([{"file": format!("local:{file}")}]);
    host.client().create(&wanted)
}

/// Wants a VM elsewhere, as soon as that host could take it.
fn moved(client: &Client, name: &str, to: &str) {
    until(&format!("{to} to be ready"), || post(client, &format!("/vms/{name}/move"), &json!({"to": to})).ok());
}

fn is_on(client: &Client, name: &str, host: &str, state: VmState) -> Option<api::Vm> {
    // Whoever has it may be about to change.
    let vm: api::Vm = client.get(&format!("/vms/{name}")).ok()?;
    (vm.host.as_deref() == Some(host) && vm.state == state).then_some(vm)
}

/// Tasks that copy files of a VM, the oldest first.
fn copies(client: &Client, name: &str) -> Vec<Task> {
    let mut tasks = client.list::<Task>("/tasks").unwrap();
    tasks.retain(|task| task.operation == Operation::Copy && task.vm_name.as_deref() == Some(name));
    tasks
}

fn half_made(host: &TestHost) -> Vec<PathBuf> {
    let entries = fs::read_dir(host.volume("")).unwrap().flatten().map(|entry| entry.path());
    entries.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with(".maru-")).collect()
}

/// Waits until a host's volume has these files and no others.
fn has_only(host: &TestHost, expected: &[&str]) {
    until(&format!("{expected:?} and nothing else"), || (host.files() == expected && half_made(host).is_empty()).then_some(()));
}

#[test]
fn a_vm_that_runs_leaves_a_drained_host_with_its_files_and_goes_on_where_it_was() {
    let (first, second) = cluster();
    let bytes = vec![7; 3 << 20];
    fs::write(second.volume("root.raw"), &bytes).unwrap();
    let mut wanted = spec("web", "");
    wanted["disks"] = json!([{"file": "local:root.raw"}, {"size_bytes": 64 << 20}]);
    let made = second.client().create(&wanted);
    second.client().does("POST /vms/web/start");
    // One that is off leaves, too: without its host nobody has its files.
    with_disk(&second, "off", b"data");
    first.client().post::<Option<Value>>("/hosts/h2/drain").unwrap();
    until("the VM on h1", || is_on(&first.client(), "web", "h1", VmState::Running));
    until("the other one", || is_on(&first.client(), "off", "h1", VmState::Off));
    let content = fs::read(first.volume("root.raw")).unwrap();
    assert_eq!(content[..bytes.len()], bytes);
    let appended = String::from_utf8(content[bytes.len()..].to_vec()).unwrap();
    assert!(appended.trim().parse::<u64>().is_ok(), "its guest has gone on from its memory, once: {appended:?}");
    assert_eq!(fs::read(first.volume("off.raw")).unwrap(), b"data");
    has_only(&second, &["vmlinuz"]);
    has_only(&first, &["off.raw", "root.raw", "vmlinuz", "web/disk1.vhdx"]);
    let task = copies(&first.client(), "web").pop().unwrap();
    let progress = task.progress.unwrap();
    assert_eq!((task.state, task.vm, progress.done), (TaskState::Done, Some(made.id), progress.total));
    assert!(progress.total > bytes.len() as u64, "its memory, too: {progress:?}");
    // What it got there is deleted with it, and the kernel that was there already is not.
    first.client().does("POST /vms/web/stop?force=true");
    first.client().does("DELETE /vms/web?disks=delete");
    first.client().does("DELETE /vms/off?disks=delete");
    has_only(&first, &["vmlinuz"]);
}

#[test]
fn what_is_in_the_way_is_left_alone_and_so_is_the_vm() {
    let (first, second) = cluster();
    with_disk(&second, "web", b"ours");
    fs::write(first.volume("web.raw"), "theirs").unwrap();
    fs::write(first.volume("vmlinuz"), "another kernel").unwrap();
    moved(&second.client(), "web", "h1");
    let failed = || copies(&first.client(), "web").pop().filter(|task| task.state == TaskState::Failed);
    assert_eq!(until("the task to fail", failed).error.unwrap().code, "file-exists");
    assert_eq!(fs::read(first.volume("web.raw")).unwrap(), b"theirs");
    has_only(&second, &["vmlinuz", "web.raw"]);

    // One that runs goes on all the time: it is asked before.
    second.client().does("POST /vms/web/start");
    let pid = second.client().vm("web").pid;
    moved(&second.client(), "web", "h1");
    let told = || {
        let events = first.client().list::<api::Event>("/events").unwrap();
        events.into_iter().find(|event| event.text.contains("goes on here") && event.text.contains("local:web.raw"))
    };
    until("the reason", told);
    assert_eq!(second.client().vm("web").pid, pid);

    fs::remove_file(first.volume("web.raw")).unwrap();
    moved(&second.client(), "web", "h1");
    let vm = until("the VM on h1", || is_on(&first.client(), "web", "h1", VmState::Running));
    assert_eq!(vm.spec.boot.kernel, format!("local:vms/{}/vmlinuz", vm.id), "its own kernel");
    has_only(&second, &["vmlinuz"]);
}

#[test]
fn vms_that_share_an_image_take_it_along_once() {
    let (first, second) = cluster();
    let base = second.directory.path().join("base.vhdx");
    disk::tool::create(&base, &NewDisk { format: Format::Vhdx, size: Some(8 << 20), ..NewDisk::default() }).unwrap();
    fs::rename(&base, second.volume("base.vhdx")).unwrap();
    let client = second.client();
    let wanted = json!({"name": "base", "source": "local:base.vhdx"});
    let task: Task = client.call(Method::POST, "/images", Some(&wanted)).unwrap();
    client.wait(task, |_| {}).unwrap();
    let image: api::Image = client.get("/images/base").unwrap();
    let image = image.file.trim_start_matches("local:").to_owned();
    for name in ["a", "b"] {
        let mut wanted = spec(name, "");
        wanted["disks"] = json!([{"image": "base"}]);
        client.create(&wanted);
    }
    let chain = |name: &str| {
        let path = first.volume(&format!("{name}/disk0.vhdx"));
        let chain = disk::tool::info(&path, AnyFormat::Own(Format::Vhdx)).unwrap();
        chain.into_iter().map(|file| file.path.canonicalize().unwrap()).collect::<Vec<_>>()
    };
    moved(&client, "a", "h1");
    until("a on h1", || is_on(&first.client(), "a", "h1", VmState::Off));
    let files_of =
        |name: &str| [format!("{name}/disk0.vhdx"), image.clone()].map(|file| first.volume(&file).canonicalize().unwrap());
    assert_eq!(chain("a"), files_of("a"));
    let sent = copies(&first.client(), "a").pop().unwrap().progress.unwrap().total;
    has_only(&second, &["b/disk0.vhdx", "base.vhdx", &image, "vmlinuz"]);

    let before = fs::metadata(first.volume(&image)).unwrap().modified().unwrap();
    moved(&client, "b", "h1");
    until("b on h1", || is_on(&first.client(), "b", "h1", VmState::Off));
    assert_eq!(chain("b"), files_of("b"));
    assert_eq!(fs::metadata(first.volume(&image)).unwrap().modified().unwrap(), before);
    println!("sent {sent}, and then {:?}", copies(&first.client(), "b").pop().unwrap().progress);
    // The image itself stays where it was made. What was copied of it goes with the last one that needs it.
    has_only(&second, &["base.vhdx", &image, "vmlinuz"]);
    first.client().does("DELETE /vms/a?disks=delete");
    assert!(first.volume(&image).exists());
    first.client().does("DELETE /vms/b?disks=delete");
    has_only(&first, &["vmlinuz"]);
}

#[test]
fn whichever_host_is_killed_meanwhile_there_is_one_vm_with_its_disk() {
    let (first, mut second) = cluster();
    let bytes: Vec<u8> = (0..LARGE).map(|at| (at / 4096) as u8 | 1).collect();
    with_disk(&first, "web", &bytes);
    // The one that gets it.
    moved(&first.client(), "web", "h2");
    until("files that come", || (!half_made(&second).is_empty()).then_some(()));
    second.kill();
    let failed = || copies(&first.client(), "web").pop().filter(|task| task.state == TaskState::Failed);
    until("the task to fail", failed);
    assert!(is_on(&first.client(), "web", "h1", VmState::Off).is_some());
    second.start();
    has_only(&second, &["vmlinuz"]);
    has_only(&first, &["vmlinuz", "web.raw"]);

    moved(&first.client(), "web", "h2");
    until("the VM on h2", || is_on(&first.client(), "web", "h2", VmState::Off));
    assert!(fs::read(second.volume("web.raw")).unwrap() == bytes);
    has_only(&first, &["vmlinuz"]);

    // The one that has it. It goes on when it is back.
    moved(&first.client(), "web", "h1");
    until("files that come", || (!half_made(&first).is_empty()).then_some(()));
    second.kill();
    until("half of them to be removed", || half_made(&first).is_empty().then_some(()));
    assert_eq!(first.files(), ["vmlinuz"]);
    second.start();
    until("the VM on h1", || is_on(&first.client(), "web", "h1", VmState::Off));
    assert!(fs::read(first.volume("web.raw")).unwrap() == bytes);
    has_only(&second, &["vmlinuz"]);
}

#[test]
fn a_copy_that_is_cancelled_leaves_nothing() {
    let (first, second) = cluster();
    with_disk(&first, "web", &vec![1; LARGE]);
    moved(&first.client(), "web", "h2");
    until("files that come", || (!half_made(&second).is_empty()).then_some(()));
    let task = copies(&first.client(), "web").pop().unwrap();
    let asked = first.client().post::<Task>(&format!("/tasks/{}/cancel?wait=60", task.id)).unwrap();
    assert_eq!(asked.state, TaskState::Cancelled);
    has_only(&second, &["vmlinuz"]);
    has_only(&first, &["vmlinuz", "web.raw"]);
    assert!(is_on(&first.client(), "web", "h1", VmState::Off).is_some());
}

#[test]
fn only_the_host_that_has_a_vm_is_heard_when_it_is_to_go() {
    let (first, second) = cluster();
    let vm = with_disk(&second, "web", b"data");
    let asked =
        json!({"vm": vm.id, "sizes": [{"bytes": 0, "allocated": 0}, {"bytes": 4, "allocated": 4}], "more": 0, "compare": true});
    let plan = |host: Option<&TestHost>| first.answer_to(host, "POST", "/copies", &asked.to_string());
    let code = |answer: (u16, String)| (answer.0, serde_json::from_str::<api::Error>(&answer.1).unwrap().code);
    assert_eq!(code(plan(None)), (403, "no-host".into()));
    // A token is no certificate.
    let body = asked.to_string();
    let json = ("content-type", "application/json");
    assert_eq!(first.client().refusal("POST", "/copies", &[json], body.as_bytes()), (403, "no-host".into()));
    // The VM is not to go anywhere.
    assert_eq!(code(plan(Some(&second))), (409, "called-off".into()));
    let path = format!("/copies/{}", uuid::Uuid::new_v4());
    assert_eq!(code(first.answer_to(None, "PUT", &path, "")), (403, "no-host".into()));
    assert_eq!(code(first.answer_to(Some(&second), "PUT", &path, "")), (404, "not-found".into()));
    assert_eq!(code(first.answer_to(Some(&second), "PUT", "/copies/..", "")), (403, "no-host".into()));
    has_only(&first, &["vmlinuz"]);
}
