//! The same load through QEMU's block layer.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};

use crate::load::Load;

/// Makes an empty VHDX image with blocks of 2 MiB, as ours have.
pub fn create(path: &Path, bytes: u64) -> anyhow::Result<()> {
    let mut command = Command::new("qemu-img");
    command.args(["create", "-q", "-f", "vhdx", "-o", "block_size=2M,subformat=dynamic"]).arg(path).arg(bytes.to_string());
    output(command).map(drop)
}

/// Writes all of it.
pub fn fill(path: &Path, bytes: u64) -> anyhow::Result<()> {
    let mut command = Command::new("qemu-img");
    let count = (bytes >> 20).to_string();
    command
        .args(["bench", "-t", "none", "-i", "io_uring", "-f", "vhdx", "-w", "-d", "8", "-s", "1048576", "-c", &count])
        .arg(path);
    output(command).map(drop)
}

/// Does a load.
pub fn run(path: &Path, load: &Load) -> anyhow::Result<Duration> {
    let mut command = Command::new("qemu-img");
    command.args(["bench", "-t", "none", "-i", "io_uring", "-f", "vhdx"]);
    for (option, value) in [("-c", load.count), ("-d", load.depth.into()), ("-s", load.bytes), ("-S", load.stride)] {
        command.arg(option).arg(value.to_string());
    }
    if load.is_write {
        command.arg("-w");
    }
    if load.is_flushed {
        command.arg("--flush-interval=1");
    }
    command.arg(path);
    let text = output(command)?;
    let seconds =
        text.split("completed in ").nth(1).and_then(|rest| rest.split_whitespace().next()).context("no time in the answer")?;
    Ok(Duration::from_secs_f64(seconds.parse()?))
}

fn output(mut command: Command) -> anyhow::Result<String> {
    let output = command.output().context("running qemu-img (Debian: qemu-utils, qemu-block-extra)")?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
