//! Changing a VM that runs, through its monitor: all of it, or nothing.
//!
//! What is most likely to fail goes first: vCPUs and devices that the guest must give back, then new ones; behind them is what a monitor refuses only
//! if it was not checked. When something fails, what was done before is undone.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use disk::Disk;
use serde_json::Value;
use vmm::config::{DiskConfig, NetBackend, NetConfig, VmConfig};
use vmm::control::{Client, ClientError, MAX_FDS, Request, RunStatus, Status};
use vmm::tap::open_tap;

use super::Surroundings;
use super::config;
use super::edit::Plan;
use super::work::{Progress, WorkError};
use crate::net::socket_directory;
use crate::records::{Cause, DiskRecord, NetRecord, VmRecord};

/// How long a guest has to give a device or vCPUs back.
const REMOVAL: Duration = Duration::from_secs(60);
/// How long it has for one that was added in vain.
const UNDOING: Duration = Duration::from_secs(10);
/// How often it is looked whether it has.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

struct Machine<'a> {
    client: Client,
    surroundings: &'a Surroundings,
    old: &'a VmRecord,
    progress: &'a Progress,
    /// What was done, the oldest first.
    done: Vec<Done>,
}

enum Done {
    Cpus,
    Removed(String),
    Added(String),
}

fn refused(error: &ClientError) -> WorkError {
    match error {
        ClientError::Refused(failure) => WorkError::Failed(Cause::new(
            "monitor",
            format!("the VM's monitor refuses: {failure}"),
            "do what it says, and try again",
        )),
        error => {
            let message = format!("the VM ended meanwhile, or cannot be asked: {}", vmm::error_chain(error));
            WorkError::Failed(Cause::new("vm-ended", message, "see what it does now, and try again"))
        }
    }
}

/// Does what the plan says to the VM whose monitor listens at `control`.
pub fn apply(
    control: &Path,
    surroundings: &Surroundings,
    old: &VmRecord,
    plan: &Plan,
    progress: &Progress,
) -> Result<(), WorkError> {
    let client = Client::connect(control).map_err(|error| refused(&error.into()))?;
    let mut machine = Machine { client, surroundings, old, progress, done: Vec::new() };
    machine.apply(plan).map_err(|error| undo(machine, error))
}

/// Undoes what an earlier try did of a plan that is not wanted any more.
pub fn take_back(control: &Path, surroundings: &Surroundings, old: &VmRecord, plan: &Plan) -> Result<(), WorkError> {
    let client = Client::connect(control).map_err(|error| refused(&error.into()))?;
    let mut machine = Machine { client, surroundings, old, progress: &Progress::default(), done: Vec::new() };
    let added = plan.disks.iter().map(|disk| &disk.id).chain(plan.nets.iter().map(|net| &net.id));
    for id in added {
        if machine.has(id)? {
            machine.done.push(Done::Added(id.clone()));
        }
    }
    for id in &plan.removed {
        if !machine.has(id)? {
            machine.done.push(Done::Removed(id.clone()));
        }
    }
    if plan.cpus.is_some() {
        machine.done.push(Done::Cpus);
    }
    Err(undo(machine, WorkError::Cancelled))
}

/// Undoes what was done; what cannot be undone is said.
fn undo(machine: Machine<'_>, error: WorkError) -> WorkError {
    let Machine { client, surroundings, old, done, .. } = machine;
    // The wish that the work end is not one that its undoing end.
    let mut machine = Machine { client, surroundings, old, progress: &Progress::default(), done: Vec::new() };
    let mut left = Vec::new();
    for done in done.into_iter().rev() {
        let (undone, id) = match done {
            Done::Cpus => (machine.set_cpus(machine.old.cpus, UNDOING), "the number of vCPUs".into()),
            Done::Added(id) => (machine.remove(&id, UNDOING), id),
            Done::Removed(id) => (machine.put_back(&id), id),
        };
        if undone.is_err() {
            left.push(id);
        }
    }
    if left.is_empty() {
        return error;
    }
    let why = match &error {
        WorkError::Cancelled => "it was cancelled",
        WorkError::Failed(cause) => &cause.message,
    };
    let message = format!("{why}; what had been done is undone, but for {}", left.join(", "));
    WorkError::Failed(Cause::new("half-done", message, "stop the VM: it is as before when it is started again"))
}

