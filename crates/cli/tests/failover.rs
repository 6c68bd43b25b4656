//! `maru` with a context whose servers come and go.

mod support;

use std::process::{Command, Output};
use std::time::{Duration, Instant};

use api::testing::{Act, Authority, Request, Server};
use serde_json::{Value, json};
use support::{done, refused};

/// A user, and hosts of a cluster that each tell who all of them are.
struct Cluster {
    directory: tempfile::TempDir,
    hosts: Vec<Server>,
}

impl Cluster {
    fn start(count: usize, act: impl Fn(&Request) -> Act + Clone + Send + Sync + 'static) -> Cluster {
        let (authority, all) = (Authority::default(), std::sync::Arc::new(std::sync::OnceLock::<String>::new()));
        let host = |_| {
            let (act, all) = (act.clone(), all.clone());
            authority.server(move |request| match request.line.as_str() {
                "GET /cluster" => Act::Answer(200, all.get().unwrap().clone()),
                _ => act(request),
            })
        };
        let hosts: Vec<Server> = (0..count).map(host).collect();
        let told = hosts.iter().enumerate().map(|(number, host)| {
            json!({
                "name": format!("h{}", number + 1), "addresses": [host.address().ip()], "api_port": host.address().port(), "alive": true,
                "drained": false, "witness": false, "leaving": false, "version": "0.1.0", "store": "voter", "store_answers": true,
                "leads": false, "certificates": 1,
            })
        });
        let cluster = json!({
            "id": "7d9b5e0a-53f2-4d9e-9f0f-3f6f3a3a2b11", "name": "plant", "created_at": "2026-11-28T08:00:00Z", "this_host": "h1",
            "hosts": told.collect::<Vec<_>>(),
        });
        all.set(json!({ "cluster": cluster }).to_string()).unwrap();
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("ca.pem"), authority.pem()).unwrap();
        std::fs::write(directory.path().join("token"), "secret\n").unwrap();
        let cluster = Cluster { directory, hosts };
        cluster.does(&format!("context add plant --server {} --ca CA --token-file TOKEN", cluster.hosts[0].url));
        cluster
    }

    fn run(&self, line: &str) -> Output {
        let path = |name: &str| self.directory.path().join(name).display().to_string();
        let line = line.replace("CA", &path("ca.pem")).replace("TOKEN", &path("token"));
        let mut maru = Command::new(env!("CARGO_BIN_EXE_maru"));
        maru.args(line.split(' ')).env("XDG_CONFIG_HOME", self.directory.path()).env_remove("MARU_CONTEXT").output().unwrap()
    }

    fn does(&self, line: &str) -> String {
        done(line, self.run(line))
    }

    fn refuses(&self, line: &str) -> String {
        refused(line, self.run(line))
    }

    /// What each host was asked, without what was asked of all.
    fn asked(&self) -> Vec<Vec<String>> {
        let lines =
            |host: &Server| host.asked().into_iter().map(|request| request.line).filter(|line| line != "GET /cluster").collect();
        self.hosts.iter().map(lines).collect()
    }
}

fn volumes(request: &Request) -> Act {
    match request.line.as_str() {
        "GET /volumes" => Act::Answer(200, json!({"items": []}).to_string()),
        _ => Act::HangUp,
    }
}

#[test]
fn commands_go_on_with_hosts_that_the_cluster_has_told_of() {
    let cluster = Cluster::start(3, volumes);
    let list: Value = serde_json::from_str(&cluster.does("context list -o json")).unwrap();
    assert_eq!(list[1]["others"], 2);
    cluster.does("volume list");
    cluster.hosts[0].die();
    cluster.does("volume list");
    cluster.does("volume list");
    cluster.hosts[1].die();
    cluster.does("volume list");
    let listed = |times: usize| vec!["GET /volumes".to_owned(); times];
    assert_eq!(cluster.asked(), [listed(1), listed(2), listed(1)]);

    cluster.hosts[2].die();
    let error = cluster.refuses("volume list");
    assert!(error.starts_with("error: none of 3 hosts answers"), "{error}");
    assert!(cluster.hosts.iter().all(|host| error.contains(&format!("{}: Connection refused", host.url))), "{error}");
}

#[test]
fn a_host_that_says_nothing_costs_its_time_once() {
    let cluster = Cluster::start(2, volumes);
    // It listens, and the kernel takes connections, but nobody answers: as a host that is frozen.
    let frozen = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (frozen_url, alive) = (format!("https://{}", frozen.local_addr().unwrap()), &cluster.hosts[0].url);
    cluster.does(&format!("context add frozen --server {frozen_url} --server {alive} --ca CA --token-file TOKEN"));
    let begun = Instant::now();
    cluster.does("volume list");
    let first = begun.elapsed();
    assert!(first >= Duration::from_secs(2), "{first:?}");
    let begun = Instant::now();
    cluster.does("volume list");
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
}

#[test]
fn what_may_have_been_done_is_not_asked_for_again_and_said_to_be_unknown() {
    let cluster = Cluster::start(2, volumes);
    let error = cluster.refuses("token create alice --role viewer");
    assert!(error.contains("is not known. `maru token list` tells"), "{error}");
    assert_eq!(cluster.asked(), [vec!["POST /tokens".to_owned()], Vec::new()]);
}

#[test]
fn what_is_about_one_host_is_asked_of_no_other() {
    let cluster = Cluster::start(2, volumes);
    cluster.hosts[0].die();
    let error = cluster.refuses("cluster leave");
    assert!(error.contains(&format!("{} does not answer", cluster.hosts[0].url)), "{error}");
    assert_eq!(cluster.asked(), [Vec::<String>::new(), Vec::new()]);
    let url = &cluster.hosts[1].url;
    cluster.does(&format!("context add both --server {url} --server https://127.0.0.1:1 --ca CA --token-file TOKEN"));
    assert!(cluster.refuses("cluster leave").contains("names several hosts"));
    assert_eq!(cluster.asked(), [Vec::<String>::new(), Vec::new()]);
}
