//! A host that manages its VMs, with real ones.

mod common;

use common::managed::{console, hear, managed_lab, start_marud, until, vm};
use common::{PATIENCE, shell};
use serde_json::Value;

const VOLUMES: [&str; 2] = ["local=/srv", "guest=/guest"];

#[test]
fn a_vm_is_created_started_found_again_after_a_kill_stopped_and_deleted_without_a_trace() {
    let lab = managed_lab().start().unwrap();
    let host = lab.host(0);
    start_marud(host, &VOLUMES);
    shell(host, "maru disk create /srv/data.vhdx --size 64M");
    shell(
        host,
        "maru vm create web --kernel guest:vmlinuz --initrd guest:initramfs --disk local:data.vhdx --memory 128M --cmdline \
         'console=ttyS0 quiet panic=-1 mitigations=off maru.test=idle'",
    );
    shell(host, "maru vm start web");
    let running = vm(host, "web");
    let (id, pid) = (running["id"].as_str().unwrap(), running["pid"].as_u64().unwrap());
    assert_eq!(running["state"], "running");
    let list = shell(host, "maru vm list");
    assert!(list.contains("web") && list.contains("running") && list.contains(&pid.to_string()), "{list}");
    // KVM's own threads for a VM are in its group, too.
    let group = shell(host, &format!("cat /sys/fs/cgroup/maru/{id}/cgroup.procs"));
    assert!(group.lines().any(|line| line == pid.to_string()), "{group}");
    assert_ne!(shell(host, &format!("stat -c %u /proc/{pid}")), "0\n", "a monitor does not stay root");
    console(host, id, PATIENCE, |text| text.contains("maru-guest: facts"));

    shell(host, "kill -9 $(pidof marud)");
    start_marud(host, &VOLUMES);
    until(host, "marud has found its VM", |host| vm(host, "web")["state"] == "running");
    assert_eq!(vm(host, "web")["pid"], pid);
    shell(host, "maru vm pause web");
    assert_eq!(vm(host, "web")["state"], "paused");
    shell(host, "maru vm resume web");

    let said = shell(host, "maru vm stop web 2>&1");
    assert!(said.contains("web: stop done"), "{said}");
    let off = vm(host, "web");
    assert_eq!((&off["state"], &off["last_end"]["reason"]), (&"off".into(), &"the guest powered off".into()), "{said}");
    shell(host, "maru vm delete web --disks delete");
    assert_eq!(shell(host, "maru vm list -o json"), "[]\n");
    let left = shell(host, "pidof maru-vmm || true; ls /run/maru/vms /srv; find /sys/fs/cgroup/maru -mindepth 1 -type d");
    assert_eq!(left.trim(), "/run/maru/vms:\n\n/srv:", "{left}");
    let events =
        hear(host, &["maru", "event", "tail", "--after", "0", "-o", "json"], PATIENCE, |text| text.contains("vm-deleted"));
    let kinds: Vec<Value> = events.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["kind"].clone()).collect();
    let expected = "host-started vm-created vm-started host-started vm-adopted vm-paused vm-resumed vm-stopped vm-deleted";
    assert_eq!(kinds, expected.split(' ').collect::<Vec<_>>());
}
