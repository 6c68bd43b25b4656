//! Whose disks are whose, and new ones.

use disk::tool::{self, AnyFormat};

use super::clone;
use super::config::NewDisk;
use super::staging::Staging;
use super::work::WorkError;
use crate::images;
use crate::records::{Cause, DiskRecord, ImageRecord, ParentRecord, VmRecord};
use crate::state::{State, StateError};
use crate::volumes::Volumes;

/// Refuses a disk that is an image, one that another VM writes, or that is to be written and another VM has. Hold the files meanwhile.
pub fn check(state: &State, vm: &VmRecord) -> Result<Result<(), Cause>, StateError> {
    for (index, disk) in vm.disks.iter().enumerate() {
        if vm.disks[..index].iter().any(|other| other.file == disk.file && !(other.read_only && disk.read_only)) {
            return Ok(Err(Cause::new("disk-twice", format!("the disk {} is there twice", disk.file), "name each disk once")));
        }
    }
    for image in state.all::<ImageRecord>()?.into_iter().map(|stored| stored.record) {
        if vm.disks.iter().any(|disk| disk.file == image.file) {
            return Ok(Err(images::not_a_disk(&image)));
        }
    }
    for other in state.all::<VmRecord>()?.into_iter().map(|stored| stored.record) {
        for (own, disk) in vm.disks.iter().flat_map(|own| other.disks.iter().map(move |disk| (own, disk))) {
            if other.id != vm.id && own.file == disk.file && !(own.read_only && disk.read_only) {
                let message = format!("the disk {} belongs to the VM '{}'", disk.file, other.name);
                return Ok(Err(Cause::new("disk-in-use", message, "use a copy of it, or attach it read-only to both")));
            }
            let below = |below: &DiskRecord, above: &DiskRecord| {
                !below.read_only && above.parents.iter().any(|parent| parent.file == below.file)
            };
            if below(own, disk) || below(disk, own) {
                let (below, above) = if below(own, disk) { (own, disk) } else { (disk, own) };
                let message = format!("the disk {} is based on {}, which must not be changed therefore", above.file, below.file);
                return Ok(Err(Cause::new("disk-in-use", message, "attach that one read-only, or use a copy of it")));
            }
        }
    }
    Ok(Ok(()))
}

/// The files that a disk is based on, as far as they can be found now.
pub fn parents(disk: &DiskRecord, volumes: &Volumes) -> Vec<ParentRecord> {
    let Ok(path) = volumes.find(&disk.file) else { return Vec::new() };
    // What is no disk will be refused when it is used.
    let chain = tool::info(&path, AnyFormat::Own(clone::format(disk, &path))).unwrap_or_default();
    let files = chain.iter().skip(1).filter_map(|parent| volumes.reference(&parent.path));
    files.map(|file| ParentRecord { file, inherited: false }).collect()
}

/// Makes new disks, empty or based on images, and gives them their places.
pub fn make(staging: &mut Staging<'_>, disks: &[NewDisk], volumes: &Volumes) -> Result<(), WorkError> {
    for new in disks {
        let path = staging.place(&new.file)?;
        let parent = new.parent.as_ref().map(|parent| Ok::<_, Cause>((volumes.find(parent)?, new.format))).transpose()?;
        tool::create(&path, &tool::NewDisk { format: new.format, size: Some(new.size), parent, ..tool::NewDisk::default() })?;
    }
    Ok(staging.publish()?)
}
