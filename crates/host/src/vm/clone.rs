//! Making a VM like another one.

use std::path::{Path, PathBuf};

use disk::tool::{self, AnyFormat, Existing, Job, NewDisk, ToolError};
use store::{Outcome, Transaction};
use time::OffsetDateTime;
use vmm::config::DiskFormat;

use super::staging::{self, Staging};
use super::work::{Progress, WorkError};
use super::{Surroundings, checkpoints, config};
use crate::records::{
    Cause, CloneRecord, DiskRecord, EventKind, EventRecord, FileRef, FormatRecord, NameRecord, ParentRecord, Power, VmRecord,
};
use crate::state::{Records, State, StateError};
use crate::volumes::Volumes;

/// Makes the VM, with copies of the disks of `source`, which is off. Disks that are only read are shared. Can be done again after it was
/// interrupted.
pub fn clone(
    state: &State,
    surroundings: &Surroundings,
    source: &VmRecord,
    wanted: &CloneRecord,
    progress: &Progress,
) -> Result<Option<EventRecord>, WorkError> {
    let (volumes, id) = (&surroundings.volumes, wanted.id.to_string());
    if state.read::<VmRecord>(&id)?.is_some() {
        // An earlier marud got as far as this.
        staging::forget(volumes, wanted.id);
        return Ok(None);
    }
    if wanted.linked {
        can_be_linked(state, source)??;
    }
    let mut vm = VmRecord {
        id: wanted.id,
        name: wanted.name.clone(),
        power: Power::Off,
        created_at: OffsetDateTime::now_utc(),
        started_at: None,
        last_end: None,
        saved: None,
        owned_at: None,
        ..source.clone()
    };
    for (index, net) in vm.nets.iter_mut().enumerate() {
        net.mac = config::own_mac(vm.id, index);
    }
    let mut staging = Staging::begin(volumes, wanted.id)?;
    let after = match wanted.linked {
        true => Some(link(volumes, &mut staging, source, wanted, &mut vm)?),
        false => {
            copy(volumes, &mut staging, wanted, &mut vm, progress)?;
            None
        }
    };
    let _held = surroundings.hold_files();
    staging.publish()?;
    let event = EventRecord::now(EventKind::VmCreated, format!("it was made from '{}'", source.name)).of_vm(vm.id, &vm.name);
    let mut transaction = Transaction::new().create(&vm).tell(&event);
    if let Some(disks) = after {
        let name = source.id.to_string();
        let stored = state.read::<VmRecord>(&name)?.ok_or_else(|| StateError::Gone(format!("the VM {name}")))?;
        transaction = transaction.if_still(&name, &stored).write(&name, &VmRecord { disks, ..stored.record.clone() });
    }
    match state.commit(&transaction)? {
        Outcome::Committed(_) => {
            staging.keep();
            Ok(None)
        }
        Outcome::Conflict { .. } if state.read::<NameRecord>(&vm.name)?.is_some() => Err(name_taken(&vm.name).into()),
        Outcome::Conflict { .. } => {
            Err(Cause::new("changed", format!("the VM '{}' was changed meanwhile", source.name), "try again").into())
        }
    }
}

/// Refuses a VM with checkpoints: they change their files when they are merged, and a clone would stand on these.
pub fn can_be_linked(state: &State, source: &VmRecord) -> Result<Result<(), Cause>, StateError> {
    if checkpoints::tree(state, source.id)?.layers.is_empty() {
        return Ok(Ok(()));
    }
    let message = format!("the VM '{}' has checkpoints, or files of deleted ones that were not merged yet", source.name);
    let way_out = "make a full clone; or delete the checkpoints first (maru vm checkpoint delete, maru vm checkpoint merge)";
    Ok(Err(Cause::new("has-checkpoints", message, way_out)))
}

