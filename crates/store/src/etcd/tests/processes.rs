//! No etcd outlives whoever has started it.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use super::*;

const CHILD: &str = "MARU_ETCD_CHILD";

/// Not a test of its own: what [`etcd_ends_with_a_program_that_is_killed`] kills.
#[test]
fn child() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    // From a thread that ends at once: etcd stays.
    let cluster = std::thread::spawn(|| Cluster::of(1)).join().unwrap();
    cluster.wait_ready(0);
    println!("etcd {} in {}", cluster.server(0).id(), cluster.directory.path().display());
    // Until it is killed.
    std::thread::park();
}

#[test]
fn etcd_ends_with_a_program_that_is_killed() {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "--nocapture", "etcd::tests::processes::child"]).env(CHILD, "1").stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let line = lines.find_map(|line| line.split_once("etcd ").map(|(_, rest)| rest.to_owned())).expect("it says which");
    let (pid, directory) = line.split_once(" in ").unwrap();
    let process = Path::new("/proc").join(pid);
    assert!(process.join("exe").exists());
    child.kill().unwrap();
    child.wait().unwrap();
    until("the end of etcd", || (!process.join("exe").exists()).then_some(()));
    std::fs::remove_dir_all(directory).unwrap();
}

#[test]
fn etcd_that_is_asked_to_end_does_so_and_goes_on_with_its_data() {
    let mut cluster = Cluster::of(1);
    let store = cluster.client();
    let revision = crate::testing::put(&store, "k", "1");
    let started = Instant::now();
    cluster.servers[0].take().unwrap().stop(LONG);
    assert!(started.elapsed() < LONG / 2, "it was waited for until it was killed");
    cluster.start(0);
    cluster.wait_ready(0);
    assert_eq!(crate::Store::get(&store, "k").unwrap().unwrap().revision, revision);
}
