//! Hosts that talk over cables, and tests that die.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lab::Lab;
use lab::cable::Direction;

/// Average time of a few pings in ms, or nothing if none came back.
fn ping(lab: &Lab, from: usize, to: usize, cable: usize) -> Option<f64> {
    let address = lab.host(to).address(cable).to_string();
    let output = lab.host(from).exec(["ping", "-c", "4", "-i", "0.1", "-W", "1", &address]).unwrap().text();
    output.lines().find(|line| line.starts_with("round-trip"))?.split('/').nth(3)?.trim().parse().ok()
}

#[test]
fn three_hosts_start_side_by_side_and_reach_each_other_until_a_cable_is_cut() {
    let start = Instant::now();
    let lab = Lab::new().hosts(3).memory_mib(512).shared_disk(16).start().unwrap();
    println!("three hosts ready after {:?}", start.elapsed());
    let capture = lab.state_dir().join("cable0.pcap");
    lab.cable(0).pcap(&capture).unwrap();
    for (from, to) in [(0, 1), (1, 2), (2, 0)] {
        for cable in 0..2 {
            println!("h{} to h{} on cable {cable}: {:?} ms", from + 1, to + 1, ping(&lab, from, to, cable));
            assert!(ping(&lab, from, to, cable).is_some());
        }
    }
    lab.cable(0).cut(1);
    assert_eq!(ping(&lab, 0, 1, 0), None);
    assert!(ping(&lab, 0, 1, 1).is_some(), "the other cable is whole");
    assert!(ping(&lab, 0, 2, 0).is_some(), "the other host is not cut off");
    lab.cable(0).uncut(1);
    assert!(ping(&lab, 0, 1, 0).is_some());
    lab.cable(0).cut_way(1, Direction::FromHost);
    assert_eq!(ping(&lab, 0, 1, 0), None);
    lab.cable(0).restore(1);

    lab.cable(0).delay(0, Duration::from_millis(100));
    let delayed = ping(&lab, 0, 1, 0).unwrap();
    println!("with twice 100 ms of delay: {delayed} ms");
    assert!((200.0..400.0).contains(&delayed), "{delayed}");
    lab.cable(0).restore(0);
    lab.cable(0).loss(0, 100.0);
    assert_eq!(ping(&lab, 0, 1, 0), None);
    lab.cable(0).restore(0);
    lab.cable(0).pcap_end();
    assert!(std::fs::metadata(&capture).unwrap().len() > 1000);

    // The shared disk shows what another host wrote.
    assert!(lab.host(0).exec(["sh", "-c", "echo shared | dd of=/dev/vda bs=512 conv=sync,fsync"]).unwrap().success());
    assert_eq!(lab.host(2).exec(["head", "-c", "6", "/dev/vda"]).unwrap().text(), "shared");
}

/// Not a test of its own: what [`a_killed_test_leaves_no_host_behind`] starts and kills.
#[test]
#[ignore = "started by a_killed_test_leaves_no_host_behind"]
fn victim() {
    // From a thread that ends, because a host must not depend on the thread that started it.
    let lab = std::thread::spawn(|| Lab::new().hosts(2).memory_mib(256).start().unwrap()).join().unwrap();
    let ids: Vec<String> = lab.hosts().iter().map(|host| host.process_id().unwrap().to_string()).collect();
    assert!(lab.host(0).exec(["true"]).unwrap().success());
    std::fs::write(std::env::var("MARU_TEST_IDS").unwrap(), format!("{} {}", ids.join(" "), lab.runtime_dir().display()))
        .unwrap();
    loop {
        std::thread::park();
    }
}

#[test]
fn a_killed_test_leaves_no_host_behind() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ids");
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "victim", "--ignored"])
        .env("MARU_TEST_IDS", &file)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    let ids = loop {
        match std::fs::read_to_string(&file) {
            Ok(ids) if !ids.is_empty() => break ids,
            _ => {
                assert!(victim.try_wait().unwrap().is_none() && Instant::now() < deadline);
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    };
    let mut words: Vec<&str> = ids.split_whitespace().collect();
    let runtime = words.pop().unwrap();
    let alive = |id: &str| std::fs::read_to_string(format!("/proc/{id}/stat")).is_ok_and(|stat| !stat.contains(") Z "));
    assert!(words.len() == 2 && words.iter().all(|id| alive(id)));
    victim.kill().unwrap();
    victim.wait().unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    while words.iter().any(|id| alive(id)) {
        assert!(Instant::now() < deadline, "{words:?} still run");
        std::thread::sleep(Duration::from_millis(10));
    }
    // The sockets it left are cleared away by whoever starts the next lab.
    assert!(Path::new(runtime).exists());
    drop(Lab::new().prepare(&mut |_| {}).unwrap());
    assert!(!Path::new(runtime).exists());
}
