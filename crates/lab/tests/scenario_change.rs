//! A running VM changes: devices, vCPUs and memory come and go.

mod common;

use common::{Vm, make_taps, shell, vm_lab};

#[test]
fn disks_nics_vcpus_and_memory_are_added_and_removed_while_the_guest_runs() {
    let lab = vm_lab().start().unwrap();
    let host = lab.host(0);
    make_taps(host, &["t0"]);
    shell(host, "truncate -s 16M /tmp/d0; truncate -s 24M /tmp/d1");
    let mut vm = Vm::start(
        host,
        "vm",
        "maru.test=idle maru.disk=vda",
        &["--cpus", "1,max=3", "--memory", "128M,hotplug=256M", "--disk", "/tmp/d0,id=d0", "--balloon"],
    );
    let first = vm.wait_for_facts("the first facts", |facts| facts["disks"].as_array().unwrap().len() == 1);
    let memory = |facts: &serde_json::Value| facts["mem_total_kib"].as_u64().unwrap();

    vm.control(&["add-disk", "/tmp/d1,id=d1,serial=late"]);
    let facts = vm.wait_for_facts("the second disk", |facts| facts["disks"].as_array().unwrap().len() == 2);
    assert_eq!(facts["disks"][1]["serial"], "late");
    assert_eq!(facts["disks"][1]["size_bytes"], 24 << 20);
    vm.control(&["resize-disk", "d1", "48M"]);
    vm.wait_for_facts("the larger disk", |facts| facts["disks"][1]["size_bytes"] == 48 << 20);

    vm.control(&["add-net", "tap=t0,mac=52:54:00:00:00:07,id=n1"]);
    vm.wait_for_facts("the NIC", |facts| facts["nics"][0]["mac"] == "52:54:00:00:00:07");

    vm.control(&["set-cpus", "3"]);
    vm.wait_for_facts("three vCPUs", |facts| facts["cpus"] == 3);
    let refused = vm.try_control(&["set-cpus", "4"]);
    assert!(!refused.success() && refused.error_text().contains("made for"), "{}", refused.error_text());
    // Two at once go one after the other, and come back.
    vm.control(&["set-cpus", "1"]);
    vm.wait_for_facts("one vCPU", |facts| facts["cpus"] == 1);
    vm.control(&["set-cpus", "3"]);
    vm.wait_for_facts("three vCPUs again", |facts| facts["cpus"] == 3);

    vm.control(&["set-memory", "+128M"]);
    vm.wait_for_facts("more memory", |facts| memory(facts) >= memory(&first) + 120 * 1024);
    vm.control(&["set-memory", "+0"]);
    vm.wait_for_facts("less memory", |facts| memory(facts) <= memory(&first) + 8 * 1024);

    vm.control(&["remove", "d1"]);
    vm.control(&["remove", "n1"]);
    vm.wait_for_facts("the devices gone", |facts| {
        facts["disks"].as_array().unwrap().len() == 1 && facts["nics"].as_array().unwrap().is_empty()
    });
    // What was removed can be used again at once.
    vm.control(&["add-disk", "/tmp/d1,id=d2"]);
    vm.wait_for_facts("the disk again", |facts| facts["disks"].as_array().unwrap().len() == 2);

    // A reset takes hot-added memory back, keeps devices and vCPUs, and boots.
    let seen = vm.output.len();
    vm.control(&["reset"]);
    vm.wait_for("the next boot", |output| common::facts(&output[seen..]).is_some_and(|facts| facts["cpus"] == 3));
    vm.control(&["stop"]);
    assert_eq!(vm.wait().0, 0);
}
