//! How much of the host VMs may have, with fake monitors.

mod support;

use std::fs;

use api::TaskState;
use api::client::Client;
use serde_json::{Value, json};
use support::{Asking, TestHost, end, spec, until};
use vmm::config::VmConfig;
use vmm::control::{Client as Control, Request};

const JSON: (&str, &str) = ("content-type", "application/json");

fn patch(client: &Client, vm: &str, change: &Value) -> api::Task {
    client.call("PATCH".parse().unwrap(), &format!("/vms/{vm}/resources?wait=20"), Some(change)).unwrap()
}

/// What a VM's monitor was told.
fn told(host: &TestHost, vm: &api::Vm) -> VmConfig {
    let socket = host.directory.path().join(format!("run/vms/{}/control", vm.id));
    Control::connect(&socket).unwrap().call(&Request::Config, &[]).unwrap()
}

fn iops(config: &VmConfig) -> Option<u64> {
    config.disks[0].limits.iops.map(|rate| rate.per_second.get())
}

#[test]
fn limits_hold_at_start_change_while_it_runs_and_stay() {
    let mut host = TestHost::new();
    let client = host.client();
    fs::write(host.volume("root.raw"), [0; 4096]).unwrap();
    let mut wanted = spec("web", "");
    wanted["disks"] = json!([{"file": "local:root.raw"}]);
    wanted["nets"] = json!([{"tap": "tap0"}]);
    wanted["resources"] = json!({"disks": {"disk0": {"iops": {"per_second": 500}}}});
    let vm = client.create(&wanted);
    client.does("POST /vms/web/start");
    assert_eq!(iops(&told(&host, &vm)), Some(500));

    let change = json!({"disks": {"disk0": {"iops": {"per_second": 700, "burst": {"per_second": 900, "seconds": 5}}}},
        "nets": {"net0": {"transmit": {"per_second": 1000}}}});
    assert_eq!(patch(&client, "web", &change).state, TaskState::Done);
    let config = told(&host, &vm);
    assert_eq!((iops(&config), config.nets[0].limits.transmit.map(|rate| rate.per_second.get())), (Some(700), Some(1000)));
    assert_eq!(client.vm("web").spec.resources.disks["disk0"].iops.unwrap().burst.unwrap().seconds, 5);

    // What the monitor refuses is not done, and nothing of it stays.
    let refused = patch(&client, "web", &json!({"nets": null, "disks": {"disk0": {"iops": {"per_second": 13, "burst": null}}}}));
    assert_eq!((refused.state, refused.error.unwrap().code), (TaskState::Failed, "monitor".into()));
    let config = told(&host, &vm);
    assert!(iops(&config) == Some(700) && config.nets[0].limits.transmit.is_some());

    host.kill();
    host.start();
    let client = host.client();
    until("the VM was found", || (client.vm("web").state == api::VmState::Running).then_some(()));
    client.does("POST /vms/web/stop");
    client.does("POST /vms/web/start");
    assert_eq!(iops(&told(&host, &vm)), Some(700));
    let put = json!({"cpu_weight": 100});
    let task: api::Task = client.call("PUT".parse().unwrap(), "/vms/web/resources?wait=20", Some(&put)).unwrap();
    assert_eq!((task.state, iops(&told(&host, &vm))), (TaskState::Done, None));
    assert_eq!(client.get::<api::Resources>("/vms/web/resources").unwrap(), api::Resources::default());
}

