//! `maru vm control` from outside, with a thread that answers as a monitor does.

mod support;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::thread::JoinHandle;

use serde::Serialize;
use serde_json::{Value, json};
use support::{Terminal, maru, wait, wait_for};
use vmm::control::{Connection, DeviceStatus, Failure, Listener, Message, Reply, Request, RunStatus, Status};

/// A directory with a control socket that one client is served at.
struct Vm {
    directory: tempfile::TempDir,
    monitor: JoinHandle<()>,
}

impl Vm {
    fn start(serve: impl FnOnce(Connection) + Send + 'static) -> Vm {
        let directory = tempfile::tempdir().unwrap();
        let listener = Listener::bind(&directory.path().join("s")).unwrap();
        let monitor = std::thread::spawn(move || serve(listener.accept().unwrap()));
        Vm { directory, monitor }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn command(&self, action: &[&str]) -> Command {
        let mut command = maru();
        command.args(["vm", "control", "--socket"]).arg(self.path("s")).args(action).current_dir(&self.directory);
        command
    }

    /// Runs the command; returns exit status, standard output and standard error.
    fn run(self, action: &[&str]) -> (i32, String, String) {
        let output = self.command(action).output().unwrap();
        self.monitor.join().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }
}

fn request(connection: &Connection) -> (Request, Vec<OwnedFd>) {
    connection.receive().unwrap().unwrap()
}

fn ok(connection: &Connection, value: impl Serialize) {
    connection.send(&Message::Reply(Reply::Ok(serde_json::to_value(value).unwrap())), &[]).unwrap();
}

fn status() -> Status {
    let counters = BTreeMap::from([("reads".to_owned(), 3)]);
    Status {
        name: "web".into(),
        pid: 7,
        state: RunStatus::Paused,
        cpus: 2,
        memory: 256 << 20,
        hotplug_memory: 0,
        balloon: 0,
        confined: true,
        short_of_space: None,
        devices: vec![DeviceStatus { id: "disk0".into(), kind: "block".into(), slot: 1, files: vec!["/d".into()], counters }],
    }
}

#[test]
fn status_is_a_table_or_json() {
    let vm = || {
        Vm::start(|connection| {
            assert_eq!(request(&connection).0, Request::Status);
            ok(&connection, status());
        })
    };
    let (code, text, _) = vm().run(&["status"]);
    assert_eq!(code, 0);
    assert!(text.contains("state     paused\n") && text.contains("disk0   block  1     /d     reads=3\n"), "{text}");
    let (code, text, _) = vm().run(&["status", "-o", "json"]);
    assert_eq!((code, serde_json::from_str::<Status>(&text).unwrap()), (0, status()));
}

#[test]
fn actions_are_the_requests_that_their_names_say() {
    let cases: [(&[&str], Value); 12] = [
        (&["pause"], json!({"request": "pause"})),
        (&["resume"], json!({"request": "resume"})),
        (&["power-button"], json!({"request": "power-button"})),
        (&["reset"], json!({"request": "reset"})),
        (&["remove", "a"], json!({"request": "remove", "id": "a"})),
        (&["resize-disk", "a", "2M"], json!({"request": "resize-disk", "id": "a", "bytes": 2 << 20})),
        (
            &["limit-disk", "a", "iops=9,iops-burst=20,burst-seconds=5,bandwidth=2M"],
            json!({"request": "set-disk-limits", "id": "a", "limits": {
                "iops": {"per_second": 9, "burst": {"per_second": 20, "seconds": 5}},
                "bandwidth": {"per_second": 2 << 20},
            }}),
        ),
        (&["limit-disk", "a", "none"], json!({"request": "set-disk-limits", "id": "a", "limits": {}})),
        (&["set-cpus", "3"], json!({"request": "set-cpus", "count": 3})),
        (&["set-memory", "+4M"], json!({"request": "set-hotplug-memory", "bytes": 4 << 20})),
        (&["set-balloon", "8K"], json!({"request": "set-balloon", "bytes": 8 << 10})),
        (&["set-link", "n", "down"], json!({"request": "set-link", "id": "n", "up": false})),
    ];
    for (action, expected) in cases {
        let vm = Vm::start(move |connection| {
            assert_eq!(serde_json::to_value(request(&connection).0).unwrap(), expected);
            ok(&connection, Value::Null);
        });
        let (code, output, _) = vm.run(action);
        assert_eq!((code, output.as_str()), (0, ""), "{action:?}");
    }
}

#[test]
fn a_refusal_is_an_error_in_the_monitors_words() {
    let vm = Vm::start(|connection| {
        request(&connection);
        let failure = Failure { message: "the VM has no balloon; start it with one".into() };
        connection.send(&Message::Reply(Reply::Error(failure)), &[]).unwrap();
    });
    let (code, _, error) = vm.run(&["set-balloon", "0"]);
    assert_eq!((code, error.as_str()), (1, "error: the VM has no balloon; start it with one\n"));
}

#[test]
fn a_monitor_that_is_gone_has_stopped_but_was_not_paused() {
    let (code, _, error) = Vm::start(|connection| drop(request(&connection))).run(&["stop"]);
    assert_eq!((code, error.as_str()), (0, ""));
    let (code, _, error) = Vm::start(|connection| drop(request(&connection))).run(&["pause"]);
    assert_eq!((code, error.as_str()), (1, "error: the VM's monitor has ended\n"));
}

#[test]
fn a_save_that_is_interrupted_leaves_nothing_behind() {
    let vm = Vm::start(|connection| {
        let (_, mut fds) = request(&connection);
        File::from(fds.remove(0)).write_all(b"half").unwrap();
        assert!(connection.receive::<Request>().unwrap().is_none());
    });
    let mut child = vm.command(&["save", "vm.saved"]).spawn().unwrap();
    wait_for(&vm.path("vm.saved.part"), "half");
    // SAFETY: no pointers; the child was not waited for.
    unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGINT) };
    assert_eq!(wait(&mut child).code(), Some(130));
    assert!(!vm.path("vm.saved.part").exists() && !vm.path("vm.saved").exists());
    vm.monitor.join().unwrap();
}

#[test]
fn the_console_is_left_without_ending_the_vm() {
    let vm = Vm::start(|connection| {
        let (asked, mut fds) = request(&connection);
        assert_eq!(asked, Request::Console);
        let mut console = UnixStream::from(fds.remove(0));
        ok(&connection, Value::Null);
        console.write_all(b"login: ").unwrap();
        let mut typed = Vec::new();
        console.read_to_end(&mut typed).unwrap();
        assert_eq!(typed, b"root\r");
        // No request came meanwhile, in particular no `stop`.
        assert!(connection.receive::<Request>().unwrap().is_none());
    });
    let mut terminal = Terminal::start(vm.command(&["console"]));
    terminal.expect("Ctrl-] leaves the console, the VM goes on");
    terminal.expect("login: ");
    assert!(!terminal.is_cooked());
    terminal.outside.write_all(b"root\r\x1d").unwrap();
    terminal.expect("left the console");
    assert_eq!(wait(&mut terminal.maru).code(), Some(0));
    assert!(terminal.is_cooked());
    vm.monitor.join().unwrap();
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let vm = Vm::start(|connection| {
        request(&connection);
        ok(&connection, fs::read_to_string("/proc/self/status").unwrap());
    });
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = vm.command(&["config"]).stdout(writer).output();
    let output = output.unwrap();
    assert_eq!((output.status.code(), output.stderr.len()), (Some(0), 0));
    vm.monitor.join().unwrap();
}
