//! The rest of a VM's life as clients of `marud` see it, with fake monitors: clones, exports, changes.

mod support;

use std::fs;

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
    assert_eq!(host.files(), ["root.raw", "vmlinuz", "web3/disk0.raw"]);
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
        assert_eq!(host.files(), ["root.raw", "vmlinuz"], "round {round}: {task:?}");
        let left: Vec<_> = fs::read_dir(host.volume("")).unwrap().flatten().map(|entry| entry.file_name()).collect();
        assert_eq!(left.len(), 2, "{left:?}");
    }
}

/// Patches the VM `web`, and waits for the task's end.
fn patched(client: &Client, patch: &Value) -> api::Task {
    let task: api::Task = client.patch("/vms/web", "*", patch).unwrap();
    client.wait(task, |_| {}).unwrap_or_else(|error| panic!("{patch}: {error}"))
}

fn patch_refusal(client: &Client, patch: &Value) -> (u16, String) {
    client.refusal("PATCH", "/vms/web", &[JSON], &serde_json::to_vec(patch).unwrap())
}

/// What the monitor of a VM that runs is told that it is.
fn monitored(host: &TestHost, vm: &api::Vm) -> (vmm::config::VmConfig, vmm::control::Status) {
    let socket = host.directory.path().join(format!("run/vms/{}/control", vm.id));
    let mut monitor = vmm::control::Client::connect(&socket).unwrap();
    (monitor.call(&vmm::control::Request::Config, &[]).unwrap(), monitor.call(&vmm::control::Request::Status, &[]).unwrap())
}

#[test]
fn disks_are_made_with_their_vm_grown_and_deleted_with_it() {
    let host = TestHost::new();
    let client = host.client();
    let mut wanted = spec("web", "");
    wanted["disks"] = json!([{"size_bytes": 1 << 30}, {"size_bytes": 1 << 20, "file": "local:data.raw"}]);
    let vm = client.create(&wanted);
    assert_eq!(vm.spec.disks[0].file, "local:web/disk0.vhdx");
    assert_eq!(host.files(), ["data.raw", "vmlinuz", "web/disk0.vhdx"]);
    assert_eq!(fs::metadata(host.volume("data.raw")).unwrap().len(), 1 << 20);
    // A name that is taken, or a file that is there, makes nothing.
    let create = |wanted: &Value| refusal(&client, "/vms", wanted);
    assert_eq!(create(&wanted), (409, "name-taken".into()));
    wanted["name"] = "other".into();
    assert_eq!(create(&wanted), (409, "disk-in-use".into()));
    wanted["disks"] = json!([{"size_bytes": 1 << 20, "file": "local:vmlinuz"}]);
    assert_eq!(create(&wanted), (409, "file-exists".into()));
    wanted["disks"] = json!([{"size_bytes": 1}]);
    assert_eq!(create(&wanted).0, 422);
    wanted["disks"] = json!([{}]);
    assert_eq!(create(&wanted), (422, "bad-file".into()));
    patched(&client, &json!({"disks": [{"id": "disk0"}, {"id": "disk1", "size_bytes": 2 << 20}, {"size_bytes": 1 << 20}]}));
    assert_eq!(fs::metadata(host.volume("data.raw")).unwrap().len(), 2 << 20);
    assert_eq!(host.files(), ["data.raw", "vmlinuz", "web/disk0.vhdx", "web/disk2.vhdx"]);
    let smaller = json!({"disks": [{"id": "disk1", "size_bytes": 512}]});
    let task: api::Task = client.patch("/vms/web?wait=20", "*", &smaller).unwrap();
    assert_eq!((task.state, task.error.unwrap().code), (TaskState::Failed, "disk".into()));
    assert_eq!(client.vm("web").spec.disks.len(), 3, "nothing of it is done");
    client.does("DELETE /vms/web?disks=delete");
    assert_eq!(host.files(), ["vmlinuz"]);
    assert!(!host.volume("web").exists());
}

