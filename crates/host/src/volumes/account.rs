//! What VMs' disks take of a volume, and what they may come to take: thin disks promise more than there is.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use disk::tool::{self, AnyFormat};
use vmm::config::DiskConfig;

use super::Volumes;
use crate::records::VmRecord;
use crate::vm::config;

/// Bytes of one volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// What the files of disks take.
    pub allocated: u64,
    /// What they would take if they were full.
    pub provisioned: u64,
}

/// Counts the disks of these VMs by the volume that they are in: each file once. A disk that cannot be read, or is outside of all volumes, counts
/// for nothing; who starts its VM is told.
pub fn count(volumes: &Volumes, vms: &[VmRecord]) -> BTreeMap<String, Account> {
    let mut seen: Vec<(u64, u64)> = Vec::new();
    let mut accounts: BTreeMap<String, Account> = BTreeMap::new();
    for vm in vms {
        for disk in &vm.disks {
            let Ok(path) = volumes.find(&disk.file) else { continue };
            let found = config::monitor_disk(disk, &vm.resources, path);
            for (path, virtual_size) in files(&found) {
                let Ok(metadata) = fs::metadata(&path) else { continue };
                let Some(volume) = volumes.volume_of(&path) else { continue };
                let identity = (metadata.dev(), metadata.ino());
                if seen.contains(&identity) {
                    continue;
                }
                seen.push(identity);
                let account = accounts.entry(volume).or_default();
                account.allocated += metadata.blocks() * 512;
                account.provisioned += virtual_size;
            }
        }
    }
    accounts
}

/// The files of a disk, and what each may grow to: the disk's own to its size, its parents, which nobody writes, not at all.
fn files(disk: &DiskConfig) -> Vec<(PathBuf, u64)> {
    let chain = tool::info(&disk.path, AnyFormat::Own(disk.open_options().format)).unwrap_or_default();
    let size = |(index, info): (usize, tool::DiskInfo)| {
        let grows_to = if index == 0 { info.virtual_size } else { info.disk_usage };
        (info.path, grows_to)
    };
    chain.into_iter().enumerate().map(size).collect()
}
