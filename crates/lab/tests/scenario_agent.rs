//! A VM whose guest has the real guest agent of QEMU, reached over its console, with a disk for cloud-init.

mod common;

use std::process::Command;

use common::managed::{Console, managed_lab, start_marud, until, vm};
use common::shell;
use lab::appliance::agent_image;
use serde_json::Value;

/// A file with an ext4 file system of 16 MiB.
fn file_system() -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(16 << 20).unwrap();
    let mut mke2fs = Command::new("mke2fs");
    mke2fs.args(["-q", "-F", "-t", "ext4"]).arg(file.path()).env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin");
    assert!(mke2fs.status().expect("mke2fs, of e2fsprogs").success());
    file
}

/// Starts the agent in the guest.
const AGENT: &str = "qemu-ga --daemonize -m virtio-serial -p /dev/$(ls /sys/class/virtio-ports) -t /run -f /run/ga.pid";

#[test]
fn a_guest_reads_what_cloud_init_is_told_its_agent_tells_of_it_and_shuts_it_down_and_its_console_outlives_marud() {
    let image = agent_image().expect("a guest with an agent");
    let data = file_system();
    let lab = managed_lab().file(image.initramfs, "/guest/agent").file(data.path(), "/guest/data.raw").start().unwrap();
    let host = lab.host(0);
    start_marud(host, &["guest=/guest"]);
    shell(host, "maru disk convert /guest/data.raw /guest/data.vhdx");
    shell(host, "echo 'ssh-ed25519 AAAA alice' > /run/key.pub; echo '$6$salt$hash' > /run/hash");
    shell(
        host,
        "maru vm create web --kernel guest:vmlinuz --initrd guest:agent --memory 192M --disk guest:data.vhdx --user alice --ssh-key /run/key.pub \
         --password-hash-file /run/hash --host-name web.example --cmdline \
         'console=ttyS0 quiet panic=-1 mitigations=off maru.modules=isofs,ext4 maru.test=shell'",
    );
    shell(host, "maru vm start web");
    let mut console = Console::open(host, "web", &[]);
    let mut viewer = Console::open(host, "web", &["--read-only"]);
    console.wait("maru-guest: facts");

    let seed = console.run("dd if=/dev/vdb bs=1 skip=32808 count=6 2>/dev/null; mount -t iso9660 -o ro /dev/vdb /mnt; ls /mnt; cat /mnt/*; touch /mnt/x");
    for text in [
        // The name of the file system: ECMA-119 8.4.8.
        "cidata",
        "meta-data",
        "network-config",
        "user-data",
        "web.example",
        "#cloud-config",
        "AAAA alice",
        "$6$salt$hash",
    ] {
        assert!(seed.contains(text), "no {text} in:\n{seed}");
    }
    assert!(seed.contains("Read-only file system"), "{seed}");
    assert!(!shell(host, "maru vm show web -o json; cat /run/marud.log; ps").contains("$6$"), "the hash is a secret");
    viewer.wait("web.example");

    assert_eq!(vm(host, "web")["guest"], Value::Null);
    console.run(AGENT);
    until(host, "the agent tells of its guest", |host| vm(host, "web")["guest"]["agent_version"].is_string());
    let guest = vm(host, "web")["guest"].clone();
    assert!(
        guest["nets"].as_array().unwrap().iter().any(|net| net["name"] == "lo" && net["addresses"][0] == "127.0.0.1"),
        "{guest}"
    );

    // marud is killed: the console comes back by itself, the next marud finds the agent, and the VM has not noticed.
    let pid = vm(host, "web")["pid"].clone();
    console.seen.clear();
    shell(host, "kill -9 $(pidof marud)");
    console.wait("is lost");
    start_marud(host, &["guest=/guest"]);
    console.wait("connected again");
    assert!(console.run("echo still here").contains("still here"));
    until(host, "the agent was found again", |host| vm(host, "web")["guest"]["agent_version"].is_string());
    assert_eq!(vm(host, "web")["pid"], pid);

    // What was written before a production checkpoint is in it, in a file system that needs no repair, though the guest flushed nothing.
    console.run("mkdir /data; mount -t ext4 /dev/vda /data; echo first > /data/first");
    shell(host, "maru vm checkpoint create web clean --production");
    let thawed = console.run("echo second > /data/second && sync && ls /data");
    assert!(thawed.contains("first") && thawed.contains("second"), "{thawed}");
    shell(host, "maru vm stop web --force; maru vm checkpoint apply web clean --discard; maru vm start web");
    console.wait("maru-guest: facts");
    let back = console.run("mkdir /data; mount -t ext4 /dev/vda /data; cat /data/*; dmesg");
    assert!(back.contains("first\r\n") && !back.contains("second\r\n"), "{back}");
    assert!(back.contains("mounted filesystem") && !back.contains("recovery"), "{back}");
    console.run(AGENT);
    until(host, "the agent tells again", |host| vm(host, "web")["guest"]["agent_version"].is_string());

    // An agent that ends takes its words along; without it, or when it cannot, there is the power button.
    console.run("kill $(cat /run/ga.pid)");
    until(host, "the agent is gone", |host| vm(host, "web")["guest"].is_null());
    console.run(AGENT);
    until(host, "the agent is back", |host| vm(host, "web")["guest"]["agent_version"].is_string());
    console
        .run("mkdir -p /sbin; echo '#!/bin/sh' > /sbin/shutdown; echo 'poweroff -f' >> /sbin/shutdown; chmod +x /sbin/shutdown");
    let said = shell(host, "maru vm stop web 2>&1");
    assert!(said.contains("the guest agent was asked") && said.contains("web: stop done"), "{said}");
    assert_eq!(vm(host, "web")["last_end"]["reason"], "the guest powered off");
    console.wait("the VM is off");
    shell(host, "maru vm delete web --disks delete");
    console.wait("the VM was deleted");
    assert_eq!(shell(host, "ls /run/maru/vms"), "");
}
