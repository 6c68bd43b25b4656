//! Hosts whose `marud` has virtual switches, with real VMs on them: monitors and switches are confined as in production.

mod common;

use std::time::Duration;

use common::managed::{console, json, managed_lab, until, vm};
use common::{PATIENCE, shell, switch_program};
use lab::host::Host;
use lab::{Lab, LabSpec};
use serde_json::Value;

fn net_lab() -> LabSpec {
    managed_lab().binary(switch_program(), "/bin/maru-switch").managed().kernel_words("maru.volume=guest=/guest")
}

fn port(host: &Host, name: &str) -> Value {
    json(host, &format!("maru port show {name}"))
}

fn counter(host: &Host, port_name: &str, counter: &str) -> u64 {
    port(host, port_name)["counters"][counter].as_u64().unwrap_or(0)
}

fn switch_process(host: &Host, switch: &str) -> u64 {
    json(host, &format!("maru switch show {switch}"))["pid"].as_u64().unwrap()
}

fn is_root(host: &Host, pid: u64) -> bool {
    shell(host, &format!("grep Uid /proc/{pid}/status")).split_whitespace().any(|word| word == "0")
}

/// A test guest that acts by `words`; returns its id.
fn start(host: &Host, name: &str, options: &str, words: &str) -> String {
    let kernel = "--kernel guest:vmlinuz --initrd guest:initramfs --memory 128M";
    let words = format!("console=ttyS0 quiet panic=-1 mitigations=off {words}");
    shell(host, &format!("maru vm create {name} {kernel} {options} --cmdline '{words}' && maru vm start {name}"));
    let vm = vm(host, name);
    assert!(!is_root(host, vm["pid"].as_u64().unwrap()), "a monitor is a user of its own");
    vm["id"].as_str().unwrap().to_owned()
}

/// The guest that sends everything back.
fn start_server(host: &Host, options: &str, words: &str) -> String {
    let words = format!("maru.test=idle maru.ip=0,10.9.0.2/24 maru.listen=10.9.0.2:7 {words}");
    let id = start(host, "b", options, &words);
    console(host, &id, PATIENCE, |text| text.contains("maru-guest: facts"));
    id
}

/// One TCP connection between two guests, over which numbers go to the server and back all the time.
struct Stream<'h> {
    host: &'h Host,
    client: String,
}

/// What the client says twice a second.
#[derive(Clone, Copy, Debug)]
struct Heartbeat {
    /// Seconds on the guest's clock.
    mono: f64,
    /// Bytes that came back.
    bytes: u64,
    /// The longest time in which nothing came back.
    gap_ms: u64,
}

