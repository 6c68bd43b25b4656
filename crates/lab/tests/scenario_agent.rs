//! A VM whose guest has the real guest agent of QEMU, reached over its console, with a disk for cloud-init.

mod common;

use std::time::Instant;

use common::{PATIENCE, shell, vm_lab};
use lab::agent::{Event, Exec, Process};
use lab::appliance::{agent_image, program};
use lab::host::Host;
use serde_json::Value;

fn start_marud(host: &Host) {
    shell(host, "setsid marud --volume guest=/guest </dev/null >>/run/marud.log 2>&1 &");
    until(host, "marud answers", |host| host.exec(["maru", "host", "show"]).unwrap().success());
}

fn until(host: &Host, what: &str, done: impl Fn(&Host) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done(host) {
        let seen =
            || host.exec(["sh", "-c", "cat /run/marud.log; maru vm show web; maru vm console web --log"]).map(|log| log.text());
        assert!(Instant::now() < deadline, "timed out waiting for: {what}\n{:?}", seen());
    }
}

fn vm(host: &Host) -> Value {
    serde_json::from_str(&shell(host, "maru vm show web -o json")).unwrap()
}

/// `maru vm console`, with what it has shown.
struct Console {
    process: Process,
    seen: String,
}

impl Console {
    fn open(host: &Host, arguments: &[&str]) -> Console {
        let command = ["maru", "vm", "console", "web"].iter().chain(arguments).copied();
        Console { process: host.spawn(Exec::new(command)).unwrap(), seen: String::new() }
    }

    /// Runs a command line in the guest, and gives what it printed.
    fn run(&mut self, line: &str) -> String {
        self.seen.clear();
        self.process.write_stdin(format!("{line}; echo DO''NE\n").as_bytes()).unwrap();
        self.wait("DONE\r\n");
        self.seen.clone()
    }

    fn wait(&mut self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.seen.contains(text) {
            match self.process.next_event(Some(deadline)).unwrap() {
                Some(Event::Stdout(bytes) | Event::Stderr(bytes)) => self.seen += &String::from_utf8_lossy(&bytes),
                other => panic!("{other:?} before '{text}' in:\n{}", self.seen),
            }
        }
    }
}

#[test]
fn a_guest_reads_what_cloud_init_is_told_its_agent_tells_of_it_and_shuts_it_down_and_its_console_outlives_marud() {
    let image = agent_image().expect("a guest with an agent");
    let lab =
        vm_lab().binary(program("marud").expect("marud"), "/bin/marud").file(image.initramfs, "/guest/agent").start().unwrap();
    let host = lab.host(0);
    start_marud(host);
    shell(host, "echo 'ssh-ed25519 AAAA alice' > /run/key.pub; echo '$6$salt$hash' > /run/hash");
    shell(
        host,
        "maru vm create web --kernel guest:vmlinuz --initrd guest:agent --memory 192M --user alice --ssh-key /run/key.pub \
         --password-hash-file /run/hash --host-name web.example --cmdline \
         'console=ttyS0 quiet panic=-1 mitigations=off maru.modules=isofs maru.test=shell'",
    );
    shell(host, "maru vm start web");
    let mut console = Console::open(host, &[]);
    let mut viewer = Console::open(host, &["--read-only"]);
    console.wait("maru-guest: facts");

    let seed = console.run("blkid /dev/vda; mount -t iso9660 -o ro /dev/vda /mnt; ls /mnt; cat /mnt/*; touch /mnt/x");
    for text in [
        r#"LABEL="cidata""#,
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

    assert_eq!(vm(host)["guest"], Value::Null);
    console.run("qemu-ga -m virtio-serial -p /dev/$(ls /sys/class/virtio-ports) -t /run -f /run/ga.pid >/run/ga.log 2>&1 &");
    until(host, "the agent tells of its guest", |host| vm(host)["guest"]["agent_version"].is_string());
    let guest = vm(host)["guest"].clone();
    assert!(
        guest["nets"].as_array().unwrap().iter().any(|net| net["name"] == "lo" && net["addresses"][0] == "127.0.0.1"),
        "{guest}"
    );

    // marud is killed: the console comes back by itself, the next marud finds the agent, and the VM has not noticed.
    let pid = vm(host)["pid"].clone();
    console.seen.clear();
    shell(host, "kill -9 $(pidof marud)");
    console.wait("is lost");
    start_marud(host);
    console.wait("connected again");
    assert!(console.run("echo still here").contains("still here"));
    until(host, "the agent was found again", |host| vm(host)["guest"]["agent_version"].is_string());
    assert_eq!(vm(host)["pid"], pid);

    // An agent that ends takes its words along; without it, or when it cannot, there is the power button.
    console.run("kill $(cat /run/ga.pid)");
    until(host, "the agent is gone", |host| vm(host)["guest"].is_null());
    console.run("qemu-ga -m virtio-serial -p /dev/$(ls /sys/class/virtio-ports) -t /run -f /run/ga.pid >/run/ga.log 2>&1 &");
    until(host, "the agent is back", |host| vm(host)["guest"]["agent_version"].is_string());
    console
        .run("mkdir -p /sbin; echo '#!/bin/sh' > /sbin/shutdown; echo 'poweroff -f' >> /sbin/shutdown; chmod +x /sbin/shutdown");
    let said = shell(host, "maru vm stop web 2>&1");
    assert!(said.contains("the guest agent was asked") && said.contains("web: stop done"), "{said}");
    assert_eq!(vm(host)["last_end"]["reason"], "the guest powered off");
    console.wait("the VM is off");
    shell(host, "maru vm delete web");
    console.wait("the VM was deleted");
    assert_eq!(shell(host, "ls /run/maru/vms"), "");
}
