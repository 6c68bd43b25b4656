//! Devices that are plugged in: this process opens what they need with the user's own rights, and hands it over. A confined
//! monitor could not open anything any more.

use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;

use serde_json::Value;
use vmm::config::{DiskConfig, NetBackend, VmConfig};
use vmm::control::{Client, Request};

use super::ControlError;
use super::tap::open_tap;
use crate::options::{DiskOption, NetOption, default_mac};

/// Plugs a disk in.
pub fn add_disk(client: &mut Client, option: DiskOption) -> Result<(), ControlError> {
    let config: VmConfig = client.call(&Request::Config, &[])?;
    let disk = option.config(|| free_id(&config, "disk").0);
    let file = open_disk(&disk)?;
    client.call::<Value>(&Request::AddDisk { disk }, &[file.as_raw_fd()])?;
    Ok(())
}

/// Plugs a network card in.
pub fn add_net(client: &mut Client, option: NetOption) -> Result<(), ControlError> {
    let config: VmConfig = client.call(&Request::Config, &[])?;
    let (id, index) = free_id(&config, "net");
    let net = option.config(|| id, || default_mac(&config.name, index));
    match &net.backend {
        NetBackend::Tap(name) => {
            let queues = open_tap(name, net.queue_pairs)?;
            let fds: Vec<RawFd> = queues.iter().map(AsRawFd::as_raw_fd).collect();
            client.call::<Value>(&Request::AddNet { net }, &fds)?;
        }
        NetBackend::VhostUser(path) => {
            let failed = |source| ControlError::Switch { path: path.clone(), source };
            let socket = UnixStream::connect(path).map_err(failed)?;
            client.call::<Value>(&Request::AddNet { net }, &[socket.as_raw_fd()])?;
        }
    }
    Ok(())
}

/// The first name of the form `disk0`, `disk1`... that no device has, and its number.
fn free_id(config: &VmConfig, kind: &str) -> (String, usize) {
    let taken: Vec<&str> =
        config.disks.iter().map(|disk| disk.id.as_str()).chain(config.nets.iter().map(|net| net.id.as_str())).collect();
    let mut index = 0;
    loop {
        let id = format!("{kind}{index}");
        if !taken.contains(&id.as_str()) {
            return (id, index);
        }
        index += 1;
    }
}

fn open_disk(disk: &DiskConfig) -> Result<File, ControlError> {
    let failed = |source| ControlError::File { what: "cannot open the disk", path: disk.path.clone(), source };
    // Looked at before it is opened: opening a pipe would wait for its other end.
    let kind = fs::metadata(&disk.path).map_err(failed)?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(ControlError::NotADisk(disk.path.clone()));
    }
    let mut options = OpenOptions::new();
    let options = options.read(true).write(!disk.read_only).custom_flags(if disk.direct { libc::O_DIRECT } else { 0 });
    options.open(&disk.path).map_err(|error| match error.raw_os_error() {
        Some(libc::EINVAL) if disk.direct => ControlError::NoDirectIo(disk.path.clone()),
        _ => failed(error),
    })
}

#[cfg(test)]
#[path = "devices_tests.rs"]
mod tests;
