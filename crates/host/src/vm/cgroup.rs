//! A control group for each VM, where there are control groups of version 2.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use uuid::Uuid;

/// The directory in which each running VM has a control group.
#[derive(Clone, Debug)]
pub struct Cgroups(Option<PathBuf>);

impl Cgroups {
    /// Uses this directory below `/sys/fs/cgroup`; makes it. Gives the reason if VMs go without.
    pub fn at(path: &Path) -> (Cgroups, Option<String>) {
        match make(path) {
            Ok(()) => (Cgroups(Some(path.into())), None),
            Err(error) => (Cgroups(None), Some(format!("VMs get no control groups of their own: {}: {error}", path.display()))),
        }
    }

    /// The file that the VM's process must write `0` to, so that it is in its group.
    pub fn enter(&self, vm: Uuid) -> io::Result<Option<File>> {
        let Some(parent) = &self.0 else { return Ok(None) };
        let group = parent.join(vm.to_string());
        make(&group)?;
        File::options().write(true).open(group.join("cgroup.procs")).map(Some)
    }

    /// Removes the group of a VM that has ended.
    pub fn remove(&self, vm: Uuid) -> io::Result<()> {
        let Some(parent) = &self.0 else { return Ok(()) };
        match fs::remove_dir(parent.join(vm.to_string())) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// VMs that have a group.
    pub fn list(&self) -> Vec<Uuid> {
        let entries = self.0.iter().flat_map(fs::read_dir).flatten().flatten();
        entries.filter_map(|entry| Uuid::parse_str(entry.file_name().to_str()?).ok()).collect()
    }
}

fn make(group: &Path) -> io::Result<()> {
    match fs::create_dir(group) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    // Where nothing is mounted, or version 1, this is a directory like any other.
    if group.join("cgroup.procs").exists() {
        return Ok(());
    }
    fs::remove_dir(group)?;
    Err(io::Error::other("there are no control groups of version 2"))
}
