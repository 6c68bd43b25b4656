//! Making an image.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use disk::Format;
use disk::import::Format as Foreign;
use disk::tool::{self, AnyFormat, Existing, NewDisk, ToolError};
use store::{Outcome, Transaction};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{file, name_taken, upload};
use crate::records::{
    Cause, EventKind, EventRecord, ImageFormatRecord, ImageRecord, ImageSourceRecord, ImportImageRecord, TaskRecord,
    TaskStateRecord,
};
use crate::state::{Records, State, StateError};
use crate::vm::Surroundings;
use crate::vm::manifest::sha256;
use crate::vm::staging::{self, Staging};
use crate::vm::work::{Progress, WorkError};

/// Makes an image, and ends its task: both or none. Can be done again after it was interrupted.
pub fn import(
    state: &State,
    surroundings: &Surroundings,
    task: &TaskRecord,
    wanted: &ImportImageRecord,
    progress: &Progress,
) -> Result<(), WorkError> {
    let volumes = &surroundings.volumes;
    let (path, source, known) = match &wanted.source {
        ImageSourceRecord::File { file } => (volumes.find(file)?, file.to_string(), None),
        ImageSourceRecord::Upload { id, sha256 } => (upload::path(volumes, &wanted.volume, *id)?, "upload".into(), Some(sha256)),
    };
    let before = look(&path)?;
    let source_bytes = before.len();
    let source_format = match wanted.format {
        Some(format) => format,
        None => told(tool::detect(&path).map_err(refused)?),
    };
    // It is read once for its checksum, if that is not known, and once for what is in it.
    progress.begin(if known.is_some() { source_bytes } else { 2 * source_bytes });
    let sha256 = match known {
        Some(sha256) => sha256.clone(),
        None => progress.step(source_bytes, |job| sha256(&path, job))?,
    };
    check_sha256(wanted.sha256.as_deref(), &sha256)?;
    let place = file(&wanted.volume, wanted.id);
    let mut staging = Staging::begin(volumes, wanted.id)?;
    let target = staging.place(&place)?;
    let new = NewDisk { format: Format::Vhdx, ..NewDisk::default() };
    let from = (path.as_path(), format(source_format));
    let convert = |job: &_| tool::convert_alone(from, &target, &new, Existing::Keep, job);
    // Not by `?`, which would say that it is a disk that must be mended.
    progress.step(source_bytes, |job| Ok(convert(job)))?.map_err(refused)?;
    let after = look(&path)?;
    if identity(&after) != identity(&before) {
        let message = format!("{source} was changed while the image was made from it");
        return Err(Cause::new("changed", message, "see to it that nobody writes it, and try again").into());
    }
    let chain = tool::info(&target, AnyFormat::Own(Format::Vhdx))?;
    let image = ImageRecord {
        id: wanted.id,
        name: wanted.name.clone(),
        description: wanted.description.clone(),
        file: place,
        virtual_bytes: chain.first().map_or(0, |disk| disk.virtual_size),
        source,
        source_format,
        source_bytes,
        sha256,
        boot: wanted.boot.clone(),
        created_by: task.created_by.clone(),
        created_at: OffsetDateTime::now_utc(),
        deleting: false,
    };
    staging.publish()?;
    store(state, task.id, &image, progress)?;
    staging.keep();
    Ok(())
}

/// Stores the image, and that its task is done.
fn store(state: &State, task: Uuid, image: &ImageRecord, progress: &Progress) -> Result<(), WorkError> {
    let name = task.to_string();
    loop {
        let stored = state.read::<TaskRecord>(&name)?.ok_or_else(|| StateError::Gone(format!("the task {task}")))?;
        let mut record = stored.record.clone();
        record.progress = progress.told();
        record.end(TaskStateRecord::Done, None);
        let text = format!("the image '{}' was made from {}", image.name, image.source);
        let transaction = Transaction::new()
            .if_still(&name, &stored)
            .write(&name, &record)
            .if_none::<ImageRecord>(&image.name)
            .write(&image.name, image)
            .tell(&EventRecord::now(EventKind::ImageCreated, text).by_task(Some(task)));
        if let Outcome::Committed(_) = state.commit(&transaction)? {
            return Ok(());
        }
        if state.read::<ImageRecord>(&image.name)?.is_some() {
            return Err(name_taken(&image.name).into());
        }
    }
}

/// Compares a checksum with the one that was asked for, if one was.
pub fn check_sha256(wanted: Option<&str>, found: &str) -> Result<(), Cause> {
    match wanted {
        Some(wanted) if !wanted.eq_ignore_ascii_case(found) => {
            let message = format!("SHA-256 is {found}, and was to be {wanted}");
            Err(Cause::new("wrong-checksum", message, "get the file again, and see that the checksum is that of this file"))
        }
        _ => Ok(()),
    }
}

fn look(path: &Path) -> Result<Metadata, WorkError> {
    let failed = |error: std::io::Error| Cause::new("file", format!("{}: {error}", path.display()), "mend that, and try again");
    Ok(path.metadata().map_err(failed)?)
}

/// What changes when a file does.
fn identity(metadata: &Metadata) -> (u64, u64, i64, i64, u64) {
    (metadata.dev(), metadata.ino(), metadata.mtime(), metadata.mtime_nsec(), metadata.len())
}

fn refused(error: ToolError) -> WorkError {
    match error {
        ToolError::Cancelled => WorkError::Cancelled,
        error => {
            let way_out = "do what it says; a disk must be whole, in one file, and used by no VM";
            WorkError::Failed(Cause::new("bad-image", vmm::error_chain(&error), way_out))
        }
    }
}

fn told(format: AnyFormat) -> ImageFormatRecord {
    match format {
        AnyFormat::Own(Format::Raw) => ImageFormatRecord::Raw,
        AnyFormat::Own(Format::Vhdx) => ImageFormatRecord::Vhdx,
        AnyFormat::Own(Format::Vhd) => ImageFormatRecord::Vhd,
        AnyFormat::Foreign(Foreign::Qcow2) => ImageFormatRecord::Qcow2,
        AnyFormat::Foreign(Foreign::Vmdk) => ImageFormatRecord::Vmdk,
    }
}

fn format(format: ImageFormatRecord) -> AnyFormat {
    match format {
        ImageFormatRecord::Raw => AnyFormat::Own(Format::Raw),
        ImageFormatRecord::Vhdx => AnyFormat::Own(Format::Vhdx),
        ImageFormatRecord::Vhd => AnyFormat::Own(Format::Vhd),
        ImageFormatRecord::Qcow2 => AnyFormat::Foreign(Foreign::Qcow2),
        ImageFormatRecord::Vmdk => AnyFormat::Foreign(Foreign::Vmdk),
    }
}

/// Removes what a task has no use for when it has ended.
pub fn clean_up(surroundings: &Surroundings, wanted: &ImportImageRecord) {
    if let ImageSourceRecord::Upload { id, .. } = wanted.source
        && let Err(error) = staging::undo(&surroundings.volumes, id)
    {
        tracing::warn!(%id, "an upload stays until marud starts again: {error}");
    }
}
