//! NICs of virtual switches that `marud` keeps, and who looks at ports: with a real `maru-switch`, in a network namespace.

mod support;

use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

use api::client::Client;
use api::{Datapath, DatapathKind, Nic, Port, Switch};
use serde_json::{Value, json};
use support::{Asking, TestHost, end, spec, until};

const JSON: (&str, &str) = ("content-type", "application/json");
const INSIDE: &str = "MARU_TEST_NAMESPACE";

/// Runs a test once more, in a network namespace of its own, where it may do `work`.
fn in_namespace(test: &str, work: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        ip("link set lo up");
        return work();
    }
    let mut again = Command::new("unshare");
    // SAFETY: no arguments.
    if unsafe { libc::geteuid() } != 0 {
        again.arg("--map-root-user");
    }
    again.arg("--net").arg(std::env::current_exe().unwrap()).args(["--exact", test, "--nocapture"]);
    let status = again.env(INSIDE, "1").status().expect("unshare, of util-linux");
    assert!(status.success(), "{status}: if no namespace could be made, allow users to make them (user.max_user_namespaces)");
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().expect("ip, of iproute2");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A NIC whose cable ends at another interface here.
fn cable(nic: &str, end: &str) {
    ip(&format!("link add {nic} type veth peer name {end}"));
    ip(&format!("link set {end} up"));
}

fn show(client: &Client) -> Switch {
    client.get("/switches/wan").unwrap()
}

fn change(client: &Client, change: &Value) -> Switch {
    client.call("PATCH".parse().unwrap(), "/switches/wan", Some(change)).unwrap()
}

fn active(switch: &Switch) -> Vec<(&str, bool)> {
    switch.nics.iter().map(|nic: &Nic| (nic.name.as_str(), nic.active)).collect()
}

fn until_active(client: &Client, expected: &[(&str, bool)]) {
    until(&format!("{expected:?}"), || (active(&show(client)) == expected).then_some(()));
}