#[test]
fn what_makes_no_sense_or_cannot_be_kept_here_is_refused() {
    let host = TestHost::new();
    let client = host.client();
    client.create(&spec("web", ""));
    let refused = |method: &str, change: Value| {
        let (status, code) = client.refusal(method, "/vms/web/resources", &[JSON], &serde_json::to_vec(&change).unwrap());
        format!("{status} {code}")
    };
    assert_eq!(refused("PATCH", json!({"cpu_weight": 0})), "422 bad-resources");
    assert_eq!(refused("PATCH", json!({"cpu_wieght": 1})), "422 bad-resources");
    assert_eq!(refused("PATCH", json!(null)), "422 bad-resources");
    assert_eq!(refused("PUT", json!({"cpu_wieght": 1})), "422 bad-body");
    assert_eq!(refused("PATCH", json!({"cpu_cap_percent": 50, "cpu_reserve_percent": 60})), "422 bad-resources");
    assert_eq!(refused("PATCH", json!({"disks": {"disk9": {"iops": {"per_second": 1}}}})), "422 bad-resources");
    // There are no control groups in this test.
    assert_eq!(patch(&client, "web", &json!({"cpu_cap_percent": 50})).state, TaskState::Done, "it is off");
    let task: api::Task = client.post("/vms/web/start?wait=20").unwrap();
    assert_eq!(task.error.unwrap().code, "no-cgroups");
}

#[test]
fn a_vm_for_which_there_is_not_enough_memory_is_not_started() {
    let host = TestHost::with_options(&["--memory-overcommit", "100"]);
    let client = host.client();
    let total = client.get::<api::HostInfo>("/host").unwrap().memory_bytes;
    let step = 2 << 20;
    let big = |name: &str| {
        let mut wanted = spec(name, "");
        wanted["memory_bytes"] = (total * 6 / 10 / step * step).into();
        client.create(&wanted)
    };
    big("a");
    big("b");
    client.does("POST /vms/a/start");
    let task: api::Task = client.post("/vms/b/start?wait=20").unwrap();
    let error = task.error.unwrap();
    let needs = format!("'b' needs {} MiB", (total * 6 / 10 / step * step) >> 20);
    assert!(error.code == "no-memory" && error.message.contains(&needs), "{error}");
    client.does("POST /vms/a/stop");
    client.does("POST /vms/b/start");
}

#[test]
fn what_a_vm_uses_adds_up_over_restarts_of_marud_and_of_the_vm() {
    let mut host = TestHost::new();
    let client = host.client();
    fs::write(host.volume("root.raw"), [0; 4096]).unwrap();
    let mut wanted = spec("web", "");
    wanted["disks"] = json!([{"file": "local:root.raw"}]);
    let vm = client.create(&wanted);
    assert_eq!(client.get::<api::Usage>("/vms/web/usage").unwrap().disk_writes, 0);
    client.does("POST /vms/web/start");
    let socket = host.directory.path().join(format!("run/vms/{}/control", vm.id));
    // The fake disks write once for each look at them.
    let raw = || {
        let status: vmm::control::Status = Control::connect(&socket).unwrap().call(&Request::Status, &[]).unwrap();
        status.devices[0].counters["writes"]
    };
    let writes = |client: &Client| client.get::<api::Usage>("/vms/web/usage").unwrap().disk_writes;
    let between = |(from, to): (u64, u64), used: u64| assert!((from + 1..=to).contains(&used), "{used} not in {from}..={to}");
    let look = |client: &Client| {
        let before = raw();
        let used = writes(client);
        ((before, raw()), used)
    };
    let (range, used) = look(&client);
    between(range, used);
    host.kill();
    // Nobody counts, and it goes on.
    let before = raw();
    for _ in 0..5 {
        raw();
    }
    host.start();
    let client = host.client();
    until("the VM was found", || (client.vm("web").state == api::VmState::Running).then_some(()));
    let (range, used) = look(&client);
    between(range, used);
    assert!(used > before + 5);

    client.does("POST /vms/web/stop");
    let first = writes(&client);
    assert!((used + 100..used + 110).contains(&first), "the last counters count, {used} {first}");
    client.does("POST /vms/web/start");
    let ((from, to), used) = look(&client);
    between((first + from, first + to), used);
    // Killed monitors have no last words.
    end(client.vm("web").pid.unwrap());
    until("it is off", || (client.vm("web").state == api::VmState::Off).then_some(()));
    let second = writes(&client);
    assert!((used..=first + to + 1).contains(&second), "{used} {second}");
    host.kill();
    host.start();
    let client = host.client();
    until("it was looked at", || (client.vm("web").state == api::VmState::Off).then_some(()));
    assert_eq!(writes(&client), second);
    let list: Vec<api::Usage> = client.list("/usage").unwrap();
    assert!(list[0].disk_written_bytes == 4096 * second && list[0].vm_name == "web" && list[0].memory_peak_bytes > 0, "{list:?}");

    client.does("POST /vms/web/usage/reset");
    let usage: api::Usage = client.get("/vms/web/usage").unwrap();
    assert!(usage.disk_writes == 0 && usage.since > list[0].since);
    client.does("DELETE /vms/web?disks=keep");
    let again = client.create(&wanted);
    assert_eq!(client.get::<api::Usage>(&format!("/vms/{}/usage", again.id)).unwrap().disk_writes, 0);
}

