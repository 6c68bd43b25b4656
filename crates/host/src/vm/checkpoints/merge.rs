//! Merging away what no checkpoint needs: on a thread of its own, beside the VM's owner.
//!
//! Killed at any point, it is done again from where it was: the record names the two files until the lower one has taken the upper one's place.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use disk::Format;
use disk::tool::{self, AnyFormat, Child, Job, RebaseContent};
use serde_json::Value;
use uuid::Uuid;
use vmm::config::VmConfig;
use vmm::control::{Client, ClientError, NewLayer, Request, RunStatus, Status};

use super::super::process::RunFiles;
use super::super::work::{Progress, WorkError};
use super::super::{Surroundings, process};
use super::plan::{self, Step};
use super::{edit, tree};
use crate::records::{Cause, FileRef, LayerRecord, MergeRecord, VmRecord};
use crate::state::{State, StateError};

/// A leaf with no more than this is merged while its VM waits: a moment.
const LEAF_AT_ONCE: u64 = 32 << 20;
/// How often a leaf is frozen and merged in the background, to make what is left small. A guest that writes faster than the host merges
/// has to wait in the end.
const ROUNDS: u32 = 4;

/// Whose files are merged.
pub struct Merger<'a> {
    /// What is wanted and known.
    pub state: &'a State,
    /// What all VMs have in common.
    pub surroundings: &'a Arc<Surroundings>,
    /// The VM.
    pub vm: Uuid,
    /// How far it is.
    pub progress: &'a Progress,
}

fn failed(error: &dyn std::error::Error) -> WorkError {
    Cause::new("merge", vmm::error_chain(error), "mend what it says, and let it go on (maru vm checkpoint merge)").into()
}

