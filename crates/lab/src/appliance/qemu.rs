//! QEMU inside a virtual host: what Maru is compared with, and what it has to get on with.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::LabSpec;

/// Where QEMU is in a host.
pub const QEMU: &str = "/usr/bin/qemu-system-x86_64";
/// Where its firmware is in a host, for its option `-L`.
pub const QEMU_ROMS: &str = "/usr/share/qemu-roms";

/// What QEMU's machines load; each is looked for where distributions put such files.
const ROM_FILES: &[&str] = &[
    "bios-256k.bin",
    "bios-microvm.bin",
    "qboot.rom",
    "linuxboot_dma.bin",
    "multiboot_dma.bin",
    "pvh.bin",
    "kvmvapic.bin",
    "efi-virtio.rom",
];
const ROM_DIRS: &[&str] =
    &["/usr/share/qemu", "/usr/share/seabios", "/usr/share/qboot", "/usr/lib/ipxe/qemu", "/usr/local/share/qemu"];

/// Why QEMU cannot be put into a host.
#[derive(Debug, thiserror::Error)]
pub enum QemuError {
    /// It is not there.
    #[error("cannot find qemu-system-x86_64 (Debian: apt-get install qemu-system-x86)")]
    Missing,
    /// Its libraries could not be listed.
    #[error("running ldd")]
    Ldd(#[source] io::Error),
    /// One of them is not there.
    #[error("{program}: {library}")]
    Library {
        /// Of which program.
        program: PathBuf,
        /// What the loader says of it.
        library: String,
    },
}

/// QEMU on this machine.
///
/// # Errors
/// When it is not there.
pub fn qemu() -> Result<PathBuf, QemuError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join("qemu-system-x86_64")).find(|path| path.is_file());
    found.ok_or(QemuError::Missing)
}

/// Puts this machine's QEMU into the hosts of a lab, with its libraries and firmware.
///
/// # Errors
/// When something of it is missing on this machine.
pub fn with_qemu(mut spec: LabSpec) -> Result<LabSpec, QemuError> {
    let qemu = qemu()?;
    for library in libraries(&qemu)? {
        spec = spec.binary(&library, library.display().to_string());
    }
    for rom in ROM_FILES {
        let found = ROM_DIRS.iter().map(|dir| Path::new(dir).join(rom)).find(|path| path.is_file());
        if let Some(path) = found {
            spec = spec.file(path, format!("{QEMU_ROMS}/{rom}"));
        }
    }
    Ok(spec.binary(qemu, QEMU))
}

/// The shared libraries of a program, the loader among them.
fn libraries(program: &Path) -> Result<Vec<PathBuf>, QemuError> {
    let output = Command::new("ldd").arg(program).output().map_err(QemuError::Ldd)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if let Some(line) = text.lines().find(|line| line.contains("not found")) {
        return Err(QemuError::Library { program: program.into(), library: line.trim().into() });
    }
    // `libz.so.1 => /lib/x86_64-linux-gnu/libz.so.1 (0x...)`, and for the loader only its path.
    let path = |line: &str| line.split_whitespace().find(|word| word.starts_with('/')).map(PathBuf::from);
    Ok(text.lines().filter_map(path).collect())
}
