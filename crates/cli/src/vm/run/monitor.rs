//! Finding and starting the monitor.

use std::ffi::OsString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use vmm::config::VmConfig;
use vmm::control::Connection;
use vmm::launch::{config_file, inherit};

use super::error::RunError;

const PROGRAM: &str = "maru-vmm";

/// A VM to start.
#[derive(Debug)]
pub struct Start {
    /// The monitor.
    pub program: PathBuf,
    /// The VM; with `restore`, as it was saved, but for what is elsewhere on this host.
    pub config: VmConfig,
    /// The saved VM to go on with.
    pub restore: Option<PathBuf>,
    /// Where others find its control socket.
    pub control: Option<PathBuf>,
    /// Whether to leave the monitor unconfined.
    pub unconfined: bool,
}

/// A monitor that was started.
#[derive(Debug)]
pub struct Monitor {
    /// The process.
    pub process: Child,
    /// The VM's console.
    pub console: UnixStream,
}

/// Finds the monitor: `MARU_VMM`, beside this program, on `PATH`.
pub fn find() -> Result<PathBuf, RunError> {
    if let Some(program) = std::env::var_os("MARU_VMM").filter(|value| !value.is_empty()) {
        return Ok(program.into());
    }
    let maru = std::env::current_exe().map_err(RunError::host("finding out where maru is"))?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    find_in(&maru, &path).ok_or(RunError::NoMonitor { maru })
}

fn find_in(maru: &Path, path: &OsString) -> Option<PathBuf> {
    let beside = maru.parent().map(Path::to_owned);
    let places = beside.into_iter().chain(std::env::split_paths(path).filter(|place| place.is_absolute()));
    places.map(|place| place.join(PROGRAM)).find(|program| is_program(program))
}

fn is_program(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

impl Start {
    /// Starts the monitor. `control` is its end of the control connection: when the other end is closed, it ends.
    pub fn spawn(&self, control: &Connection) -> Result<Monitor, RunError> {
        let config = config_file(&self.config).map_err(RunError::host("handing the configuration to the monitor"))?;
        let (console, guest) = UnixStream::pair().map_err(RunError::host("making the console's socket"))?;
        let inside = || guest.try_clone().map(OwnedFd::from).map_err(RunError::host("making the console's socket"));
        let (config_fd, control_fd) = (config.as_raw_fd(), control.as_raw_fd());

        let mut command = Command::new(&self.program);
        command.arg("--config").arg(format!("/proc/self/fd/{config_fd}"));
        if let Some(saved) = &self.restore {
            command.arg("--restore").arg(saved);
        }
        if let Some(path) = &self.control {
            command.arg("--control").arg(path);
        }
        command.arg("--control-fd").arg(control_fd.to_string()).arg("--exit-with-parent");
        if self.unconfined {
            command.arg("--unconfined");
        }
        command.stdin(Stdio::from(inside()?)).stdout(Stdio::from(inside()?));
        // Ctrl-C at the terminal is for this program, which then tells the monitor what to do.
        command.process_group(0);
        // SAFETY: between fork and exec only fcntl is called, which is async-signal-safe, on descriptors that are open.
        unsafe {
            command.pre_exec(move || {
                inherit(config_fd)?;
                inherit(control_fd)
            });
        }
        let spawned = command.spawn();
        let process = spawned.map_err(|source| RunError::Spawn { program: self.program.clone(), source })?;
        Ok(Monitor { process, console })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(directory: &Path) -> PathBuf {
        let path = directory.join(PROGRAM);
        std::fs::write(&path, "").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn the_monitor_beside_maru_comes_before_the_one_on_path() {
        let (bin, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let maru = bin.path().join("maru");
        let path = OsString::from(format!("relative:{}", other.path().display()));
        assert_eq!(find_in(&maru, &path), None);
        let on_path = program(other.path());
        assert_eq!(find_in(&maru, &path), Some(on_path));
        std::fs::write(bin.path().join(PROGRAM), "not a program").unwrap();
        assert!(find_in(&maru, &path).unwrap().starts_with(other.path()));
        let beside = program(bin.path());
        assert_eq!(find_in(&maru, &path), Some(beside));
    }
}
