//! What VMs are given of a host is what they were promised: processor time, disk operations and bytes, space; and it is counted.

mod common;

use common::managed::{console, json, managed_lab, start_marud, until};
use common::{PATIENCE, shell};
use lab::host::Host;
use serde_json::Value;

/// How long something is measured, in seconds. Less, and what a process does beside it would count.
const MEASURED: u64 = 20;

/// Creates and starts a test guest that acts by `words`, and returns its id.
fn start_vm(host: &Host, name: &str, words: &str, options: &str) -> String {
    shell(
        host,
        &format!(
            "maru vm create {name} --kernel guest:vmlinuz --initrd guest:initramfs --memory 96M {options} --cmdline \
             'console=ttyS0 quiet panic=-1 mitigations=off {words}'; maru vm start {name}"
        ),
    );
    let id = json(host, &format!("maru vm show {name}"))["id"].as_str().unwrap().to_owned();
    console(host, &id, PATIENCE, |printed| printed.contains("maru-guest: busy"));
    id
}

/// The host's time, and a VM's processor time, in microseconds.
fn processor_us(host: &Host, id: &str) -> (f64, u64) {
    let text = shell(host, &format!("cat /proc/uptime; grep usage_usec /sys/fs/cgroup/maru/{id}/cpu.stat"));
    let words: Vec<&str> = text.split_whitespace().collect();
    let usage = words.iter().position(|word| *word == "usage_usec").unwrap();
    (words[0].parse::<f64>().unwrap() * 1e6, words[usage + 1].parse().unwrap())
}

/// How much of one processor each VM got over some time.
fn shares<const N: usize>(host: &Host, ids: [&str; N]) -> [f64; N] {
    let before = ids.map(|id| processor_us(host, id));
    shell(host, &format!("sleep {MEASURED}"));
    let after = ids.map(|id| processor_us(host, id));
    std::array::from_fn(|index| (after[index].1 - before[index].1) as f64 / (after[index].0 - before[index].0))
}

/// How much a counter of a VM's usage grew in a second.
fn rate(host: &Host, vm: &str, counter: &str) -> f64 {
    let look = || {
        let text = shell(host, &format!("maru vm usage {vm} -o json | tr -d '\\n'; echo; cut -d' ' -f1 /proc/uptime"));
        let (usage, uptime) = text.trim().split_once('\n').unwrap();
        let usage: Value = serde_json::from_str(usage).unwrap();
        (uptime.parse::<f64>().unwrap(), usage[counter].as_u64().unwrap())
    };
    let before = look();
    shell(host, &format!("sleep {MEASURED}"));
    let after = look();
    (after.1 - before.1) as f64 / (after.0 - before.0)
}

