//! Virtual switches that `marud` keeps, with a real `maru-switch` and fake monitors.

mod support;

use std::path::PathBuf;

use api::client::Client;
use api::{Port, Switch, TaskState};
use serde_json::{Value, json};
use support::{Asking, TestHost, end, spec, until};
use switch::control::{Client as Control, PortConfig, Request, Status, SwitchStatus};

const JSON: (&str, &str) = ("content-type", "application/json");

fn network_host() -> TestHost {
    let program = PathBuf::from(env!("CARGO_BIN_EXE_marud")).with_file_name("maru-switch");
    assert!(program.exists(), "{} is missing: build it with `cargo build --release -p maru-switch`", program.display());
    TestHost::new()
}

fn make_switch(client: &Client, name: &str) -> Switch {
    client.call("POST".parse().unwrap(), "/switches", Some(&json!({"name": name, "kind": "private"}))).unwrap()
}

fn spec_on(name: &str, nets: &Value) -> Value {
    let mut spec = spec(name, "");
    spec["nets"] = nets.clone();
    spec
}

/// What the switch itself says.
fn ask<T: serde::de::DeserializeOwned>(host: &TestHost, request: &Request) -> T {
    let control = host.directory.path().join("run/switch/own/control");
    Control::connect(&control).unwrap().call(request).unwrap()
}

fn configured(host: &TestHost) -> Vec<PortConfig> {
    ask(host, &Request::Config)
}

fn port(client: &Client, name: &str) -> Port {
    let (vm, net) = name.split_once('/').unwrap();
    client.get(&format!("/vms/{vm}/nets/{net}/port")).unwrap()
}

fn is_connected(client: &Client, name: &str) -> Option<()> {
    port(client, name).connected.then_some(())
}

fn edit(client: &Client, vm: &str, change: &Value) -> api::Task {
    client.call("PATCH".parse().unwrap(), &format!("/vms/{vm}?wait=20"), Some(change)).unwrap()
}

fn set_policy(client: &Client, port: &str, change: &Value) -> api::Task {
    let (vm, net) = port.split_once('/').unwrap();
    client.call("PATCH".parse().unwrap(), &format!("/vms/{vm}/nets/{net}/policy?wait=20"), Some(change)).unwrap()
}

#[test]
fn a_switch_runs_as_long_as_there_is_one_and_ports_as_long_as_their_vms_run() {
    let host = network_host();
    let client = host.client();
    assert_eq!(host.processes("maru-switch").len(), 0, "nobody needs one");
    let lan = make_switch(&client, "lan");
    let pid = lan.pid.unwrap();
    assert_eq!((host.processes("maru-switch"), lan.error), (vec![pid], None));
    make_switch(&client, "dmz");
    let vm = client
        .create(&spec_on("web", &json!([{"switch": "lan"}, {"switch": "dmz", "policy": {"storm-limit": 7}}, {"tap": "t"}])));
    assert_eq!(vm.spec.nets[0].policy, None, "as usual");
    assert_eq!(configured(&host), [], "it does not run");
    client.does("POST /vms/web/start");

    let ports = configured(&host);
    assert_eq!(ports.iter().map(|port| port.switch.as_str()).collect::<Vec<_>>(), ["lan", "dmz"]);
    assert_eq!(ports[0].policy.mac.unwrap().to_string(), vm.spec.nets[0].mac.clone().unwrap());
    assert_eq!((ports[0].policy.storm_limit, ports[1].policy.storm_limit), (0, 7));
    assert_eq!(
        serde_json::to_value(&ports[0].policy).unwrap()["mac-spoofing"],
        "deny",
        "a guest has the address that it was given"
    );
    until("the card is connected", || is_connected(&client, "web/net1"));
    let listed: Vec<Port> = client.list("/ports?vm=web").unwrap();
    let told = |port: &Port| (port.name.clone(), port.switch.clone(), port.counters.is_some());
    let expected = [("web/net0".into(), "lan".into(), true), ("web/net1".into(), "dmz".into(), true)];
    assert_eq!(listed.iter().map(told).collect::<Vec<_>>(), expected);
    assert_eq!(client.list::<Port>("/ports?switch=dmz").unwrap().len(), 1);
    assert_eq!(client.get::<Switch>("/switches/lan").unwrap().nets, 1);
    assert_eq!(client.list::<api::Station>("/switches/lan/stations").unwrap(), []);
    assert!(
        String::from_utf8(client.get_bytes("/metrics").unwrap())
            .unwrap()
            .contains("maru_port_sent_bytes_total{port=\"web/net0\"")
    );

    assert_eq!(client.refusal("DELETE", "/switches/lan", &[], b""), (409, "switch-in-use".into()));
    client.does("POST /vms/web/stop");
    until("its ports are gone", || configured(&host).is_empty().then_some(()));
    until("everybody hears of it", || (!port(&client, "web/net0").connected).then_some(()));
    client.does("DELETE /vms/web");
    for name in ["lan", "dmz"] {
        client.call::<()>("DELETE".parse().unwrap(), &format!("/switches/{name}"), None::<&()>).unwrap();
    }
    assert_eq!(host.processes("maru-switch").len(), 0);
    assert!(!host.directory.path().join("run/switch").exists());
}

