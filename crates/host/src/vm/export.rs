//! Writing a VM to a directory: all its files, each whole, and a manifest.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

use disk::tool::{self, Existing};
use time::OffsetDateTime;
use uuid::Uuid;

use super::Surroundings;
use super::clone::Original;
use super::manifest::{FORMAT, Manifest, ManifestFile, NAME, VERSION, sha256};
use super::staging::Staging;
use super::work::{Progress, WorkError};
use crate::records::{Cause, EventRecord, FileRef, VmRecord};

/// A file to write.
struct Part {
    name: String,
    from: From,
}

enum From {
    Disk(Original),
    Plain(PathBuf, u64),
}

/// Writes a VM that is off to the directory `to`, which must not be there. Can be done again after it was interrupted.
pub fn export(
    surroundings: &Surroundings,
    task: Uuid,
    vm: &VmRecord,
    to: &FileRef,
    progress: &Progress,
) -> Result<Option<EventRecord>, WorkError> {
    let volumes = &surroundings.volumes;
    if let Some(made) = Staging::resume(volumes, task)? {
        // An earlier marud got as far as this.
        made.keep();
        return Ok(None);
    }
    let mut spec = vm.spec();
    let mut parts = Vec::new();
    let plain = |file: &FileRef| -> Result<From, WorkError> {
        let path = volumes.find(file)?;
        let bytes = path.metadata().map_or(0, |metadata| metadata.len());
        Ok(From::Plain(path, bytes))
    };
    parts.push(Part { name: "kernel".into(), from: plain(&vm.boot.kernel)? });
    spec.boot.kernel = "kernel".into();
    if let Some(initrd) = &vm.boot.initrd {
        parts.push(Part { name: "initrd".into(), from: plain(initrd)? });
        spec.boot.initrd = Some("initrd".into());
    }
    for (disk, told) in vm.disks.iter().zip(&mut spec.disks) {
        let original = Original::find(disk, volumes.find(&disk.file)?)?;
        told.file = format!("disk-{}.{}", disk.id, original.extension());
        parts.push(Part { name: told.file.clone(), from: From::Disk(original) });
    }
    let bytes = |part: &Part| match &part.from {
        From::Disk(original) => original.bytes,
        From::Plain(_, bytes) => *bytes,
    };
    // Each is written and then read.
    progress.begin(parts.iter().map(|part| 2 * bytes(part)).sum());
    let mut staging = Staging::begin(volumes, task)?;
    if std::fs::symlink_metadata(volumes.place(to)?).is_ok() {
        return Err(Cause::new("file-exists", format!("there is something at {to} already"), "choose another directory").into());
    }
    let mut place = |name: &str| staging.place(&FileRef { volume: to.volume.clone(), path: format!("{}/{name}", to.path) });
    let mut files = Vec::new();
    for part in &parts {
        let path = place(&part.name)?;
        progress.step(bytes(part), |job| match &part.from {
            From::Disk(original) => original.copy(&path, job),
            From::Plain(from, _) => tool::copy(from, &path, Existing::Keep, job).map(drop),
        })?;
        let sha256 = progress.step(bytes(part), |job| sha256(&path, job))?;
        let bytes = path.metadata().map_or(0, |metadata| metadata.len());
        files.push(ManifestFile { name: part.name.clone(), bytes, sha256 });
    }
    let manifest = Manifest { format: FORMAT.into(), version: VERSION, exported_at: OffsetDateTime::now_utc(), spec, files };
    let path = place(NAME)?;
    let failed = |error: std::io::Error| Cause::new("file", format!("the manifest cannot be written: {error}"), "try again");
    let json = serde_json::to_vec_pretty(&manifest).map_err(|error| failed(error.into()))?;
    let mut file = File::create(&path).map_err(failed)?;
    file.write_all(&json).and_then(|()| file.sync_all()).map_err(failed)?;
    staging.publish()?;
    staging.keep();
    Ok(None)
}
