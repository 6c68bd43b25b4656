//! What hosts of a cluster stand on: a directory that all of them have, state that survives a power cut, etcd, a watchdog, the time.

mod common;

use std::time::SystemTime;

use common::managed::{console, managed_lab, until, vm};
use common::{PATIENCE, Vm, flushed, shell, vm_lab};
use lab::appliance::program;
use lab::host::Host;

const MEMORY: [&str; 2] = ["--memory", "128M"];

#[test]
fn what_a_vm_flushed_to_the_shared_directory_is_there_on_another_host_after_a_power_cut() {
    let lab = vm_lab().hosts(2).memory_mib(512).shared_dir().start().unwrap();
    let (one, two) = (lab.host(0), lab.host(1));
    // What one writes, the other has at once, files that it knows already too; and so has this machine.
    for text in ["one", "and two"] {
        shell(one, &format!("echo {text} >/shared/note"));
        assert_eq!(shell(two, "cat /shared/note"), format!("{text}\n"));
    }
    assert_eq!(std::fs::read_to_string(lab.shared_dir().join("note")).unwrap(), "and two\n");
    shell(two, "mv /shared/note /shared/moved; mkdir /shared/d");
    assert_eq!(
        shell(one, "ls /shared; rm -r /shared/moved /shared/d; stat -c %d%i /shared"),
        "d\nmoved\n".to_owned() + &shell(two, "stat -c %d%i /shared")
    );

    let words = "maru.test=load maru.disk=vda maru.disk_mib=48 maru.mem=0 maru.pace_us=500";
    for (disk, direct) in [("/shared/a.vhdx", ""), ("/shared/b.vhdx", ",direct")] {
        one.power_on().unwrap();
        shell(one, &format!("maru disk create {disk} --size 48M --block-size 1M"));
        assert!(shell(two, &format!("maru disk info {disk}")).contains("48"));
        let with_disk = format!("{disk}{direct}");
        let arguments = [&MEMORY[..], &["--disk", &with_disk]].concat();
        let mut vm = Vm::start(one, "web", words, &arguments);
        vm.wait_for("what it flushed", |output| output.contains("FAIL") || flushed(output) >= Some(64));
        assert!(!vm.output.contains("FAIL"), "{}", vm.output);
        one.power_cut();
        let kept = flushed(&vm.output).unwrap();

        let words = format!("maru.test=disk-verify maru.disk=vda maru.disk_mib=48 maru.flushed={kept}");
        let (_, output) = Vm::start(two, "web", &words, &arguments).wait();
        assert!(output.contains("disk-verify ok"), "{output}");
        shell(two, &format!("maru disk check {disk}"));
    }
}

/// Starts etcd with its data beside the host's state, and waits until it has a leader.
fn start_etcd(host: &Host) {
    shell(host, "setsid etcd --data-dir /var/lib/maru/etcd </dev/null >/run/etcd.log 2>&1 &");
    until(host, "etcd is healthy", |host| host.exec(["etcdctl", "endpoint", "health"]).unwrap().success());
}

#[test]
fn a_managed_host_knows_after_a_power_cut_what_it_knew_before() {
    let lab = managed_lab().binary(program("maru-guard").expect("maru-guard"), "/bin/maru-guard");
    let lab = lab
        .hosts(2)
        .managed()
        .kernel_words("maru.volume=guest=/guest")
        .state_disk_mib(512)
        .shared_dir()
        .etcd()
        .unwrap()
        .start()
        .unwrap();
    let (one, two) = (lab.host(0), lab.host(1));
    shell(one, "test -c /dev/watchdog; maru-guard --help >/dev/null");
    let clock: u64 = shell(one, "date +%s").trim().parse().unwrap();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    assert!(now.abs_diff(clock) < 5, "it is {now}, and {clock} on the host");

    // Others reach it by its addresses on the cables.
    for (file, name) in [("tls/ca.pem", "ca"), ("admin.token", "token")] {
        let carried = lab.state_dir().join(name);
        one.pull(&format!("/var/lib/maru/{file}"), &carried).unwrap();
        two.push(&carried, &format!("/run/{name}")).unwrap();
        std::fs::remove_file(carried).unwrap();
    }
    for address in [one.address(0), one.address(1)] {
        let context = format!("maru context add c{address} --server https://{address}:8420 --ca /run/ca --token-file /run/token");
        let shown = shell(two, &format!("{context} >/dev/null; maru host show"));
        assert!(shown.contains("h1"), "{shown}");
    }

    let create = "maru vm create web --kernel guest:vmlinuz --initrd guest:initramfs --disk shared:web.vhdx --memory 128M \
         --cmdline 'console=ttyS0 quiet panic=-1 mitigations=off maru.test=idle'";
    shell(one, &format!("maru disk create /shared/web.vhdx --size 64M; {create}; maru vm start web"));
    let id = vm(one, "web")["id"].as_str().unwrap().to_owned();
    console(one, &id, PATIENCE, |text| text.contains("maru-guest: facts"));
    start_etcd(one);
    shell(one, "etcdctl put who h1");

    one.power_cut();
    one.power_on().unwrap();
    assert_eq!(vm(one, "web")["id"], id);
    start_etcd(one);
    assert_eq!(shell(one, "etcdctl get who --print-value-only"), "h1\n");
    // The VM can run again here, and its disk is not held by the host that was.
    shell(one, "maru vm start web");
    console(one, &id, PATIENCE, |text| text.contains("maru-guest: facts"));
    shell(one, "maru vm stop web");
}
