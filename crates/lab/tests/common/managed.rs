//! A host that manages its VMs: `marud` on it, and the CLI.

use std::time::{Duration, Instant};

use lab::agent::{Event, Exec, Process};
use lab::appliance::program;
use lab::host::Host;
use lab::{Lab, LabSpec};
use serde_json::Value;

use super::{PATIENCE, shell, vm_lab};

/// Hosts that can run VMs, with `marud`.
pub fn managed_lab() -> LabSpec {
    vm_lab().binary(program("marud").expect("marud"), "/bin/marud")
}

/// Three hosts that are a cluster, with a volume that all of them see.
pub fn cluster() -> Lab {
    cluster_of(cluster_lab(512).shared_dir())
}

/// Two hosts and a witness, likewise.
pub fn cluster_with_witness() -> Lab {
    cluster_of(cluster_lab(512).shared_dir().witness())
}

/// Three hosts that are a cluster, share nothing else, and have room for what others have.
pub fn cluster_without_shared_volume() -> Lab {
    cluster_of(cluster_lab(768))
}

fn cluster_lab(state_disk_mib: u64) -> LabSpec {
    let lab = managed_lab().binary(program("maru-guard").expect("maru-guard"), "/bin/maru-guard");
    lab.hosts(3).managed().kernel_words("maru.volume=guest=/guest").state_disk_mib(state_disk_mib).etcd().unwrap()
}

fn cluster_of(lab: LabSpec) -> Lab {
    let lab = lab.start().unwrap();
    lab.form_cluster(&mut |step| println!("{step}")).unwrap();
    lab
}

/// Makes a VM that all hosts of a cluster can have, with a disk that is on the shared volume already, and waits until they know it.
pub fn create_shared(lab: &Lab, name: &str, disk: &str, words: &str) {
    let first = lab.host(0);
    shell(first, "cp /guest/vmlinuz /guest/initramfs /shared/");
    shell(
        first,
        &format!(
            "maru vm create {name} --kernel shared:vmlinuz --initrd shared:initramfs --disk shared:{disk} --memory 128M \
             --cmdline 'console=ttyS0 quiet panic=-1 mitigations=off {words}'"
        ),
    );
    until(first, "all hosts that run VMs see the volume", |host| {
        let explained = json(host, &format!("maru vm explain {name}"));
        explained["hosts"].as_array().unwrap().iter().filter(|host| host["score"].is_i64()).count() == lab.vm_hosts().len()
    });
}

/// Starts `marud` in a session of its own, as an init system does, with volumes as `NAME=DIRECTORY`, and waits until it answers.
pub fn start_marud(host: &Host, volumes: &[&str]) {
    let volumes: String = volumes.iter().map(|volume| format!(" --volume {volume}")).collect();
    shell(host, &format!("setsid marud{volumes} </dev/null >>/run/marud.log 2>&1 &"));
    until(host, "marud answers", |host| host.exec(["maru", "host", "show"]).unwrap().success());
}

/// Between two looks at what is waited for.
const LOOK: Duration = Duration::from_millis(300);

/// Waits for something; fails the test with `marud`'s log if that takes too long.
pub fn until(host: &Host, what: &str, mut done: impl FnMut(&Host) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done(host) {
        assert!(Instant::now() < deadline, "timed out waiting for: {what}\n{}", log(host));
        // Each look is a program that an emulated processor starts, and what is waited for needs it, too.
        std::thread::sleep(LOOK);
    }
}

fn log(host: &Host) -> String {
    host.exec(["cat", "/run/marud.log"]).map_or_else(|error| error.to_string(), |log| log.text())
}

/// What a command says in JSON.
pub fn json(host: &Host, command: &str) -> Value {
    serde_json::from_str(&shell(host, &format!("{command} -o json"))).unwrap()
}

/// A VM as `maru vm show` tells it.
pub fn vm(host: &Host, name: &str) -> Value {
    json(host, &format!("maru vm show {name}"))
}

/// The same; nothing if the host that is asked cannot tell it at that moment.
pub fn told(host: &Host, name: &str) -> Value {
    let shown = host.exec(["maru", "vm", "show", name, "-o", "json"]).unwrap();
    serde_json::from_str(&shown.text()).unwrap_or_default()
}

/// What a program prints, up to what is waited for, in whole lines; then it is ended.
pub fn hear(host: &Host, program: &[&str], limit: Duration, mut enough: impl FnMut(&str) -> bool) -> String {
    let mut process = host.spawn(Exec::new(program.iter().copied())).unwrap();
    let (mut text, deadline) = (String::new(), Instant::now() + limit);
    while !(text.ends_with('\n') && enough(&text)) {
        match process.next_event(Some(deadline)).unwrap() {
            Some(Event::Stdout(bytes) | Event::Stderr(bytes)) => text += &String::from_utf8_lossy(&bytes),
            other => panic!("{program:?}: {other:?} after:\n{text}\n{}", log(host)),
        }
    }
    text
}

/// What the console of a VM says, from its scroll-back on, up to what is waited for.
pub fn console(host: &Host, id: &str, limit: Duration, enough: impl FnMut(&str) -> bool) -> String {
    let socket = format!("/run/maru/vms/{id}/control");
    hear(host, &["maru", "vm", "control", "--socket", &socket, "console"], limit, enough)
}

/// `maru vm console`, with what it has shown.
pub struct Console {
    process: Process,
    /// What was shown since it was last emptied.
    pub seen: String,
}

impl Console {
    /// Opens the console of a VM.
    pub fn open(host: &Host, vm: &str, arguments: &[&str]) -> Console {
        let command = ["maru", "vm", "console", vm].into_iter().chain(arguments.iter().copied());
        Console { process: host.spawn(Exec::new(command)).unwrap(), seen: String::new() }
    }

    /// Runs a command line in the guest, and gives what it printed.
    pub fn run(&mut self, line: &str) -> String {
        self.seen.clear();
        self.process.write_stdin(format!("{line}; echo DO''NE\n").as_bytes()).unwrap();
        self.wait("DONE\r\n");
        self.seen.clone()
    }

    /// Waits until this text was shown.
    pub fn wait(&mut self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.seen.contains(text) {
            match self.process.next_event(Some(deadline)).unwrap() {
                Some(Event::Stdout(bytes) | Event::Stderr(bytes)) => self.seen += &String::from_utf8_lossy(&bytes),
                other => panic!("{other:?} before '{text}' in:\n{}", self.seen),
            }
        }
    }
}
