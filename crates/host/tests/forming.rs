//! Hosts that become a cluster, with `marud` and etcd as they are, on addresses of this machine.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use api::client::{Client, ClientError, Method};
use api::{Cluster, ClusterStatus, StorePart};
use serde_json::json;
use support::{Asking, TestHost, spec};

/// What needs elections and copies, on a busy machine.
const LONG: Duration = Duration::from_secs(90);

/// Where `scripts/install-deps` has put etcd.
fn etcd() -> PathBuf {
    let build = std::env::var_os("MARU_BUILD_DIR").map(PathBuf::from);
    build.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../build")).join("etcd/usr/bin")
}

/// An address of the loopback network that no other process uses, so that no port has to be looked for, and lost to somebody.
fn address(index: u8) -> String {
    let [_, a, b, c] = std::process::id().to_be_bytes();
    format!("127.{}.{b}.{c}", 65 + 30 * index + a)
}

/// A host of its own, at the address with this number.
fn host(index: u8) -> TestHost {
    let listen = format!("{}:8420", address(index));
    TestHost::with_options(&["--listen", &listen, "--etcd", etcd().to_str().unwrap()])
}

fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < LONG, "timed out waiting for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn post(client: &Client, path: &str, body: &serde_json::Value) -> Result<(), ClientError> {
    client.call::<serde_json::Value>(Method::POST, path, Some(body)).map(drop)
}

fn status(host: &TestHost) -> Option<ClusterStatus> {
    // Certificates change with the cluster, so a client is made each time; marud may be about to start anew.
    let token = fs::read_to_string(host.directory.path().join("state/admin.token")).ok()?;
    host.client_with(token.trim()).get("/cluster").ok()
}

fn cluster(host: &TestHost) -> Option<Cluster> {
    status(host)?.cluster
}

/// Makes a cluster of a host.
fn create(host: &TestHost, name: &str) -> Cluster {
    post(&host.client(), "/cluster", &json!({"name": "test", "host": name})).unwrap();
    until("the cluster", || cluster(host))
}

fn token(host: &TestHost) -> String {
    let made: api::CreatedJoinToken = host.client().call(Method::POST, "/cluster/tokens", Some(&json!({}))).unwrap();
    made.token
}

fn join(host: &TestHost, name: &str, token: &str) -> Result<(), ClientError> {
    post(&host.client(), "/cluster/join", &json!({"token": token, "host": name}))
}

/// Lets a host join, and waits until it is there.
fn joined(first: &TestHost, host: &TestHost, name: &str) {
    join(host, name, &token(first)).unwrap();
    until(&format!("{name} in the cluster"), || cluster(host).filter(|cluster| cluster.this_host == name));
}

fn voters(host: &TestHost) -> Vec<String> {
    let hosts = cluster(host).map(|cluster| cluster.hosts).unwrap_or_default();
    hosts.into_iter().filter(|host| host.store == StorePart::Voter).map(|host| host.name).collect()
}

fn code(result: Result<(), ClientError>) -> String {
    match result {
        Err(ClientError::Refused { error, .. }) => error.code,
        other => panic!("{other:?}"),
    }
}

#[test]
fn three_hosts_become_a_cluster_and_nothing_of_the_first_is_lost() {
    let first = host(0);
    let client = first.client();
    for name in ["a", "b"] {
        client.create(&spec(name, ""));
    }
    client.does("POST /vms/a/start");
    let pid = client.vm("a").pid;
    let made: api::CreatedToken =
        client.call(Method::POST, "/tokens", Some(&json!({"name": "eve", "role": "viewer"}))).unwrap();
    let before = (client.list::<api::Vm>("/vms").unwrap(), client.list::<api::Task>("/tasks").unwrap());
    let events = |client: &Client| -> Vec<String> {
        client.list::<api::Event>("/events").unwrap().into_iter().map(|event| event.text).collect()
    };
    let told = events(&client);

    let cluster_of_one = create(&first, "h1");
    assert_eq!(cluster_of_one.name, "test");
    let client = first.client_with(&made.secret);
    until("the VM that ran", || (client.vm("a").state == api::VmState::Running).then_some(()));
    assert_eq!(client.vm("a").pid, pid, "it went on");
    let after = (client.list::<api::Vm>("/vms").unwrap(), client.list::<api::Task>("/tasks").unwrap());
    assert_eq!(format!("{:?}", before.1), format!("{:?}", after.1));
    let specs = |vms: &[api::Vm]| vms.iter().map(|vm| (vm.id, vm.spec.clone())).collect::<Vec<_>>();
    assert_eq!(specs(&before.0), specs(&after.0));
    let now = events(&client);
    assert_eq!(now[..told.len()], told, "events in their order");
    let ids: Vec<u64> = client.list::<api::Event>("/events").unwrap().into_iter().map(|event| event.id).collect();
    assert!(ids.is_sorted_by(|one, other| one < other), "{ids:?}");
    assert!(first.directory.path().join("state").join(format!("single-host-before-{}", cluster_of_one.id)).exists());

    assert_eq!(code(post(&first.client(), "/cluster", &json!({}))), "in-cluster");
    first.client().does("POST /vms/a/stop");
    for name in ["a", "b"] {
        first.client().does(&format!("DELETE /vms/{name}?disks=keep"));
    }
    let (second, third) = (host(1), host(2));
    joined(&first, &second, "h2");
    assert_eq!(voters(&first), ["h1"], "two hosts have one member");
    joined(&first, &third, "h3");
    let all = ["h1", "h2", "h3"].map(String::from);
    for host in [&first, &second, &third] {
        until("three members", || (voters(host) == all).then_some(()));
    }
    // Any host answers everyone.
    let viewer = third.client_with(&made.secret);
    assert_eq!(viewer.get::<ClusterStatus>("/cluster").unwrap().cluster.unwrap().id, cluster_of_one.id);
    assert_eq!(code(post(&viewer, "/cluster/tokens", &json!({}))), "role");
}
