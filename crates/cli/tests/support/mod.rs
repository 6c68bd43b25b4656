//! `maru` with the fake monitor (`examples/fake-monitor.rs`).

#![allow(dead_code, missing_docs, unused_imports)]

mod outcome;
mod terminal;

use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

pub use outcome::{done, refused};
pub use terminal::Terminal;

pub const PATIENCE: Duration = Duration::from_secs(20);

pub fn maru() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_maru"));
    command.stdin(Stdio::null()).env("MARU_VMM", fake_monitor());
    command
}

pub fn fake_monitor() -> PathBuf {
    let maru = PathBuf::from(env!("CARGO_BIN_EXE_maru"));
    let path = maru.parent().unwrap().join("examples/fake-monitor");
    assert!(path.exists(), "{} is missing: build it with `cargo build --release -p maru-cli --examples`", path.display());
    path
}

/// `maru vm run` with a monitor that does this.
pub fn run(mode: &str) -> Command {
    let mut command = maru();
    command.args(["vm", "run", "--kernel", "/no/kernel"]).env("FAKE_MONITOR", mode);
    command
}

pub fn wait(child: &mut Child) -> ExitStatus {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if start.elapsed() > PATIENCE {
            let _ = child.kill();
            panic!("maru did not end within {PATIENCE:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until the file contains the text.
pub fn wait_for(path: &std::path::Path, text: &str) {
    let start = Instant::now();
    while !std::fs::read_to_string(path).unwrap_or_default().contains(text) {
        assert!(start.elapsed() < PATIENCE, "'{text}' did not appear in {}", path.display());
        std::thread::sleep(Duration::from_millis(5));
    }
}