/// Waits for an event of a kind that says this, behind so many others, and returns its text.
fn told_of(client: &Client, kind: api::EventKind, what: &str, after: usize) -> String {
    until(&format!("{kind:?}"), || {
        let events = client.list::<api::Event>("/events").unwrap();
        events.into_iter().skip(after).find(|event| event.kind == kind && event.text.contains(what)).map(|event| event.text)
    })
}

#[test]
fn a_vm_that_waits_for_space_goes_on_and_one_that_was_paused_does_not() {
    let mut host = TestHost::new();
    let client = host.client();
    fs::write(host.volume("root.raw"), [0; 4096]).unwrap();
    let mut wanted = spec("web", "");
    wanted["disks"] = json!([{"file": "local:root.raw"}]);
    client.create(&wanted);
    client.does("POST /vms/web/start");
    // The fake pretends that the volume was full, and it is not: what was free at that moment is not enough to go on. After a restart,
    // nobody knows what was free then, and it is tried.
    patch(&client, "web", &json!({"disks": {"disk0": {"iops": {"per_second": 14}}}}));
    let alarm = told_of(&client, api::EventKind::VmAlarm, "", 0);
    assert!(alarm.contains("the VM is paused: no space is left; it goes on when there is more"), "{alarm}");
    assert_eq!(client.vm("web").state, api::VmState::Paused);
    host.kill();
    host.start();
    let client = host.client();
    let text = told_of(&client, api::EventKind::VmResumed, "", 0);
    assert!(text.contains("the volume local has space again"), "{text}");
    until("it goes on", || (client.vm("web").state == api::VmState::Running).then_some(()));

    // Paused by someone, it stays paused.
    patch(&client, "web", &json!({"disks": null}));
    patch(&client, "web", &json!({"disks": {"disk0": {"iops": {"per_second": 14}}}}));
    until("it is paused", || (client.vm("web").state == api::VmState::Paused).then_some(()));
    client.does("POST /vms/web/pause");
    let before = client.list::<api::Event>("/events").unwrap().len();
    host.kill();
    host.start();
    let client = host.client();
    told_of(&client, api::EventKind::VmAdopted, "", before);
    // Its owner would have looked for space before it answered all of these.
    for _ in 0..20 {
        client.get::<api::Usage>("/vms/web/usage").unwrap();
        assert_eq!(client.vm("web").state, api::VmState::Paused);
    }
}