#[test]
fn nics_come_and_go_and_the_ports_of_vms_stay() {
    in_namespace("nics_come_and_go_and_the_ports_of_vms_stay", || {
        let mut host = TestHost::new();
        let client = host.client();
        cable("v0", "w0");
        cable("v1", "w1");
        let wanted = json!({"name": "wan", "kind": "external", "uplink": "v0", "capacity_bps": 1_000_000_000_u64});
        let made: Switch = client.call("POST".parse().unwrap(), "/switches", Some(&wanted)).unwrap();
        assert_eq!((made.uplink.as_deref(), made.team, made.capacity_bps), (Some("v0"), None, Some(1_000_000_000)));
        until_active(&client, &[("v0", true)]);
        let mut vm = spec("web", "");
        vm["nets"] = json!([{"switch": "wan"}]);
        let vm = client.create(&vm);
        client.does("POST /vms/web/start");
        until("the card is connected", || client.get::<Port>("/vms/web/nets/net0/port").unwrap().connected.then_some(()));
        let socket = host.directory.path().join(format!("run/switch/ports/{}/net0", vm.id));
        // A port that was there before has the same socket.
        let inode = |path| std::fs::metadata(path).map(|socket| socket.ino()).unwrap();
        let before = inode(&socket);

        let two = change(&client, &json!({"team": {"add": ["v1"]}}));
        assert_eq!((two.uplink, two.team.unwrap().nics), (None, vec!["v0".into(), "v1".into()]));
        until_active(&client, &[("v0", true), ("v1", false)]);
        ip("link set w0 down");
        until_active(&client, &[("v0", false), ("v1", true)]);
        ip("link set w0 up");
        until("the link is there", || show(&client).nics[0].link.then_some(()));
        assert_eq!(active(&show(&client)), [("v0", false), ("v1", true)], "the one in use stays");
        change(&client, &json!({"team": {"primary": "v0"}}));
        until_active(&client, &[("v0", true), ("v1", false)]);
        let lacp = change(&client, &json!({"team": {"mode": "lacp", "lacp_rate": "fast"}, "capacity_bps": 0}));
        assert_eq!((lacp.team.unwrap().primary, lacp.capacity_bps), (None, None));
        until("LACP is spoken", || show(&client).nics.iter().all(|nic| nic.lacp.is_some()).then_some(()));
        change(&client, &json!({"team": {"mode": "active-standby", "lacp_rate": "slow"}}));

        // One that is not there is waited for, and the others work meanwhile.
        let waiting = change(&client, &json!({"team": {"add": ["v2"], "remove": ["v0"]}}));
        assert!(waiting.error.unwrap().contains("v2"));
        until_active(&client, &[("v1", true), ("v2", false)]);
        cable("v2", "w2");
        until("it has a link", || show(&client).nics[1].link.then_some(()));
        until("nothing is missing", || show(&client).error.is_none().then_some(()));
        let port: Port = client.get("/vms/web/nets/net0/port").unwrap();
        assert_eq!((port.connected, port.error, inode(&socket)), (true, None, before), "the VM's port was there all the time");

        let refused = |method: &str, path: &str, body: Value| {
            let (status, code) = client.refusal(method, path, &[JSON], &serde_json::to_vec(&body).unwrap());
            format!("{status} {code}")
        };
        let another = |team: Value| json!({"name": "more", "kind": "external", "team": team});
        assert_eq!(refused("POST", "/switches", another(json!({"nics": ["v3", "v1"]}))), "409 interface-in-use");
        assert_eq!(refused("POST", "/switches", another(json!({"nics": []}))), "422 bad-switch");
        assert_eq!(refused("POST", "/switches", another(json!({"nics": ["v3"], "primary": "v4"}))), "422 bad-switch");
        assert_eq!(refused("PATCH", "/switches/wan", json!({"team": {"remove": ["v1", "v2"]}})), "422 bad-switch");
        assert_eq!(refused("PATCH", "/switches/wan", json!({"uplink": "v1", "team": {"add": ["v3"]}})), "422 bad-switch");
        assert_eq!(refused("PATCH", "/switches/wan", json!({"capacity_bps": 1})), "422 bad-switch");

        // Whoever ends, the team is there again.
        let pid = show(&client).pid.unwrap();
        host.kill();
        host.start();
        let client = host.client();
        until_active(&client, &[("v1", true), ("v2", false)]);
        assert_eq!((show(&client).pid, inode(&socket)), (Some(pid), before));
        end(pid);
        until("another switch", || show(&client).pid.filter(|other| *other != pid));
        until_active(&client, &[("v1", true), ("v2", false)]);
        let one = change(&client, &json!({"team": {"remove": ["v1"]}}));
        assert_eq!((one.uplink.as_deref(), one.team), (Some("v2"), None));
        until_active(&client, &[("v2", true)]);

        // How it is used, and why not in a better way.
        let datapath = |switch: &Switch| switch.nics[0].datapath.clone().unwrap();
        let plain = show(&client);
        assert_eq!((plain.datapath, datapath(&plain).reason), (Datapath::AfPacket, None));
        let auto = datapath(&change(&client, &json!({"datapath": "auto"})));
        assert_eq!((auto.kind, auto.queues), (DatapathKind::AfPacket, 1));
        assert!(auto.reason.unwrap().contains("its driver is veth"));
        let insisting = change(&client, &json!({"datapath": "af-xdp"}));
        assert_eq!((insisting.datapath, insisting.uplink.as_deref()), (Datapath::AfXdp, Some("v2")));
        // Programs for NICs are for the machine's root alone.
        match std::fs::read_to_string("/proc/self/uid_map").unwrap().contains("4294967295") {
            true => assert_eq!((datapath(&insisting).kind, insisting.error), (DatapathKind::AfXdpCopy, None)),
            false => assert!(insisting.error.unwrap().contains("CAP_BPF")),
        }
        let packet = change(&client, &json!({"datapath": "af-packet"}));
        assert_eq!((datapath(&packet).kind, datapath(&packet).reason, packet.error), (DatapathKind::AfPacket, None, None));
        let unknown = serde_json::to_vec(&json!({"datapath": "dpdk"})).unwrap();
        assert_eq!(client.refusal("PATCH", "/switches/wan", &[JSON], &unknown), (422, "bad-body".into()));
    });
}

