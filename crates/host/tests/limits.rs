//! How much of the host VMs may have, with fake monitors.

mod support;

use std::fs;

use api::TaskState;
use api::client::Client;
use serde_json::{Value, json};
use support::{Asking, TestHost, spec, until};
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
