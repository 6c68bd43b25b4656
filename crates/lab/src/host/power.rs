//! Power for a host: its QEMU, with all that this process does for it.

use std::fs::{self, File};
use std::io;
use std::process::Stdio;
use std::time::Instant;

use super::keeper;
use super::machine::State;
use super::resets::{self, Parts};
use super::share::Service;

/// Starts QEMU. The host must have no power.
pub(super) fn start(parts: &Parts, state: &mut State) -> io::Result<()> {
    let spec = &parts.spec;
    for socket in [spec.exec_socket(), spec.qmp_socket(), spec.events_socket()] {
        let _ = fs::remove_file(socket);
    }
    let plugs: Vec<_> = parts.cables.iter().map(|cable| cable.plug_in(spec.index)).collect::<Result<_, _>>()?;
    let log = File::options().create(true).append(true).open(spec.qemu_log())?;
    if let Some(directory) = &spec.shared_dir {
        state.shared = Some(Service::start(spec.shared_socket(), directory)?);
    }
    let mut command = spec.command(&plugs);
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let qemu = keeper::spawn(command, plugs)?;
    let process = qemu.id();
    state.qemu = Some(qemu);
    state.powered_on = Some(Instant::now());
    state.frozen = false;
    resets::watch(parts.clone(), process)
}
