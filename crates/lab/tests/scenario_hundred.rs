//! A hundred real VMs on one host, through the CLI; and `marud` killed whatever it is doing.

mod common;

use std::time::{Duration, Instant};

use common::managed::{console, json, managed_lab, start_marud};
use common::shell;
use lab::agent::Exec;
use lab::appliance::small_guest_image;
use lab::host::Host;
use serde_json::Value;

/// How long a hundred guests may take, which share two emulated processors.
const PATIENCE: Duration = Duration::from_secs(900);
const VMS: usize = 100;
const BOOTING: usize = 4;

/// Runs a command that takes long.
fn patiently(host: &Host, script: &str) -> Duration {
    let start = Instant::now();
    let output = host.spawn(Exec::new(["sh", "-ec", script])).unwrap().wait_within(PATIENCE).unwrap();
    assert!(output.success(), "{script}\n{}{}", output.text(), output.error_text());
    start.elapsed()
}

/// What `maru` may not leave behind.
fn traces(host: &Host) -> String {
    shell(host, "pidof maru-vmm || true; ls /run/maru/vms /srv; find /sys/fs/cgroup/maru -mindepth 1 -type d")
}

#[test]
#[ignore = "measures, for minutes: make bench-host"]
fn a_hundred_vms_are_created_started_listed_stopped_and_deleted() {
    let small = small_guest_image().expect("the small guest's image");
    let lab = managed_lab().memory_mib(12 << 10).file(small.initramfs, "/guest/small").start().unwrap();
    let host = lab.host(0);
    start_marud(host, &["local=/srv", "guest=/guest"]);
    let names = (0..VMS).map(|number| format!("vm{number}")).collect::<Vec<_>>().join(" ");
    // With 64 MiB, Debian's kernel has less than 18 MiB for itself, and ends in a panic long before it starts init.
    let each = "maru vm create $vm --kernel guest:vmlinuz --initrd guest:small --memory 96M \
                --cmdline 'console=ttyS0 quiet panic=-1 mitigations=off maru.test=idle'";
    println!("created one after the other: {:?}", patiently(host, &format!("for vm in {names}; do {each}; done")));
    println!("started: {:?}", patiently(host, &format!("maru vm start {names}")));
    // Guests that boot all at once on two emulated processors hinder each other for longer than they need: so many at a time.
    println!("paused: {:?}", patiently(host, &format!("maru vm pause {names}")));
    let booted = Instant::now();
    let vms = json(host, "maru vm list");
    for group in vms.as_array().unwrap().chunks(BOOTING) {
        let names: Vec<&str> = group.iter().map(|vm| vm["spec"]["name"].as_str().unwrap()).collect();
        patiently(host, &format!("maru vm resume {}", names.join(" ")));
        for vm in group {
            console(host, vm["id"].as_str().unwrap(), PATIENCE, |said| said.contains("maru-guest: facts"));
        }
        println!("booted after {:?}: {}", booted.elapsed(), names.join(" "));
    }
    let start = Instant::now();
    let vms = json(host, "maru vm list");
    println!("listed: {:?}", start.elapsed());
    let vms = vms.as_array().unwrap();
    assert!(vms.len() == VMS && vms.iter().all(|vm| vm["state"] == "running"));

    println!("stopped: {:?}", patiently(host, &format!("maru vm stop --grace 900 {names}")));
    let vms = json(host, "maru vm list");
    let in_order = vms.as_array().unwrap().iter().filter(|vm| vm["last_end"]["reason"] == "the guest powered off").count();
    assert_eq!(in_order, VMS, "{vms:?}");
    println!("deleted: {:?}", patiently(host, &format!("maru vm delete {names}")));
    assert_eq!(json(host, "maru vm list"), Value::Array(Vec::new()));
    assert_eq!(traces(host).trim(), "/run/maru/vms:\n\n/srv:");
}
