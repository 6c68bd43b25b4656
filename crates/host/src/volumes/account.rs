//! What VMs' disks take of a volume, and what they may come to take: thin disks promise more than there is.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use disk::tool::{self, AnyFormat};
use vmm::config::DiskConfig;

use super::Volumes;
use crate::records::{ImageRecord, VmRecord};
use crate::vm::config;

/// Bytes of one volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// What the files of disks take.
    pub allocated: u64,
    /// What they would take if they were full.
    pub provisioned: u64,
}

/// Counts the disks of these VMs, and these images, by the volume that they are in: each file once. A disk that cannot be read, or is outside of all volumes, counts
/// for nothing; who starts its VM is told.
pub fn count(volumes: &Volumes, vms: &[VmRecord], images: &[ImageRecord]) -> BTreeMap<String, Account> {
    let mut seen: Vec<(u64, u64)> = Vec::new();
    let mut accounts: BTreeMap<String, Account> = BTreeMap::new();
    let mut add = |path: &Path, virtual_size: Option<u64>| {
        let Ok(metadata) = fs::metadata(path) else { return };
        let Some(volume) = volumes.volume_of(path) else { return };
        let identity = (metadata.dev(), metadata.ino());
        if seen.contains(&identity) {
            return;
        }
        seen.push(identity);
        let (account, allocated) = (accounts.entry(volume).or_default(), metadata.blocks() * 512);
        account.allocated += allocated;
        account.provisioned += virtual_size.unwrap_or(allocated);
    };
    for vm in vms {
        for disk in &vm.disks {
            let Ok(path) = volumes.find(&disk.file) else { continue };
            let found = config::monitor_disk(disk, &vm.resources, path);
            files(&found).iter().for_each(|(path, virtual_size)| add(path, Some(*virtual_size)));
        }
    }
    // Those that no VM is based on are there, too.
    images.iter().filter_map(|image| volumes.find(&image.file).ok()).for_each(|path| add(&path, None));
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
