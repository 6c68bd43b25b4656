//! The switch as a process: starting it, as a user of its own.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use vmm::sandbox::identity::{Circumstances, Identity, OWN_USER_BASE};

use crate::vm::Cgroups;
use crate::vm::process::{self, Process, Start};

/// Nobody, of a user namespace that has not the user that is the switch's own.
const NOBODY: u32 = 65_534;
/// The switch's control group, beside that with all VMs: what ends these does not end it.
pub const CGROUP: &str = "maru-switch";

/// The files of the switch that runs.
#[derive(Clone, Debug)]
pub struct Files {
    run_directory: PathBuf,
    identity: Option<Identity>,
}

impl Files {
    /// Those below the directory of what runs.
    pub fn new(run_directory: &Path) -> Files {
        let here = Circumstances::here();
        // No process has the number 0, so no monitor has this user.
        let own = [OWN_USER_BASE, NOBODY].into_iter().find_map(|user| Identity::choose(Some(user), None, &here).ok());
        Files { run_directory: run_directory.into(), identity: own.flatten() }
    }

    fn directory(&self) -> PathBuf {
        self.run_directory.join("switch")
    }

    /// What it says on standard error.
    pub fn log(&self) -> PathBuf {
        self.directory().join("log")
    }

    fn lock(&self) -> PathBuf {
        self.directory().join("lock")
    }

    /// What is its own: nobody else but root gets there.
    fn own(&self) -> PathBuf {
        self.directory().join("own")
    }

    /// The control socket.
    pub fn control(&self) -> PathBuf {
        self.own().join("control")
    }

    fn ports(&self) -> PathBuf {
        self.directory().join("ports")
    }

    /// Makes the directories of a switch that is to be started.
    fn make(&self) -> io::Result<()> {
        make(&self.directory(), 0o711)?;
        make(&self.ports(), 0o711)?;
        make(&self.own(), 0o700)?;
        let Some(own) = &self.identity else { return Ok(()) };
        // Monitors that are users of their own come by here, and see nothing.
        fs::set_permissions(&self.run_directory, Permissions::from_mode(0o711))?;
        chown(self.own(), Some(own.uid), Some(own.gid))
    }

    /// Makes the directory for sockets of a VM's ports, and lets its monitor look up names in it, if that runs. What is there already keeps
    /// what it has otherwise.
    pub fn admit(&self, directory: &Path, monitor: Option<u32>) -> io::Result<()> {
        make(directory, 0o710)?;
        let Some(own) = &self.identity else { return Ok(()) };
        chown(directory, Some(own.uid), monitor.map(group_of).transpose()?)
    }

    /// The directories for sockets of VMs' ports that there are.
    pub fn port_directories(&self) -> Vec<PathBuf> {
        fs::read_dir(self.ports()).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
    }

    /// Removes them all, when no switch runs.
    pub fn remove(&self) -> io::Result<()> {
        match fs::remove_dir_all(self.directory()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Finds the switch that runs, if one does.
    pub fn find(&self) -> io::Result<Option<Process>> {
        process::find_holder(&self.lock())
    }

    /// Starts it, without ports. None may run.
    pub fn spawn(&self, program: &Path, cgroups: &Cgroups, unconfined: bool) -> io::Result<Process> {
        self.make()?;
        let start = Start::begin(&self.lock())?.ok_or_else(|| io::Error::other("it runs already"))?;
        let log = process::open(&self.log(), true)?;
        let group = cgroups.enter(CGROUP)?;
        let mut command = Command::new(program);
        command.env_clear().current_dir("/").arg("--control").arg(self.control());
        match unconfined {
            true => command.arg("--unconfined"),
            false => command.arg("--allow").arg(self.ports()),
        };
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        if let Some(own) = &self.identity {
            command.arg("--user").arg(own.uid.to_string());
        }
        // SAFETY: it does nothing.
        unsafe { start.spawn(command, group.as_ref(), || Ok(())) }
    }
}

fn make(directory: &Path, mode: u32) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(mode).create(directory)?;
    fs::set_permissions(directory, Permissions::from_mode(mode))
}

/// The group that a process has now.
fn group_of(pid: u32) -> io::Result<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let ids = status.lines().find_map(|line| line.strip_prefix("Gid:"));
    ids.and_then(|ids| ids.split_whitespace().nth(1)?.parse().ok()).ok_or_else(|| io::ErrorKind::InvalidData.into())
}
