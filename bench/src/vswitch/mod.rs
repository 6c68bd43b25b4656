//! The virtual switch without a VM: the program, and front ends of our own at its ports.

mod front_end;
pub mod shares;

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use switch::control::{Backend, Client, DEFAULT_SWITCH, PortConfig, Request, Status};
use switch::links::Missing;
use switch::policy::PortPolicy;

pub use front_end::{FrontEnd, HEADER, RING, Way};

/// How long it may take to begin.
const PATIENCE: Duration = Duration::from_secs(10);

/// A switch that runs, with ports for VMs.
pub struct Switch {
    child: Child,
    client: Client,
    sockets: Vec<PathBuf>,
}

impl Switch {
    /// Starts one with ports of these policies, whose sockets are in `directory`. On a core of its own it polls all the time.
    ///
    /// # Errors
    /// When it does not start, or refuses a port.
    pub fn start(directory: &Path, core: Option<usize>, policies: &[PortPolicy]) -> Result<Switch> {
        let control = directory.join("control");
        let program = lab::appliance::program("maru-switch").context("maru-switch is missing: run `make build`")?;
        let mut command = match core {
            None => Command::new(program),
            Some(core) => {
                let mut command = Command::new("taskset");
                command.args(["-c", &core.to_string()]).arg(program).args(["--poll-us", "60000000"]);
                command
            }
        };
        let child = command.arg("--control").arg(&control).spawn().context("maru-switch")?;
        let begun = Instant::now();
        let client = loop {
            match Client::connect(&control) {
                Ok(client) => break client,
                Err(error) if begun.elapsed() > PATIENCE => return Err(error.into()),
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        };
        let mut switch = Switch { child, client, sockets: Vec::new() };
        for (number, policy) in policies.iter().enumerate() {
            let socket = directory.join(format!("port{number}"));
            let backend = Backend::VhostUser { socket: socket.clone(), mode: 0o600, queues: 1 };
            let port =
                PortConfig { name: format!("port{number}"), switch: DEFAULT_SWITCH.into(), backend, policy: policy.clone() };
            switch.client.call::<()>(&Request::AddPort { port, missing: Missing::Refused })?;
            switch.sockets.push(socket);
        }
        Ok(switch)
    }

    /// Gives it one more port, with another thing behind it than a VM.
    ///
    /// # Errors
    /// When it refuses that.
    pub fn add(&mut self, name: &str, backend: Backend) -> Result<()> {
        let policy = PortPolicy::default();
        let port = PortConfig { name: name.into(), switch: DEFAULT_SWITCH.into(), backend, policy };
        Ok(self.client.call::<()>(&Request::AddPort { port, missing: Missing::Refused })?)
    }

    /// Where its ports are.
    pub fn sockets(&self) -> &[PathBuf] {
        &self.sockets
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has counted until now.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn status(&mut self) -> Result<Status> {
        Ok(self.client.call(&Request::Status)?)
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