#[test]
fn volumes_are_made_accounted_for_and_given_up() {
    let mut host = TestHost::new();
    let client = host.client();
    let place = host.directory.path().join("big");
    fs::create_dir_all(place.join("web")).unwrap();
    fs::create_dir(host.directory.path().join("low")).unwrap();
    let create = |body: &Value| client.call::<api::Volume>("POST".parse().unwrap(), "/volumes", Some(body));
    let made = create(&json!({"name": "big", "path": place, "warning_percent": 50})).unwrap();
    assert!(made.managed && made.total_bytes > 0 && made.critical_percent == 95);
    let refused = |path: &str, body: &Value| {
        let (status, code) = client.refusal("POST", path, &[JSON], &serde_json::to_vec(body).unwrap());
        format!("{status} {code}")
    };
    assert_eq!(refused("/volumes", &json!({"name": "big", "path": "/tmp/other"})), "409 name-taken");
    assert_eq!(refused("/volumes", &json!({"name": "a.b", "path": place})), "422 bad-name");
    assert_eq!(refused("/volumes", &json!({"name": "rel", "path": "srv"})), "422 bad-volume");
    assert_eq!(refused("/volumes", &json!({"name": "gone", "path": host.directory.path().join("gone")})), "422 bad-volume");
    assert_eq!(refused("/volumes", &json!({"name": "in", "path": place.join("web")})), "422 bad-volume");
    let low = json!({"name": "low", "path": host.directory.path().join("low"), "critical_percent": 10});
    assert_eq!(refused("/volumes", &low), "422 bad-volume", "nearly full before the warning");

    // A thin disk promises more than it takes.
    let thin = fs::File::create(place.join("thin.raw")).unwrap();
    thin.set_len(1 << 40).unwrap();
    let mut wanted = spec("web", "");
    wanted["disks"] = json!([{"file": "big:thin.raw"}]);
    client.create(&wanted);
    let big: api::Volume = client.get("/volumes/big").unwrap();
    assert_eq!((big.provisioned_bytes, big.allocated_bytes), (1 << 40, 0));
    assert!(big.provisioned_percent > 100.0, "{big:?}");
    assert_eq!(client.refusal("DELETE", "/volumes/big", &[], b""), (409, "volume-in-use".into()));
    assert_eq!(client.refusal("DELETE", "/volumes/local", &[], b""), (409, "not-managed".into()));
    assert_eq!(client.refusal("DELETE", "/volumes/none", &[], b""), (404, "not-found".into()));

    // An alarm when more is used than the threshold, which is so with 1 %; and its end.
    let change = |client: &Client, warning: u8| {
        let body = json!({"warning_percent": warning});
        client.call::<api::Volume>("PATCH".parse().unwrap(), "/volumes/big", Some(&body)).unwrap();
    };
    change(&client, 1);
    told_of(&client, api::EventKind::VolumeAlarm, "volume big", 0);
    host.kill();
    host.start();
    let client = host.client();
    assert_eq!(client.get::<api::Volume>("/volumes/big").unwrap().level, api::VolumeLevel::Warning);
    change(&client, 95);
    told_of(&client, api::EventKind::VolumeRecovered, "volume big", 0);
    client.does("DELETE /vms/web?disks=keep");
    client.call::<()>("DELETE".parse().unwrap(), "/volumes/big", None::<&()>).unwrap();
    assert!(place.join("thin.raw").exists());
    assert_eq!(client.list::<api::Volume>("/volumes").unwrap().len(), 1);
}

#[test]
fn a_change_that_marud_was_killed_over_is_done_and_what_is_stored_is_what_holds() {
    let mut host = TestHost::new();
    let client = host.client();
    fs::write(host.volume("root.raw"), [0; 4096]).unwrap();
    let mut wanted = spec("web", "");
    wanted["disks"] = json!([{"file": "local:root.raw"}]);
    let vm = client.create(&wanted);
    client.does("POST /vms/web/start");
    for round in 0..30_u64 {
        let (client, rate) = (host.client(), 1000 + round);
        let asking = std::thread::spawn(move || {
            let change = json!({"disks": {"disk0": {"iops": {"per_second": rate}}}});
            client.call::<api::Task>("PATCH".parse().unwrap(), "/vms/web/resources", Some(&change)).map(drop)
        });
        // Different moments of the change.
        std::thread::sleep(std::time::Duration::from_micros(round * 700));
        host.kill();
        let answered = asking.join().unwrap().is_ok();
        host.start();
        let client = host.client();
        for task in client.list::<api::Task>("/tasks").unwrap() {
            client.wait(task, |_| {}).unwrap();
        }
        until("the VM was found", || (client.vm("web").state == api::VmState::Running).then_some(()));
        let stored =
            client.vm("web").spec.resources.disks.get("disk0").and_then(|limits| limits.iops).map(|rate| rate.per_second);
        assert_eq!(iops(&told(&host, &vm)), stored, "round {round}");
        assert!(!answered || stored == Some(rate), "round {round}: {stored:?}");
    }
}
