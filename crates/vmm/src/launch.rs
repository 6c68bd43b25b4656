//! What every program that starts a monitor does alike.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use crate::config::{ConsoleConfig, VmConfig};

/// The kernel's command line: a guest that nobody told where its console is would be silent.
#[must_use]
pub fn command_line(text: &str, console: ConsoleConfig) -> String {
    if text.split_ascii_whitespace().any(|word| word.starts_with("console=")) {
        return text.into();
    }
    let device = match console {
        ConsoleConfig::Serial => "console=ttyS0",
        ConsoleConfig::Virtio => "console=hvc0",
    };
    if text.is_empty() { device.into() } else { format!("{text} {device}") }
}

/// The configuration in a file that has no name: nobody else sees it, and nothing is left behind.
///
/// # Errors
/// When there is no memory or no descriptor left.
pub fn config_file(config: &VmConfig) -> io::Result<File> {
    // SAFETY: the name is a C string.
    let fd = unsafe { libc::memfd_create(c"vm-config".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    let mut file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    file.write_all(&serde_json::to_vec(config)?)?;
    Ok(file)
}

/// Leaves a descriptor open for the program that this process becomes. May be called between fork and exec.
///
/// # Errors
/// When it is not open.
pub fn inherit(fd: RawFd) -> io::Result<()> {
    // SAFETY: F_SETFD takes a number.
    match unsafe { libc::fcntl(fd, libc::F_SETFD, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
