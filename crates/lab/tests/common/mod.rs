//! What the scenarios with real VMs have in common: a lab whose hosts have Maru's programs and a test guest, and VMs in it.
#![allow(dead_code, missing_docs)]

pub mod managed;
pub mod wire;

use std::fmt::Display;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use lab::agent::{Event, Exec, ExitStatus, Output, Process};
use lab::appliance::{guest_image, program};
use lab::host::Host;
use lab::{Lab, LabSpec};
use serde_json::Value;

/// How long anything in a VM may take: hosts are emulated, and share two processors.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// An answer of a host, or the end of the test.
fn answer<T>(host: &Host, answer: Result<T, impl Display>) -> T {
    answer
        .unwrap_or_else(|error| panic!("{} does not answer: {error}; its console: {}", host.name(), host.serial_log().display()))
}

/// Hosts that can run VMs.
pub fn vm_lab() -> LabSpec {
    let image = guest_image().expect("the guest's image");
    let find = |name: &str| program(name).unwrap_or_else(|| panic!("{name} is missing: run `cargo build --release --workspace`"));
    Lab::new()
        .memory_mib(1024)
        .binary(find("maru"), "/bin/maru")
        .binary(find("maru-vmm"), "/bin/maru-vmm")
        .binary(find("maru-guest"), "/bin/maru-guest")
        .file(image.kernel, "/guest/vmlinuz")
        .file(image.initramfs, "/guest/initramfs")
}

/// The virtual switch.
pub fn switch_program() -> PathBuf {
    program("maru-switch").expect("maru-switch is missing: run `cargo build --release --workspace`")
}

/// Starts the switch, and returns when it answers.
pub fn start_switch(host: &Host) -> Process {
    let command = ["maru-switch", "--control", "/run/maru-switch.control", "--state", "/run/switch.json"];
    let mut process = host.spawn(Exec::new(command)).unwrap();
    let deadline = Instant::now() + PATIENCE;
    let mut said = String::new();
    while !host.exec(["maru", "switch", "status"]).unwrap().success() {
        assert!(Instant::now() < deadline, "the switch does not answer: {said}");
        match process.next_event(Some(Instant::now() + Duration::from_millis(20))).unwrap() {
            Some(Event::Stdout(bytes) | Event::Stderr(bytes)) => said.push_str(&String::from_utf8_lossy(&bytes)),
            Some(Event::Exit(status)) => panic!("the switch has ended: {status:?}, {said}"),
            None => {}
        }
    }
    process
}

/// Starts one of these hosts with a file system on its one disk, mounted at `/mnt`.
pub fn with_file_system(spec: LabSpec, mib: u64) -> Lab {
    let lab = spec.disk_mib(mib).prepare(&mut |_| {}).unwrap();
    let host = lab.host(0);
    let mut mke2fs = Command::new("mke2fs");
    mke2fs.args(["-q", "-F", "-t", "ext4"]).arg(host.spec().state_dir.join("disk0.raw"));
    let made = mke2fs.env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin").output().expect("mke2fs, of e2fsprogs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    host.switch_on().unwrap();
    host.wait_ready().unwrap();
    host.load_module("ext4", "").unwrap();
    shell(host, "mount -t ext4 /dev/vda /mnt");
    lab
}

/// How many blocks the guest has flushed, from the newest whole line in which it says so.
pub fn flushed(output: &str) -> Option<u64> {
    let complete = &output[..output.rfind('\n')?];
    let line = complete.lines().rev().find(|line| line.contains("maru-guest: ok "));
    line?.split(" flushed=").nth(1)?.split([' ', ',']).next()?.parse().ok()
}

/// Runs a command line in the host's shell; fails the test if it fails.
pub fn shell(host: &Host, script: &str) -> String {
    let output = answer(host, host.exec(["sh", "-ec", script]));
    assert!(output.success(), "{script}\n{:?}\n{}{}", output.status, output.text(), output.error_text());
    output.text()
}

