//! What a host does to which files of a VM are copied.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;

use disk::tool::Job;
use store::record::Stored;
use store::{Outcome, Transaction};
use uuid::Uuid;

use super::files::{self, Use};
use super::{Asked, Place, called_off, is_to_go, stream};
use crate::cluster::placements;
use crate::images::check_space;
use crate::records::{Cause, CopyPhase, CopyRecord, FileRef, TreeRecord, VmRecord};
use crate::state::{Records, State, StateError};
use crate::vm::manifest::sha256;
use crate::vm::staging::Staging;
use crate::vm::{Surroundings, checkpoints, disks};
use crate::volumes::Volumes;

/// VMs that a host gets at once, from whichever hosts.
const AT_ONCE: usize = 4;

/// Why files are not taken.
pub enum Refused {
    /// They cannot be.
    Cause(Cause),
    /// The store cannot be used now.
    State(StateError),
}

impl From<Cause> for Refused {
    fn from(cause: Cause) -> Refused {
        Refused::Cause(cause)
    }
}

impl From<StateError> for Refused {
    fn from(error: StateError) -> Refused {
        Refused::State(error)
    }
}

/// Where the files of a VM are to be on this host, in their order; `from` is the host that asks.
pub fn plan(state: &State, surroundings: &Surroundings, from: &str, asked: &Asked) -> Result<Vec<Place>, Refused> {
    let own = state.own_host().unwrap_or_default();
    let (vm, volume) = expected(state, from, asked.vm)?;
    let tree = checkpoints::tree(state, vm.id)?;
    let files = files::local(&vm, &tree, &placements::shared_volumes(state)?);
    if files.len() != asked.sizes.len() {
        return Err(called_off().into());
    }
    let others = Others::find(state, asked.vm)?;
    if !asked.compare && others.copies.len() >= AT_ONCE {
        let message = format!("{own} gets {} VMs with their files already", others.copies.len());
        return Err(Cause::new("too-many", message, "wait until some of them are there").into());
    }
    let volumes = &surroundings.volumes;
    let (mut places, mut needed) = (Vec::new(), BTreeMap::<String, u64>::new());
    let there = |file: &FileRef| volume.clone().unwrap_or_else(|| file.volume.clone());
    for ((file, how), size) in files.iter().zip(&asked.sizes) {
        let to = FileRef { volume: there(file), path: file.path.clone() };
        let place = find(volumes, asked, &to, *how, size.bytes, &others, &vm)?;
        if place.sha256.is_none() {
            *needed.entry(place.to.volume.clone()).or_default() += size.allocated;
        }
        places.push(place);
    }
    let directory = vm.own_directory();
    if files.keys().any(|file| file.volume == directory.volume) {
        *needed.entry(there(&directory)).or_default() += asked.more;
    }
    for (volume, bytes) in needed {
        volumes.root(&volume)?;
        check_space(volumes, &volume, bytes + others.bytes.get(&volume).copied().unwrap_or(0))?;
    }
    Ok(places)
}

/// The VM that another host is to send here, and the volume for its files if one was named.
fn expected(state: &State, from: &str, vm: Uuid) -> Result<(VmRecord, Option<String>), Refused> {
    let found = state.read::<VmRecord>(&vm.to_string())?.map(|stored| stored.record);
    let vm = found.filter(|vm| vm.host.as_deref() == Some(from)).ok_or_else(called_off)?;
    let moving = is_to_go(state, vm.id, state.own_host().unwrap_or_default())?.ok_or_else(called_off)?;
    Ok((vm, moving.record.volume))
}

/// What other VMs have here, or will have.
struct Others {
    /// Files that they write.
    written: BTreeSet<FileRef>,
    /// Files that are deleted with the last one that needs them.
    shared: BTreeSet<FileRef>,
    /// Copies that are under way.
    copies: Vec<CopyRecord>,
    /// What these may take of volumes.
    bytes: BTreeMap<String, u64>,
}

