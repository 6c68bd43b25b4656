//! What hangs on a running monitor, beside its control socket: the console, and the guest's agent.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream as Socket;
use std::sync::Arc;

use serde::Deserialize;
use tokio::net::UnixStream;
use vmm::control::Request;

use super::super::console::Console;
use super::super::guest::Guest;
use super::super::monitor::{CallError, Monitor};
use super::{ANSWER, Actor};

/// What others than the actor use of a VM.
#[derive(Clone, Default)]
pub struct Links {
    /// Its console.
    pub console: Arc<Console>,
    /// What runs in it.
    pub guest: Arc<Guest>,
}

/// The answer to `guest-agent`.
#[derive(Deserialize)]
struct Port {
    open: bool,
}

impl Actor {
    /// Connects what there is to a monitor that was started or found. A VM without it is still a VM: what fails is only told.
    pub(super) async fn link(&mut self) {
        let name = self.vm.record.name.clone();
        let Some(machine) = &mut self.machine else { return };
        match link::<serde_json::Value>(&mut machine.monitor, &Request::Console).await {
            Ok((console, _)) => self.links.console.attach(console),
            Err(error) => tracing::warn!(vm = %name, "its console cannot be reached: {error}"),
        }
        if self.vm.record.guest_agent {
            match link::<Port>(&mut machine.monitor, &Request::GuestAgent).await {
                Ok((port, Port { open })) => self.links.guest.attach(port, open).await,
                Err(error) => tracing::warn!(vm = %name, "the port of its guest agent cannot be reached: {error}"),
            }
        }
    }
}

/// Gives the monitor one end of a connection, and keeps the other.
async fn link<T: serde::de::DeserializeOwned>(monitor: &mut Monitor, request: &Request) -> Result<(UnixStream, T), CallError> {
    let here = |error: io::Error| CallError::Unexpected(format!("no socket can be made: {error}"));
    let (ours, theirs) = Socket::pair().map_err(here)?;
    ours.set_nonblocking(true).map_err(here)?;
    let ours = UnixStream::from_std(ours).map_err(here)?;
    let answer = monitor.call_with(request, &[theirs.as_raw_fd()], ANSWER).await?;
    Ok((ours, answer))
}