#[test]
fn neither_the_end_of_marud_nor_that_of_the_switch_takes_a_port_away() {
    let mut host = network_host();
    let client = host.client();
    let pid = make_switch(&client, "lan").pid.unwrap();
    for vm in ["a", "b"] {
        client.create(&spec_on(vm, &json!([{"switch": "lan"}])));
        client.does(&format!("POST /vms/{vm}/start"));
    }
    host.kill();
    let before: Status = ask(&host, &Request::Status);
    assert_eq!(before.ports.iter().filter(|port| port.connected).count(), 2, "nobody noticed: {before:?}");
    host.start();
    let client = host.client();
    until("the switch was found", || (client.get::<Switch>("/switches/lan").unwrap().pid == Some(pid)).then_some(()));
    until("both are connected", || is_connected(&client, "a/net0").and(is_connected(&client, "b/net0")));
    let started = configured(&host);

    end(pid);
    let again = until("another switch", || client.get::<Switch>("/switches/lan").unwrap().pid.filter(|again| *again != pid));
    until("both connect again", || is_connected(&client, "a/net0").and(is_connected(&client, "b/net0")));
    assert_eq!(configured(&host), started);
    let events: Vec<api::Event> = client.list("/events").unwrap();
    let alarms = events.iter().filter(|event| event.kind == api::EventKind::SwitchAlarm).count();
    assert_eq!((alarms, host.processes("maru-switch")), (1, vec![again]));

    // All at once: the switch, marud, and one of the VMs.
    let gone = client.vm("a").pid.unwrap();
    host.kill();
    end(again);
    end(gone);
    until("both have ended", || (host.monitors().len() == 1 && host.processes("maru-switch").is_empty()).then_some(()));
    host.start();
    let client = host.client();
    until("the other VM is connected", || is_connected(&client, "b/net0"));
    until("the port of the one that ended is gone", || (configured(&host).len() == 1).then_some(()));
    let ports = host.directory.path().join("run/switch/ports");
    until("and so is its directory", || (std::fs::read_dir(&ports).unwrap().count() == 1).then_some(()));
}

#[test]
fn cards_come_and_go_and_change_while_their_vm_runs() {
    let host = network_host();
    let client = host.client();
    make_switch(&client, "lan");
    make_switch(&client, "dmz");
    client.create(&spec_on("web", &json!([{"switch": "lan"}])));
    client.does("POST /vms/web/start");
    let mac = client.vm("web").spec.nets[0].mac.clone();

    let first = json!({"id": "net0", "switch": "lan", "mac": mac});
    let added = edit(&client, "web", &json!({"nets": [first, {"switch": "dmz", "id": "more"}]}));
    assert_eq!((added.state, added.error), (TaskState::Done, None));
    until("it is connected", || is_connected(&client, "web/more"));
    // To another switch, with another policy: its other end moves, and the card connects again.
    let moved = edit(
        &client,
        "web",
        &json!({"nets": [{"id": "net0", "switch": "dmz", "mac": mac, "policy": {"router": "deny"}},
        {"switch": "dmz", "id": "more", "mac": client.vm("web").spec.nets[1].mac}]}),
    );
    assert_eq!((moved.state, moved.error), (TaskState::Done, None));
    until("it is connected", || is_connected(&client, "web/net0"));
    let switches: Vec<SwitchStatus> = ask(&host, &Request::Switches);
    assert_eq!(switches.iter().map(|switch| switch.ports).sum::<usize>(), 2);
    assert!(configured(&host).iter().all(|port| port.switch == "dmz"));
    let removed = edit(&client, "web", &json!({"nets": [{"id": "net0", "switch": "dmz", "mac": mac}]}));
    assert_eq!((removed.state, removed.error), (TaskState::Done, None));
    until("its port is gone", || (configured(&host).len() == 1).then_some(()));

    // The policy alone, at once.
    let vlan = json!({"vlan": {"mode": "isolated", "primary": 100, "secondary": 101}});
    assert_eq!(set_policy(&client, "web/net0", &vlan).state, TaskState::Done);
    assert_eq!(serde_json::to_value(&configured(&host)[0].policy.vlan).unwrap(), vlan["vlan"]);
    assert_eq!(serde_json::to_value(port(&client, "web/net0").policy.vlan).unwrap(), vlan["vlan"]);

    // What only the switch can know to be wrong: nothing of it stays, and what was is in effect again.
    client.create(&spec_on("db", &json!([{"switch": "dmz"}])));
    client.does("POST /vms/db/start");
    let other = json!({"vlan": {"mode": "isolated", "primary": 200, "secondary": 101}});
    let refused = set_policy(&client, "db/net0", &other);
    assert_eq!((refused.state, refused.error.unwrap().code), (TaskState::Failed, "port".into()));
    assert_eq!(client.vm("db").spec.nets[0].policy, None);
    let of_db = || {
        configured(&host)
            .into_iter()
            .find(|port| port.policy.mac.unwrap().to_string() == *client.vm("db").spec.nets[0].mac.as_ref().unwrap())
    };
    until("as before", || (of_db()?.policy.vlan == switch::vlan::VlanMode::Untagged).then_some(()));
    assert_eq!(port(&client, "db/net0").error, None);
    client.does("POST /vms/web/stop");
    assert_eq!(set_policy(&client, "db/net0", &other).state, TaskState::Done, "nobody is in its way any more");
}