impl Others {
    fn find(state: &State, vm: Uuid) -> Result<Others, StateError> {
        let mut others = Others { written: BTreeSet::new(), shared: BTreeSet::new(), copies: Vec::new(), bytes: BTreeMap::new() };
        let volumes = placements::shared_volumes(state)?;
        for vm in state.all::<VmRecord>()?.into_iter().map(|stored| stored.record).filter(|other| other.id != vm) {
            let files = files::all(&vm, &checkpoints::tree(state, vm.id)?).into_iter();
            // A file in a volume of one host's own is nobody's elsewhere.
            for (file, how) in files.filter(|(file, _)| state.is_here(&vm) || volumes.contains(&file.volume)) {
                match how {
                    Use::Owns => others.written.insert(file),
                    Use::Shares => others.shared.insert(file),
                    Use::Reads => false,
                };
            }
        }
        let copies = state.all::<CopyRecord>()?.into_iter().map(|stored| stored.record);
        let is_other = |copy: &CopyRecord| copy.vm != vm && copy.is_open() && Some(copy.to.as_str()) == state.own_host();
        others.copies = copies.filter(is_other).collect();
        for file in others.copies.iter().filter(|copy| copy.phase == CopyPhase::Copying).flat_map(|copy| &copy.files) {
            *others.bytes.entry(file.to.volume.clone()).or_default() += if file.there { 0 } else { file.allocated };
        }
        Ok(others)
    }
}

/// Where one file is to be.
fn find(
    volumes: &Volumes,
    asked: &Asked,
    to: &FileRef,
    how: Use,
    bytes: u64,
    others: &Others,
    vm: &VmRecord,
) -> Result<Place, Cause> {
    let new = |to: &FileRef| Place { to: to.clone(), sha256: None, owned: true, otherwise: None };
    let is_free = |file: &FileRef| Ok::<_, Cause>(std::fs::symlink_metadata(volumes.place(file)?).is_err());
    volumes.root(&to.volume)?;
    if is_free(to)? {
        return Ok(new(to));
    }
    // What it boots is found by its name alone; disks name each other.
    let boots = [Some(&vm.boot.kernel), vm.boot.initrd.as_ref()].into_iter().flatten().any(|file| file.path == to.path);
    let name = to.path.rsplit('/').next().unwrap_or_default();
    let otherwise = FileRef { volume: to.volume.clone(), path: format!("vms/{}/{name}", vm.id) };
    let otherwise = if boots && how != Use::Owns && is_free(&otherwise)? { Some(otherwise) } else { None };
    let same = volumes.find(to).ok().filter(|path| path.metadata().is_ok_and(|metadata| metadata.len() == bytes));
    match same.filter(|_| how != Use::Owns && !others.written.contains(to)) {
        Some(path) => {
            let failed = |error| Cause::new("file", vmm::error_chain(&error), "mend what it says, and try again");
            let sum = if asked.compare { sha256(&path, &Job::default()).map_err(failed)? } else { String::new() };
            Ok(Place { to: to.clone(), sha256: Some(sum), owned: others.shared.contains(to), otherwise })
        }
        None => otherwise.as_ref().map(new).ok_or_else(|| taken(to)),
    }
}

/// There is another file in a file's place.
pub fn taken(file: &FileRef) -> Cause {
    let message = format!("there is another file {file} on the host that the VM is to go to");
    Cause::new("file-exists", message, "remove that, or name another volume (maru vm move --volume)")
}

/// Takes the files of a copy, and sees to it that they are what the VM needs. They are in their places then, durable, and still nobody's.
pub fn receive(
    state: &State,
    surroundings: &Surroundings,
    copy: &Stored<CopyRecord>,
    body: &mut impl Read,
) -> Result<(), Refused> {
    let (volumes, record) = (&surroundings.volumes, &copy.record);
    let (mut vm, _) = expected(state, &record.from, record.vm)?;
    let mut tree: TreeRecord = checkpoints::tree(state, vm.id)?;
    let mut staging = Staging::begin(volumes, record.id)?;
    for file in record.files.iter().filter(|file| !file.there) {
        let path = staging.place(&file.to)?;
        stream::receive(body, &path, file.bytes, file.mode, |bytes| check_space(volumes, &file.to.volume, bytes))?;
    }
    {
        let _held = surroundings.hold_files();
        staging.publish()?;
    }
    files::give(record, &mut vm, &mut tree);
    let disks = disks::all_of(&vm, &tree).into_iter().filter(|disk| record.files.iter().any(|file| file.to == disk.file));
    let known = files::all(&vm, &tree);
    files::check_chains(&disks.collect::<Vec<_>>(), volumes, |file| known.contains_key(file))?;
    let id = record.id.to_string();
    let whole = CopyRecord { phase: CopyPhase::Whole, ..record.clone() };
    match state.commit(&Transaction::new().if_still(&id, copy).write(&id, &whole)) {
        Ok(Outcome::Committed(_)) => {
            staging.leave();
            Ok(())
        }
        Ok(Outcome::Conflict { .. }) => Err(called_off().into()),
        // Perhaps it is done: they stay as long as the record does, whoever has it taken away.
        Err(error) => {
            staging.leave();
            Err(error.into())
        }
    }
}
