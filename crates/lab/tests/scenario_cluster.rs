//! Three hosts that become a cluster, with real VMs: a VM outlives its host, and leaves one that is drained.

mod common;

use std::time::Instant;

use common::managed::{cluster, console, create_shared, json, until, vm};
use common::{PATIENCE, shell};
use lab::Lab;
use lab::host::Host;

/// The host that a VM is on, as another one tells it.
fn place<'l>(lab: &'l Lab, asked: &Host, name: &str) -> &'l Host {
    let told = vm(asked, name);
    let host = told["host"].as_str().unwrap().to_owned();
    lab.hosts().iter().find(|candidate| candidate.name() == host).unwrap()
}

/// Whether the VM runs on another host than this one. Whoever is asked may not reach the one that has it, or had it, at that moment.
fn runs_elsewhere(asked: &Host, not: &Host) -> bool {
    let shown = asked.exec(["maru", "vm", "show", "web", "-o", "json"]).unwrap();
    let told: serde_json::Value = serde_json::from_str(&shown.text()).unwrap_or_default();
    told["state"] == "running" && told["host"].as_str().is_some_and(|host| host != not.name())
}

#[test]
fn a_vm_outlives_its_host_and_leaves_one_that_is_drained() {
    let lab = cluster();
    let first = lab.host(0);
    shell(first, "maru disk create /shared/web.vhdx --size 64M");
    create_shared(&lab, "web", "web.vhdx", "maru.test=idle");
    shell(lab.host(1), "maru vm start web");
    let id = vm(first, "web")["id"].as_str().unwrap().to_owned();
    let before = place(&lab, first, "web");
    console(before, &id, PATIENCE, |text| text.contains("maru-guest: facts"));

    let cut = Instant::now();
    before.power_cut();
    let other = lab.hosts().iter().find(|host| host.name() != before.name()).unwrap();
    until(other, "the VM is elsewhere", |host| runs_elsewhere(host, before));
    let started = cut.elapsed();
    let after = place(&lab, other, "web");
    console(after, &id, PATIENCE, |text| text.contains("maru-guest: facts"));
    println!("running again after {started:?}, its init after {:?}, from {} to {}", cut.elapsed(), before.name(), after.name());

    // The host comes back as one of the cluster, and the VM runs once.
    before.power_on().unwrap();
    until(after, "the host is back", |host| {
        json(host, "maru cluster status")["cluster"]["hosts"].as_array().unwrap().iter().all(|host| host["alive"] == true)
    });
    assert_eq!(shell(before, "pidof maru-vmm | wc -w").trim(), "0");

    shell(before, &format!("maru host drain {}", after.name()));
    until(before, "the VM has left the drained host", |host| runs_elsewhere(host, after));
    assert_eq!(shell(after, "pidof maru-vmm | wc -w").trim(), "0");
    shell(after, "maru vm stop web --force");
    assert_eq!(vm(before, "web")["state"], "off");
}
