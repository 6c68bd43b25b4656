//! The guard of a host with real VMs: they end with the lease, whoever was killed or stopped, and the watchdog is behind it.

mod common;

use std::time::{Duration, Instant};

use common::{PATIENCE, Vm, facts, shell, vm_lab};
use lab::Lab;
use lab::agent::{Exec, ExitStatus};
use lab::appliance::program;
use lab::host::Host;
use serde_json::Value;

/// The lease is 5 s, renewed twice a second: the deadline is 4 s after each renewal.
const AHEAD_MS: u64 = 4000;
const MARGIN: Duration = Duration::from_secs(1);

fn ask(host: &Host, question: &str) -> Value {
    let asked = shell(host, &format!("maru-guard ask --socket /run/guard.socket {question}"));
    serde_json::from_str(&asked).unwrap()
}

fn until(host: &Host, what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "timed out waiting for: {what}\n{}", shell(host, "cat /run/guard.log"));
    }
}

/// Starts it, and waits until it answers. Its number is in `/run/guard.pid`.
fn start_guard(host: &Host, more: &str) {
    let command = format!("maru-guard --socket /run/guard.socket --page /run/guard.page --vms /sys/fs/cgroup/maru {more}");
    shell(host, &format!("setsid sh -c 'echo $$ >/run/guard.pid; exec {command}' </dev/null >>/run/guard.log 2>&1 &"));
    until(host, "the guard answers", || {
        host.exec(["maru-guard", "ask", "--socket", "/run/guard.socket", "status"]).unwrap().success()
    });
}

fn signal_guard(host: &Host, signal: &str) {
    shell(host, &format!("kill -{signal} $(cat /run/guard.pid)"));
}

/// Renews the lease until it is told to end, as `marud` does; a guard that refuses or is not there is asked again.
fn renew(host: &Host) -> lab::agent::Process {
    let script =
        format!("while :; do maru-guard ask --socket /run/guard.socket extend 7 {AHEAD_MS} >/dev/null 2>&1; sleep 0.5; done");
    host.spawn(Exec::new(["sh", "-c", &script])).unwrap()
}

/// A VM in the group of VMs that writes to its disk all the time.
fn start_vm<'h>(host: &'h Host, name: &str, words: &str) -> Vm<'h> {
    let cmdline = format!("console=ttyS0 quiet panic=-1 mitigations=off {words}");
    let config = format!(
        r#"{{"name": "{name}", "cpus": {{"count": 1}}, "memory": {{"size": 134217728}}, "boot": {{"kernel": "/guest/vmlinuz", "initrd": "/guest/initramfs", "command_line": "{cmdline}"}}, "disks": [{{"id": "d", "path": "/run/disk.raw"}}]}}"#
    );
    shell(host, &format!("mkdir -p /sys/fs/cgroup/maru/{name}; cat > /run/{name}.json <<'E'\n{config}\nE"));
    let script = format!(
        "echo $$ > /sys/fs/cgroup/maru/{name}/cgroup.procs; exec maru-vmm --config /run/{name}.json --lease /run/guard.page --control /run/{name}.control"
    );
    Vm::start_with(host, name, vec!["sh".into(), "-c".into(), script])
}

const LOAD: &str = "maru.test=load maru.disk=vda maru.disk_mib=16 maru.mem=0 maru.pace_us=2000";

fn guarded_lab() -> Lab {
    let lab = vm_lab().binary(program("maru-guard").expect("maru-guard"), "/bin/maru-guard").start().unwrap();
    shell(lab.host(0), "mkdir -p /sys/fs/cgroup/maru; truncate -s 24M /run/disk.raw; chmod 666 /run/disk.raw");
    lab
}

/// Waits until the guard takes renewals.
fn held(host: &Host) -> lab::agent::Process {
    let renewals = renew(host);
    until(host, "the lease is held", || ask(host, "status")["state"] == "held");
    renewals
}

