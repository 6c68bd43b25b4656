//! The lab host with everything that is compared in it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use lab::agent::Output;
use lab::appliance::{Initramfs, kernel, program};
use lab::{Lab, LabSpec};

use crate::contender::{INITRD, KERNEL, ROMS};

/// Drivers that the guest loads, whatever machine it finds itself in.
const GUEST_MODULES: &[&str] = &["virtio_pci", "virtio_mmio", "virtio_blk", "virtio_net"];
/// What QEMU's machines load; each is looked for where distributions put such files.
const ROM_FILES: &[&str] =
    &["bios-256k.bin", "bios-microvm.bin", "qboot.rom", "linuxboot_dma.bin", "multiboot_dma.bin", "pvh.bin", "kvmvapic.bin"];
const ROM_DIRS: &[&str] = &["/usr/share/qemu", "/usr/share/seabios", "/usr/share/qboot", "/usr/local/share/qemu"];

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
    let mut spec = Lab::new()
        .cpus(2)
        .memory_mib(2048)
        .binary(own("maru-vmm")?, "/bin/maru-vmm")
        .binary(own("bench-host")?, "/bin/bench-host")
        .file(&kernel.vmlinuz, KERNEL)
        .file(guest, INITRD);
    let qemu = qemu()?;
    for library in libraries(&qemu)? {
        spec = spec.binary(&library, library.display().to_string());
    }
    for rom in ROM_FILES {
        let found = ROM_DIRS.iter().map(|dir| Path::new(dir).join(rom)).find(|path| path.is_file());
        if let Some(path) = found {
            spec = spec.file(path, format!("{ROMS}/{rom}"));
        }
    }
    Ok(spec.binary(qemu, "/usr/bin/qemu-system-x86_64"))
}

/// The version of the QEMU that is compared with.
///
/// # Errors
/// When there is none.
pub fn qemu_version() -> anyhow::Result<String> {
    let output = Command::new(qemu()?).arg("--version").output().context("running qemu-system-x86_64")?;
    Ok(String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned())
}

fn qemu() -> anyhow::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|dir| dir.join("qemu-system-x86_64"))
        .find(|path| path.is_file())
        .context("cannot find qemu-system-x86_64 (Debian: apt-get install qemu-system-x86)")
}

/// The shared libraries of a program, the loader among them.
fn libraries(program: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("running ldd")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if let Some(line) = text.lines().find(|line| line.contains("not found")) {
        bail!("{}: {}", program.display(), line.trim());
    }
    // `libz.so.1 => /lib/x86_64-linux-gnu/libz.so.1 (0x...)`, and for the loader only its path.
    let path = |line: &str| line.split_whitespace().find(|word| word.starts_with('/')).map(PathBuf::from);
    Ok(text.lines().filter_map(path).collect())
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
