//! `maru lab` from a shell's point of view, through the example program that is nothing else.

use std::path::PathBuf;
use std::process::{Command, Output};

struct Shell {
    program: PathBuf,
    name: String,
}

impl Shell {
    fn new(test: &str) -> Self {
        let own = std::env::current_exe().unwrap();
        let program = own.ancestors().nth(2).unwrap().join("examples/lab");
        assert!(program.is_file(), "build it with `cargo build --release -p maru-lab --example lab`");
        Shell { program, name: format!("{test}-{}", std::process::id()) }
    }

    fn run(&self, words: &[&str]) -> Output {
        Command::new(&self.program).args(words).env("MARU_LAB", &self.name).output().unwrap()
    }

    fn ok(&self, words: &[&str]) -> String {
        let output = self.run(words);
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn refused(&self, words: &[&str]) -> String {
        let output = self.run(words);
        assert!(!output.status.success(), "{words:?}");
        String::from_utf8(output.stderr).unwrap()
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        self.run(&["down"]);
    }
}

#[test]
fn a_lab_can_be_started_used_and_ended_from_a_shell() {
    let shell = Shell::new("cli");
    assert!(shell.refused(&["status"]).contains("start one with `maru lab up`"));
    shell.ok(&["up", "--hosts", "2", "--memory", "512M", "--disk", "64M"]);
    assert!(shell.refused(&["up"]).contains("already running"));

    let status: serde_json::Value = serde_json::from_str(&shell.ok(&["status", "-o", "json"])).unwrap();
    assert_eq!(status["hosts"][1]["name"], "h2");
    assert_eq!(status["hosts"][1]["power"], "on");
    let output = shell.run(&["exec", "h1", "--", "sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!(output.status.code(), Some(7));
    assert_eq!((output.stdout.as_slice(), output.stderr.as_slice()), (b"out\n".as_slice(), b"err\n".as_slice()));
    assert!(shell.refused(&["exec", "h9", "true"]).contains("there are h1, h2"));

    shell.ok(&["cut", "h2", "--cable", "0"]);
    assert!(shell.ok(&["status"]).contains("10.10.0.2 (cut), 10.10.1.2"));
    assert!(!shell.run(&["exec", "h1", "--", "ping", "-c", "1", "-W", "1", "10.10.0.2"]).status.success());
    shell.ok(&["uncut", "h2"]);
    shell.ok(&["exec", "h1", "--", "ping", "-c", "1", "10.10.0.2"]);

    shell.ok(&["power", "h2", "off"]);
    assert!(shell.refused(&["exec", "h2", "true"]).contains("h2 is off"));
    shell.ok(&["power", "h2", "on"]);
    assert_eq!(shell.ok(&["exec", "h2", "hostname"]), "h2\n");
    shell.ok(&["down"]);
    shell.refused(&["status"]);
}
