//! What a guest sees of the processors, where its VM was promised some of it.

mod common;

use std::collections::BTreeSet;

use common::{Vm, shell, vm_lab};
use lab::host::{Accelerator, Host};

const SHELL: &str = "maru.test=shell";

/// What guests could have on a host.
fn offered(host: &Host) -> BTreeSet<String> {
    shell(host, "maru-vmm --cpu-features").lines().map(String::from).collect()
}

fn list(names: &BTreeSet<String>) -> String {
    names.iter().map(String::as_str).collect::<Vec<_>>().join(",")
}

/// What is typed before there is a shell is lost.
fn wait_for_shell(vm: &mut Vm) {
    vm.wait_for("its shell", |output| output.contains("/ # "));
}

/// The flags that the guest's kernel has found.
fn flags(vm: &mut Vm) -> BTreeSet<String> {
    vm.output.clear();
    vm.type_line("grep -m 1 ^flags /proc/cpuinfo && echo DO''NE");
    vm.wait_for("its flags", |output| output.contains("DONE"));
    let line = vm
        .output
        .lines()
        .rev()
        .find_map(|line| line.strip_prefix("flags")?.split_once(':'))
        .map(|(_, flags)| flags)
        .expect("a line of flags");
    line.split_whitespace().map(String::from).collect()
}

/// Saves a VM on one host, and carries it to another.
fn carry(mut vm: Vm, from: &Host, to: &Host) {
    vm.control(&["pause"]);
    vm.control(&["save", "/run/vm.saved"]);
    drop(vm);
    let carried = from.spec().state_dir.join("vm.saved");
    from.pull("/run/vm.saved", &carried).unwrap();
    to.push(&carried, "/run/vm.saved").unwrap();
    shell(from, "rm /run/vm.saved");
}

#[test]
fn a_guest_sees_what_its_vm_was_promised_and_goes_on_where_that_is_and_nowhere_else() {
    let model = match Accelerator::detect() {
        Accelerator::Kvm => "host",
        Accelerator::Tcg => "max",
    };
    let labs = [
        vm_lab().memory_mib(512).start().unwrap(),
        vm_lab().memory_mib(512).qemu_arguments(["-cpu", &format!("{model},avx2=off,rdseed=off")]).start().unwrap(),
    ];
    let (new, old) = (labs[0].host(0), labs[1].host(0));
    let all = offered(new);
    for name in ["avx2", "rdseed", "xsave", "sse4_2", "lm", "kvm_clocksource"] {
        assert!(all.contains(name), "{name} is not among {all:?}");
    }
    let common: BTreeSet<String> = all.intersection(&offered(old)).cloned().collect();
    assert!(common.contains("avx") && !common.contains("avx2"), "{common:?}");
    let start = |host, features: &BTreeSet<String>| {
        Vm::start(host, "vm", SHELL, &["--memory", "128M", "--cpu-features", &list(features)])
    };

    // What is common is all that it sees, on both hosts.
    let mut vm = start(new, &common);
    wait_for_shell(&mut vm);
    let seen = flags(&mut vm);
    let hidden: Vec<_> = all.difference(&common).filter(|name| seen.contains(*name)).collect();
    assert!(hidden.is_empty() && seen.contains("avx"), "{hidden:?} is not hidden in {seen:?}");
    carry(vm, new, old);
    let mut vm = Vm::restore(old, "vm", "/run/vm.saved", &[]);
    assert_eq!(flags(&mut vm), seen);
    drop(vm);

    // More is on one of them only. The other says what it lacks, of a promise as of a guest that has seen it without one.
    let (status, said) = start(old, &all).wait();
    assert!(
        status != 0 && said.contains("lack what the VM was promised: ") && said.contains("avx2") && said.contains("rdseed"),
        "{said}"
    );
    let mut vm = Vm::start(new, "vm", SHELL, &["--memory", "128M"]);
    wait_for_shell(&mut vm);
    assert!(flags(&mut vm).is_superset(&BTreeSet::from(["avx2", "rdseed"].map(String::from))), "{}", vm.output);
    carry(vm, new, old);
    let (status, said) = Vm::restore(old, "vm", "/run/vm.saved", &[]).wait();
    assert!(status != 0 && said.contains("avx2") && said.contains("run it on a host that has that"), "{said}");
}
