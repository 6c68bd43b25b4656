//! Whose disks are whose, and new ones.

use disk::tool;

use super::config::NewDisk;
use super::staging::Staging;
use super::work::WorkError;
use crate::records::{Cause, VmRecord};
use crate::state::{State, StateError};

/// Refuses a disk that another VM writes, or that is to be written and another VM has. Hold the files meanwhile.
pub fn check(state: &State, vm: &VmRecord) -> Result<Result<(), Cause>, StateError> {
    for (index, disk) in vm.disks.iter().enumerate() {
        if vm.disks[..index].iter().any(|other| other.file == disk.file && !(other.read_only && disk.read_only)) {
            return Ok(Err(Cause::new("disk-twice", format!("the disk {} is there twice", disk.file), "name each disk once")));
        }
    }
    for other in state.all::<VmRecord>()?.into_iter().map(|stored| stored.record).filter(|other| other.id != vm.id) {
        for disk in &other.disks {
            if vm.disks.iter().any(|own| own.file == disk.file && !(own.read_only && disk.read_only)) {
                let message = format!("the disk {} belongs to the VM '{}'", disk.file, other.name);
                return Ok(Err(Cause::new("disk-in-use", message, "use a copy of it, or attach it read-only to both")));
            }
        }
    }
    Ok(Ok(()))
}

/// Makes new, empty disks and gives them their places.
pub fn make(staging: &mut Staging<'_>, disks: &[NewDisk]) -> Result<(), WorkError> {
    for new in disks {
        let path = staging.place(&new.file)?;
        tool::create(&path, &tool::NewDisk { format: new.format, size: Some(new.size), ..tool::NewDisk::default() })?;
    }
    Ok(staging.publish()?)
}