#[test]
fn a_deletion_that_ended_between_a_disk_and_its_directory_is_finished() {
    let host = TestHost::new();
    let client = host.client();
    let mut wanted = spec("web", "");
    wanted["disks"] = json!([{"size_bytes": 1 << 30}]);
    client.create(&wanted);
    // As far as a kill can let it get.
    fs::remove_file(host.volume("web/disk0.vhdx")).unwrap();
    client.does("DELETE /vms/web?disks=delete");
    assert!(!host.volume("web").exists());
}

#[test]
fn a_vm_that_is_off_can_be_changed_in_everything() {
    let host = TestHost::new();
    let client = host.client();
    let before = with_disk(&host, &client, b"");
    client.create(&spec("other", ""));
    let (_, tag): (api::Vm, String) = client.get_tagged("/vms/web").unwrap();
    patched(
        &client,
        &json!({"cpus": 3, "memory_bytes": 128 << 20, "boot": {"command_line": "x"}, "disks": null, "balloon": true}),
    );
    let after = client.vm("web").spec;
    assert_eq!((after.cpus, after.memory_bytes, after.boot.command_line.as_str(), after.balloon), (3, 128 << 20, "x", true));
    assert_eq!((after.disks.len(), &after.nets), (0, &before.spec.nets), "what was not named stays");
    let refused = client.refusal("PATCH", "/vms/web", &[JSON, ("if-match", &tag)], b"{}");
    assert_eq!(refused, (412, "changed".into()));
    assert_eq!(patch_refusal(&client, &json!({"cpus": 0})), (422, "bad-vm".into()));
    assert_eq!(patch_refusal(&client, &json!({"memroy": 1})), (422, "bad-body".into()));
    assert_eq!(patch_refusal(&client, &json!([])), (422, "bad-body".into()));
    assert_eq!(patch_refusal(&client, &json!({"memory_bytes": 1_u64 << 60})), (422, "no-memory".into()));
    assert_eq!(patch_refusal(&client, &json!({"name": "other"})), (409, "name-taken".into()));
    patched(&client, &json!({"name": "www"}));
    assert_eq!(client.vm("www").id, before.id);
    assert_eq!(client.refusal("GET", "/vms/web", &[], b""), (404, "not-found".into()));
    client.create(&spec("web", ""));
}

#[test]
fn a_vm_that_runs_is_changed_at_once_or_not_at_all() {
    let host = TestHost::new();
    let client = host.client();
    fs::write(host.volume("root.raw"), [0; 4096]).unwrap();
    let mut wanted = spec("web", "");
    wanted["max_cpus"] = 4.into();
    wanted["max_memory_bytes"] = (256 << 20).into();
    wanted["balloon"] = true.into();
    wanted["balloon_bytes"] = (2 << 20).into();
    wanted["disks"] = json!([{"file": "local:root.raw"}]);
    let vm = client.create(&wanted);
    client.does("POST /vms/web/start");
    let (config, status) = monitored(&host, &vm);
    assert_eq!((config.memory.hotplug_size, config.cpus.max, status.balloon), (192 << 20, 4, 2 << 20));
    patched(
        &client,
        &json!({"cpus": 3, "memory_bytes": 128 << 20, "balloon_bytes": 0, "disks": [{"id": "disk0", "size_bytes": 8192}, {"size_bytes": 1 << 20}]}),
    );
    let (config, status) = monitored(&host, &vm);
    assert_eq!((config.cpus.count, status.hotplug_memory, status.balloon), (3, 64 << 20, 0));
    assert_eq!(config.disks.iter().map(|disk| disk.id.as_str()).collect::<Vec<_>>(), ["disk0", "disk1"]);
    assert!(host.volume("web/disk1.vhdx").exists());
    let spec = client.vm("web").spec;
    assert_eq!((spec.cpus, spec.memory_bytes, spec.disks.len()), (3, 128 << 20, 2));
    patched(&client, &json!({"disks": [{"id": "disk0"}]}));
    assert_eq!(monitored(&host, &vm).0.disks.len(), 1);
    assert!(host.volume("web/disk1.vhdx").exists(), "its file stays");
    // With all that it may have, and with fewer again: how many it may have stays.
    for cpus in [4, 1, 2] {
        patched(&client, &json!({ "cpus": cpus }));
        let (config, _) = monitored(&host, &vm);
        assert_eq!((config.cpus.count, config.cpus.max, client.vm("web").spec.max_cpus.unwrap_or(cpus)), (cpus, 4, 4));
    }
    // What cannot be done is refused with everything beside it.
    for refused in [
        json!({"cpus": 5, "max_cpus": 5}),
        json!({"memory_bytes": 512 << 20, "max_memory_bytes": null}),
        json!({"boot": {"kernel": "local:root.raw"}}),
        json!({"balloon": false}),
        json!({"disks": [{"id": "disk0", "read_only": true}]}),
    ] {
        let mut all = json!({"name": "www"});
        all.as_object_mut().unwrap().extend(refused.as_object().unwrap().clone());
        assert_eq!(patch_refusal(&client, &all), (409, "vm-running".into()), "{refused}");
    }
    // A TAP that is not there is found before anything is done; a disk that does not grow, behind the new one, which goes again.
    for (patch, code) in [
        (json!({"nets": [{"tap": "no-such-tap"}], "disks": [{"id": "disk0"}, {"size_bytes": 1 << 20}]}), "tap"),
        (json!({"disks": [{"id": "disk0", "size_bytes": 1}, {"size_bytes": 1 << 20}]}), "monitor"),
    ] {
        let task: api::Task = client.patch("/vms/web?wait=20", "*", &patch).unwrap();
        assert_eq!((task.state, task.error.unwrap().code.as_str()), (TaskState::Failed, code));
        assert_eq!((monitored(&host, &vm).0.disks.len(), client.vm("web").spec.disks.len()), (1, 1));
        assert_eq!(host.files(), ["root.raw", "vmlinuz", "web/disk1.vhdx"]);
    }
    patched(&client, &json!({"name": "www"}));
    assert_eq!(client.vm("www").state, VmState::Running);
}