#[test]
#[ignore = "measures, for minutes: make bench-host"]
fn processor_time_disk_limits_and_space_are_what_was_promised_and_what_is_used_is_counted() {
    let lab = managed_lab().start().unwrap();
    let host = lab.host(0);
    shell(host, "mkdir -p /small; mount -t tmpfs -o size=16m tmpfs /small");
    start_marud(host, &["local=/srv", "guest=/guest", "small=/small"]);
    // VMs compete for one processor; the host has the other.
    shell(host, "echo +cpuset > /sys/fs/cgroup/cgroup.subtree_control; echo 1 > /sys/fs/cgroup/maru/cpuset.cpus");

    let a = start_vm(host, "a", "maru.test=busy", "");
    let b = start_vm(host, "b", "maru.test=busy", "--cpu-weight 300");
    let [got_a, got_b] = shares(host, [&a, &b]);
    let share = got_a / (got_a + got_b);
    println!("CPU weights 100:300: {:.1} % and {:.1} % (25 and 75 wanted)", share * 100.0, 100.0 - share * 100.0);
    assert!((share - 0.25).abs() < 0.03, "{share}");
    shell(host, "maru vm limit a --cpu-weight 300; maru vm limit b --cpu-weight 100");
    let [got_a, got_b] = shares(host, [&a, &b]);
    let share = got_a / (got_a + got_b);
    println!("changed while they run, 300:100: {:.1} % and {:.1} % (75 and 25 wanted)", share * 100.0, 100.0 - share * 100.0);
    assert!((share - 0.75).abs() < 0.03, "{share}");

    shell(host, "maru vm pause b; maru vm limit a --cpu-cap 40%");
    let [got] = shares(host, [&a]);
    println!("CPU cap 40 %: {:.2} % of a processor", got * 100.0);
    assert!((got - 0.4).abs() < 0.4 * 0.03, "{got}");

    // What is used is counted, also while no marud looks.
    let counted = |host: &Host| json(host, "maru vm usage a")["cpu_us"].as_u64().unwrap();
    let (before, metered) = (processor_us(host, &a).1, counted(host));
    assert!(metered >= before, "{metered} {before}");
    shell(host, "kill -9 $(pidof marud)");
    shell(host, "sleep 5");
    start_marud(host, &["local=/srv", "guest=/guest", "small=/small"]);
    until(host, "marud has found its VM", |host| json(host, "maru vm show a")["state"] == "running");
    let (before, metered, after) = (processor_us(host, &a).1, counted(host), processor_us(host, &a).1);
    println!("processor time over a kill -9 of marud: {metered} us metered, {before} to {after} us used");
    assert!((before..=after).contains(&metered));
    shell(host, "maru vm stop a --force; maru vm stop b --force");
    assert!(counted(host) >= metered, "what it used to its end");

    shell(host, "maru disk create /srv/data.raw --size 64M");
    let disk = "data.raw";
    let limited = format!("--disk local:{disk},id=data --limit-disk data=iops=50");
    start_vm(host, "c", "maru.test=busy maru.disk=vda", &limited);
    until(host, "the guest writes", |host| json(host, "maru vm usage c")["disk_writes"].as_u64().unwrap() > 100);
    let got = rate(host, "c", "disk_writes");
    println!("50 disk operations a second: {got:.2}");
    assert!((got - 50.0).abs() < 50.0 * 0.05, "{got}");
    shell(host, "maru vm limit c --limit-disk data=bandwidth=256K");
    let got = rate(host, "c", "disk_written_bytes") / 1024.0;
    println!("256 KiB a second to the disk: {got:.1} KiB");
    assert!((got - 256.0).abs() < 256.0 * 0.05, "{got}");
    shell(host, "maru vm limit c --limit-disk data=none");
    let free = rate(host, "c", "disk_writes");
    println!("without a limit: {free:.0} operations a second");
    assert!(free > 80.0, "a limit that held nothing up was no limit");
    shell(host, "maru vm stop c --force");

    // A thin disk that grows beyond its volume.
    shell(host, "maru disk create /small/thin.vhdx --size 64M");
    start_vm(host, "d", "maru.test=busy maru.disk=vda", "--disk small:thin.vhdx");
    let state = |host: &Host| json(host, "maru vm show d")["state"].clone();
    until(host, "the volume is full and the VM is paused", |host| state(host) == "paused");
    let level = |host: &Host| json(host, "maru volume show small")["level"].clone();
    until(host, "the alarm", |host| level(host) == "critical");
    let volume = json(host, "maru volume show small");
    println!("a full volume: {volume}");
    assert_eq!(volume["provisioned_bytes"], 64 << 20);
    let before = json(host, "maru vm usage d")["disk_written_bytes"].as_u64().unwrap();
    shell(host, "mount -o remount,size=128m /small");
    until(host, "the VM goes on by itself", |host| state(host) == "running");
    until(host, "it writes what it could not", |host| {
        json(host, "maru vm usage d")["disk_written_bytes"].as_u64().unwrap() > before + (16 << 20)
    });
    until(host, "the end of the alarm", |host| level(host) == "ok");
    shell(host, "maru vm stop d --force");
    let events = shell(host, "maru event tail --after 0 -o json & sleep 2; kill $!");
    for kind in ["vm-alarm", "vm-resumed", "volume-alarm", "volume-recovered"] {
        assert!(events.contains(&format!("\"{kind}\"")), "{kind} is not among\n{events}");
    }
}
