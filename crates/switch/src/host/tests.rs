//! Requests, as clients make them.

use std::sync::mpsc::channel;
use std::time::Duration;

use packet::Listener;

use super::*;
use crate::acl::Direction;
use crate::control::{Client, ClientError, DEFAULT_SWITCH, SwitchKind, serve};
use crate::frame::build::{ethernet, mac};
use crate::pipeline::{ConnectionState, StationState};
use crate::policy::Permission;
use crate::ports::tests::Vm;

pub(super) fn start(directory: &Path) -> Client {
    let host = Host::new(Pool::new(2, Duration::ZERO), Some(directory.join("state"))).unwrap();
    let control = directory.join("control");
    let listener = Listener::bind(&control).unwrap();
    std::thread::spawn(move || serve(listener, host));
    Client::connect(&control).unwrap()
}

pub(super) fn port(directory: &Path, name: &str) -> PortConfig {
    let backend = Backend::VhostUser { socket: directory.join(name), mode: 0o600, queues: 1 };
    PortConfig { name: name.into(), switch: DEFAULT_SWITCH.into(), backend, policy: PortPolicy::default() }
}

#[test]
fn ports_are_added_changed_kept_and_removed() {
    let directory = tempfile::tempdir().unwrap();
    let mut client = start(directory.path());
    for name in ["a", "b"] {
        client.call::<Value>(&Request::AddPort { port: port(directory.path(), name), missing: Missing::Refused }).unwrap();
    }
    let policy = PortPolicy { router: Permission::Deny, ..PortPolicy::default() };
    client.call::<Value>(&Request::SetPolicy { name: "a".into(), policy: policy.clone() }).unwrap();
    client.call::<Value>(&Request::RemovePort { name: "b".into() }).unwrap();
    assert!(!directory.path().join("b").exists());
    let status: Status = client.call(&Request::Status).unwrap();
    assert_eq!(status.ports.iter().map(|port| (port.name.as_str(), port.connected)).collect::<Vec<_>>(), [("a", false)]);
    // Another switch with the same file, as after a crash.
    let other = tempfile::tempdir().unwrap();
    std::fs::copy(directory.path().join("state"), other.path().join("state")).unwrap();
    std::fs::remove_file(directory.path().join("a")).unwrap();
    let kept: Vec<PortConfig> = start(other.path()).call(&Request::Config).unwrap();
    assert_eq!(kept, [PortConfig { policy, ..port(directory.path(), "a") }]);
}

#[test]
fn switches_are_kept_and_say_what_they_connect() {
    let directory = tempfile::tempdir().unwrap();
    let mut client = start(directory.path());
    let mut ask = |request: Request| match client.call::<Value>(&request) {
        Ok(value) => Ok(value),
        Err(ClientError::Refused(failure)) => Err(failure.message),
        Err(error) => panic!("{error}"),
    };
    let add = |name: &str, kind| Request::AddSwitch { name: name.into(), kind };
    ask(add("inner", SwitchKind::Private)).unwrap();
    ask(add("spare", SwitchKind::Internal)).unwrap();
    assert!(ask(add("inner", SwitchKind::External)).unwrap_err().contains("'inner' already"));
    let on = |switch: &str, backend| Request::AddPort {
        port: PortConfig { switch: switch.into(), backend, ..port(directory.path(), "a") },
        missing: Missing::Refused,
    };
    let vm = || port(directory.path(), "a").backend;
    assert!(ask(on("inner", Backend::Tap("t".into()))).unwrap_err().contains("private: its ports are VMs"));
    assert!(ask(on("spare", Backend::Uplink("e".into()))).unwrap_err().contains("internal: its ports are VMs and the host"));
    assert!(ask(on("other", vm())).unwrap_err().contains("no switch 'other'"));
    ask(on("inner", vm())).unwrap();
    let remove = |name: &str| Request::RemoveSwitch { name: name.into() };
    assert!(ask(remove("inner")).unwrap_err().contains("1 ports"));
    assert!(ask(remove(DEFAULT_SWITCH)).unwrap_err().contains("always there"));
    ask(remove("spare")).unwrap();
    let other = tempfile::tempdir().unwrap();
    std::fs::copy(directory.path().join("state"), other.path().join("state")).unwrap();
    std::fs::remove_file(directory.path().join("a")).unwrap();
    let switches: Vec<SwitchStatus> = start(other.path()).call(&Request::Switches).unwrap();
    let status = |name: &str, kind, ports, worker| SwitchStatus { name: name.into(), kind, ports, stations: 0, worker };
    assert_eq!(switches, [status(DEFAULT_SWITCH, SwitchKind::External, 0, 0), status("inner", SwitchKind::Private, 1, 1)]);
}