#[test]
fn a_guest_that_keeps_a_device_can_be_waited_for_given_up_and_stopped() {
    let host = TestHost::new();
    let client = host.client();
    fs::write(host.volume("root.raw"), "").unwrap();
    let mut wanted = spec("web", "fake=keeps");
    wanted["disks"] = json!([{"file": "local:root.raw"}]);
    client.create(&wanted);
    client.does("POST /vms/web/start");
    let asked = || fs::read_to_string(host.volume("root.raw")).unwrap().matches("asked").count();
    let removing = || -> api::Task {
        let before = asked();
        let task = client.patch("/vms/web", "*", &json!({"disks": []})).unwrap();
        until("the guest is asked for the disk", || (asked() > before).then_some(()));
        task
    };
    let task = removing();
    client.does("POST /vms/web/pause");
    client.does("POST /vms/web/resume");
    let task: api::Task = client.post(&format!("/tasks/{}/cancel?wait=20", task.id)).unwrap();
    assert_eq!((task.state, client.vm("web").spec.disks.len()), (TaskState::Cancelled, 1));
    let task = removing();
    client.does("POST /vms/web/stop?force=true");
    let task: api::Task = client.get(&format!("/tasks/{}?wait=20", task.id)).unwrap();
    assert_eq!((task.state, task.error.unwrap().code), (TaskState::Failed, "vm-ended".into()));
    assert_eq!(client.vm("web").spec.disks.len(), 1);
    patched(&client, &json!({"disks": []}));
}

#[test]
fn a_change_that_marud_was_killed_in_is_done_afterwards_once() {
    let mut host = TestHost::new();
    let vm = host.client().create(&spec("web", ""));
    host.client().does("POST /vms/web/start");
    for round in 0..30_u64 {
        let client = host.client();
        // In turns one disk more and none.
        let patch = if round % 2 == 0 { json!({"disks": [{"size_bytes": 1 << 20}]}) } else { json!({"disks": []}) };
        let task: api::Task = client.patch("/vms/web", "*", &patch).unwrap();
        std::thread::sleep(std::time::Duration::from_micros(round * 733 % 12_000));
        host.kill();
        host.start();
        let client = host.client();
        let task = client.wait(client.get(&format!("/tasks/{}", task.id)).unwrap(), |_| {}).unwrap();
        let spec = client.vm("web").spec;
        let monitored: Vec<String> = monitored(&host, &vm).0.disks.into_iter().map(|disk| disk.id).collect();
        let known: Vec<String> = spec.disks.iter().filter_map(|disk| disk.id.clone()).collect();
        let expected = usize::from(round % 2 == 0);
        assert_eq!((task.state, known.len(), &monitored), (TaskState::Done, expected, &known), "round {round}");
        if let Some(disk) = spec.disks.first() {
            let file = host.volume(disk.file.strip_prefix("local:").unwrap());
            assert!(file.exists(), "round {round}");
        } else {
            for file in fs::read_dir(host.volume("web")).into_iter().flatten().flatten() {
                fs::remove_file(file.path()).unwrap();
            }
        }
        let hidden =
            fs::read_dir(host.volume("")).unwrap().flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with('.'));
        assert_eq!(hidden.count(), 0, "round {round}");
    }
}