#[test]
fn what_makes_no_sense_is_refused_with_a_way_out() {
    let host = network_host();
    let client = host.client();
    make_switch(&client, "lan");
    let post = |path: &str, body: Value| {
        let (status, code) = client.refusal("POST", path, &[JSON], &serde_json::to_vec(&body).unwrap());
        format!("{status} {code}")
    };
    assert_eq!(post("/switches", json!({"name": "lan", "kind": "private"})), "409 name-taken");
    for name in ["", "a/b", "a.b", "default"] {
        assert_eq!(post("/switches", json!({"name": name, "kind": "private"})), "422 bad-name", "{name}");
    }
    for wrong in [
        json!({"kind": "external"}),
        json!({"kind": "external", "uplink": "a-name-that-is-too-long"}),
        json!({"kind": "external", "uplink": "e", "host_address": "10.0.0.1/8"}),
        json!({"kind": "private", "uplink": "e"}),
        json!({"kind": "private", "host_interface": "e"}),
        json!({"kind": "internal", "uplink": "e"}),
        json!({"kind": "internal", "host_address": "10.0.0.1"}),
    ] {
        let mut body = wrong.clone();
        body["name"] = "x".into();
        assert_eq!(post("/switches", body), "422 bad-switch", "{wrong}");
    }
    assert_eq!(post("/switches", json!({"name": "x", "kind": "public"})), "422 bad-body");
    let patch = |path: &str, body: Value| {
        let (status, code) = client.refusal("PATCH", path, &[JSON], &serde_json::to_vec(&body).unwrap());
        format!("{status} {code}")
    };
    assert_eq!(patch("/switches/lan", json!({"uplink": "e"})), "422 bad-switch");
    assert_eq!(patch("/switches/nal", json!({"uplink": "e"})), "404 not-found");
    assert_eq!(client.refusal("GET", "/switches/lna", &[], b""), (404, "not-found".into()));

    for (nets, code) in [
        (json!([{"switch": "lna"}]), "no-switch"),
        (json!([{"switch": "lan", "tap": "t"}]), "bad-vm"),
        (json!([{}]), "bad-vm"),
        (json!([{"tap": "t", "policy": {}}]), "bad-vm"),
        (json!([{"switch": "lan", "id": "a-card-with-a-name-that-is-too-long"}]), "bad-vm"),
        (json!([{"switch": "lan", "policy": {"vlan": {"mode": "access", "vlan": 0}}}]), "bad-policy"),
        (json!([{"switch": "lan", "policy": {"mac": "52:54:00:00:00:01"}}]), "bad-body"),
    ] {
        assert_eq!(post("/vms", spec_on("web", &nets)), format!("422 {code}"), "{nets}");
    }
    let mut limited = spec_on("web", &json!([{"switch": "lan"}]));
    limited["resources"] = json!({"nets": {"net0": {"receive": {"per_second": 1000}}}});
    assert_eq!(post("/vms", limited), "422 bad-resources");

    client.create(&spec_on("web", &json!([{"switch": "lan"}, {"tap": "t"}])));
    let rule = json!({"effect": "deny", "direction": "inbound", "weight": 1});
    for (path, body, expected) in [
        ("/vms/web/nets/net0/policy", json!({"vlan": 10}), "422 bad-policy"),
        ("/vms/web/nets/net0/policy", json!({"extended-acl": [rule, rule]}), "422 bad-policy"),
        ("/vms/web/nets/net1/policy", json!({}), "404 not-found"),
        ("/vms/web/nets/net2/policy", json!({}), "404 not-found"),
        ("/vms/wbe/nets/net0/policy", json!({}), "404 not-found"),
    ] {
        assert_eq!(patch(path, body), expected, "{path}");
    }
    let viewer = json!({"name": "viewer", "role": "viewer"});
    let made: api::CreatedToken = client.call("POST".parse().unwrap(), "/tokens", Some(&viewer)).unwrap();
    let viewer = host.client_with(&made.secret);
    assert_eq!(viewer.list::<Port>("/ports").unwrap().len(), 1);
    assert_eq!(viewer.refusal("PATCH", "/vms/web/nets/net0/policy", &[JSON], b"{}"), (403, "role".into()));
    assert_eq!(viewer.refusal("DELETE", "/switches/lan", &[], b""), (403, "role".into()));

    // A NIC that there is not: the switch is there, says what is missing, and takes another one.
    let wan: Switch = client
        .call("POST".parse().unwrap(), "/switches", Some(&json!({"name": "wan", "kind": "external", "uplink": "no-such-nic"})))
        .unwrap();
    assert!(wan.error.unwrap().contains("no-such-nic"));
    assert_eq!(post("/switches", json!({"name": "wan2", "kind": "external", "uplink": "no-such-nic"})), "409 interface-in-use");
    client.does("POST /vms/web/start");
    assert_eq!(port(&client, "web/net0").error, None, "others do not suffer");
}

