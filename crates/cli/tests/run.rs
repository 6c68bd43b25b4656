//! `maru vm run` from outside, with a monitor that has no VM.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::process::{Child, Stdio};

use support::{maru, run, wait, wait_for};

fn signal(child: &Child, number: libc::c_int) {
    // SAFETY: no pointers; the child was not waited for, so the id is its own.
    assert_eq!(unsafe { libc::kill(child.id() as libc::pid_t, number) }, 0);
}

#[test]
fn the_monitors_exit_status_is_passed_on_and_its_last_output_arrives() {
    for status in [0, 1, 2, 3, 4] {
        let output = run(&format!("exit {status}")).output().unwrap();
        assert_eq!(output.status.code(), Some(status));
        assert_eq!(output.stdout, b"last words");
        assert_eq!(output.stderr, b"fake monitor: ends\n");
    }
}

#[test]
fn a_monitor_that_was_killed_is_128_and_the_signal() {
    let output = run("signal 9").output().unwrap();
    assert_eq!(output.status.code(), Some(137));
    assert!(String::from_utf8_lossy(&output.stderr).contains("killed by signal 9"));
}

#[test]
fn the_monitor_gets_its_options_and_the_configuration() {
    let directory = tempfile::tempdir().unwrap();
    let record = directory.path().join("record");
    let mut command = run("exit 0");
    command.args(["--unconfined", "--control", "c.sock", "--name", "web", "--memory", "64M"]);
    let status = command.current_dir(&directory).env("FAKE_RECORD", &record).output().unwrap().status;
    assert!(status.success());
    let text = fs::read_to_string(record).unwrap();
    let socket = directory.path().join("c.sock");
    assert!(text.contains(&format!("--control {}", socket.display())), "{text}");
    assert!(text.contains("--exit-with-parent --unconfined"), "{text}");
    assert!(text.contains(r#""name":"web""#) && text.contains(r#""size":67108864"#), "{text}");
}

#[test]
fn signals_stop_the_vm() {
    for number in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        let directory = tempfile::tempdir().unwrap();
        let record = directory.path().join("record");
        let mut child = run("echo").env("FAKE_RECORD", &record).stdout(Stdio::null()).spawn().unwrap();
        wait_for(&record, "config");
        signal(&child, number);
        assert_eq!(wait(&mut child).code(), Some(0), "signal {number}");
        assert!(fs::read_to_string(record).unwrap().ends_with("stopped\n"));
    }
}

#[test]
fn a_second_signal_does_not_wait_for_a_monitor_that_does_not_end() {
    let directory = tempfile::tempdir().unwrap();
    let record = directory.path().join("record");
    let mut child = run("stubborn").env("FAKE_RECORD", &record).stdout(Stdio::null()).spawn().unwrap();
    wait_for(&record, "config");
    signal(&child, libc::SIGTERM);
    wait_for(&record, "ignored");
    signal(&child, libc::SIGTERM);
    assert_eq!(wait(&mut child).code(), Some(137));
}

#[test]
fn a_monitor_that_refuses_to_stop_is_killed() {
    let directory = tempfile::tempdir().unwrap();
    let record = directory.path().join("record");
    let mut command = run("refuse");
    let mut child = command.env("FAKE_RECORD", &record).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for(&record, "config");
    signal(&child, libc::SIGTERM);
    assert_eq!(wait(&mut child).code(), Some(137));
    let mut text = String::new();
    child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    assert!(text.contains("does not stop the VM: not now"), "{text}");
}

#[test]
fn the_monitor_notices_that_maru_was_killed() {
    let directory = tempfile::tempdir().unwrap();
    let record = directory.path().join("record");
    let mut child = run("stubborn").env("FAKE_RECORD", &record).stdout(Stdio::null()).spawn().unwrap();
    wait_for(&record, "config");
    signal(&child, libc::SIGKILL);
    wait(&mut child);
    wait_for(&record, "parent-gone");
}

#[test]
fn piped_input_reaches_the_guest_and_its_end_does_not_end_the_vm() {
    let mut child = run("echo").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut output = child.stdout.take().unwrap();
    let mut read = |expected: &[u8]| {
        let mut bytes = vec![0; expected.len()];
        output.read_exact(&mut bytes).unwrap();
        assert_eq!(bytes, expected);
    };
    read(b"ready\r\n");
    let mut input = child.stdin.take().unwrap();
    input.write_all(b"a\x1db").unwrap();
    read(b"<a\x1db>");
    drop(input);
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert!(child.try_wait().unwrap().is_none());
    signal(&child, libc::SIGTERM);
    assert_eq!(wait(&mut child).code(), Some(0));
}

#[test]
fn errors_are_one_line_with_cause_and_way_out() {
    let failure = |command: &mut std::process::Command| {
        let output = command.output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let (status, text) = failure(run("exit 0").env("MARU_VMM", "/no/monitor"));
    assert_eq!(
        (status, text.as_str()),
        (1, "error: cannot start the monitor /no/monitor: No such file or directory (os error 2)\n")
    );
    let (status, text) = failure(run("exit 0").args(["--disk", "/d,rw"]));
    assert_eq!(status, 2);
    assert!(text.starts_with("error: --disk '/d,rw': there is no part 'rw'; the form is FILE"), "{text}");
    let (status, text) = failure(run("exit 0").args(["--memory", "1"]));
    assert_eq!(status, 2);
    assert!(text.contains("--memory") && text.contains("'1' has no unit: write 1M"), "{text}");
    let (status, text) = failure(maru().args(["vm", "control", "--socket", "/no/socket", "status"]));
    assert_eq!(status, 1);
    assert!(text.contains("cannot reach a VM at /no/socket") && text.contains("No such file"), "{text}");
    assert_eq!(text.lines().count(), 1);
}
