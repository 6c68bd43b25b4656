//! What goes through a host's agent: programs, files, modules.

use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::error::{HostError, PowerState};
use super::machine::Host;
use crate::agent::{Client, Exec, Output, Process};

/// How long a connected agent may take to answer a hello.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);
/// How long [`Host::exec`] waits for a program.
const EXEC_LIMIT: Duration = Duration::from_secs(300);

impl Host {
    /// Runs a program in the host and waits for its end, 5 minutes at most; for other limits use [`Host::spawn`] and
    /// [`Process::wait_within`]. The end includes that of everything that has its output open.
    ///
    /// # Errors
    /// When the host cannot be reached or the time is over. A program that fails is no error: see [`Output::status`].
    pub fn exec<I: IntoIterator<Item: Into<String>>>(&self, argv: I) -> Result<Output, HostError> {
        let process = self.agent()?.spawn(Exec::new(argv));
        process.and_then(|process| process.wait_within(EXEC_LIMIT)).map_err(|error| self.agent_error(error))
    }

    /// Like [`Host::exec`], and the program finds this in its standard input, whether it reads it or not.
    ///
    /// # Errors
    /// As those of [`Host::exec`].
    pub fn exec_with<I: IntoIterator<Item: Into<String>>>(&self, argv: I, input: &[u8]) -> Result<Output, HostError> {
        let process = self.spawn(Exec::new(argv))?;
        // Why a program does not read it is in its output.
        let _ = process.write_stdin(input).and_then(|()| process.close_stdin());
        process.wait_within(EXEC_LIMIT).map_err(|error| self.agent_error(error))
    }

    /// Starts a program in the host. It is killed when the [`Process`] is dropped.
    ///
    /// # Errors
    /// When the host cannot be reached.
    pub fn spawn(&self, exec: Exec) -> Result<Process, HostError> {
        self.agent()?.spawn(exec).map_err(|error| self.agent_error(error))
    }

    /// Copies a file of this machine to the host.
    ///
    /// # Errors
    /// When either side cannot use its file.
    pub fn push(&self, local: &Path, path: &str) -> Result<(), HostError> {
        self.agent()?.push(local, path).map_err(|error| self.agent_error(error))
    }

    /// Copies a file of the host to this machine.
    ///
    /// # Errors
    /// When either side cannot use its file.
    pub fn pull(&self, path: &str, local: &Path) -> Result<(), HostError> {
        self.agent()?.pull(path, local).map_err(|error| self.agent_error(error))
    }

    /// Loads a kernel module of the appliance with what it needs.
    ///
    /// # Errors
    /// When the appliance lacks it or the kernel refuses it.
    pub fn load_module(&self, name: &str, parameters: &str) -> Result<(), HostError> {
        self.agent()?.load_module(name, parameters).map_err(|error| self.agent_error(error))
    }

    /// The session with the host's agent, made anew when the host was restarted.
    ///
    /// # Errors
    /// When the host is not running or its agent does not answer.
    pub fn agent(&self) -> Result<Arc<Client>, HostError> {
        if let Some(agent) = self.current_agent()? {
            return Ok(agent);
        }
        let _connecting = self.connecting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(agent) = self.current_agent()? {
            return Ok(agent);
        }
        // The old session must be closed first: the port has room for one.
        self.lock().drop_agent();
        let client = Client::connect(&self.spec.exec_socket(), ANSWER_LIMIT).map_err(|error| self.agent_error(error))?;
        let client = Arc::new(client);
        self.lock().agent = Some(client.clone());
        Ok(client)
    }

    fn current_agent(&self) -> Result<Option<Arc<Client>>, HostError> {
        let mut state = self.lock();
        match state.power_state() {
            PowerState::On => Ok(state.live_agent()),
            other => Err(self.wrong_state(other, "on")),
        }
    }
}