/// What a disk of a VM holds at its beginning, through its whole chain.
fn first_sector(host: &TestHost, file: &str) -> Vec<u8> {
    use disk::tool::{self, AnyFormat, Existing, Job, NewDisk};
    let path = host.volume(file.strip_prefix("local:").unwrap());
    let raw = tempfile::tempdir().unwrap();
    let to = raw.path().join("disk.raw");
    let new = NewDisk { format: disk::Format::Raw, ..NewDisk::default() };
    tool::convert((&path, AnyFormat::Own(disk::Format::Vhdx)), &to, &new, Existing::Keep, &Job::default()).unwrap();
    fs::read(to).unwrap()[..512].to_vec()
}

/// A VM `web` with one VHDX disk that begins with these bytes.
fn with_image(host: &TestHost, client: &Client, byte: u8) -> api::Vm {
    use disk::tool::{self, AnyFormat, Existing, Job, NewDisk};
    let raw = tempfile::NamedTempFile::new().unwrap();
    fs::write(raw.path(), vec![byte; 1 << 20]).unwrap();
    let new = NewDisk { format: disk::Format::Vhdx, ..NewDisk::default() };
    let from = (raw.path(), AnyFormat::Own(disk::Format::Raw));
    tool::convert(from, &host.volume("root.vhdx"), &new, Existing::Keep, &Job::default()).unwrap();
    let mut wanted = spec("web", "");
    wanted["disks"] = json!([{"file": "local:root.vhdx"}]);
    wanted["nets"] = json!([{"tap": "tap0"}]);
    client.create(&wanted)
}

#[test]
fn linked_clones_share_what_their_source_was_and_nobody_may_change_that() {
    let host = TestHost::new();
    let client = host.client();
    with_image(&host, &client, 7);
    posted(&client, "/vms/web/clone", &json!({"name": "a", "linked": true}));
    posted(&client, "/vms/web/clone", &json!({"name": "b", "linked": true}));
    posted(&client, "/vms/a/clone", &json!({"name": "c", "linked": true}));
    let file = |name: &str| client.vm(name).spec.disks[0].file.clone();
    assert_ne!(file("web"), "local:root.vhdx", "it goes on in a child, too");
    for name in ["web", "a", "b", "c"] {
        assert_eq!(first_sector(&host, &file(name)), [7; 512], "{name}");
        client.does(&format!("POST /vms/{name}/start"));
        client.does(&format!("POST /vms/{name}/stop"));
    }
    let mut thief = spec("thief", "");
    thief["disks"] = json!([{"file": "local:root.vhdx"}]);
    assert_eq!(refusal(&client, "/vms", &thief), (409, "disk-in-use".into()));
    thief["disks"] = json!([{"file": "local:root.vhdx", "read_only": true}]);
    client.create(&thief);
    client.does("DELETE /vms/thief?disks=keep");
    // What is shared goes with the last one.
    for name in ["web", "a", "b"] {
        client.does(&format!("DELETE /vms/{name}?disks=delete"));
        assert!(host.volume("root.vhdx").exists());
        assert_eq!(first_sector(&host, &file("c")), [7; 512], "without {name}");
    }
    client.does("DELETE /vms/c?disks=delete");
    assert_eq!(host.files(), ["vmlinuz"]);
    with_disk(&host, &client, &[0; 4096]);
    let wanted = json!({"name": "x", "linked": true});
    let task: api::Task = client.call("POST".parse().unwrap(), "/vms/web/clone?wait=20", Some(&wanted)).unwrap();
    assert!(task.error.unwrap().message.contains("is raw"));
}