impl<'h> Stream<'h> {
    fn start(host: &'h Host, options: &str) -> Stream<'h> {
        let words = "maru.test=load maru.ip=0,10.9.0.1/24 maru.echo=10.9.0.2:7 maru.mem=1 maru.pace_us=5000";
        let stream = Stream { host, client: start(host, "a", options, words) };
        stream.wait(|beats| beats.last().is_some_and(|last| last.bytes > 8000));
        stream
    }

    /// All that the client has said, up to what is waited for.
    fn wait(&self, enough: impl Fn(&[Heartbeat]) -> bool) -> Vec<Heartbeat> {
        let text = console(self.host, &self.client, PATIENCE, |text| {
            assert!(!text.contains("FAIL"), "{text}");
            enough(&heartbeats(text))
        });
        heartbeats(&text)
    }

    fn newest(&self) -> Heartbeat {
        *self.wait(|beats| !beats.is_empty()).last().unwrap()
    }

    /// Waits until a thousand words more have come back.
    fn goes_on(&self) {
        let before = self.newest().bytes;
        self.wait(|beats| beats.last().is_some_and(|last| last.bytes > before + 8000));
    }

    /// Does something; returns for how long nothing came back because of it.
    fn gap(&self, what: &str, disturb: impl FnOnce()) -> Duration {
        let before = self.newest();
        disturb();
        self.goes_on();
        let since = self.wait(|beats| !beats.is_empty()).into_iter().filter(|beat| beat.mono > before.mono);
        let gap = Duration::from_millis(since.map(|beat| beat.gap_ms).max().expect("it has said more"));
        println!("{what}: nothing came back for {} ms, and nothing was lost", gap.as_millis());
        gap
    }
}

fn heartbeats(text: &str) -> Vec<Heartbeat> {
    let lines = text.lines().filter_map(|line| {
        let words = line.split_once("maru-guest: ok ")?.1;
        let value = |key: &str| words.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
        Some(Heartbeat {
            mono: value("mono")?.parse().ok()?,
            bytes: value("net")?.parse().ok()?,
            gap_ms: value("net_gap_ms")?.parse().ok()?,
        })
    });
    lines.collect()
}

/// Kills the switch of a host, and waits for the one that `marud` starts.
fn kill_switch(host: &Host, switch: &str) {
    let pid = switch_process(host, switch);
    shell(host, &format!("kill -9 {pid}"));
    until(host, "another switch", |host| {
        json(host, &format!("maru switch show {switch}"))["pid"].as_u64().is_some_and(|again| again != pid)
    });
}

/// The server has seen one client, ever.
fn is_one_connection(host: &Host, server: &str) {
    let text = console(host, server, PATIENCE, |text| text.contains(" connected"));
    assert_eq!(text.matches(" connected").count(), 1, "it is one connection: {text}");
    assert!(!text.contains(" ended"), "{text}");
}

#[test]
fn vms_of_marud_talk_over_its_switches_as_their_policies_allow_and_whatever_is_killed() {
    let lab = net_lab().start().unwrap();
    let host = lab.host(0);
    shell(host, "ip addr flush dev cable1; ip link set cable1 arp off");
    shell(
        host,
        "maru switch create lan && maru switch create office --host-address 10.9.1.254/24 && maru switch create wan --uplink cable1",
    );
    for name in ["lan", "office", "wan"] {
        assert_eq!(json(host, &format!("maru switch show {name}"))["error"], Value::Null, "{name}");
    }
    let pid = switch_process(host, "lan");
    assert!(!is_root(host, pid), "the switch is a user of its own");
    let rights = shell(host, &format!("grep CapEff /proc/{pid}/status"));
    // CAP_NET_ADMIN, CAP_NET_RAW; CAP_IPC_LOCK and CAP_BPF for AF_XDP.
    assert!(rights.ends_with("0000008000007000\n"), "of root's rights it has those for TAPs and NICs: {rights}");

    let server = start_server(host, "--switch lan --switch office", "maru.ip=1,10.9.1.2/24");
    shell(host, "ping -c 1 -W 20 10.9.1.2");
    let stream = Stream::start(host, "--switch lan");

    // Separated, from the next frame on; and together again, on the same connection.
    stream.gap("the server was in another VLAN for a moment", || {
        shell(host, "maru port set b/net0 --vlan 10");
        let (heard, said) = (counter(host, "b/net0", "received_packets"), counter(host, "a/net0", "sent_packets"));
        until(host, "the client tries in vain", |host| counter(host, "a/net0", "sent_packets") > said + 2);
        assert_eq!(counter(host, "b/net0", "received_packets"), heard, "not one frame more");
        shell(host, "maru port set b/net0 --vlan none");
    });
    stream.gap("a rule denied it for a moment", || {
        shell(host, "maru acl add b/net0 --deny --in --protocol tcp --local-port 7 --weight 5");
        let said = shell(host, "maru acl test b/net0 --in --protocol tcp --local 10.9.0.2 --local-port 7 --remote 10.9.0.1");
        assert_eq!(said, "it is dropped: rule in:5 decides\n");
        let drops = |host: &Host| port(host, "b/net0")["counters"]["drops"]["extended-acl"].as_u64();
        until(host, "the rule drops something", |host| drops(host) > Some(0));
        shell(host, "maru acl remove b/net0 in:5");
    });
    stream.gap("marud was killed", || {
        shell(host, "kill -9 $(pidof marud)");
        until(host, "marud answers", |host| host.exec(["maru", "host", "show"]).unwrap().success());
        until(host, "marud has found its VMs", |host| ["a", "b"].iter().all(|name| vm(host, name)["state"] == "running"));
        assert_eq!(switch_process(host, "lan"), pid, "its switches went on");
    });
    // Monitors connect again as the users that they have become.
    stream.gap("the switch was killed", || kill_switch(host, "lan"));
    stream.gap("it was killed once more", || kill_switch(host, "lan"));
    let usage = json(host, "maru vm usage b");
    assert!(usage["net_sent_bytes"].as_u64().unwrap() > 8000, "{usage}");
    is_one_connection(host, &server);

    shell(host, "maru vm stop a b --force && maru vm delete a b && maru switch delete lan office wan");
    let left =
        shell(host, "pidof maru-switch || true; ls /run/maru; ip link show office 2>/dev/null || true; ls /sys/fs/cgroup/maru");
    assert!(!left.contains("switch") && !left.contains("office"), "{left}");
}

fn plug(lab: &Lab, plugged_in: bool) {
    lab.host(0).set_carrier(1, plugged_in).unwrap();
}

#[test]
fn vms_on_two_hosts_talk_through_external_switches_and_through_a_kill_of_either() {
    let lab = net_lab().hosts(2).start().unwrap();
    let [first, second] = [lab.host(0), lab.host(1)];
    for host in [first, second] {
        shell(host, "ip addr flush dev cable1; ip link set cable1 arp off; maru switch create wan --uplink cable1");
    }
    let server = start_server(second, "--net switch=wan,vlan=10", "");
    let stream = Stream::start(first, "--net switch=wan,vlan=10");
    stream.gap("nothing happened", || ());
    for (host, what) in [(first, "the client's switch was killed"), (second, "the server's switch was killed")] {
        stream.gap(what, || kill_switch(host, "wan"));
    }
    stream.gap("the cable was pulled for a moment", || {
        plug(&lab, false);
        until(first, "an uplink without a link", |host| port(host, "wan")["connected"] == false);
        plug(&lab, true);
    });
    let wire = counter(first, "wan", "sent_bytes");
    assert!(wire > 8000, "it goes over the cable: {wire}");
    is_one_connection(second, &server);
}