/// Puts both VMs on children of the disks that are written; gives those of the source. What the disks are now is not changed any more: both
/// records say so, and an image refuses a parent that was changed.
fn link(
    volumes: &Volumes,
    staging: &mut Staging<'_>,
    source: &VmRecord,
    wanted: &CloneRecord,
    vm: &mut VmRecord,
) -> Result<Vec<DiskRecord>, WorkError> {
    let mut own = source.disks.clone();
    for (theirs, own) in vm.disks.iter_mut().zip(&mut own).filter(|(_, own)| !own.read_only) {
        let path = volumes.find(&own.file)?;
        let format = format(own, &path);
        if !format.is_image() {
            let message = format!("the disk {} is raw: it can have no children", own.file);
            return Err(Cause::new("disk", message, "make a full clone, or convert the disk first (maru disk convert)").into());
        }
        let base = own.file.clone();
        let end = format.to_string().to_lowercase();
        // The clone's id keeps the names of many clones apart.
        let name = |vm: &str, tag: &str| format!("{vm}/{}{tag}.{end}", own.id);
        let tag = format!("-{:.8}", wanted.id.simple());
        let places = [
            FileRef { volume: own.file.volume.clone(), path: name(&source.name, &tag) },
            FileRef { volume: wanted.volume.clone().unwrap_or_else(|| own.file.volume.clone()), path: name(&wanted.name, "") },
        ];
        let mut parents = own.parents.clone();
        parents.insert(0, ParentRecord { file: base, inherited: true });
        for (disk, place) in [own, theirs].into_iter().zip(places) {
            let child = NewDisk { format, parent: Some((path.clone(), format)), ..NewDisk::default() };
            tool::create(&staging.place(&place)?, &child)?;
            (disk.file, disk.parents) = (place, parents.clone());
        }
    }
    Ok(own)
}

/// Copies the disks that are written.
fn copy(
    volumes: &Volumes,
    staging: &mut Staging<'_>,
    wanted: &CloneRecord,
    vm: &mut VmRecord,
    progress: &Progress,
) -> Result<(), WorkError> {
    let mut copies = Vec::new();
    for disk in vm.disks.iter_mut().filter(|disk| !disk.read_only) {
        let from = Original::find(disk, volumes.find(&disk.file)?)?;
        disk.file = FileRef {
            volume: wanted.volume.clone().unwrap_or_else(|| disk.file.volume.clone()),
            path: format!("{}/{}.{}", vm.name, disk.id, from.extension()),
        };
        disk.parents = Vec::new();
        copies.push((from, staging.place(&disk.file)?));
    }
    progress.begin(copies.iter().map(|(from, _)| from.bytes).sum());
    for (from, to) in &copies {
        progress.step(from.bytes, |job| from.copy(to, job))?;
    }
    Ok(())
}

/// Another VM has the name.
pub fn name_taken(name: &str) -> Cause {
    Cause::new("name-taken", format!("there is a VM called '{name}' already"), "choose another name, or delete that VM first")
}

/// A disk to be copied.
pub struct Original {
    /// Its file.
    pub path: PathBuf,
    /// What that means.
    pub format: disk::Format,
    /// Whether it is not the whole disk.
    pub has_parent: bool,
    /// What copying it counts.
    pub bytes: u64,
}

impl Original {
    /// Looks at a disk.
    pub fn find(disk: &DiskRecord, path: PathBuf) -> Result<Original, WorkError> {
        let format = format(disk, &path);
        let chain = tool::info(&path, AnyFormat::Own(format))?;
        let own = chain.first().ok_or_else(|| Cause::new("disk", format!("{} tells nothing", disk.file), "check the disk"))?;
        let has_parent = own.image.as_ref().is_some_and(|image| image.parent.is_some());
        Ok(Original { path, format, has_parent, bytes: if has_parent { own.virtual_size } else { own.file_size } })
    }

    /// Makes one file of it, whatever it is made of.
    pub fn copy(&self, to: &Path, job: &Job) -> Result<(), ToolError> {
        if self.has_parent {
            let disk = NewDisk { format: self.format, ..NewDisk::default() };
            return tool::convert((&self.path, AnyFormat::Own(self.format)), to, &disk, Existing::Keep, job);
        }
        tool::copy(&self.path, to, Existing::Keep, job).map(drop)
    }

    /// The end of its file's name.
    pub fn extension(&self) -> String {
        self.path.extension().and_then(|end| end.to_str()).map_or_else(|| self.format.to_string().to_lowercase(), String::from)
    }
}

/// What a disk's file means.
pub fn format(disk: &DiskRecord, path: &Path) -> disk::Format {
    disk.format.map_or_else(
        || disk::Format::from_path(path),
        |format| {
            disk::Format::from(match format {
                FormatRecord::Raw => DiskFormat::Raw,
                FormatRecord::Vhdx => DiskFormat::Vhdx,
                FormatRecord::Vhd => DiskFormat::Vhd,
            })
        },
    )
}
