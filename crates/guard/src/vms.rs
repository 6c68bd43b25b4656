//! The processes of VMs, all of which are in one control group.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// The control group with all VMs below it (cgroup v2, Linux 5.14 or newer). Its files are opened once: later there may be no memory for that.
#[derive(Debug)]
pub struct Vms {
    events: File,
    kill: File,
}

impl Vms {
    /// Opens the group in this directory.
    pub fn open(directory: &Path) -> io::Result<Vms> {
        let events = File::open(directory.join("cgroup.events"))?;
        let kill = OpenOptions::new().write(true).open(directory.join("cgroup.kill"))?;
        Ok(Vms { events, kill })
    }

    /// Whether a process is there, below any group of it. Who cannot be asked is taken to run.
    pub fn run(&self) -> bool {
        let mut buffer = [0; 256];
        let Ok(length) = self.events.read_at(&mut buffer, 0) else { return true };
        !buffer[..length].split(|byte| *byte == b'\n').any(|line| line == b"populated 0")
    }

    /// Kills all processes there at once, and those that they are just starting.
    pub fn kill(&self) -> io::Result<()> {
        (&self.kill).write_all(b"1")
    }
}
