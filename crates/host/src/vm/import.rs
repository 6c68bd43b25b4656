//! Making a VM from an exported one.
//!
//! ```text
//!   manifest ──▶ record of a VM that is being made, and the task ──▶ files are copied and compared ──▶ the VM is there
//!                                                                          └── fails ──▶ neither files nor record
//! ```

use disk::tool::{self, Existing};
use store::{Outcome, Transaction};
use uuid::Uuid;

use super::manifest::{Manifest, NAME, sha256};
use super::staging::Staging;
use super::work::{Progress, WorkError};
use super::{Surroundings, config};
use crate::records::{Cause, EventKind, EventRecord, FileRef, ImportRecord, ImportedFile, VmRecord};
use crate::state::{Records, State, StateError};
use crate::volumes::Volumes;

/// The VM that is in a directory, and what must be done to have it. Nothing is copied or compared yet.
pub fn read(wanted: &api::ImportVm, volumes: &Volumes) -> Result<(VmRecord, ImportRecord), Cause> {
    let from = volumes.parse(&wanted.from)?;
    let inside = |name: &str| FileRef { volume: from.volume.clone(), path: format!("{}/{name}", from.path) };
    let manifest = Manifest::read(&volumes.find(&inside(NAME))?)?;
    let mut spec = manifest.spec;
    spec.name = wanted.name.clone().unwrap_or(spec.name);
    let there = |name: &mut String| *name = inside(name).to_string();
    there(&mut spec.boot.kernel);
    spec.boot.initrd.as_mut().map(there);
    spec.disks.iter_mut().for_each(|disk| there(&mut disk.file));
    for file in &manifest.files {
        let length = volumes.find(&inside(&file.name))?.metadata().map_or(0, |metadata| metadata.len());
        if length != file.bytes {
            return Err(altered(&inside(&file.name), &format!("it has {length} bytes, and had {}", file.bytes)));
        }
    }
    let mut vm = config::record(&spec, volumes, &[])?.vm;
    let volume = wanted.volume.clone().unwrap_or_else(|| from.volume.clone());
    volumes.root(&volume)?;
    let target = |name: &str| match wanted.mode {
        api::ImportMode::Register => None,
        api::ImportMode::Copy => Some(FileRef { volume: volume.clone(), path: format!("{}/{name}", vm.name) }),
    };
    let files: Vec<ImportedFile> = manifest
        .files
        .into_iter()
        .map(|file| ImportedFile { from: inside(&file.name), to: target(&file.name), bytes: file.bytes, sha256: file.sha256 })
        .collect();
    if let Some(raised) = vm.disks.iter().find(|disk| !disk.parents.is_empty()) {
        return Err(altered(&raised.file, "it has a parent, which no exported disk has"));
    }
    if wanted.mode == api::ImportMode::Copy {
        let own = |file: &mut FileRef| {
            if let Some(to) = files.iter().find(|copied| copied.from == *file).and_then(|copied| copied.to.clone()) {
                *file = to;
            }
        };
        vm.disks.iter_mut().for_each(|disk| own(&mut disk.file));
        own(&mut vm.boot.kernel);
        vm.boot.initrd.as_mut().map(own);
        vm.own_files = [Some(vm.boot.kernel.clone()), vm.boot.initrd.clone()].into_iter().flatten().collect();
    }
    let import = ImportRecord { id: vm.id, files };
    Ok((vm, import))
}

fn altered(file: &FileRef, how: &str) -> Cause {
    Cause::new("bad-import", format!("{file} is not what was exported: {how}"), "export the VM again, or bring the file back")
}

/// Gives new addresses to network cards whose addresses VMs of this host have.
pub fn avoid_addresses(vm: &mut VmRecord, others: &[VmRecord]) {
    for (index, net) in vm.nets.iter_mut().enumerate() {
        if others.iter().flat_map(|other| &other.nets).any(|other| other.mac == net.mac) {
            net.mac = config::own_mac(vm.id, index);
        }
    }
}

/// Copies the files of the VM that is being made, and sees to it that they are what was exported.
pub fn import(
    state: &State,
    surroundings: &Surroundings,
    task: Uuid,
    wanted: &ImportRecord,
    progress: &Progress,
) -> Result<Option<EventRecord>, WorkError> {
    let (volumes, id) = (&surroundings.volumes, wanted.id.to_string());
    let read = || state.read::<VmRecord>(&id)?.ok_or_else(|| StateError::Gone(format!("the VM {id}")));
    if read()?.record.made_by.is_none() {
        super::staging::forget(volumes, wanted.id);
        return Ok(None);
    }
    let mut staging = Staging::begin(volumes, wanted.id)?;
    let steps = |file: &ImportedFile| if file.to.is_some() { 2 } else { 1 };
    progress.begin(wanted.files.iter().map(|file| steps(file) * file.bytes).sum());
    for file in &wanted.files {
        let mut path = volumes.find(&file.from)?;
        if let Some(to) = &file.to {
            let copy = staging.place(to)?;
            progress.step(file.bytes, |job| tool::copy(&path, &copy, Existing::Keep, job))?;
            path = copy;
        }
        if progress.step(file.bytes, |job| sha256(&path, job))? != file.sha256 {
            return Err(altered(&file.from, "its content has another checksum").into());
        }
    }
    staging.publish()?;
    loop {
        let stored = read()?;
        let vm = VmRecord { made_by: None, ..stored.record.clone() };
        let event = EventRecord::now(EventKind::VmCreated, "it was imported").of_vm(vm.id, &vm.name).by_task(Some(task));
        let transaction = Transaction::new().if_still(&id, &stored).write(&id, &vm).tell(&event);
        if let Outcome::Committed(_) = state.commit(&transaction)? {
            staging.keep();
            return Ok(None);
        }
    }
}