impl Merger<'_> {
    /// Does all that can be done now. Gives the files that have to wait until the VM is off.
    pub fn run(&self) -> Result<BTreeSet<String>, WorkError> {
        self.settle_children()?;
        self.resume_held()?;
        let mut later = BTreeSet::new();
        let mut rounds = 0;
        loop {
            let (vm, tree) = self.read()?;
            match plan::next(&vm, &tree, &later) {
                None => return Ok(later),
                Some(Step::Drop(file)) => {
                    self.edit(|_, tree| {
                        tree.layers.retain(|layer| layer.file != file);
                        tree.garbage.push(file.clone());
                    })?;
                }
                Some(Step::Remove(file)) => {
                    self.surroundings.volumes.remove(&file)?;
                    self.edit(|_, tree| tree.garbage.retain(|other| *other != file))?;
                }
                Some(Step::Merge(merge)) => match self.client()? {
                    None => self.merge_offline(&merge)?,
                    Some(mut client) => {
                        if !self.merge_online(&mut client, &vm, &merge, &mut rounds)? {
                            later.insert(merge.upper.to_string());
                            self.edit(|_, tree| tree.merging = None)?;
                        }
                    }
                },
            }
        }
    }

    fn read(&self) -> Result<(VmRecord, crate::records::TreeRecord), WorkError> {
        let vm = self.state.read::<VmRecord>(&self.vm.to_string())?;
        let vm = vm.ok_or_else(|| StateError::Gone(format!("the VM {}", self.vm)))?.record;
        Ok((vm, tree(self.state, self.vm)?))
    }

    fn edit(&self, mut change: impl FnMut(&mut VmRecord, &mut crate::records::TreeRecord)) -> Result<(), WorkError> {
        let done = edit(self.state, self.vm, |vm, tree| {
            change(vm, tree);
            Some(())
        });
        Ok(done.map(drop)?)
    }

    /// The monitor, if the VM runs.
    fn client(&self) -> Result<Option<Client>, WorkError> {
        let running = process::find(self.surroundings, self.vm).map_err(|error| failed(&error))?;
        if running.is_none() {
            return Ok(None);
        }
        let socket = RunFiles::of(self.surroundings, self.vm).control();
        match Client::connect(&socket) {
            Ok(client) => Ok(Some(client)),
            // It ended meanwhile.
            Err(_) if process::find(self.surroundings, self.vm).is_ok_and(|found| found.is_none()) => Ok(None),
            Err(error) => Err(failed(&error)),
        }
    }

    fn path(&self, file: &FileRef) -> Result<PathBuf, WorkError> {
        Ok(self.surroundings.volumes.find(file)?)
    }

    /// A VM that an earlier marud had paused for a moment goes on.
    pub fn resume_held(&self) -> Result<(), WorkError> {
        if !tree(self.state, self.vm)?.held {
            return Ok(());
        }
        if let Some(mut client) = self.client()? {
            over(client.call::<Value>(&Request::Resume, &[]))?;
        }
        self.edit(|_, tree| tree.held = false)
    }

    /// A child that an earlier marud had just made when it was killed.
    fn settle_children(&self) -> Result<(), WorkError> {
        let (vm, tree) = self.read()?;
        let above = |layer: &&LayerRecord| {
            !layer.frozen && vm.disks.iter().any(|disk| disk.id == layer.disk && Some(&disk.file) == layer.parent.as_ref())
        };
        for child in tree.layers.iter().filter(above) {
            let took = self.took(self.client()?.as_mut(), &child.file);
            self.settle_child(&child.disk, &child.file, took)?;
        }
        Ok(())
    }

    fn begin(&self, merge: &MergeRecord) -> Result<(), WorkError> {
        self.edit(|_, tree| tree.merging = Some(merge.clone()))
    }

    /// Nobody uses the files.
    fn merge_offline(&self, merge: &MergeRecord) -> Result<(), WorkError> {
        let (upper, lower) = (self.path(&merge.upper)?, self.path(&merge.lower)?);
        // A monitor that was killed may have merged its leaf already.
        if self.is_leaf(merge)? && !fits(&upper) {
            return self.replace(merge);
        }
        self.begin(merge)?;
        let bytes = allocated(&upper);
        self.progress.begin(bytes);
        self.progress.step(bytes, |job| tool::merge(&upper, Format::Vhdx, Some(&lower), Child::Keep, job))?;
        self.relink_children(merge, None)?;
        self.replace(merge)
    }

    fn is_leaf(&self, merge: &MergeRecord) -> Result<bool, WorkError> {
        Ok(plan::is_leaf(&self.read()?.0, &merge.upper))
    }

    /// What hangs on the upper file hangs on the lower one, which is the same now. The VM's own leaf is not touched while the VM runs.
    fn relink_children(&self, merge: &MergeRecord, except: Option<&FileRef>) -> Result<(), WorkError> {
        let lower = self.path(&merge.lower)?;
        let tree = tree(self.state, self.vm)?;
        for child in tree.children(&merge.upper).filter(|child| Some(&child.file) != except) {
            tool::rebase(&self.path(&child.file)?, Format::Vhdx, &lower, RebaseContent::Trust, &Job::default())?;
        }
        Ok(())
    }

    fn replace(&self, merge: &MergeRecord) -> Result<(), WorkError> {
        self.edit(|vm, tree| plan::merged(vm, tree, merge))
    }

    /// The VM runs. Gives false if the files have to wait until it is off.
    fn merge_online(&self, client: &mut Client, vm: &VmRecord, merge: &MergeRecord, rounds: &mut u32) -> Result<bool, WorkError> {
        let chain = match over(client.call::<Status>(&Request::Status, &[]))? {
            Some(status) => status.devices.into_iter().find(|device| device.id == merge.disk).map(|device| device.files),
            None => return Ok(true),
        };
        // As children name their parents, there may be `..` in them.
        let chain: Vec<PathBuf> = chain.unwrap_or_default().iter().map(|path| path.canonicalize().unwrap_or_default()).collect();
        let (upper, lower) = (self.path(&merge.upper)?, self.path(&merge.lower)?);
        let place = chain.iter().position(|path| *path == upper);
        match place {
            // An earlier try got as far as that.
            None if chain.contains(&lower) => {
                self.relink_children(merge, leaf(vm, merge))?;
                self.replace(merge).map(|()| true)
            }
            // Another branch than the one that runs.
            None => self.merge_offline(merge).map(|()| true),
            Some(0) => self.merge_leaf(client, merge, (&upper, &lower), rounds).map(|()| true),
            Some(1) => {
                self.begin(merge)?;
                let bytes = allocated(&upper);
                self.progress.begin(bytes);
                self.progress.step(bytes, |job| tool::merge_in_use(&upper, job))?;
                self.relink_children(merge, leaf(vm, merge))?;
                let parents = chain[2..].to_vec();
                let files = parents.iter().map(File::open).collect::<Result<Vec<_>, _>>().map_err(|error| failed(&error))?;
                let request = Request::ReplaceParents { id: merge.disk.clone(), parents };
                let descriptors: Vec<_> = files.iter().map(AsRawFd::as_raw_fd).collect();
                if over(client.call::<Value>(&request, &descriptors))?.is_some() {
                    self.replace(merge)?;
                }
                Ok(true)
            }
            // A file in between would have to be changed while the VM reads it.
            Some(_) => Ok(false),
        }
    }

    /// The VM writes the upper file.
    fn merge_leaf(
        &self,
        client: &mut Client,
        merge: &MergeRecord,
        (upper, lower): (&Path, &Path),
        rounds: &mut u32,
    ) -> Result<(), WorkError> {
        if allocated(upper) > LEAF_AT_ONCE && *rounds < ROUNDS {
            *rounds += 1;
            return self.freeze_leaf(client, merge, upper);
        }
        self.begin(merge)?;
        let file = File::options().read(true).write(true).open(lower).map_err(|error| failed(&error))?;
        let request = Request::MergeLeaf { id: merge.disk.clone(), most_bytes: None };
        if over(client.call::<Value>(&request, &[file.as_raw_fd()]))?.is_some() {
            self.replace(merge)?;
        }
        Ok(())
    }

    /// The VM goes on in a new child, so that what was its leaf can be merged in the background.
    fn freeze_leaf(&self, client: &mut Client, merge: &MergeRecord, upper: &Path) -> Result<(), WorkError> {
        let Some(status) = over(client.call::<Status>(&Request::Status, &[]))? else { return Ok(()) };
        let volume = merge.upper.volume.clone();
        let child = FileRef { volume, path: format!("vms/{}/{}-{}.avhdx", self.vm, merge.disk, Uuid::new_v4()) };
        let runs = status.state == RunStatus::Running;
        // The child is the leaf from the moment on in which the monitor takes it: it is stored before, and what it was is found out then.
        self.edit(|_, tree| {
            tree.held = runs;
            tree.garbage.retain(|other| *other != child);
            tree.layers.push(LayerRecord {
                disk: merge.disk.clone(),
                file: child.clone(),
                parent: Some(merge.upper.clone()),
                frozen: false,
            });
        })?;
        let added = self.add_child(client, merge, upper, &child);
        let took = self.took(Some(client), &child);
        self.settle_child(&merge.disk, &child, took)?;
        self.resume_held()?;
        added
    }

    fn add_child(&self, client: &mut Client, merge: &MergeRecord, upper: &Path, child: &FileRef) -> Result<(), WorkError> {
        over(client.call::<Value>(&Request::Pause, &[]))?;
        let path = self.surroundings.volumes.make_place(child)?;
        tool::create_layer(&path, upper)?;
        let file: OwnedFd = File::options().read(true).write(true).open(&path).map_err(|error| failed(&error))?.into();
        let request = Request::AddLayers { layers: vec![NewLayer { id: merge.disk.clone(), path }] };
        over(client.call::<Value>(&request, &[file.as_raw_fd()])).map(drop)
    }

    /// Whether the VM goes on in a child. Without a monitor: whether nobody has written the file below since.
    fn took(&self, client: Option<&mut Client>, child: &FileRef) -> bool {
        let Ok(path) = self.path(child) else { return false };
        match client.map(|client| client.call::<VmConfig>(&Request::Config, &[])) {
            Some(Ok(config)) => config.disks.iter().any(|disk| disk.path == path),
            _ => fits(&path),
        }
    }

    /// A child that was to be the VM's leaf is that, or nothing.
    fn settle_child(&self, id: &str, child: &FileRef, took: bool) -> Result<(), WorkError> {
        self.edit(|vm, tree| {
            if took {
                for disk in vm.disks.iter_mut().filter(|disk| disk.id == id) {
                    let frozen = std::mem::replace(&mut disk.file, child.clone());
                    tree.layers.iter_mut().filter(|layer| layer.file == frozen).for_each(|layer| layer.frozen = true);
                }
            } else {
                tree.layers.retain(|layer| layer.file != *child);
                tree.garbage.push(child.clone());
            }
        })
    }
}

fn leaf<'a>(vm: &'a VmRecord, merge: &MergeRecord) -> Option<&'a FileRef> {
    vm.disks.iter().find(|disk| disk.id == merge.disk).map(|disk| &disk.file)
}

/// What a monitor answered; nothing if it ended instead: then it is seen anew how things are.
fn over<T>(answer: Result<T, ClientError>) -> Result<Option<T>, WorkError> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(ClientError::Gone) => Ok(None),
        Err(error) => Err(failed(&error)),
    }
}

/// Whether an image fits the one below it.
fn fits(path: &Path) -> bool {
    let chain = tool::info(path, AnyFormat::Own(Format::Vhdx)).unwrap_or_default();
    let image = chain.into_iter().next().and_then(|own| own.image);
    image.and_then(|image| image.parent).is_some_and(|parent| parent.fits)
}

/// Bytes that a file takes.
pub fn allocated(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |metadata| std::os::unix::fs::MetadataExt::blocks(&metadata) * 512)
}
