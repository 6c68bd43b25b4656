//! Devices that are plugged in: this process opens what they need with the user's own rights, and hands it over. A confined
//! monitor could not open anything any more.

use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

use disk::Disk;
use serde_json::Value;
use vmm::config::{NetBackend, VmConfig};
use vmm::control::{Client, MAX_FDS, Request};
use vmm::tap::open_tap;

use super::ControlError;
use crate::options::{DiskOption, NetOption, default_mac};

/// Plugs a disk in.
pub fn add_disk(client: &mut Client, option: DiskOption) -> Result<(), ControlError> {
    let config: VmConfig = client.call(&Request::Config, &[])?;
    let disk = option.config(|| free_id(&config, "disk").0);
    let (names, files): (Vec<_>, Vec<_>) = Disk::open_files(&disk.path, disk.open_options())?.into_iter().unzip();
    if files.len() > MAX_FDS {
        return Err(ControlError::ChainTooLong { path: disk.path, files: files.len() });
    }
    let fds: Vec<RawFd> = files.iter().map(AsRawFd::as_raw_fd).collect();
    let parents = names.into_iter().skip(1).collect();
    client.call::<Value>(&Request::AddDisk { disk, parents }, &fds)?;
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

#[cfg(test)]
#[path = "devices_tests.rs"]
mod tests;