#[test]
fn a_new_switch_goes_to_the_worker_that_has_the_fewest() {
    let mut host = Host::new(Pool::new(3, Duration::ZERO), None).unwrap();
    let add = |name: &str| Request::AddSwitch { name: name.into(), kind: SwitchKind::Private };
    for name in ["a", "b", "c"] {
        host.execute(add(name)).unwrap();
    }
    host.execute(Request::RemoveSwitch { name: "a".into() }).unwrap();
    host.execute(add("d")).unwrap();
    let workers: Vec<usize> = host.switches().unwrap().iter().map(|switch| switch.worker).collect();
    // The numbers of switches are used again: d is where a was.
    assert_eq!(workers, [0, 1, 2, 0]);
    assert_eq!(host.workers.started().len(), 0, "nobody needs a thread before there are ports");
}

#[test]
fn switches_of_two_workers_do_not_wait_for_each_other() {
    let directory = tempfile::tempdir().unwrap();
    let mut host = Host::new(Pool::new(2, Duration::ZERO), None).unwrap();
    host.execute(Request::AddSwitch { name: "inner".into(), kind: SwitchKind::Private }).unwrap();
    let mut vms = [("a", DEFAULT_SWITCH), ("b", DEFAULT_SWITCH), ("c", "inner"), ("d", "inner")].map(|(name, switch)| {
        let backend = Backend::VhostUser { socket: directory.path().join(name), mode: 0o600, queues: 2 };
        // Who has no station is not announced in between.
        let policy = PortPolicy { max_stations: 0, ..PortPolicy::default() };
        let port = PortConfig { name: name.into(), switch: switch.into(), backend, policy };
        host.execute(Request::AddPort { port, missing: Missing::Refused }).unwrap();
        let mut vm = Vm::new(0);
        vm.connect(&directory.path().join(name));
        (0..8).for_each(|_| vm.receive.offer_room(2048));
        vm
    });
    assert_eq!((host.place("a").unwrap().1, host.place("c").unwrap().1), (0, 0), "each worker counts its own ports");
    // The thread of one switch is held up: frames of the other one go on.
    let ((begin, begun), (release, held)) = (channel(), channel::<()>());
    let worker = host.place("a").unwrap().0;
    let holder = std::thread::spawn(move || {
        let wait = move |_: &mut Worker| {
            begin.send(()).unwrap();
            held.recv().unwrap();
        };
        worker.call(wait).unwrap();
    });
    begun.recv().unwrap();
    let frame = ethernet(mac(1), mac(2)).other(0x9000);
    vms[0].send([0; 12], &frame);
    vms[2].send([0; 12], &frame);
    assert_eq!(vms[3].receive()[0].1, frame);
    assert_eq!(vms[1].receive.take_frames(), []);
    release.send(()).unwrap();
    holder.join().unwrap();
    assert_eq!(vms[1].receive()[0].1, frame);
    let status = host.status().unwrap();
    assert_eq!(status.ports.iter().map(|port| port.counters.tx_packets).collect::<Vec<_>>(), [0, 1, 0, 1]);
    let flows = host.flows(None, 10).unwrap();
    assert_eq!(flows.iter().map(|flow| flow.port.as_str()).collect::<Vec<_>>(), ["a", "c"]);
    host.execute(Request::RemovePort { name: "a".into() }).unwrap();
    vms[2].send([0; 12], &frame);
    assert_eq!(vms[3].receive()[0].1, frame, "the port with the same number at the other worker stays");
}

