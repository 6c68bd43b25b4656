//! What the control socket's requests do.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::fd::OwnedFd;
use std::time::Instant;

use serde_json::{Value, json};

use super::{Ending, Monitor};
use crate::control::{
    DeviceStatus, EventKind, Failure, LayersReport, MergedReport, Message, ReplacedReport, Reply, Request, RunStatus,
    SavedReport, Status,
};
use crate::machine::{DeviceError, DeviceHandle, RunState};

type Answer = Result<Value, Failure>;

fn refuse(message: impl Into<String>) -> Failure {
    Failure { message: message.into() }
}

fn failure<E: std::error::Error>(error: E) -> Failure {
    Failure::new(&error)
}

impl Monitor {
    /// Does what a client asks for. An error means that nothing was done.
    pub(super) fn handle(&mut self, token: u64, request: Request, mut fds: Vec<OwnedFd>) -> Answer {
        let machine = &mut self.machine;
        let done = Ok(Value::Null);
        match request {
            Request::Status => to_value(&self.status()),
            Request::Config => to_value(machine.config()),
            Request::Subscribe => {
                if let Some(peer) = self.clients.get_mut(&token) {
                    peer.subscribed = true;
                }
                done
            }
            Request::Pause => {
                self.short_of_space = None;
                self.pause();
                done
            }
            Request::Resume => {
                self.short_of_space = None;
                if machine.run_state() == RunState::Paused {
                    machine.resume();
                    self.publish(EventKind::Running);
                }
                done
            }
            Request::PowerButton => {
                if machine.run_state() == RunState::Paused {
                    return Err(refuse("the VM is paused: its guest cannot react; resume it first"));
                }
                machine.press_power_button();
                done
            }
            Request::Reset => {
                self.reset();
                done
            }
            Request::Stop => {
                self.end(Ending::Stopped);
                done
            }
            Request::Save => self.save(token, take_fd(&mut fds, "the file to save to")?),
            Request::AddDisk { disk, parents } => {
                let names: Vec<_> = std::iter::once(disk.path.clone()).chain(parents).collect();
                if names.len() != fds.len() {
                    let (wanted, found) = (names.len(), fds.len());
                    return Err(failure(DeviceError::Descriptors { id: disk.id, wanted, found }));
                }
                machine.add_disk(disk, names.into_iter().zip(fds).collect()).map_err(failure).map(|()| Value::Null)
            }
            Request::AddNet { net } => machine.add_net(net, fds).map_err(failure).map(|()| Value::Null),
            Request::Remove { id } => machine.request_removal(&id).map_err(failure).map(|()| Value::Null),
            Request::ResizeDisk { id, bytes } => machine.resize_disk(&id, bytes).map_err(failure).map(|()| Value::Null),
            Request::AddLayers { layers } => {
                let start = Instant::now();
                counted(layers.len(), &fds, "for each layer the file that is new")?;
                let layers = layers.into_iter().zip(fds).map(|(layer, file)| (layer.id, layer.path, file)).collect();
                machine.add_layers(layers).map_err(failure)?;
                to_value(&LayersReport { took_ms: start.elapsed().as_millis() as u64 })
            }
            Request::ReplaceParents { id, parents } => {
                counted(parents.len(), &fds, "the files of the parents")?;
                let held = machine.replace_parents(&id, parents.into_iter().zip(fds).collect()).map_err(failure)?;
                to_value(&ReplacedReport { held_ms: held.as_millis() as u64 })
            }
            Request::MergeLeaf { id, most_bytes } => {
                let file = take_fd(&mut fds, "the file of the disk's parent")?;
                let (bytes, held) = machine.merge_leaf(&id, file, most_bytes).map_err(failure)?;
                to_value(&MergedReport { bytes, held_ms: held.as_millis() as u64 })
            }
            Request::SetDiskLimits { id, limits } => machine.set_disk_limits(&id, limits).map_err(failure).map(|()| Value::Null),
            Request::SetNetLimits { id, limits } => machine.set_net_limits(&id, limits).map_err(failure).map(|()| Value::Null),
            Request::SetCpus { count } => machine.set_vcpus(count).map_err(failure).map(|()| Value::Null),
            Request::SetHotplugMemory { bytes } => {
                let Ok(DeviceHandle::Memory(memory)) = machine.device("memory").map(|device| &device.handle) else {
                    return Err(refuse("the VM was made without memory for hot add; start it with `hotplug=SIZE`"));
                };
                memory.set_requested_size(bytes).map_err(failure)?;
                done
            }
            Request::SetBalloon { bytes } => {
                let Ok(DeviceHandle::Balloon(balloon)) = machine.device("balloon").map(|device| &device.handle) else {
                    return Err(refuse("the VM has no balloon; start it with one"));
                };
                if bytes > machine.config().memory.size {
                    return Err(refuse("the balloon would take more memory than the VM has"));
                }
                balloon.set_target_pages((bytes / 4096) as u32);
                done
            }
            Request::SetLink { id, up } => machine.set_link(&id, up).map_err(failure).map(|()| Value::Null),
            Request::Console => {
                let output = take_fd(&mut fds, "a socket or terminal for the console")?;
                let input = output.try_clone().map_err(failure)?;
                self.attach_console(output, Some(input)).map_err(failure)?;
                done
            }
            Request::GuestAgent => {
                let socket = take_fd(&mut fds, "a socket for the guest agent")?;
                let attached = self.attach_agent(socket).map_err(failure)?;
                let open = attached.ok_or_else(|| refuse("the VM has no port for a guest agent; start it with one"))?;
                Ok(json!({ "open": open }))
            }
            Request::StartDirtyLog => machine.start_dirty_log().map_err(failure).map(|()| Value::Null),
            Request::TakeDirtyLog => {
                let regions = machine.take_dirty_log().map_err(failure)?;
                let pages: u64 = regions.iter().map(|region| region.count()).sum();
                Ok(json!({ "pages": pages }))
            }
            Request::StopDirtyLog => machine.stop_dirty_log().map_err(failure).map(|()| Value::Null),
        }
    }

