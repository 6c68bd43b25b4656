//! A `maru-vmm` for tests, without a VM: it takes the monitor's options, echoes its console, and speaks the control protocol.
//!
//! `FAKE_MONITOR` says what it does: `exit N` and `signal N` end at once; `echo` answers each piece of console input until
//! `stop`; `stubborn` does the same and ignores `stop`; `refuse` refuses it. `FAKE_RECORD` names a file that gets what it was
//! started with, and how it ended.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::exit;
use std::thread;

use vmm::config::VmConfig;
use vmm::control::{Connection, Failure, Message, Reply, Request};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let value = |name: &str| {
        let index = arguments.iter().position(|argument| argument == name).unwrap_or_else(|| panic!("no {name}"));
        arguments[index + 1].clone()
    };
    let json = fs::read(value("--config")).expect("the configuration");
    VmConfig::from_json(&json).expect("a configuration");
    let fd: i32 = value("--control-fd").parse().expect("a number");
    // SAFETY: the parent passed this descriptor for us to own.
    let control = Connection::from(unsafe { OwnedFd::from_raw_fd(fd) });
    let shown: Vec<&str> = arguments.iter().map(String::as_str).collect();
    record(&format!("arguments {}\nconfig {}\n", shown.join(" "), String::from_utf8_lossy(&json)));

    let mode = std::env::var("FAKE_MONITOR").expect("FAKE_MONITOR");
    match mode.split_once(' ') {
        Some(("exit", status)) => {
            print!("last words");
            std::io::stdout().flush().expect("the console");
            eprintln!("fake monitor: ends");
            exit(status.parse().expect("a number"))
        }
        Some(("signal", number)) => {
            // SAFETY: no pointers.
            unsafe { libc::raise(number.parse().expect("a number")) };
        }
        _ => {
            thread::spawn(echo);
            serve(&control, &mode);
        }
    }
}

fn record(text: &str) {
    let Some(path) = std::env::var_os("FAKE_RECORD").map(PathBuf::from) else { return };
    let mut file = fs::OpenOptions::new().create(true).append(true).open(path).expect("the record");
    file.write_all(text.as_bytes()).expect("the record");
}

fn echo() {
    let mut buffer = [0; 256];
    let say = |bytes: &[u8]| std::io::stdout().write_all(bytes).and_then(|()| std::io::stdout().flush()).expect("the console");
    say(b"ready\r\n");
    loop {
        let length = std::io::stdin().read(&mut buffer).expect("the console");
        if length == 0 {
            return record("console-closed\n");
        }
        say(&[b"<", &buffer[..length], b">"].concat());
    }
}

fn serve(control: &Connection, mode: &str) {
    loop {
        let Ok(Some((request, _))) = control.receive::<Request>() else {
            record("parent-gone\n");
            exit(0);
        };
        let reply = |reply| control.send(&Message::Reply(reply), &[]).expect("the control connection");
        match (request, mode) {
            (Request::Stop, "echo") => {
                record("stopped\n");
                reply(Reply::Ok(serde_json::Value::Null));
                exit(0);
            }
            (Request::Stop, "refuse") => reply(Reply::Error(Failure { message: "not now".into() })),
            (Request::Stop, "stubborn") => record("ignored\n"),
            (other, _) => panic!("{other:?}"),
        }
    }
}