#[test]
fn an_address_is_another_station_in_another_switch() {
    let directory = tempfile::tempdir().unwrap();
    let mut host = Host::new(Pool::new(2, Duration::ZERO), None).unwrap();
    host.execute(Request::AddSwitch { name: "inner".into(), kind: SwitchKind::Private }).unwrap();
    for (name, switch) in [("a", DEFAULT_SWITCH), ("b", "inner")] {
        let port = PortConfig { switch: switch.into(), ..port(directory.path(), name) };
        host.execute(Request::AddPort { port, missing: Missing::Refused }).unwrap();
        let stations = vec![StationState { mac: mac(1), vlan: 0 }];
        let state = PortState { stations, ..host.export(name).unwrap() };
        host.execute(Request::ImportPort { name: name.into(), state: Box::new(state) }).unwrap();
    }
    let stations = host.stations().unwrap();
    let places: Vec<(&str, &str)> = stations.iter().map(|one| (one.switch.as_str(), one.port.as_str())).collect();
    assert_eq!(places, [(DEFAULT_SWITCH, "a"), ("inner", "b")]);
    assert_eq!(host.switches().unwrap().iter().map(|one| one.stations).collect::<Vec<_>>(), [1, 1]);
    assert_eq!(host.status().unwrap().stations, 2);
}

#[test]
fn a_ports_state_crosses_the_socket_however_long_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let mut client = start(directory.path());
    client.call::<Value>(&Request::AddPort { port: port(directory.path(), "a"), missing: Missing::Refused }).unwrap();
    let mut state: PortState = client.call(&Request::ExportPort { name: "a".into() }).unwrap();
    let rule = r#"{"effect": {"allow-stateful": {"idle-timeout-s": 60}}, "direction": "outbound", "weight": 1}"#;
    state.policy.extended_acl = vec![serde_json::from_str(rule).unwrap()];
    state.connections = (0..5000u16)
        .map(|number| ConnectionState {
            local: "10.0.0.1".parse().unwrap(),
            remote: "10.0.0.2".parse().unwrap(),
            protocol: 6,
            local_port: number,
            remote_port: 80,
            opened: Direction::Outbound,
            // One of them is over.
            idle_ms: if number == 0 { 60_001 } else { 30_000 },
            idle_timeout_ms: 60_000,
        })
        .collect();
    assert!(serde_json::to_vec(&state).unwrap().len() > 4 * packet::MAX_PACKET);
    let import = Request::ImportPort { name: "a".into(), state: Box::new(state.clone()) };
    let imported: Imported = client.call(&import).unwrap();
    assert_eq!((imported.connections, imported.connections_left_out), (4999, 1));
    let again: PortState = client.call(&Request::ExportPort { name: "a".into() }).unwrap();
    assert_eq!((again.policy, again.connections.len()), (state.policy.clone(), 4999));
    assert!(again.connections.iter().all(|one| (30_000..60_000).contains(&one.idle_ms)));
    let kept: Vec<PortConfig> = client.call(&Request::Config).unwrap();
    assert_eq!(kept[0].policy, state.policy);
}

#[test]
fn refusals_say_why_and_change_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let mut client = start(directory.path());
    let a = port(directory.path(), "a");
    client.call::<Value>(&Request::AddPort { port: a.clone(), missing: Missing::Refused }).unwrap();
    let mut refused = |request: Request| match client.call::<Value>(&request) {
        Err(ClientError::Refused(failure)) => failure.message,
        other => panic!("{other:?}"),
    };
    assert!(refused(Request::AddPort { port: a.clone(), missing: Missing::Refused }).contains("'a' already"));
    assert!(refused(Request::RemovePort { name: "x".into() }).contains("no port 'x'"));
    let elsewhere = Backend::VhostUser { socket: directory.path().join("no/such/place"), mode: 0o600, queues: 1 };
    let lost = PortConfig { backend: elsewhere, ..port(directory.path(), "c") };
    assert!(refused(Request::AddPort { port: lost, missing: Missing::Refused }).contains("no/such/place"));
    let many = Backend::VhostUser { socket: directory.path().join("d"), mode: 0o600, queues: 65 };
    let many = PortConfig { backend: many, ..port(directory.path(), "d") };
    assert!(refused(Request::AddPort { port: many, missing: Missing::Refused }).contains("65"));
    let team = TeamConfig::single("eth0");
    assert!(refused(Request::SetTeam { name: "a".into(), team: team.clone() }).contains("'a' is no uplink"));
    assert!(refused(Request::SetTeam { name: "x".into(), team }).contains("no port 'x'"));
    assert_eq!(client.call::<Vec<PortConfig>>(&Request::Config).unwrap(), [a]);
}