    pub(super) fn status(&self) -> Status {
        let machine = &self.machine;
        let devices: Vec<DeviceStatus> = machine
            .devices()
            .iter()
            .map(|device| DeviceStatus {
                id: device.id.clone(),
                kind: device.handle.kind().into(),
                slot: device.slot,
                files: device.handle.files(),
                counters: device.handle.counters(),
            })
            .collect();
        let counter = |kind: &str, name: &str| {
            devices.iter().find(|device| device.kind == kind).and_then(|device| device.counters.get(name).copied()).unwrap_or(0)
        };
        Status {
            name: machine.config().name.clone(),
            pid: std::process::id(),
            state: match machine.run_state() {
                RunState::Running => RunStatus::Running,
                RunState::Paused => RunStatus::Paused,
            },
            cpus: machine.config().cpus.count,
            memory: machine.config().memory.size,
            hotplug_memory: counter("memory", "plugged-bytes"),
            balloon: counter("balloon", "actual-bytes"),
            confined: self.confined,
            short_of_space: self.short_of_space.clone(),
            devices,
        }
    }

    fn pause(&mut self) {
        if self.machine.run_state() == RunState::Running {
            self.machine.pause();
            self.publish(EventKind::Paused);
        }
    }

    /// Writes the VM to a file. If that fails, it runs on as before.
    fn save(&mut self, token: u64, file: OwnedFd) -> Answer {
        let start = Instant::now();
        let was_running = self.machine.run_state() == RunState::Running;
        self.pause();
        let peer = self.clients.get(&token);
        let mut told = Instant::now();
        let progress = |done, total| {
            // Not more often than a person can see; a client that does not read misses it.
            if told.elapsed().as_millis() >= 100 {
                told = Instant::now();
                if let Some(peer) = peer {
                    let _ = peer.connection.send(&Message::Reply(Reply::Progress { done, total }), &[]);
                }
            }
        };
        let file = File::from(file);
        let written = self.machine.save(BufWriter::with_capacity(256 * 1024, &file), progress);
        let saved = written.map_err(failure).and_then(|(mut writer, bytes)| {
            writer.flush().and_then(|()| file.sync_all()).map_err(failure)?;
            Ok(bytes)
        });
        match saved {
            Ok(bytes) => to_value(&SavedReport { bytes, took_ms: start.elapsed().as_millis() as u64 }),
            Err(failure) => {
                if was_running {
                    self.machine.resume();
                    self.publish(EventKind::Running);
                }
                Err(failure)
            }
        }
    }
}

fn to_value(value: &impl serde::Serialize) -> Answer {
    serde_json::to_value(value).map_err(failure)
}

/// Refuses descriptors that are too many or too few.
fn counted(wanted: usize, fds: &[OwnedFd], what: &str) -> Result<(), Failure> {
    let found = fds.len();
    if found == wanted {
        Ok(())
    } else {
        Err(refuse(format!("{wanted} descriptors must come with the request, {what}; there are {found}")))
    }
}

fn take_fd(fds: &mut Vec<OwnedFd>, what: &str) -> Result<OwnedFd, Failure> {
    match fds.len() {
        1 => Ok(fds.remove(0)),
        count => Err(refuse(format!("exactly one descriptor must come with the request, {what}; there are {count}"))),
    }
}