#[test]
fn a_vm_goes_out_to_a_directory_and_comes_back() {
    let host = TestHost::new();
    let client = host.client();
    fs::write(host.volume("vmlinuz"), "a kernel").unwrap();
    let source = with_image(&host, &client, 9);
    // A chain becomes one file.
    posted(&client, "/vms/web/clone", &json!({"name": "linked", "linked": true}));
    posted(&client, "/vms/linked/export", &json!({"to": "local:out/web"}));
    assert_eq!(refusal(&client, "/vms/web/export", &json!({"to": "local:out/web"})), (409, "file-exists".into()));
    for name in ["web", "linked"] {
        client.does(&format!("DELETE /vms/{name}?disks=delete"));
    }
    let exported = ["out/web/disk-disk0.vhdx", "out/web/kernel", "out/web/manifest.json", "vmlinuz"];
    assert_eq!(host.files(), exported);
    let task = posted(&client, "/vms/import", &json!({"from": "local:out/web", "name": "back"}));
    let back = client.vm("back");
    assert_eq!((task.makes, back.state), (Some(back.id), VmState::Off));
    assert_ne!(back.id, source.id);
    assert_eq!(first_sector(&host, &back.spec.disks[0].file), [9; 512]);
    assert_eq!(fs::read(host.volume("back/kernel")).unwrap(), b"a kernel");
    client.does("POST /vms/back/start");
    client.does("POST /vms/back/stop");
    // A second one gets addresses of its own.
    posted(&client, "/vms/import", &json!({"from": "local:out/web", "name": "again"}));
    assert_ne!(client.vm("again").spec.nets[0].mac, back.spec.nets[0].mac);
    assert_eq!(refusal(&client, "/vms/import", &json!({"from": "local:out/web", "name": "again"})), (409, "name-taken".into()));
    for name in ["back", "again"] {
        client.does(&format!("DELETE /vms/{name}?disks=delete"));
    }
    assert_eq!(host.files(), exported);
    // In place; and then its disk is someone's.
    posted(&client, "/vms/import", &json!({"from": "local:out/web", "name": "there", "mode": "register"}));
    assert_eq!(client.vm("there").spec.disks[0].file, "local:out/web/disk-disk0.vhdx");
    let again = json!({"from": "local:out/web", "name": "more", "mode": "register"});
    assert_eq!(refusal(&client, "/vms/import", &again), (409, "disk-in-use".into()));
    client.does("DELETE /vms/there?disks=keep");

    // What is not what was exported is refused, and nothing is left.
    let import = json!({"from": "local:out/web", "name": "bad"});
    let kernel = host.volume("out/web/kernel");
    fs::write(&kernel, "A kernel").unwrap();
    let task: api::Task = client.call("POST".parse().unwrap(), "/vms/import?wait=20", Some(&import)).unwrap();
    assert_eq!((task.state, task.error.unwrap().code), (TaskState::Failed, "bad-import".into()));
    fs::write(&kernel, "a longer kernel").unwrap();
    assert_eq!(refusal(&client, "/vms/import", &import), (422, "bad-import".into()));
    fs::remove_file(&kernel).unwrap();
    assert_eq!(refusal(&client, "/vms/import", &import), (422, "no-file".into()));
    fs::write(&kernel, "a kernel").unwrap();
    let manifest = host.volume("out/web/manifest.json");
    let good = fs::read_to_string(&manifest).unwrap();
    for bad in [
        good.replace("\"version\": 1", "\"version\": 2"),
        good.replace("maru-vm", "other"),
        good.replace("\"name\": \"kernel\"", "\"name\": \"../../vmlinuz\""),
        good[..good.len() / 2].into(),
        " ".repeat(2 << 20),
    ] {
        fs::write(&manifest, bad).unwrap();
        assert_eq!(refusal(&client, "/vms/import", &import), (422, "bad-import".into()));
    }
    fs::write(&manifest, good).unwrap();
    assert_eq!(host.files(), exported);
    assert!(client.list::<api::Vm>("/vms").unwrap().is_empty());
}