/// Waits until something is so; fails the test if it never is.
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Makes TAPs, without a bridge.
pub fn make_taps(host: &Host, names: &[&str]) {
    host.load_module("tun", "").expect("the module tun");
    for name in names {
        shell(host, &format!("tunctl -t {name} >/dev/null && ip link set {name} up"));
    }
}

/// A VM, started by `maru vm run` in a host; killed when dropped.
pub struct Vm<'h> {
    host: &'h Host,
    name: String,
    process: Process,
    /// Everything it printed so far, the monitor's messages too.
    pub output: String,
    /// How long it may take for what is waited for.
    pub patience: Duration,
}

/// What a VM did next.
enum Next {
    Printed,
    Ended(ExitStatus),
}

/// Command line for a test guest that acts by `words`.
pub fn guest_arguments(words: &str) -> Vec<String> {
    let command_line = format!("console=ttyS0 quiet panic=-1 mitigations=off memhp_default_state=online {words}");
    ["--kernel", "/guest/vmlinuz", "--initrd", "/guest/initramfs", "--cmdline", &command_line].map(String::from).to_vec()
}

impl<'h> Vm<'h> {
    /// Starts a test guest that acts by `words`, with more arguments of `maru vm run`.
    pub fn start(host: &'h Host, name: &str, words: &str, arguments: &[&str]) -> Vm<'h> {
        let mut all = guest_arguments(words);
        all.extend(["--name".to_string(), name.to_string()]);
        all.extend(arguments.iter().map(|argument| argument.to_string()));
        Vm::run(host, name, all)
    }

    /// Starts a VM with these arguments of `maru vm run` and no others.
    pub fn start_raw(host: &'h Host, name: &str, arguments: &[&str]) -> Vm<'h> {
        Vm::run(host, name, arguments.iter().map(|argument| argument.to_string()).collect())
    }

    /// Restores a VM from a file.
    pub fn restore(host: &'h Host, name: &str, file: &str, arguments: &[&str]) -> Vm<'h> {
        let mut all = vec!["--restore".to_string(), file.to_string()];
        all.extend(arguments.iter().map(|argument| argument.to_string()));
        Vm::run(host, name, all)
    }

    fn run(host: &'h Host, name: &str, arguments: Vec<String>) -> Vm<'h> {
        let mut command: Vec<String> = ["maru", "vm", "run", "--control", &socket(name)].map(String::from).to_vec();
        command.extend(arguments);
        Vm::start_with(host, name, command)
    }

    /// Starts a VM with another program than ours.
    pub fn start_with(host: &'h Host, name: &str, command: Vec<String>) -> Vm<'h> {
        let process = answer(host, host.spawn(Exec::new(command)));
        Vm { host, name: name.into(), process, output: String::new(), patience: PATIENCE }
    }

    /// Waits for the next thing that it does, and takes in what that prints; `None` if there is none before `deadline`.
    fn next(&mut self, deadline: Instant) -> Option<Next> {
        Some(match answer(self.host, self.process.next_event(Some(deadline)))? {
            Event::Stdout(bytes) | Event::Stderr(bytes) => {
                self.output += &String::from_utf8_lossy(&bytes);
                Next::Printed
            }
            Event::Exit(status) => Next::Ended(status),
        })
    }

    /// Takes in what it printed until `found` accepts all of it.
    pub fn wait_for(&mut self, what: &str, found: impl FnMut(&str) -> bool) {
        if let Some(status) = self.wait_for_or_end(what, found) {
            panic!("the VM ended ({status:?}) before {what}:\n{}", self.output);
        }
    }

    /// The same, for a VM that may end before: then it returns how.
    pub fn wait_for_or_end(&mut self, what: &str, mut found: impl FnMut(&str) -> bool) -> Option<ExitStatus> {
        let deadline = Instant::now() + self.patience;
        while !found(&self.output) {
            match self.next(deadline) {
                Some(Next::Printed) => {}
                Some(Next::Ended(status)) => return Some(status),
                None => panic!("timed out waiting for {what}:\n{}\n{}", self.output, self.circumstances()),
            }
        }
        None
    }

    /// How it has ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.end_before(Instant::now())
    }

    fn end_before(&mut self, deadline: Instant) -> Option<ExitStatus> {
        while let Some(next) = self.next(deadline) {
            if let Next::Ended(status) = next {
                return Some(status);
            }
        }
        None
    }

    /// What can be seen from outside of a VM that says nothing: its state, what its threads do, what KVM counts.
    fn circumstances(&self) -> String {
        let status = self.try_control(&["status", "-o", "json"]);
        let look = "mount -t debugfs none /sys/kernel/debug 2>/dev/null
            look() {
                for task in /proc/$(pidof maru-vmm | cut -d' ' -f1)/task/*; do
                    echo $(cat $task/comm) $(cut -d')' -f2 < $task/stat | cut -d' ' -f2,13,14) $(head -n 4 $task/stack)
                done
                cd /sys/kernel/debug/kvm && for file in exits halt_exits irq_injections irq_window_exits; do echo $file $(cat $file); done
            }
            look; sleep 2; look; dmesg | tail -n 5";
        let seen = self.host.exec(["sh", "-c", look]).map(|output| output.text() + &output.error_text());
        format!("{}{}{}", status.text(), status.error_text(), seen.unwrap_or_else(|error| error.to_string()))
    }

    /// Types into its console.
    pub fn type_line(&self, line: &str) {
        self.process.write_stdin(format!("{line}\n").as_bytes()).expect("the VM runs");
    }

    /// Waits for its end.
    pub fn wait(mut self) -> (i32, String) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.next(deadline) {
                Some(Next::Printed) => {}
                Some(Next::Ended(ExitStatus::Code(code))) => return (code, self.output),
                Some(Next::Ended(status)) => panic!("the VM ended strangely: {status:?}\n{}", self.output),
                None => panic!("timed out waiting for the VM to end:\n{}\n{}", self.output, self.circumstances()),
            }
        }
    }

    /// `maru vm control ARGUMENTS`.
    pub fn try_control(&self, arguments: &[&str]) -> Output {
        let socket = socket(&self.name);
        let mut command = vec!["maru", "vm", "control", "--socket", &socket];
        command.extend(arguments);
        answer(self.host, self.host.exec(command))
    }

    /// The same; fails the test if it fails. Returns what it printed.
    pub fn control(&mut self, arguments: &[&str]) -> String {
        let output = self.try_control(arguments);
        if !output.success() {
            let failure = format!("maru vm control {arguments:?}\n{}{}", output.text(), output.error_text());
            // A monitor that has ended has said why, and with which status.
            let end = self.end_before(Instant::now() + Duration::from_secs(5));
            let kept = self.output.len().saturating_sub(4000);
            panic!("{failure}\nthe VM's end: {end:?}\n{}\n{}", &self.output[kept..], self.circumstances());
        }
        output.text()
    }

    /// Its status.
    pub fn status(&mut self) -> Value {
        serde_json::from_str(&self.control(&["status", "-o", "json"])).expect("JSON")
    }

    /// The newest facts that the guest printed.
    pub fn facts(&self) -> Option<Value> {
        facts(&self.output)
    }

    /// Waits until the guest's newest facts fit.
    pub fn wait_for_facts(&mut self, what: &str, fit: impl Fn(&Value) -> bool) -> Value {
        self.wait_for(what, |output| facts(output).is_some_and(|facts| fit(&facts)));
        self.facts().expect("just found")
    }
}

fn socket(name: &str) -> String {
    format!("/run/{name}.control")
}

/// The last whole line of facts.
pub fn facts(output: &str) -> Option<Value> {
    let complete = &output[..output.rfind('\n')?];
    complete.lines().rev().find_map(|line| serde_json::from_str(line.split_once("maru-guest: facts ")?.1.trim()).ok())
}
