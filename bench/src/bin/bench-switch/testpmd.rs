//! DPDK's testpmd as the load: two virtio-user ports, each of which sends on what the other one gets.

use std::cell::RefCell;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// The addresses of the two ports.
pub const MACS: [&str; 2] = ["52:54:00:00:00:01", "52:54:00:00:00:02"];

/// A load that runs.
pub struct Testpmd {
    child: Child,
    talk: RefCell<(ChildStdin, BufReader<ChildStdout>)>,
}

/// Frames that both ports got until then.
#[derive(Clone, Copy, Debug)]
pub struct Frames {
    /// How many.
    pub count: u64,
    /// When.
    pub at: Instant,
}

impl Testpmd {
    /// Connects to both sockets and sends frames of `bytes`, until the load is a steady one.
    pub fn start(huge: &Path, sockets: &[PathBuf; 2], core: usize, bytes: u32) -> Result<Testpmd> {
        // It is to say what it says at once, to a pipe as well.
        let mut command = Command::new("stdbuf");
        command.args(["-oL", "dpdk-testpmd", "--huge-dir"]).arg(huge);
        command.args(["--lcores", &format!("0@{core},1@{core}"), "-m", "512", "--no-pci", "--single-file-segments"]);
        command.args(["--file-prefix", "load", "--log-level", "lib.eal:4"]);
        for (number, (socket, mac)) in sockets.iter().zip(MACS).enumerate() {
            let device = format!("net_virtio_user{number},path={},queue_size=1024,mac={mac}", socket.display());
            command.args(["--vdev", &device]);
        }
        command.args(["--", "-i", "--forward-mode=io", "--txd=1024", "--rxd=1024", "--burst=32"]);
        command.arg(format!("--txpkts={bytes}"));
        for (number, peer) in [(0, MACS[1]), (1, MACS[0])] {
            command.arg(format!("--eth-peer={number},{peer}"));
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("dpdk-testpmd is missing: run this with `make bench-switch`")?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else { unreachable!("both are piped") };
        let load = Testpmd { child, talk: RefCell::new((stdin, BufReader::new(stdout))) };
        // The first frames fill what is between the ports; the answers that come before them are of its start.
        load.ask("start tx_first 16")?;
        let mut before = load.frames()?.count;
        let begun = Instant::now();
        loop {
            std::thread::sleep(Duration::from_millis(500));
            let now = load.frames()?.count;
            if now > before + 100_000 {
                return Ok(load);
            }
            ensure!(begun.elapsed() < Duration::from_secs(10), "frames do not go round: {now} until now");
            before = now;
        }
    }

    /// Gives a command and returns what is said until the next prompt.
    fn ask(&self, command: &str) -> Result<String> {
        let (stdin, stdout) = &mut *self.talk.borrow_mut();
        // The answer to a command that there is not marks the end of the one before.
        writeln!(stdin, "{command}\nmark")?;
        stdin.flush()?;
        let (mut text, mut line) = (String::new(), String::new());
        loop {
            line.clear();
            ensure!(stdout.read_line(&mut line)? > 0, "dpdk-testpmd ended: {text}");
            if line.contains("Command not found") {
                return Ok(text);
            }
            text += &line;
        }
    }

    /// What both ports got until now.
    pub fn frames(&self) -> Result<Frames> {
        let text = self.ask("show port stats all")?;
        let at = Instant::now();
        let numbers = text.lines().filter_map(|line| line.trim().strip_prefix("RX-packets:")?.split_whitespace().next());
        let counts = numbers.map(str::parse).collect::<Result<Vec<u64>, _>>()?;
        ensure!(counts.len() == 2, "dpdk-testpmd said: {text}");
        Ok(Frames { count: counts.iter().sum(), at })
    }
}

impl Drop for Testpmd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