impl Machine<'_> {
    fn call(&mut self, request: &Request, fds: &[RawFd]) -> Result<(), WorkError> {
        self.client.call::<Value>(request, fds).map(drop).map_err(|error| refused(&error))
    }

    fn config(&mut self) -> Result<VmConfig, WorkError> {
        self.client.call(&Request::Config, &[]).map_err(|error| refused(&error))
    }

    fn status(&mut self) -> Result<Status, WorkError> {
        self.client.call(&Request::Status, &[]).map_err(|error| refused(&error))
    }

    fn apply(&mut self, plan: &Plan) -> Result<(), WorkError> {
        let config = self.config()?;
        let memory = plan.memory.map(|bytes| hotplug(&config, bytes)).transpose()?;
        // What cannot be opened is better known before anything is done.
        let disks = plan.disks.iter().map(|disk| self.open_disk(disk)).collect::<Result<Vec<_>, _>>()?;
        let nets = plan.nets.iter().map(|net| self.open_net(net)).collect::<Result<Vec<_>, _>>()?;
        let fewer_cpus = plan.cpus.filter(|count| *count < config.cpus.count);
        if (!plan.removed.is_empty() || fewer_cpus.is_some()) && self.status()?.state == RunStatus::Paused {
            let message = "a guest that is paused cannot give devices or vCPUs back";
            return Err(Cause::new("vm-paused", message, "resume the VM first").into());
        }
        if let Some(count) = fewer_cpus {
            self.set_cpus(count, REMOVAL)?;
        }
        for id in &plan.removed {
            self.remove(id, REMOVAL)?;
        }
        for (config, files) in disks {
            self.add_disk(config, &files)?;
        }
        for (config, queue) in nets {
            self.add_net(config, &queue)?;
        }
        for (id, bytes) in &plan.grow {
            self.call(&Request::ResizeDisk { id: id.clone(), bytes: *bytes }, &[])?;
        }
        if let Some(bytes) = memory {
            self.call(&Request::SetHotplugMemory { bytes }, &[])?;
        }
        if let Some(bytes) = plan.balloon {
            self.call(&Request::SetBalloon { bytes }, &[])?;
        }
        let cables = plan.nets.iter().filter(|net| net.disconnected).map(|net| (net.id.clone(), true));
        for (id, disconnected) in plan.links.iter().cloned().chain(cables) {
            self.call(&Request::SetLink { id, up: !disconnected }, &[])?;
        }
        if let Some(count) = plan.cpus {
            self.set_cpus(count, REMOVAL)?;
        }
        Ok(())
    }

    /// Adds vCPUs, or asks the guest for some and waits until they are gone.
    fn set_cpus(&mut self, count: u32, patience: Duration) -> Result<(), WorkError> {
        self.call(&Request::SetCpus { count }, &[])?;
        // Also if it comes to nothing: the guest is not to give them back later.
        self.done.push(Done::Cpus);
        self.wait("vCPUs", patience, |machine| Ok(machine.config()?.cpus.count == count))
    }

    fn has(&mut self, id: &str) -> Result<bool, WorkError> {
        let config = self.config()?;
        Ok(config.disks.iter().any(|disk| disk.id == id) || config.nets.iter().any(|net| net.id == id))
    }

    /// Asks the guest for a device, and waits until it is gone.
    fn remove(&mut self, id: &str, patience: Duration) -> Result<(), WorkError> {
        if !self.has(id)? {
            return Ok(());
        }
        self.call(&Request::Remove { id: id.into() }, &[])?;
        self.wait(id, patience, |machine| Ok(!machine.has(id)?))?;
        self.done.push(Done::Removed(id.into()));
        Ok(())
    }

    /// Waits until the guest has given something back.
    fn wait(
        &mut self,
        what: &str,
        patience: Duration,
        mut is_gone: impl FnMut(&mut Self) -> Result<bool, WorkError>,
    ) -> Result<(), WorkError> {
        let deadline = Instant::now() + patience;
        while !is_gone(self)? {
            if self.progress.is_cancelled() {
                return Err(WorkError::Cancelled);
            }
            if Instant::now() >= deadline {
                let message = format!("the guest has not given {what} back within {} s", patience.as_secs());
                let way_out = "see in the guest what uses it, and whether it has booted; or stop the VM first";
                return Err(Cause::new("guest", message, way_out).into());
            }
            std::thread::sleep(LOOK_AGAIN);
        }
        Ok(())
    }

    fn open_disk(&self, disk: &DiskRecord) -> Result<(DiskConfig, Vec<(PathBuf, OwnedFd)>), WorkError> {
        let config = config::monitor_disk(disk, &self.old.resources, self.surroundings.volumes.find(&disk.file)?);
        let failed = |message: String| Cause::new("disk", message, "mend what it says, and try again");
        let files = Disk::open_files(&config.path, config.open_options()).map_err(|error| failed(vmm::error_chain(&error)))?;
        if files.len() > MAX_FDS {
            return Err(failed(format!("{} has {} parents, of which {MAX_FDS} can be added", disk.file, files.len() - 1)).into());
        }
        Ok((config, files))
    }

    fn open_net(&self, net: &NetRecord) -> Result<(NetConfig, Vec<std::fs::File>), WorkError> {
        let sockets = socket_directory(&self.surroundings.run_directory, self.old.id);
        let config = config::monitor_net(net, &self.old.resources, &sockets)?;
        let queues = match &config.backend {
            NetBackend::Tap(name) => open_tap(name, config.queue_pairs)
                .map_err(|error| Cause::new("tap", vmm::error_chain(&error), "mend what it says, and try again"))?,
            NetBackend::VhostUser(_) => Vec::new(),
        };
        Ok((config, queues))
    }

    fn add_disk(&mut self, disk: DiskConfig, files: &[(PathBuf, OwnedFd)]) -> Result<(), WorkError> {
        let id = disk.id.clone();
        if !self.has(&id)? {
            let parents = files.iter().skip(1).map(|(path, _)| path.clone()).collect();
            let fds: Vec<RawFd> = files.iter().map(|(_, file)| file.as_raw_fd()).collect();
            self.call(&Request::AddDisk { disk, parents }, &fds)?;
        }
        self.done.push(Done::Added(id));
        Ok(())
    }

    fn add_net(&mut self, net: NetConfig, queues: &[std::fs::File]) -> Result<(), WorkError> {
        let id = net.id.clone();
        if !self.has(&id)? {
            let fds: Vec<RawFd> = queues.iter().map(AsRawFd::as_raw_fd).collect();
            self.call(&Request::AddNet { net }, &fds)?;
        }
        self.done.push(Done::Added(id));
        Ok(())
    }

    fn put_back(&mut self, id: &str) -> Result<(), WorkError> {
        if let Some(disk) = self.old.disks.iter().find(|disk| disk.id == id) {
            let (config, files) = self.open_disk(disk)?;
            return self.add_disk(config, &files);
        }
        if let Some(net) = self.old.nets.iter().find(|net| net.id == id) {
            let (config, queues) = self.open_net(net)?;
            return self.add_net(config, &queues);
        }
        Ok(())
    }
}

/// How much memory is to be beside that at start.
fn hotplug(config: &VmConfig, bytes: u64) -> Result<u64, Cause> {
    let (start, most) = (config.memory.size, config.memory.size + config.memory.hotplug_size);
    if (start..=most).contains(&bytes) {
        return Ok(bytes - start);
    }
    let message = format!("memory of {bytes} bytes: the VM was started with {start}, and can have {most} at most while it runs");
    Err(Cause::new("vm-running", message, "choose between these, or stop it first"))
}
