//! Hosts that become a cluster, with `marud` and etcd as they are, on addresses of this machine.

use std::path::{Path, PathBuf};
use std::time::Duration;

use api::client::{Client, ClientError, Method};
use api::{Cluster, ClusterStatus};
use serde_json::json;

use super::{TestHost, until_within};

/// What needs elections and copies, on a busy machine.
pub const LONG: Duration = Duration::from_secs(90);

/// Where `scripts/install-deps` has put etcd.
fn etcd() -> PathBuf {
    let build = std::env::var_os("MARU_BUILD_DIR").map(PathBuf::from);
    build.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../build")).join("etcd/usr/bin")
}

/// An address of the loopback network that no other process uses, so that no port has to be looked for, and lost to somebody.
pub fn address(index: u8) -> String {
    let [_, a, b, c] = std::process::id().to_be_bytes();
    format!("127.{}.{b}.{c}", 65 + 30 * index + a)
}

/// A host of its own, at the address with this number.
pub fn host(index: u8) -> TestHost {
    let listen = format!("{}:8420", address(index));
    TestHost::with_options(&["--listen", &listen, "--etcd", etcd().to_str().unwrap()])
}

pub fn until<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    until_within(LONG, Duration::from_millis(20), what, look)
}

pub fn post(client: &Client, path: &str, body: &serde_json::Value) -> Result<(), ClientError> {
    client.call::<serde_json::Value>(Method::POST, path, Some(body)).map(drop)
}

pub fn status(host: &TestHost) -> Option<ClusterStatus> {
    // marud may be about to start anew.
    host.try_client()?.get("/cluster").ok()
}

pub fn cluster(host: &TestHost) -> Option<Cluster> {
    status(host)?.cluster
}

/// Makes a cluster of a host.
pub fn create(host: &TestHost, name: &str) -> Cluster {
    post(&host.client(), "/cluster", &json!({"name": "test", "host": name})).unwrap();
    until("the cluster", || cluster(host))
}

pub fn token(host: &TestHost) -> String {
    let made: api::CreatedJoinToken = host.client().call(Method::POST, "/cluster/tokens", Some(&json!({}))).unwrap();
    made.token
}

pub fn join(host: &TestHost, name: &str, token: &str) -> Result<(), ClientError> {
    post(&host.client(), "/cluster/join", &json!({"token": token, "host": name}))
}

/// Lets a host join, and waits until it is there.
pub fn joined(first: &TestHost, host: &TestHost, name: &str) {
    join(host, name, &token(first)).unwrap();
    until(&format!("{name} in the cluster"), || cluster(host).filter(|cluster| cluster.this_host == name));
}
