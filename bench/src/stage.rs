//! The lab host with everything that is compared in it.

use std::process::Command;

use anyhow::{Context, bail};
use lab::agent::Output;
use lab::appliance::{Initramfs, kernel, program, qemu, with_qemu};
use lab::{Lab, LabSpec};

use crate::contender::{INITRD, KERNEL};

/// Drivers that the guest loads, whatever machine it finds itself in.
const GUEST_MODULES: &[&str] = &["virtio_pci", "virtio_mmio", "virtio_blk", "virtio_net"];
/// Under `cargo run`, has the programs built that run in the host and the guest: what is measured is what the sources say.
///
/// # Errors
/// When the build fails.
pub fn build_programs() -> anyhow::Result<()> {
    let Some(cargo) = std::env::var_os("CARGO") else { return Ok(()) };
    eprintln!("building the programs that are measured");
    let words = ["build", "--release", "-q", "-p", "maru-lab", "-p", "maru-vmm", "-p", "maru-bench", "--bins"];
    let status = Command::new(cargo).args(words).status().context("running cargo")?;
    if !status.success() {
        bail!("cargo build failed ({status})");
    }
    Ok(())
}

/// A lab of one host with our monitor, QEMU, the kernel and the guest's initramfs in it.
///
/// # Errors
/// When something is missing on this machine.
pub fn host() -> anyhow::Result<LabSpec> {
    let own = |name: &str| program(name).with_context(|| format!("cannot find {name}: run `cargo build --release` first"));
    let kernel = kernel()?;
    let guest = Initramfs::new("bench").program(own("bench-guest")?, "/init").boot_modules(GUEST_MODULES).build(&kernel)?;
    let spec = Lab::new()
        .cpus(2)
        .memory_mib(2048)
        .binary(own("maru-vmm")?, "/bin/maru-vmm")
        .binary(own("bench-host")?, "/bin/bench-host")
        .file(&kernel.vmlinuz, KERNEL)
        .file(guest, INITRD);
    Ok(with_qemu(spec)?)
}

/// The version of the QEMU that is compared with.
///
/// # Errors
/// When there is none.
pub fn qemu_version() -> anyhow::Result<String> {
    let output = Command::new(qemu()?).arg("--version").output().context("running qemu-system-x86_64")?;
    Ok(String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned())
}

/// Runs a shell command in the host and fails if it fails.
///
/// # Errors
/// When it fails, with what it said.
pub fn shell(lab: &Lab, command: &str) -> anyhow::Result<Output> {
    let output = lab.host(0).exec(["sh", "-c", command])?;
    if !output.success() {
        bail!("`{command}` in the host: {:?}: {}{}", output.status, output.text(), output.error_text());
    }
    Ok(output)
}
