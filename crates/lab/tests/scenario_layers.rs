//! A guest writes and verifies all the time, while its disk gets layers and loses them again.

mod common;

use std::time::{Duration, Instant};

use common::{Vm, shell, vm_lab, with_file_system};
use lab::Lab;
use lab::host::Host;

const WORDS: &str = "maru.test=load maru.disk=vda maru.disk_mib=48 maru.mem=0 maru.pace_us=500";
const MEMORY: [&str; 2] = ["--memory", "128M"];

fn file(name: &str) -> String {
    format!("/mnt/{name}.vhdx")
}

/// A host with a file system on its disk, at `/mnt`, and a disk for a VM there.
fn host() -> Lab {
    let lab = with_file_system(vm_lab(), 768);
    shell(lab.host(0), &format!("maru disk create {} --size 48M --block-size 1M", file("a")));
    lab
}

/// What the guest has flushed.
fn flushed(output: &str) -> u64 {
    common::flushed(output).unwrap_or(0)
}

/// Waits until the guest has flushed more than it had.
fn goes_on(vm: &mut Vm) {
    let before = flushed(&vm.output);
    vm.wait_for("more that was flushed", |output| output.contains("FAIL") || flushed(output) > before + 64);
    assert!(!vm.output.contains("FAIL"), "{}", vm.output);
}

fn add_layer(vm: &mut Vm, name: &str) -> Duration {
    let begin = Instant::now();
    vm.control(&["pause"]);
    vm.control(&["add-layer", &format!("disk0={}", file(name))]);
    vm.control(&["resume"]);
    begin.elapsed()
}

fn chain(vm: &mut Vm) -> Vec<String> {
    let status = vm.status();
    let files = status["devices"][0]["files"].as_array().unwrap().clone();
    files.iter().map(|path| path.as_str().unwrap().to_owned()).collect()
}

fn verify(host: &Host, disk: &str, flushed: u64) {
    let words = format!("maru.test=disk-verify maru.disk=vda maru.disk_mib=48 maru.flushed={flushed}");
    let (_, output) = Vm::start(host, "verify", &words, &[&MEMORY[..], &["--disk", disk]].concat()).wait();
    assert!(output.contains("disk-verify ok"), "{output}");
}

#[test]
fn a_guest_that_writes_all_the_time_does_not_notice_its_layers() {
    let lab = host();
    let host = lab.host(0);
    let mut vm = Vm::start(host, "web", WORDS, &[&MEMORY[..], &["--disk", &file("a")]].concat());
    goes_on(&mut vm);
    assert_eq!(vm.status()["confined"], true);
    let refused = vm.try_control(&["add-layer", &format!("disk0={}", file("early"))]);
    assert!(refused.error_text().contains("pause it"), "{}", refused.error_text());
    shell(host, &format!("test ! -e {}", file("early")));

    // Three points in time, each of which is a disk that can be read from now on.
    for name in ["b", "c", "d"] {
        println!("a layer took {:?} with its programs", add_layer(&mut vm, name));
        goes_on(&mut vm);
    }
    assert_eq!(chain(&mut vm), ["d", "c", "b", "a"].map(file));
    let sum = shell(host, &format!("maru disk convert {} /tmp/b.raw; md5sum < /tmp/b.raw", file("b")));

    // The middle of the chain goes first; what hangs on the base by another child forbids to change it.
    shell(host, &format!("maru disk create {} --parent {}", file("branch"), file("b")));
    let mut branch = Vm::start(host, "branch", "maru.test=idle", &[&MEMORY[..], &["--disk", &file("branch")]].concat());
    branch.wait_for_facts("its start", |_| true);
    let refused = host.exec(["maru", "disk", "merge", &file("c"), "--in-use"]).unwrap();
    assert!(refused.error_text().contains("in use by"), "{}", refused.error_text());
    drop(branch);
    goes_on(&mut vm);
    shell(host, &format!("rm {}; maru disk merge {} --in-use", file("branch"), file("c")));
    goes_on(&mut vm);
    vm.control(&["replace-parents", "disk0", &file("b")]);
    shell(host, &format!("rm {}", file("c")));
    goes_on(&mut vm);
    assert_ne!(shell(host, &format!("maru disk convert {} /tmp/b.raw --overwrite; md5sum < /tmp/b.raw", file("b"))), sum);
    shell(host, &format!("maru disk merge {} --in-use", file("b")));
    vm.control(&["replace-parents", "disk0", &file("a")]);
    shell(host, &format!("rm {}", file("b")));
    goes_on(&mut vm);
    assert_eq!(chain(&mut vm), ["d", "a"].map(file));

    let refused = vm.try_control(&["merge-leaf", "disk0", "--most", "4K"]);
    assert!(refused.error_text().contains("its guest may wait"), "{}", refused.error_text());
    // What was flushed before the last layer is below it.
    add_layer(&mut vm, "e");
    shell(host, &format!("maru disk merge {} --in-use", file("d")));
    vm.control(&["replace-parents", "disk0", &file("a")]);
    shell(host, &format!("rm {}", file("d")));
    vm.control(&["merge-leaf", "disk0"]);
    shell(host, &format!("rm {}", file("e")));
    assert_eq!(chain(&mut vm), [file("a")]);
    goes_on(&mut vm);
    vm.control(&["stop"]);
    let (status, output) = vm.wait();
    assert!(status == 0 && !output.contains("FAIL"), "{output}");
    shell(host, &format!("maru disk check {}", file("a")));
    verify(host, &file("a"), flushed(&output));
}

#[test]
fn a_saved_vm_goes_on_in_children_of_the_files_that_it_was_saved_with() {
    let lab = host();
    let host = lab.host(0);
    let mut vm = Vm::start(host, "web", WORDS, &[&MEMORY[..], &["--disk", &file("a")]].concat());
    goes_on(&mut vm);
    vm.control(&["pause"]);
    vm.control(&["save", "/mnt/checkpoint"]);
    vm.control(&["add-layer", &format!("disk0={}", file("b"))]);
    vm.control(&["resume"]);
    goes_on(&mut vm);
    // It goes on twice: as the VM that it is, and as what it was.
    shell(host, &format!("maru disk create {} --parent {}", file("again"), file("a")));
    let disk = format!("disk0={}", file("again"));
    let mut again = Vm::restore(host, "again", "/mnt/checkpoint", &["--disk", &disk]);
    goes_on(&mut again);
    assert_eq!(chain(&mut again), ["again", "a"].map(file));
    goes_on(&mut vm);
    for vm in [vm, again] {
        let mut vm = vm;
        vm.control(&["stop"]);
        let (status, output) = vm.wait();
        assert!(status == 0 && !output.contains("FAIL"), "{output}");
    }
}
