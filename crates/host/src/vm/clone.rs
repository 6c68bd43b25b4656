//! Making a VM like another one.

use std::path::{Path, PathBuf};

use disk::tool::{self, AnyFormat, Existing, NewDisk};
use store::{Outcome, Transaction};
use time::OffsetDateTime;
use vmm::config::DiskFormat;

use super::staging::{self, Staging};
use super::work::{Progress, WorkError};
use super::{Surroundings, config};
use crate::records::{
    Cause, CloneRecord, DiskRecord, EventKind, EventRecord, FileRef, FormatRecord, NameRecord, Power, VmRecord,
};
use crate::state::{Records, State};

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
    let mut vm = VmRecord {
        id: wanted.id,
        name: wanted.name.clone(),
        power: Power::Off,
        created_at: OffsetDateTime::now_utc(),
        started_at: None,
        last_end: None,
        saved: None,
        ..source.clone()
    };
    for (index, net) in vm.nets.iter_mut().enumerate() {
        net.mac = config::own_mac(vm.id, index);
    }
    let mut staging = Staging::begin(volumes, wanted.id)?;
    let mut copies = Vec::new();
    for disk in vm.disks.iter_mut().filter(|disk| !disk.read_only) {
        let from = Original::find(disk, volumes.find(&disk.file)?)?;
        disk.file = FileRef {
            volume: wanted.volume.clone().unwrap_or_else(|| disk.file.volume.clone()),
            path: format!("{}/{}.{}", vm.name, disk.id, from.extension()),
        };
        copies.push((from, staging.place(&disk.file)?));
    }
    progress.begin(copies.iter().map(|(from, _)| from.bytes).sum());
    for (from, to) in &copies {
        progress.step(from.bytes, |job| match from.has_parent {
            // The copy is one file, whatever its original is made of.
            true => {
                let disk = NewDisk { format: from.format, ..NewDisk::default() };
                tool::convert((&from.path, AnyFormat::Own(from.format)), to, &disk, Existing::Keep, job)
            }
            false => tool::copy(&from.path, to, Existing::Keep, job).map(drop),
        })?;
    }
    let _held = surroundings.hold_files();
    staging.publish()?;
    let event = EventRecord::now(EventKind::VmCreated, format!("it was made from '{}'", source.name)).of_vm(vm.id, &vm.name);
    let transaction = Transaction::new()
        .if_none::<NameRecord>(&vm.name)
        .if_none::<VmRecord>(&id)
        .write(&vm.name, &NameRecord { vm: vm.id })
        .write(&id, &vm)
        .tell(&event);
    match state.commit(&transaction)? {
        Outcome::Committed(_) => {
            staging.keep();
            Ok(None)
        }
        Outcome::Conflict { .. } => Err(name_taken(&vm.name).into()),
    }
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
