//! Three hosts with volumes of their own: VMs leave one that is drained with copies of their disks, and go on.

mod common;

use common::managed::{self, Console, cluster_without_shared_volume, hear, json, until, vm};
use common::{PATIENCE, shell};
use lab::host::Host;

/// Asks a host's guard how things are.
const GUARD: &str = "maru-guard ask --socket /run/maru/guard/socket status";
/// Where a host has the volume `local`.
const LOCAL: &str = "/var/lib/maru/volumes/local";

/// Makes a VM with a disk of its host's own.
fn create(host: &Host, name: &str) {
    shell(
        host,
        &format!(
            "maru vm create {name} --kernel guest:vmlinuz --initrd guest:initramfs --disk size=64M --memory 128M \
             --cmdline 'console=ttyS0 quiet panic=-1 mitigations=off maru.test=shell'"
        ),
    );
}

/// Whether a VM is on this host and in this state. Whoever is asked may not reach the one that has it, or had it, at that moment.
fn is_on(asked: &Host, name: &str, host: &Host, state: &str) -> bool {
    let told = managed::told(asked, name);
    told["host"] == host.name() && told["state"] == state
}

/// What the guest is, and what its disk holds.
fn told(console: &mut Console) -> (String, String) {
    let look = "echo 3 > /proc/sys/vm/drop_caches; cat /proc/sys/kernel/random/boot_id; dd if=/dev/vda bs=1M count=16 2>/dev/null | md5sum";
    let said = console.run(look);
    let word =
        |is: &dyn Fn(&str) -> bool| said.split_whitespace().find(|word| is(word)).unwrap_or_else(|| panic!("{said}")).to_owned();
    let hexadecimal = |text: &str| text.chars().all(|c| c.is_ascii_hexdigit());
    (word(&|word| word.len() == 36 && hexadecimal(&word.replace('-', ""))), word(&|word| word.len() == 32 && hexadecimal(word)))
}

/// Starts a VM, fills some of its disk, and gives what it is then.
fn filled(host: &Host, name: &str) -> (String, String) {
    shell(host, &format!("maru vm start {name}"));
    let mut console = Console::open(host, name, &[]);
    console.wait("/ # ");
    console.run(
        "until [ -e /dev/vda ]; do sleep 0.1; done
         yes $(cat /proc/sys/kernel/random/uuid) | dd of=/dev/vda bs=1M count=8 iflag=fullblock conv=fsync 2>/dev/null",
    );
    told(&mut console)
}

fn files(host: &Host) -> String {
    shell(host, &format!("find {LOCAL} -type f"))
}

#[test]
fn vms_leave_a_drained_host_with_their_disks_and_their_guests_go_on() {
    let lab = cluster_without_shared_volume();
    let (first, source) = (lab.host(0), lab.host(1));
    create(source, "web");
    create(source, "off");
    assert_eq!(vm(first, "web")["host"], source.name());
    let before = filled(source, "web");

    shell(first, &format!("maru host drain {}", source.name()));
    let others = || lab.hosts().iter().filter(|host| host.name() != source.name());
    until(first, "the VM runs elsewhere", |asked| others().any(|host| is_on(asked, "web", host, "running")));
    until(first, "the other one has left, too", |asked| others().any(|host| is_on(asked, "off", host, "off")));
    let target = others().find(|host| is_on(first, "web", host, "running")).unwrap();
    let mut console = Console::open(target, "web", &[]);
    assert_eq!(told(&mut console), before, "the same life of the guest, and the same disk");
    until(source, "what they left is removed", |source| files(source).is_empty());
    until(target, "nothing is half made", |target| {
        shell(target, &format!("ls -A {LOCAL}")).lines().all(|name| !name.starts_with('.'))
    });
    let tasks = json(first, "maru task list");
    let copies: Vec<_> = tasks.as_array().unwrap().iter().filter(|task| task["operation"] == "copy").collect();
    assert_eq!(copies.len(), 2, "{tasks}");
    for task in copies {
        assert_eq!((&task["state"], &task["progress"]["done"]), (&"done".into(), &task["progress"]["total"]), "{task}");
    }

    // They stay there when the host is back, and someone sends one back that is off.
    shell(first, &format!("maru host resume {}; maru vm stop web --force", source.name()));
    until(first, "it may go back", |asked| asked.exec(["maru", "vm", "move", "web", "--to", source.name()]).unwrap().success());
    until(first, "the VM is back", |asked| is_on(asked, "web", source, "off"));
    until(target, "what it left is removed", |target| !files(target).contains("/web/"));
    shell(source, &format!("maru disk check {LOCAL}/web/disk0.vhdx"));
    shell(source, "maru vm start web");
    let mut console = Console::open(source, "web", &[]);
    console.wait("/ # ");
    let (boot, disk) = told(&mut console);
    assert!(boot != before.0 && disk == before.1, "another life with the same disk");
}

#[test]
fn a_vm_with_files_of_its_hosts_own_goes_on_where_it_was_when_cables_are_cut() {
    let lab = cluster_without_shared_volume();
    let (first, source) = (lab.host(0), lab.host(1));
    create(source, "web");
    let before = filled(source, "web");
    let to = lab.host(2).name();
    // While it is saved, or copied; or before: then it is not even saved.
    shell(source, &format!("maru vm move web --to {to}"));
    (0..2).for_each(|cable| lab.cable(cable).cut(2));
    hear(first, &["maru", "event", "tail", "--after", "0"], PATIENCE, |text| {
        text.contains("web cannot leave its host") || text.contains("goes on here")
    });
    until(first, "it goes on", |asked| is_on(asked, "web", source, "running"));
    let mut console = Console::open(source, "web", &[]);
    assert_eq!(told(&mut console), before);

    // Now no host hears another one. Nobody else has the VM's files: it runs on without a lease, and the next lease finds it.
    (0..2).for_each(|cable| lab.cable(cable).cut(1));
    until(source, "the lease is over", |host| shell(host, GUARD).contains(r#""state":"ended""#));
    assert_eq!(told(&mut console), before);
    let refused = source.exec(["maru", "vm", "stop", "web"]).unwrap();
    assert!(
        !refused.success() && refused.error_text().contains("no member of the store has answered"),
        "{}",
        refused.error_text()
    );
    (1..3).for_each(|host| (0..2).for_each(|cable| lab.cable(cable).uncut(host)));
    until(source, "there is a lease again", |host| shell(host, GUARD).contains(r#""state":"held""#));
    until(first, "it is there", |asked| is_on(asked, "web", source, "running"));
    assert_eq!(told(&mut console), before, "the same life of the guest");
    until(lab.host(2), "nothing of it is left", |host| host.exec(["find", LOCAL, "-name", "*disk0*"]).unwrap().text().is_empty());
}
