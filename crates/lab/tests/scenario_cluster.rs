//! Three hosts that become a cluster, with a real VM, whose host is shut down in order. What becomes of VMs when a host fails is tried by
//! `scenario_witness`, and how they leave one that is drained by `scenario_copy`.

mod common;

use std::time::{Duration, Instant};

use common::managed::{cluster, console, json, told, until, vm};
use common::{PATIENCE, shell};
use lab::host::Host;
use serde_json::Value;

/// A host as another one tells it.
fn member(asked: &Host, name: &str) -> Value {
    let status = json(asked, "maru cluster status");
    status["cluster"]["hosts"].as_array().unwrap().iter().find(|host| host["name"] == name).unwrap().clone()
}

#[test]
fn a_host_that_is_shut_down_in_order_takes_no_vm_with_it_and_gets_them_back() {
    let lab = cluster();
    let (first, second) = (lab.host(0), lab.host(1));
    // No other host has its files.
    shell(
        second,
        "cd /var/lib/maru/volumes/local; cp /guest/vmlinuz /guest/initramfs .; maru disk create bound.vhdx --size 16M; \
         maru vm create bound --kernel local:vmlinuz --initrd local:initramfs --disk local:bound.vhdx --memory 128M \
         --cmdline 'console=ttyS0 quiet panic=-1 mitigations=off maru.test=idle'",
    );
    shell(second, "maru vm start bound");
    until(first, "it runs on h2", |host| told(host, "bound")["state"] == "running" && told(host, "bound")["host"] == "h2");
    let id = vm(second, "bound")["id"].as_str().unwrap().to_owned();
    console(second, &id, PATIENCE, |text| text.contains("maru-guest: facts"));

    let begun = Instant::now();
    second.shut_down(Duration::from_secs(600)).unwrap();
    println!("h2 is off after {:?}", begun.elapsed());
    until(first, "the VM is saved", |host| told(host, "bound")["state"] == "saved");
    let off = member(first, "h2");
    assert_eq!((&off["drained"], &off["drained_until_back"], &off["vms"]), (&true.into(), &true.into(), &0.into()), "{off}");
    let tasks = json(first, "maru task list");
    let is_saved = |task: &Value| task["operation"] == "save" && task["state"] == "done" && task["vm_name"] == "bound";
    assert!(tasks.as_array().unwrap().iter().any(is_saved), "{tasks}");

    second.power_on().unwrap();
    until(first, "h2 is back, and takes VMs again", |host| {
        let back = member(host, "h2");
        back["alive"] == true && back["drained"] == false && back["drained_until_back"] == false
    });
    until(first, "it runs on h2 again", |host| told(host, "bound")["state"] == "running" && told(host, "bound")["host"] == "h2");
    assert_eq!(shell(second, "pidof maru-vmm | wc -w").trim(), "1");
}
