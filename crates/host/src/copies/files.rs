//! The files of a VM, and their names when they are elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use disk::tool::{self, AnyFormat};

use crate::records::{Cause, CopiedFile, CopyRecord, DiskRecord, FileRef, TreeRecord, VmRecord};
use crate::vm::clone;
use crate::volumes::Volumes;

/// What a file is to a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Use {
    /// It reads it, as others may.
    Reads,
    /// The same, and the last one that needs it takes it along.
    Shares,
    /// Nobody else has to do with it.
    Owns,
}

/// All files of a VM with its checkpoints.
pub fn all(vm: &VmRecord, tree: &TreeRecord) -> BTreeMap<FileRef, Use> {
    let mut files = BTreeMap::new();
    let mut note = |file: &FileRef, how: Use| {
        let known = files.entry(file.clone()).or_insert(how);
        *known = (*known).max(how);
    };
    for vm in tree.checkpoints.iter().map(|checkpoint| &checkpoint.vm).chain([vm]) {
        [Some(&vm.boot.kernel), vm.boot.initrd.as_ref()].into_iter().flatten().for_each(|file| note(file, Use::Reads));
        for disk in &vm.disks {
            note(&disk.file, if disk.read_only { Use::Reads } else { Use::Owns });
            disk.parents.iter().for_each(|parent| note(&parent.file, if parent.inherited { Use::Shares } else { Use::Reads }));
        }
        vm.own_files.iter().for_each(|file| note(file, Use::Shares));
        vm.saved.iter().for_each(|saved| note(&saved.file, Use::Owns));
    }
    tree.layers.iter().for_each(|layer| note(&layer.file, Use::Owns));
    tree.checkpoints.iter().filter_map(|checkpoint| checkpoint.memory.as_ref()).for_each(|memory| note(&memory.file, Use::Owns));
    files
}

/// Those that only its host reaches.
pub fn local(vm: &VmRecord, tree: &TreeRecord, shared: &BTreeSet<String>) -> BTreeMap<FileRef, Use> {
    let mut files = all(vm, tree);
    files.retain(|file, _| !shared.contains(&file.volume));
    files
}

/// Refuses a VM whose files are being changed by something that was begun.
pub fn check(vm: &VmRecord, tree: &TreeRecord) -> Result<(), Cause> {
    let busy = tree.pending.is_some() || tree.merging.is_some() || !tree.garbage.is_empty();
    match (busy, vm.made_by) {
        (true, _) => Err(Cause::new(
            "has-checkpoints",
            "a checkpoint of the VM is half made, or one that was deleted is not merged yet",
            "finish that first (maru vm checkpoint merge), and move it again",
        )),
        (_, Some(_)) => Err(Cause::new("vm-creating", "the VM is being made", "wait until it is there, and move it again")),
        (false, None) => Ok(()),
    }
}

/// Sees to it that disks are made of these files, and of nothing else: a file that was forgotten would be missed too late.
pub fn check_chains(disks: &[DiskRecord], volumes: &Volumes, known: impl Fn(&FileRef) -> bool) -> Result<(), Cause> {
    let way_out = "see what its disks are made of (maru disk info), and move it when that is in order";
    for disk in disks {
        let path = volumes.find(&disk.file)?;
        let format = clone::format(disk, &path);
        let bad = |what: &Path, how: &str| {
            Err(Cause::new("disk", format!("the disk {} cannot be taken along: {} {how}", disk.file, what.display()), way_out))
        };
        if !format.is_image() {
            continue;
        }
        let chain = tool::info(&path, AnyFormat::Own(format));
        let chain = chain.map_err(|error| Cause::new("disk", vmm::error_chain(&error), way_out))?;
        for file in &chain {
            if let Some(parent) = file.image.as_ref().and_then(|image| image.parent.as_ref()).filter(|parent| !parent.fits) {
                return bad(&file.path, if parent.found.is_some() { "has another parent" } else { "misses its parent" });
            }
            if !volumes.reference(&file.path).is_some_and(|file| known(&file)) {
                return bad(&file.path, "is not one of its files");
            }
        }
    }
    Ok(())
}

/// Makes a VM that of the host that its files were copied to.
pub fn give(copy: &CopyRecord, vm: &mut VmRecord, tree: &mut TreeRecord) {
    let copies: BTreeMap<&FileRef, &CopiedFile> = copy.files.iter().map(|file| (&file.from, file)).collect();
    let layers: BTreeSet<FileRef> = tree.layers.iter().map(|layer| layer.file.clone()).collect();
    for vm in tree.checkpoints.iter_mut().map(|checkpoint| &mut checkpoint.vm).chain([&mut *vm]) {
        own(vm, &copies, &layers);
        rename(vm, &copies);
    }
    let go = |file: &mut FileRef| go(file, &copies);
    tree.checkpoints.iter_mut().filter_map(|checkpoint| checkpoint.memory.as_mut()).for_each(|memory| go(&mut memory.file));
    for layer in &mut tree.layers {
        go(&mut layer.file);
        layer.parent.iter_mut().for_each(go);
    }
    vm.host = Some(copy.to.clone());
}

fn go(file: &mut FileRef, copies: &BTreeMap<&FileRef, &CopiedFile>) {
    if let Some(copied) = copies.get(file) {
        file.clone_from(&copied.to);
    }
}

/// What is deleted with the VM there is not what was deleted with it here. Files of its checkpoints are deleted with these.
fn own(vm: &mut VmRecord, copies: &BTreeMap<&FileRef, &CopiedFile>, layers: &BTreeSet<FileRef>) {
    let is_owned = |file: &FileRef| copies.get(file).map(|copied| copied.owned);
    let parents = vm.disks.iter_mut().flat_map(|disk| &mut disk.parents);
    for parent in parents.filter(|parent| !layers.contains(&parent.file)) {
        parent.inherited = is_owned(&parent.file).unwrap_or(parent.inherited);
    }
    vm.own_files.retain(|file| is_owned(file).unwrap_or(true));
    let read = vm.disks.iter().filter(|disk| disk.read_only).map(|disk| &disk.file);
    let boot = [Some(&vm.boot.kernel), vm.boot.initrd.as_ref()].into_iter().flatten();
    let new: BTreeSet<FileRef> = read.chain(boot).filter(|file| is_owned(file) == Some(true)).cloned().collect();
    let new: Vec<FileRef> = new.into_iter().filter(|file| !vm.own_files.contains(file)).collect();
    vm.own_files.extend(new);
}

fn rename(vm: &mut VmRecord, copies: &BTreeMap<&FileRef, &CopiedFile>) {
    let go = |file: &mut FileRef| go(file, copies);
    go(&mut vm.boot.kernel);
    vm.boot.initrd.iter_mut().for_each(go);
    vm.own_files.iter_mut().for_each(go);
    vm.saved.iter_mut().for_each(|saved| go(&mut saved.file));
    for disk in &mut vm.disks {
        go(&mut disk.file);
        disk.parents.iter_mut().for_each(|parent| go(&mut parent.file));
    }
}