#[test]
fn who_looks_at_a_port_sees_until_the_time_is_over_and_leaves_nothing() {
    in_namespace("who_looks_at_a_port_sees_until_the_time_is_over_and_leaves_nothing", || {
        let host = TestHost::new();
        let client = host.client();
        let lan = json!({"name": "lan", "kind": "private"});
        client.call::<Switch>("POST".parse().unwrap(), "/switches", Some(&lan)).unwrap();
        let mut vm = spec("web", "");
        vm["nets"] = json!([{"switch": "lan", "policy": {"vlan": {"mode": "access", "vlan": 7}}}]);
        let vm = client.create(&vm);
        let mac = vm.spec.nets[0].mac.clone().unwrap();
        let refused = |client: &Client, what: &str, body: &Value| {
            let path = format!("/vms/web/nets/net0/port/{what}");
            let (status, code) = client.refusal("POST", &path, &[JSON], &serde_json::to_vec(body).unwrap());
            format!("{status} {code}")
        };
        let frame = |source: &str| format!("ffffffffffff{}88b5", source.replace(':', ""));
        assert_eq!(refused(&client, "trace", &json!({"frame": frame(&mac)})), "409 no-port", "it does not run");
        client.does("POST /vms/web/start");

        let trace = |frame: String| -> api::Trace {
            client.call("POST".parse().unwrap(), "/vms/web/nets/net0/port/trace", Some(&json!({ "frame": frame }))).unwrap()
        };
        let passes = trace(frame(&mac));
        assert_eq!(passes.port, "web/net0");
        assert!(passes.steps.iter().any(|step| step.layer == "vlan in" && step.why == "in VLAN 7" && step.port == "web/net0"));
        let spoofed = trace(frame("52:54:00:ff:ff:ff"));
        assert!(matches!(&spoofed.actions[..], [api::TraceAction::Drop { port, .. }] if port == "web/net0"), "{spoofed:?}");
        assert_eq!(client.list::<api::Flow>("/vms/web/nets/net0/port/flows").unwrap(), []);

        for (what, body) in [
            ("trace", json!({"frame": "0"})),
            ("trace", json!({"frame": "00", "length": 70_000})),
            ("watch", json!({"count": 0, "seconds": 1})),
            ("watch", json!({"count": 1, "seconds": 3601})),
            ("watch", json!({"count": 1, "seconds": 1, "filter": {"source_mac": "x"}})),
            ("watch", json!({"count": 1, "seconds": 1, "filter": {"source_ip": "10.0.0.0/33"}})),
            ("capture", json!({"seconds": 0})),
            ("capture", json!({"seconds": 1, "count": 0})),
            ("capture", json!({"seconds": 1, "max_bytes": (1_u64 << 30) + 1})),
        ] {
            assert_eq!(refused(&client, what, &body), "422 bad-request", "{what} {body}");
        }

        // Nothing passes: both end with their time.
        let mut lines = String::new();
        let watched = client.stream("/vms/web/nets/net0/port/watch", &json!({"count": 1, "seconds": 1}));
        watched.unwrap().read_to_string(&mut lines).unwrap();
        assert_eq!(lines, "{\"end\":{\"missed\":0}}\n");
        let capture = |seconds: u32| client.stream("/vms/web/nets/net0/port/capture", &json!({ "seconds": seconds }));
        let mut file = Vec::new();
        capture(1).unwrap().read_to_end(&mut file).unwrap();
        // A section and its interface, and the statistics at the end.
        assert_eq!((&file[..4], &file[file.len() - 8..file.len() - 4]), (&[0x0a, 0x0d, 0x0d, 0x0a][..], &[0; 4][..]));

        // Who goes away leaves its place to others.
        let looking: Vec<_> = (0..16).map(|_| capture(3600).unwrap()).collect();
        assert_eq!(refused(&client, "capture", &json!({"seconds": 1})), "429 too-many");
        drop(looking);
        until("there is room again", || capture(1).ok().map(drop));

        let viewer = json!({"name": "viewer", "role": "viewer"});
        let made: api::CreatedToken = client.call("POST".parse().unwrap(), "/tokens", Some(&viewer)).unwrap();
        let viewer = host.client_with(&made.secret);
        for (what, body) in [("trace", json!({"frame": frame(&mac)})), ("capture", json!({"seconds": 1}))] {
            assert_eq!(refused(&viewer, what, &body), "403 role", "{what}");
        }
        let audit = std::fs::read_to_string(host.directory.path().join("state/audit.log")).unwrap();
        assert!(audit.contains("/vms/web/nets/net0/port/capture"), "{audit}");

        // The switch ends: what is looked at breaks off.
        let mut broken = capture(3600).unwrap();
        end(client.get::<Switch>("/switches/lan").unwrap().pid.unwrap());
        assert!(broken.read_to_end(&mut Vec::new()).is_err(), "a file that is not whole is no whole answer");
    });
}
