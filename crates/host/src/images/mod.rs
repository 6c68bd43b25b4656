//! Images: disks that nobody changes, and that disks of VMs are based on.
//!
//! ```text
//!   a file of a volume ─┐
//!                       ├──▶ task ──▶ Library: checksum, conversion ──▶ images/ID.vhdx and its record ──▶ children: disks of VMs
//!   an upload ──────────┘    (on a thread, beside all VMs)                       └── deleted when no VM is based on it
//! ```
//!
//! An image is one file without a parent, whatever it came from. It is made as other files are ([`staging`](crate::vm::staging)): before it is whole,
//! it has neither a name nor a record.

mod import;
mod library;
mod upload;

pub use import::check_sha256;
pub use library::Library;
pub use upload::Upload;

use std::collections::BTreeSet;

use store::record::Stored;
use store::{Outcome, Transaction};
use uuid::Uuid;
use vmm::config::check_id;

use crate::records::{Cause, DiskRecord, EventKind, EventRecord, FileRef, ImageRecord, OperationRecord, TaskRecord, VmRecord};
use crate::state::{Records, State, StateError};
use crate::vm::delete::DeleteError;
use crate::vm::{Surroundings, checkpoints, disks};
use crate::volumes::{Space, Volumes};

/// What is left free of a volume when images are made or files come from other hosts, unless this is more than a fiftieth of it: VMs that find it full are paused.
const RESERVE: u64 = 1 << 30;

/// The file of an image.
pub fn file(volume: &str, id: Uuid) -> FileRef {
    FileRef { volume: volume.into(), path: format!("images/{id}.vhdx") }
}

/// All images, in the order of their names.
pub fn all(state: &State) -> Result<Vec<ImageRecord>, StateError> {
    let images = state.all::<ImageRecord>()?.into_iter().map(|stored| stored.record);
    Ok(images.filter(|image| !image.deleting).collect())
}

/// The image with this name or id, as it is stored.
pub fn find(state: &State, name: &str) -> Result<Option<Stored<ImageRecord>>, StateError> {
    let mut images = state.all::<ImageRecord>()?.into_iter();
    Ok(images.find(|image| is(&image.record, name) && !image.record.deleting))
}

/// Whether an image is meant by a name or an id.
pub fn is(image: &ImageRecord, name: &str) -> bool {
    image.name == name || Uuid::parse_str(name).is_ok_and(|id| id == image.id)
}

/// Checks an image's name.
pub fn check_name(name: &str) -> Result<(), Cause> {
    // What names an image in an address is its name or its id.
    if check_id(name).is_err() || Uuid::parse_str(name).is_ok() || matches!(name, "." | "..") {
        let message = format!("'{name}' cannot be an image's name");
        return Err(Cause::new("bad-name", message, "use 1 to 64 letters, digits, '-', '_' and '.'"));
    }
    Ok(())
}

/// Another image has the name, or will have it.
pub fn name_taken(name: &str) -> Cause {
    let message = format!("there is an image called '{name}' already, or it is being made");
    Cause::new("name-taken", message, "choose another name, or delete that image first")
}

/// The file is an image's.
pub fn not_a_disk(image: &ImageRecord) -> Cause {
    let message = format!("{} is the image '{}', which VMs share and nobody may change", image.file, image.name);
    Cause::new("image-file", message, format!("make a disk from it: \"image\": \"{0}\" (maru vm create --image {0})", image.name))
}

/// Who is based on images.
pub struct Users {
    /// VMs by their names, with the files of their disks, also at their checkpoints.
    vms: Vec<(String, BTreeSet<FileRef>)>,
    /// VMs to which disks are about to be added, with the images that these are made from.
    soon: Vec<(String, String)>,
}

impl Users {
    /// Those that there are now.
    pub fn find(state: &State) -> Result<Users, StateError> {
        let mut users = Users { vms: Vec::new(), soon: Vec::new() };
        for vm in state.all::<VmRecord>()?.into_iter().map(|stored| stored.record) {
            let disks = disks::all_of(&vm, &checkpoints::tree(state, vm.id)?);
            let below = |disk: DiskRecord| disk.parents.into_iter().map(|parent| parent.file).chain([disk.file]);
            users.vms.push((vm.name, disks.into_iter().flat_map(below).collect()));
        }
        for task in state.all::<TaskRecord>()?.into_iter().map(|stored| stored.record).filter(TaskRecord::is_unfinished) {
            if let (OperationRecord::Edit { patch }, Some(vm)) = (&task.operation, &task.vm_name) {
                let images = patch["disks"].as_array().into_iter().flatten().filter_map(|disk| disk["image"].as_str());
                users.soon.extend(images.map(|image| (vm.clone(), image.into())));
            }
        }
        Ok(users)
    }