#[test]
fn vms_live_as_long_as_the_lease_and_no_guard_that_is_killed_or_stopped_changes_that() {
    let lab = guarded_lab();
    let host = lab.host(0);
    start_guard(host, "");
    assert_eq!(ask(host, "status")["state"], "free");

    // As long as the lease is renewed, they run; killing the guard ends nothing, and the next one goes on.
    let renewals = held(host);
    let mut vm = start_vm(host, "a", LOAD);
    vm.wait_for("the guest writes", |output| output.contains("maru-guest: ok "));
    signal_guard(host, "KILL");
    start_guard(host, "");
    assert_eq!(ask(host, "status")["lease"], 7);
    let later = Instant::now() + Duration::from_millis(AHEAD_MS) + MARGIN;
    let before = vm.output.len();
    vm.wait_for("it goes on for longer than a renewal lasts", |output| output.len() > before && Instant::now() > later);

    // Nobody renews it any more.
    drop(renewals);
    let end = vm.wait_for_or_end("its end", |_| false);
    assert!(matches!(end, Some(ExitStatus::Signal(9) | ExitStatus::Code(5))), "by the guard, or by itself: {end:?}");
    until(host, "the guard knows that none runs", || ask(host, "status")["state"] == "ended");
    assert!(shell(host, "cat /run/guard.log").contains("the VMs of this host are ended"));
    let (status, said) = start_vm(host, "late", "maru.test=idle").wait();
    assert!(status == 1 && said.contains("the lease of this host is over"), "{status} {said}");

    // A guard that stands still cannot end it: it ends itself before it writes anything more.
    let renewals = held(host);
    let mut vm = start_vm(host, "b", LOAD);
    vm.wait_for("the guest writes", |output| output.contains("maru-guest: ok "));
    signal_guard(host, "STOP");
    drop(renewals);
    assert_eq!(vm.wait_for_or_end("its end", |_| false), Some(ExitStatus::Code(5)), "{}", vm.output);
    signal_guard(host, "CONT");
    until(host, "the guard knows that none runs", || ask(host, "status")["state"] == "ended");

    // A host that stood still for longer than the lease has no VM any more.
    let renewals = held(host);
    let mut vm = start_vm(host, "c", LOAD);
    vm.wait_for("the guest writes", |output| output.contains("maru-guest: ok "));
    host.freeze().unwrap();
    std::thread::sleep(Duration::from_millis(AHEAD_MS) + 2 * MARGIN);
    host.thaw().unwrap();
    let end = vm.wait_for_or_end("its end", |_| false);
    assert!(matches!(end, Some(ExitStatus::Signal(9) | ExitStatus::Code(5))), "{end:?}");
    drop(renewals);

    // Who leaves the cluster needs no lease.
    until(host, "the guard lets go", || {
        host.exec(["maru-guard", "ask", "--socket", "/run/guard.socket", "release"]).unwrap().success()
    });
    start_vm(host, "free", "maru.test=idle").wait_for("the guest has booted", |output| facts(output).is_some());
}

#[test]
fn a_host_whose_guard_stands_still_is_reset_by_the_watchdog_if_vms_run() {
    let lab = guarded_lab();
    let host = lab.host(0);
    host.load_module("softdog", "").expect("softdog");
    start_guard(host, "--watchdog /dev/watchdog");
    assert_eq!(ask(host, "status")["watchdog-ms"], 2000);
    let renewals = held(host);
    let mut vm = start_vm(host, "a", "maru.test=idle");
    vm.wait_for("the guest has booted", |output| facts(output).is_some());

    // It is ended in order when the lease is over, and the host goes on: the watchdog is fed.
    drop(renewals);
    let end = vm.wait_for_or_end("its end", |_| false);
    assert_eq!(end, Some(ExitStatus::Signal(9)));
    let boot = shell(host, "cat /proc/sys/kernel/random/boot_id");
    // Twice the watchdog's time.
    shell(host, "sleep 4");
    assert_eq!(ask(host, "status")["state"], "ended");

    let renewals = held(host);
    let mut vm = start_vm(host, "b", "maru.test=idle");
    vm.wait_for("the guest has booted", |output| facts(output).is_some());
    signal_guard(host, "STOP");
    let stopped = Instant::now();
    let same = |host: &Host| host.exec(["cat", "/proc/sys/kernel/random/boot_id"]).is_ok_and(|id| id.text() == boot);
    while same(host) {
        assert!(stopped.elapsed() < PATIENCE, "the watchdog does not reset the host");
    }
    println!("reset {:.1} s after the guard was stopped", stopped.elapsed().as_secs_f64());
    drop(renewals);
}
