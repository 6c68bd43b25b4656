//! A host whose `marud` has virtual switches, with real VMs on them.

mod common;

use common::managed::{console, json, managed_lab, start_marud, until, vm};
use common::{PATIENCE, shell};
use lab::appliance::program;
use lab::host::Host;
use serde_json::Value;

const VOLUMES: [&str; 2] = ["local=/srv", "guest=/guest"];

fn port(host: &Host, name: &str) -> Value {
    json(host, &format!("maru port show {name}"))
}

fn counter(host: &Host, port_name: &str, counter: &str) -> u64 {
    port(host, port_name)["counters"][counter].as_u64().unwrap_or(0)
}

/// Waits until the server has answered some thousand bytes more.
fn talks(host: &Host, what: &str) {
    let before = counter(host, "b/net0", "sent_bytes");
    until(host, what, |host| counter(host, "b/net0", "sent_bytes") > before + 8000);
}

fn switch_process(host: &Host) -> u64 {
    json(host, "maru switch show lan")["pid"].as_u64().unwrap()
}

fn create(host: &Host, name: &str, options: &str, words: &str) {
    let kernel = "--kernel guest:vmlinuz --initrd guest:initramfs --memory 128M";
    let words = format!("console=ttyS0 quiet panic=-1 mitigations=off {words}");
    shell(host, &format!("maru vm create {name} {kernel} {options} --cmdline '{words}' && maru vm start {name}"));
}

#[test]
fn vms_of_marud_talk_over_its_switches_as_their_policies_allow_and_whatever_is_killed() {
    let switch = program("maru-switch").expect("maru-switch is missing: run `cargo build --release --workspace`");
    let lab = managed_lab().binary(switch, "/bin/maru-switch").start().unwrap();
    let host = lab.host(0);
    host.load_module("tun", "").expect("the module tun");
    // As udev does; there is none here.
    shell(host, "chmod 666 /dev/net/tun");
    start_marud(host, &VOLUMES);
    shell(
        host,
        "maru switch create lan && maru switch create office --host-address 10.9.1.254/24 && maru switch create wan --uplink cable1",
    );
    for name in ["lan", "office", "wan"] {
        assert_eq!(json(host, &format!("maru switch show {name}"))["error"], Value::Null, "{name}");
    }
    let pid = switch_process(host);
    let status = shell(host, &format!("cat /proc/{pid}/status"));
    let line = |name: &str| {
        status.lines().find_map(|line| line.strip_prefix(name)).unwrap().split_whitespace().last().unwrap().to_owned()
    };
    assert_ne!(line("Uid:"), "0", "the switch is a user of its own");
    assert_eq!(line("CapEff:"), "0000000000003000", "of root's rights it has those for TAPs and NICs");

    let words = "maru.test=idle maru.ip=0,10.9.0.2/24 maru.ip=1,10.9.1.2/24 maru.listen=10.9.0.2:7";
    create(host, "b", "--switch lan --switch office", words);
    let b = vm(host, "b")["id"].as_str().unwrap().to_owned();
    console(host, &b, PATIENCE, |text| text.contains("maru-guest: facts"));
    shell(host, "ping -c 1 -W 20 10.9.1.2");
    create(host, "a", "--switch lan", "maru.test=load maru.ip=0,10.9.0.1/24 maru.echo=10.9.0.2:7 maru.mem=1 maru.pace_us=5000");
    let a = vm(host, "a")["id"].as_str().unwrap().to_owned();
    talks(host, "the VMs' first words");

    // Separated, from the next frame on; and together again, on the same connection.
    shell(host, "maru port set b/net0 --vlan 10");
    let (heard, said) = (counter(host, "b/net0", "received_packets"), counter(host, "a/net0", "sent_packets"));
    until(host, "the client tries in vain", |host| counter(host, "a/net0", "sent_packets") > said + 2);
    assert_eq!(counter(host, "b/net0", "received_packets"), heard, "not one frame more");
    shell(host, "maru port set b/net0 --vlan none");
    talks(host, "words in the same VLAN again");
    // A rule does the same.
    shell(host, "maru acl add b/net0 --deny --in --protocol tcp --local-port 7 --weight 5");
    let said = shell(host, "maru acl test b/net0 --in --protocol tcp --local 10.9.0.2 --local-port 7 --remote 10.9.0.1");
    assert_eq!(said, "it is dropped: rule in:5 decides\n");
    until(host, "the rule drops something", |host| port(host, "b/net0")["counters"]["drops"]["extended-acl"].as_u64() > Some(0));
    shell(host, "maru acl remove b/net0 in:5");
    talks(host, "words without the rule");

    shell(host, "kill -9 $(pidof marud)");
    start_marud(host, &VOLUMES);
    until(host, "marud has found its VMs", |host| ["a", "b"].iter().all(|name| vm(host, name)["state"] == "running"));
    assert_eq!(switch_process(host), pid);
    talks(host, "words after marud was killed");

    // Monitors connect again as the users that they have become.
    shell(host, &format!("kill -9 {pid}"));
    until(host, "another switch", |host| json(host, "maru switch show lan")["pid"].as_u64().is_some_and(|again| again != pid));
    talks(host, "words after the switch was killed");
    let usage = json(host, "maru vm usage b");
    assert!(usage["net_sent_bytes"].as_u64().unwrap() > 8000, "{usage}");
    let text = console(host, &b, PATIENCE, |text| text.contains(" connected"));
    assert_eq!(text.matches(" connected").count(), 1, "it is one connection: {text}");
    let text = console(host, &a, PATIENCE, |text| text.contains("maru-guest: ok"));
    assert!(!text.contains("FAIL"), "{text}");

    shell(host, "maru vm stop a b --force && maru vm delete a b && maru switch delete lan office wan");
    let left =
        shell(host, "pidof maru-switch || true; ls /run/maru; ip link show office 2>/dev/null || true; ls /sys/fs/cgroup/maru");
    assert!(!left.contains("switch") && !left.contains("office"), "{left}");
}
