//! What the API tells of checkpoints.

use disk::Format;
use disk::tool::{self, AnyFormat};

use super::super::clone::format;
use super::merge::allocated;
use super::plan::written;
use crate::records::{CheckpointKind, CheckpointRecord, FileRef, TreeRecord, VmRecord};
use crate::volumes::Volumes;

/// A checkpoint, with the space that its own files take.
pub fn told(checkpoint: &CheckpointRecord, tree: &TreeRecord, volumes: &Volumes) -> api::Checkpoint {
    let bytes = |file: &FileRef| volumes.find(file).map_or(0, |path| allocated(&path));
    api::Checkpoint {
        id: checkpoint.id,
        name: checkpoint.name.clone(),
        created_at: checkpoint.created_at,
        parent: checkpoint.parent,
        current: tree.current == Some(checkpoint.id),
        kind: match checkpoint.kind {
            CheckpointKind::Off => api::CheckpointKind::Off,
            CheckpointKind::Standard => api::CheckpointKind::Standard,
            CheckpointKind::Production => api::CheckpointKind::Production,
            CheckpointKind::CrashConsistent => api::CheckpointKind::CrashConsistent,
        },
        disks: written(&checkpoint.vm)
            .map(|disk| api::CheckpointDisk { id: disk.id.clone(), file: disk.file.to_string(), bytes: bytes(&disk.file) })
            .collect(),
        memory_bytes: checkpoint.memory.as_ref().map(|memory| bytes(&memory.file)),
        pause_ms: checkpoint.pause_ms,
        spec: checkpoint.vm.spec(),
    }
}

/// The files that each disk of a VM is made of, as far as they can be looked at.
pub fn chains(vm: &VmRecord, volumes: &Volumes) -> Vec<api::DiskChain> {
    let file = |path: &std::path::Path| volumes.name(&path.canonicalize().unwrap_or_else(|_| path.into()));
    let chain = |disk: &crate::records::DiskRecord| {
        let path = volumes.find(&disk.file).ok()?;
        let format: Format = format(disk, &path);
        let files = tool::info(&path, AnyFormat::Own(format)).ok()?;
        let files = files.iter().map(|step| api::DiskFile { file: file(&step.path), bytes: step.disk_usage }).collect();
        Some(api::DiskChain { disk: disk.id.clone(), files })
    };
    vm.disks.iter().filter_map(chain).collect()
}