#[test]
fn without_the_program_a_vm_says_what_it_lacks() {
    let host = TestHost::with_options(&["--switch", "/nonexistent/maru-switch"]);
    let client = host.client();
    let lan = make_switch(&client, "lan");
    assert!(lan.error.unwrap().contains("/nonexistent/maru-switch"));
    client.create(&spec_on("web", &json!([{"switch": "lan"}])));
    let task: api::Task = client.post("/vms/web/start?wait=20").unwrap();
    let error = task.error.unwrap();
    assert!(error.code == "switch" && error.message.contains("/nonexistent/maru-switch"), "{error}");
    client.does("DELETE /vms/web");
    client.call::<()>("DELETE".parse().unwrap(), "/switches/lan", None::<&()>).unwrap();
}

#[test]
fn whenever_marud_is_killed_no_port_is_left_and_none_is_missing() {
    let mut host = network_host();
    make_switch(&host.client(), "lan");
    host.client().create(&spec_on("web", &json!([{"switch": "lan"}])));
    for round in 0_u64..12 {
        let client = host.client();
        until("the VM is known", || (client.vm("web").state != api::VmState::Unknown).then_some(()));
        let vm = client.vm("web");
        let card = |id: &str, mac: &Option<String>| json!({"id": id, "switch": "lan", "mac": mac});
        let first = card("net0", &vm.spec.nets[0].mac);
        let nets = if vm.spec.nets.len() == 1 { json!([first, {"id": "net1", "switch": "lan"}]) } else { json!([first]) };
        // Some of these are refused, depending on how far the others got: that is fine.
        let _ = client.call::<api::Task>("POST".parse().unwrap(), "/vms/web/start", None::<&()>);
        let _ = client.call::<api::Task>("PATCH".parse().unwrap(), "/vms/web", Some(&json!({ "nets": nets })));
        if round % 3 == 2 {
            let _ = client.call::<api::Task>("POST".parse().unwrap(), "/vms/web/stop", None::<&()>);
        }
        std::thread::sleep(std::time::Duration::from_millis(round * 7 % 40));
        host.kill();
        host.start();
        let client = host.client();
        until("all is done", || {
            let tasks: Vec<api::Task> = client.list("/tasks").unwrap();
            tasks.iter().all(|task| task.state.is_final()).then_some(())
        });
        until("ports are those of the VM's cards, if it runs", || {
            let vm = client.vm("web");
            let wanted = if vm.pid.is_some() { vm.spec.nets.len() } else { 0 };
            let status: Status = ask(&host, &Request::Status);
            (status.ports.len() == wanted && status.ports.iter().all(|port| port.connected)).then_some(())
        });
        assert_eq!(host.processes("maru-switch").len(), 1);
    }
}
