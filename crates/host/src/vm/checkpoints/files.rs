//! The files of checkpoints.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;

use disk::Format;
use disk::tool::{self, AnyFormat, NewDisk};
use uuid::Uuid;

use super::super::clone::format;
use super::plan::written;
use crate::records::{Cause, CheckpointRecord, FileRef, PendingRecord, VmRecord};
use crate::volumes::Volumes;

/// Names for new children of these disks, made by this task or for this checkpoint.
pub fn children(vm: &VmRecord, disks: &VmRecord, of: Uuid) -> Vec<(String, FileRef)> {
    let name = |id: &str| format!("vms/{}/{id}-{of}.avhdx", vm.id);
    let child = |volume: &str, id: &str| (id.to_owned(), FileRef { volume: volume.into(), path: name(id) });
    written(disks).map(|disk| child(&disk.file.volume, &disk.id)).collect()
}

/// Refuses disks that cannot have children.
pub fn check(vm: &VmRecord, volumes: &Volumes) -> Result<(), Cause> {
    for disk in written(vm) {
        let found = format(disk, &volumes.find(&disk.file)?);
        if found != Format::Vhdx {
            let message = format!("the disk {} ({}) is a {found} disk, and only VHDX disks can have layers", disk.id, disk.file);
            let way_out = "stop the VM, convert the disk (maru disk convert), and give the VM the new one";
            return Err(Cause::new("no-layers", message, way_out));
        }
    }
    Ok(())
}

/// Makes empty children of a VM's disks. Somebody may use those, but write them only when the monitor is told of the children: `in_use`.
pub fn make(vm: &VmRecord, children: &[(String, FileRef)], volumes: &Volumes, in_use: bool) -> Result<(), Cause> {
    for (id, child) in children {
        let Some(disk) = written(vm).find(|disk| disk.id == *id) else { continue };
        let (parent, path) = (volumes.find(&disk.file)?, volumes.make_place(child)?);
        let made = if in_use {
            tool::create_layer(&path, &parent)
        } else {
            let parent = Some((parent, Format::Vhdx));
            tool::create(&path, &NewDisk { format: Format::Vhdx, parent, ..NewDisk::default() })
        };
        made.map_err(|error| Cause::new("disk", vmm::error_chain(&error), "mend what it says, and try again"))?;
    }
    Ok(())
}

/// Whether all children are whole, and fit the files that they hang on: then nobody has written those since.
pub fn fit(pending: &PendingRecord, volumes: &Volumes) -> bool {
    let fits = |file: &FileRef| {
        let chain = volumes.find(file).ok().and_then(|path| tool::info(&path, AnyFormat::Own(Format::Vhdx)).ok());
        let own = chain.and_then(|chain| chain.into_iter().next()).and_then(|own| own.image);
        own.and_then(|image| image.parent).is_some_and(|parent| parent.fits)
    };
    pending.children.iter().all(|(_, file)| fits(file))
}

/// Gives a checkpoint's memory a second name: it is never changed, so that one file serves both. A copy where there are no such names.
pub fn share(from: &FileRef, to: &FileRef, volumes: &Volumes) -> Result<(), Cause> {
    let failed = |error: io::Error| Cause::new("volume", format!("{to} cannot be made: {error}"), "mend that, and try again");
    let (source, target) = (volumes.find(from)?, volumes.make_place(to)?);
    volumes.remove(to)?;
    let _ = volumes.make_place(to)?;
    if fs::hard_link(&source, &target).is_err() {
        fs::copy(&source, &target).and_then(|_| File::open(&target)?.sync_all()).map_err(failed)?;
    }
    target.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all()).map_err(failed)
}

/// Removes what was being made.
pub fn undo(pending: &PendingRecord, volumes: &Volumes) -> Result<(), Cause> {
    pending.children.iter().map(|(_, file)| file).chain(&pending.memory).try_for_each(|file| volumes.remove(file))
}

/// All files that belong to these checkpoints' disks, and those with memory.
pub fn all(tree: &crate::records::TreeRecord) -> (BTreeSet<FileRef>, BTreeSet<FileRef>) {
    let memory = |it: &CheckpointRecord| it.memory.as_ref().map(|memory| memory.file.clone());
    let mut memories: BTreeSet<FileRef> = tree.checkpoints.iter().filter_map(memory).collect();
    let mut layers: BTreeSet<FileRef> = tree.layers.iter().map(|layer| layer.file.clone()).chain(tree.garbage.clone()).collect();
    if let Some(pending) = &tree.pending {
        memories.extend(pending.memory.clone());
        layers.extend(pending.children.iter().map(|(_, file)| file.clone()));
    }
    (layers, memories)
}