#[test]
fn exports_and_imports_that_are_cancelled_or_killed_are_whole_or_not_there() {
    let mut host = TestHost::new();
    let client = host.client();
    let source = fs::File::create(host.volume("root.raw")).unwrap();
    source.set_len(200 << 20).unwrap();
    drop(source);
    let mut wanted = spec("web", "");
    wanted["disks"] = json!([{"file": "local:root.raw"}]);
    client.create(&wanted);
    posted(&client, "/vms/web/export", &json!({"to": "local:whole"}));
    let before = host.files();
    for round in 0..16_u64 {
        let client = host.client();
        let (path, body) = match round % 2 {
            0 => ("/vms/web/export", json!({"to": "local:out"})),
            _ => ("/vms/import", json!({"from": "local:whole", "name": "copy"})),
        };
        let task: api::Task = client.call("POST".parse().unwrap(), path, Some(&body)).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(round * 17 % 150));
        if round % 4 < 2 {
            let _ = client.send("POST".parse().unwrap(), &format!("/tasks/{}/cancel", task.id), &[], b"").unwrap();
        }
        host.kill();
        host.start();
        let client = host.client();
        let task = until("its end", || {
            let task: api::Task = client.get(&format!("/tasks/{}?wait=20", task.id)).unwrap();
            task.state.is_final().then_some(task)
        });
        let done = task.state == TaskState::Done;
        match round % 2 {
            0 => {
                assert_eq!(host.volume("out").exists(), done, "round {round}: {task:?}");
                if done {
                    assert!(host.volume("out/manifest.json").exists());
                    fs::remove_dir_all(host.volume("out")).unwrap();
                }
            }
            _ => {
                assert_eq!(client.list::<api::Vm>("/vms").unwrap().len() == 2, done, "round {round}: {task:?}");
                if done {
                    client.does("DELETE /vms/copy?disks=delete");
                }
            }
        }
        assert_eq!(host.files(), before, "round {round}: {task:?}");
    }
}

#[test]
fn vms_start_with_their_host_in_their_order_once() {
    let mut host = TestHost::new();
    let client = host.client();
    let create = |name: &str, auto_start: Value| {
        let mut wanted = spec(name, "");
        wanted["auto_start"] = auto_start;
        client.create(&wanted);
    };
    create("always2", json!({"policy": "always", "order": 2}));
    create("always1", json!({"policy": "always", "order": 1}));
    create("ran", json!({"policy": "if-it-ran", "order": 3, "delay_seconds": 1}));
    create("ran-not", json!({"policy": "if-it-ran"}));
    create("never", json!({}));
    client.does("POST /vms/ran/start");
    client.does("POST /vms/never/start");
    let mut wanted = spec("late", "");
    wanted["auto_start"] = json!({"delay_seconds": 100_000});
    assert_eq!(refusal(&client, "/vms", &wanted), (422, "bad-vm".into()));
    host.reboot();
    // A marud that is killed meanwhile starts nobody twice, and nobody less.
    host.kill();
    host.start();
    let client = host.client();
    let states = ["always1", "always2", "ran", "ran-not", "never"];
    let expected = [VmState::Running, VmState::Running, VmState::Running, VmState::Off, VmState::Off];
    until("those that start with their host", || (states.map(|name| client.vm(name).state) == expected).then_some(()));
    let events = client.list::<api::Event>("/events").unwrap();
    let started: Vec<_> = events.iter().filter(|event| event.kind == api::EventKind::VmAutoStart).collect();
    let names: Vec<_> = started.iter().filter_map(|event| event.vm_name.as_deref()).collect();
    assert_eq!(names, ["always1", "always2", "ran"]);
    let booted = events.iter().filter(|event| event.kind == api::EventKind::HostStarted).nth(1).unwrap();
    assert!(started[2].at - booted.at >= time::Duration::SECOND, "its delay");
    client.does("POST /vms/always1/stop");
    host.kill();
    host.start();
    let client = host.client();
    until("all VMs were looked at", || {
        client.list::<api::Vm>("/vms").unwrap().iter().all(|vm| vm.state != VmState::Unknown).then_some(())
    });
    assert_eq!(client.vm("always1").state, VmState::Off, "that was marud, not the host");
}