    /// The names of the VMs that are based on an image, or were at one of their checkpoints.
    pub fn of(&self, image: &ImageRecord) -> Vec<String> {
        let now = self.vms.iter().filter(|(_, files)| files.contains(&image.file)).map(|(vm, _)| vm);
        let soon = self.soon.iter().filter(|(_, name)| is(image, name)).map(|(vm, _)| vm);
        now.chain(soon).cloned().collect::<BTreeSet<_>>().into_iter().collect()
    }
}

/// What is left free of a volume.
pub fn reserve(space: Space) -> u64 {
    RESERVE.min(space.total / 50)
}

/// Refuses to take so many bytes more of a volume, if too little would be left.
pub fn check_space(volumes: &Volumes, volume: &str, bytes: u64) -> Result<(), Cause> {
    // A volume that does not tell is found full when it is.
    let Some(Ok(space)) = volumes.space(volume).filter(|space| space.as_ref().is_ok_and(Space::is_known)) else { return Ok(()) };
    let reserve = reserve(space);
    if space.free < bytes.saturating_add(reserve) {
        let message = format!(
            "the volume '{volume}' has {} bytes free, of which {reserve} are kept for VMs, and {bytes} are needed at least",
            space.free
        );
        return Err(Cause::new("no-space", message, "make room in it, or name another volume"));
    }
    Ok(())
}

/// Deletes an image that no VM is based on. Whatever ends `marud` meanwhile, the next one goes on with it.
pub fn delete(state: &State, surroundings: &Surroundings, name: &str) -> Result<(), DeleteError> {
    let _held = surroundings.hold_files();
    loop {
        let stored = find(state, name)?.ok_or_else(|| StateError::Gone(format!("the image '{name}'")))?;
        let image = ImageRecord { deleting: true, ..stored.record.clone() };
        let users = Users::find(state)?.of(&image);
        if !users.is_empty() {
            let message = format!("these VMs are based on the image '{}': {}", image.name, users.join(", "));
            let way_out = "delete them first, or put copies in their places (maru vm clone makes disks that need no image)";
            return Err(DeleteError::Refused(Cause::new("image-in-use", message, way_out)));
        }
        let transaction = Transaction::new().if_still(&image.name, &stored).write(&image.name, &image);
        if let Outcome::Committed(_) = state.commit(&transaction)? {
            return finish_deletion(state, &surroundings.volumes, &image);
        }
    }
}

/// Removes the file of an image that is nobody's, and then what is stored of it.
fn finish_deletion(state: &State, volumes: &Volumes, image: &ImageRecord) -> Result<(), DeleteError> {
    volumes.remove(&image.file).map_err(DeleteError::Refused)?;
    let event = EventRecord::now(EventKind::ImageDeleted, format!("the image '{}' was deleted", image.name));
    state.commit(&Transaction::new().forget::<ImageRecord>(&image.name).tell(&event))?;
    Ok(())
}

/// Goes on with what an earlier `marud` was deleting.
pub fn finish_deletions(state: &State, volumes: &Volumes) -> Result<(), StateError> {
    for image in state.all::<ImageRecord>()?.into_iter().map(|stored| stored.record).filter(|image| image.deleting) {
        match finish_deletion(state, volumes, &image) {
            Err(DeleteError::State(error)) => return Err(error),
            Err(DeleteError::Refused(cause)) => {
                tracing::warn!("the image '{}' is not deleted yet: {}", image.name, cause.message)
            }
            Ok(()) => {}
        }
    }
    Ok(())
}

/// Changes an image; gives it as it is then.
pub fn change(state: &State, name: &str, edit: impl Fn(&mut ImageRecord)) -> Result<Result<ImageRecord, Cause>, StateError> {
    loop {
        let stored = find(state, name)?.ok_or_else(|| StateError::Gone(format!("the image '{name}'")))?;
        let old = &stored.record;
        let mut image = old.clone();
        edit(&mut image);
        if image == *old {
            return Ok(Ok(image));
        }
        let text = match image.name == old.name {
            true => format!("the image '{}' was changed", old.name),
            false => format!("the image '{}' is called '{}' from now on", old.name, image.name),
        };
        let mut transaction =
            Transaction::new().if_still(&old.name, &stored).tell(&EventRecord::now(EventKind::ImageChanged, text));
        if image.name != old.name {
            if state.read::<ImageRecord>(&image.name)?.is_some() || is_being_made(state, &image.name)? {
                return Ok(Err(name_taken(&image.name)));
            }
            transaction = transaction.if_none::<ImageRecord>(&image.name).forget::<ImageRecord>(&old.name);
        }
        if let Outcome::Committed(_) = state.commit(&transaction.write(&image.name, &image))? {
            return Ok(Ok(image));
        }
    }
}

/// Whether a task makes an image of this name.
pub fn is_being_made(state: &State, name: &str) -> Result<bool, StateError> {
    let tasks = state.all::<TaskRecord>()?.into_iter().map(|stored| stored.record);
    Ok(tasks.filter(TaskRecord::is_unfinished).any(|task| task.image.as_deref() == Some(name)))
}
