//! Whose disks are whose, and new ones.

use disk::tool::{self, AnyFormat};

use super::checkpoints::{self, files};
use super::clone;
use super::config::NewDisk;
use super::staging::Staging;
use super::work::WorkError;
use crate::copies;
use crate::images;
use crate::records::{Cause, DiskRecord, FileRef, ImageRecord, ParentRecord, TreeRecord, VmRecord};
use crate::state::{State, StateError};
use crate::volumes::Volumes;

/// The disks that a VM has, and those that its checkpoints have.
pub fn all_of(vm: &VmRecord, tree: &TreeRecord) -> Vec<DiskRecord> {
    let kept = tree.checkpoints.iter().flat_map(|checkpoint| &checkpoint.vm.disks);
    vm.disks.iter().chain(kept).cloned().collect()
}

/// Refuses a disk that is an image, that another VM writes, that is to be written and another VM has, that comes from another host for a VM, or that
/// checkpoints are made of. Hold the files meanwhile.
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
    let arriving = copies::arriving(state)?;
    if let Some(disk) = vm.disks.iter().find(|disk| arriving.contains(&disk.file)) {
        let message = format!("the disk {} comes from another host, for a VM that goes here", disk.file);
        return Ok(Err(Cause::new("disk-in-use", message, "choose another name")));
    }
    let mut frozen = checkpoints::tree(state, vm.id)?.layers.into_iter().filter(|layer| layer.frozen);
    if let Some(disk) = frozen.find_map(|layer| vm.disks.iter().find(|disk| disk.file == layer.file)) {
        return Ok(Err(of_checkpoints(&disk.file, &vm.name)));
    }
    for other in state.neighbours(vm)? {
        let tree = checkpoints::tree(state, other.id)?;
        let (layers, _) = files::all(&tree);
        let mut files = vm.disks.iter().flat_map(|own| own.parents.iter().map(|parent| &parent.file).chain([&own.file]));
        if let Some(file) = files.find(|file| layers.contains(file)) {
            return Ok(Err(of_checkpoints(file, &other.name)));
        }
        let theirs = all_of(&other, &tree);
        for (own, disk) in vm.disks.iter().flat_map(|own| theirs.iter().map(move |disk| (own, disk))) {
            if own.file == disk.file && !(own.read_only && disk.read_only) {
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

fn of_checkpoints(file: &FileRef, vm: &str) -> Cause {
    let message = format!("{file} is one of the files that the checkpoints of the VM '{vm}' are made of");
    Cause::new("disk-in-use", message, "clone or export that VM, and use the copy")
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
