//! Disks' layers, changed while the machine is there: what is below the guest's data, which it never notices.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use disk::Disk;
use disk::layers::{LayerError, NewLayer};

use super::{DeviceError, DeviceHandle, Machine, RunState};
use crate::devices::block::Block;

/// Why disks' layers were not changed.
#[derive(Debug, thiserror::Error)]
pub enum LayersError {
    /// The disk.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Its files.
    #[error("disk '{id}': {source}")]
    Layer {
        /// Which one.
        id: String,
        /// Why.
        source: LayerError,
    },
    /// The guest runs.
    #[error("the VM runs, and layers of all disks are to begin at one point in time; pause it, add them, and resume it")]
    Running,
    /// No disk was named.
    #[error("no disk was named; name each disk that is to have a new layer, with its file")]
    None,
    /// One disk was named twice.
    #[error("disk '{0}' was named twice; it gets one layer at a time")]
    Twice(String),
}

fn of(id: &str) -> impl FnOnce(LayerError) -> LayersError {
    let id = id.to_owned();
    move |source| LayersError::Layer { id, source }
}

impl Machine {
    fn disk(&self, id: &str) -> Result<Arc<Mutex<Block>>, DeviceError> {
        match &self.device(id)?.handle {
            DeviceHandle::Block(block) => Ok(block.clone()),
            _ => Err(DeviceError::Kind { id: id.into(), wanted: "a disk" }),
        }
    }

    /// Gives disks of the paused machine new files, all or none: what is written from now on goes there.
    pub fn add_layers(&mut self, layers: Vec<(String, PathBuf, OwnedFd)>) -> Result<(), LayersError> {
        if self.state == RunState::Running {
            return Err(LayersError::Running);
        }
        if layers.is_empty() {
            return Err(LayersError::None);
        }
        let mut prepared: Vec<(String, Arc<Mutex<Block>>, NewLayer)> = Vec::new();
        for (id, path, file) in layers {
            if prepared.iter().any(|(other, ..)| *other == id) {
                return Err(LayersError::Twice(id));
            }
            let block = self.disk(&id)?;
            let layer = block.lock().expect("device lock").disk().prepare_layer(file, path).map_err(of(&id))?;
            prepared.push((id, block, layer));
        }
        let mut done: Vec<(String, Arc<Mutex<Block>>, Disk)> = Vec::new();
        for (id, block, layer) in prepared {
            match layer.add() {
                Ok(disk) => {
                    let old = block.lock().expect("device lock").replace_disk(disk);
                    done.push((id, block, old));
                }
                Err(error) => {
                    let mut error = error;
                    for (_, block, old) in done.into_iter().rev() {
                        let new = block.lock().expect("device lock").replace_disk(old.clone());
                        drop(new);
                        error = old.take_back(error);
                    }
                    return Err(of(&id)(error));
                }
            }
        }
        for (id, block, _) in done {
            self.disk_moved(&id, block.lock().expect("device lock").disk());
        }
        Ok(())
    }

    /// Puts other files, which read the same, below a disk's own. How long the guest's requests were held up.
    pub fn replace_parents(&mut self, id: &str, files: Vec<(PathBuf, OwnedFd)>) -> Result<Duration, LayersError> {
        let block = self.disk(id)?;
        let parents = block.lock().expect("device lock").disk().prepare_parents(files).map_err(of(id))?;
        self.while_held(id, || {
            let disk = parents.replace().map_err(of(id))?;
            block.lock().expect("device lock").replace_disk(disk);
            Ok(())
        })
        .map(|((), held)| held)
    }

    /// Writes what a disk's own file holds into the open one below, which is the disk's file from then on; refused if that is more
    /// than `most` bytes. How many bytes were written, and how long the guest's requests were held up.
    pub fn merge_leaf(&mut self, id: &str, file: OwnedFd, most: Option<u64>) -> Result<(u64, Duration), LayersError> {
        let block = self.disk(id)?;
        let merge = block.lock().expect("device lock").disk().prepare_merge(file, most).map_err(of(id))?;
        let merged = self.while_held(id, || {
            let (disk, result) = merge.merge();
            block.lock().expect("device lock").replace_disk(disk);
            result.map_err(of(id))
        });
        self.disk_moved(id, block.lock().expect("device lock").disk());
        merged
    }

    /// Does something while a disk has no requests under way. Those that the guest makes meanwhile are begun afterwards.
    fn while_held<T>(&self, id: &str, work: impl FnOnce() -> Result<T, LayersError>) -> Result<(T, Duration), LayersError> {
        // Locked all the time, so that the guest cannot start the device in the midst of it.
        let mut transport = self.device(id)?.transport.lock().expect("device lock");
        let start = Instant::now();
        let was_active = transport.pause();
        let result = work();
        if was_active {
            transport.resume();
        }
        Ok((result?, start.elapsed()))
    }

    /// Notes in the configuration which file a disk has now.
    fn disk_moved(&mut self, id: &str, disk: &Disk) {
        self.config.disks.iter_mut().filter(|config| config.id == id).for_each(|config| config.move_to(disk.path().to_owned()));
    }
}
