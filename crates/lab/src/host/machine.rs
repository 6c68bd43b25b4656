//! The host as its user sees it.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;

use super::error::{HostError, PowerState};
use super::qemu::HostSpec;
use super::resets::Parts;
use super::share::Service;
use super::{power, qmp};
use crate::agent::{AgentError, Client};
use crate::cable::Cable;

/// How long a host may take from power-on until its agent answers.
const START_LIMIT: Duration = Duration::from_secs(120);
/// How much of a log an error shows.
const TAIL_BYTES: u64 = 3000;

/// A virtual host.
#[derive(Debug)]
pub struct Host {
    pub(super) spec: HostSpec,
    cables: Vec<Arc<Cable>>,
    state: Arc<Mutex<State>>,
    /// Held while a session is made, because the port has room for one. Apart from the state, so that the power can be
    /// cut meanwhile.
    pub(super) connecting: Mutex<()>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) qemu: Option<Child>,
    pub(super) shared: Option<Service>,
    pub(super) agent: Option<Arc<Client>>,
    pub(super) frozen: bool,
    pub(super) powered_on: Option<Instant>,
}

impl Host {
    /// A host without power.
    pub fn new(spec: HostSpec, cables: Vec<Arc<Cable>>) -> Self {
        Host { spec, cables, state: Arc::default(), connecting: Mutex::default() }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// What it is made of.
    pub fn spec(&self) -> &HostSpec {
        &self.spec
    }

    /// Its address on cable net `cable`.
    pub fn address(&self, cable: usize) -> std::net::Ipv4Addr {
        self.spec.cable_address(cable)
    }

    /// What the power switch shows. A host that switched itself off is off.
    pub fn power_state(&self) -> PowerState {
        self.lock().power_state()
    }

    /// Gives it power and does not wait for it to start. Does nothing when it is on.
    ///
    /// # Errors
    /// When QEMU cannot be started.
    pub fn switch_on(&self) -> Result<(), HostError> {
        let mut state = self.lock();
        if state.power_state() != PowerState::Off {
            return Ok(());
        }
        self.start(&mut state)
    }

    fn start(&self, state: &mut State) -> Result<(), HostError> {
        let started = power::start(&self.parts(), state);
        started.map_err(|source| HostError::Start { host: self.spec.name.clone(), program: self.spec.qemu.clone(), source })
    }

    fn parts(&self) -> Parts {
        Parts { spec: self.spec.clone(), cables: self.cables.clone(), state: Arc::downgrade(&self.state) }
    }

    /// Waits until the host is up: its agent answers, and so does its `marud`, if it has one. Gives the time since power-on.
    ///
    /// # Errors
    /// When it does not come up in time, with the end of its console.
    pub fn wait_ready(&self) -> Result<Duration, HostError> {
        let time = self.wait_agent()?;
        if !self.spec.managed {
            return Ok(time);
        }
        let start = Instant::now();
        while !self.exec(["maru", "host", "show"])?.success() {
            if start.elapsed() > START_LIMIT {
                return Err(self.not_ready(START_LIMIT));
            }
        }
        Ok(time + start.elapsed())
    }

    fn wait_agent(&self) -> Result<Duration, HostError> {
        let start = Instant::now();
        let _connecting = self.connecting.lock().unwrap_or_else(PoisonError::into_inner);
        while start.elapsed() < START_LIMIT {
            {
                let mut state = self.lock();
                if let Some(status) = state.exit_status() {
                    let host = self.spec.name.clone();
                    return Err(HostError::Ended { host, status, qemu: tail(&self.spec.qemu_log()), serial: self.serial_tail() });
                }
                if state.qemu.is_none() {
                    return Err(self.wrong_state(PowerState::Off, "on"));
                }
                if state.live_agent().is_some() {
                    return Ok(state.powered_on.map_or(Duration::ZERO, |since| since.elapsed()));
                }
                state.drop_agent();
            }
            // QEMU makes the socket a moment after it starts; a hello waits in the port until the agent opens it.
            match Client::connect(&self.spec.exec_socket(), START_LIMIT.saturating_sub(start.elapsed())) {
                Ok(client) => {
                    let mut state = self.lock();
                    state.agent = Some(Arc::new(client));
                    return Ok(state.powered_on.map_or(Duration::ZERO, |since| since.elapsed()));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
        Err(self.not_ready(START_LIMIT))
    }

    /// Gives it power and waits until it is up. Gives the time since power-on.
    ///
    /// # Errors
    /// When it does not come up in time.
    pub fn power_on(&self) -> Result<Duration, HostError> {
        self.switch_on()?;
        self.wait_ready()
    }

    /// Takes its power away, at once and without warning.
    pub fn power_cut(&self) {
        self.lock().kill();
    }

    /// Presses the reset button. The host gets a new QEMU, as [one that resets itself](super::resets) does.
    ///
    /// # Errors
    /// When it has no power or QEMU cannot be started.
    pub fn reset(&self) -> Result<(), HostError> {
        self.need_on()?;
        let mut state = self.lock();
        state.kill();
        self.start(&mut state)
    }

    /// Asks the host to shut down in order and waits until it has.
    ///
    /// # Errors
    /// When it does not end within `limit`.
    pub fn shut_down(&self, limit: Duration) -> Result<(), HostError> {
        let start = Instant::now();
        match self.agent()?.power_off() {
            // It may be gone before it could answer.
            Ok(()) | Err(AgentError::Ended(_)) => {}
            Err(error) => return Err(self.agent_error(error)),
        }
        while self.power_state() != PowerState::Off {
            if start.elapsed() > limit {
                return Err(self.not_ready(limit));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Makes the host stand still while time goes on around it and on its own clocks, like a machine stuck in its
    /// firmware. It does not notice until it goes on.
    ///
    /// # Errors
    /// When it has no power.
    pub fn freeze(&self) -> Result<(), HostError> {
        self.set_frozen(true)
    }

    /// Lets a frozen host go on.
    ///
    /// # Errors
    /// When it has no power.
    pub fn thaw(&self) -> Result<(), HostError> {
        self.set_frozen(false)
    }

    /// Makes a TCP port of the host reachable at an address of this machine, which it gives. Ends with the power.
    ///
    /// # Errors
    /// When QEMU does not answer or has no free port.
    pub fn forward(&self, port: u16) -> Result<SocketAddr, HostError> {
        self.need_on()?;
        let failed = |source| HostError::Control { host: self.spec.name.clone(), source };
        let socket = self.spec.qmp_socket();
        qmp::human(&socket, &format!("hostfwd_add mgmt tcp:127.0.0.1:0-:{port}")).map_err(failed)?;
        let table = qmp::human(&socket, "info usernet").map_err(failed)?;
        forwarded_port(&table, port)
            .map(|local| SocketAddr::from(([127, 0, 0, 1], local)))
            .ok_or_else(|| failed(io::Error::other(format!("QEMU does not show the forwarded port:\n{table}"))))
    }

    /// Plugs the host's NIC on cable net `cable` in or out, which the host notices, unlike [`Cable::cut`].
    ///
    /// # Errors
    /// When it has no power or QEMU does not answer.
    pub fn set_carrier(&self, cable: usize, plugged_in: bool) -> Result<(), HostError> {
        self.need_on()?;
        self.control("set_link", json!({ "name": format!("cable{cable}"), "up": plugged_in })).map(|_| ())
    }

    /// Runs a QMP command of the host's QEMU.
    ///
    /// # Errors
    /// When QEMU does not answer or refuses.
    pub fn control(&self, command: &str, arguments: serde_json::Value) -> Result<serde_json::Value, HostError> {
        qmp::execute(&self.spec.qmp_socket(), command, arguments)
            .map_err(|source| HostError::Control { host: self.spec.name.clone(), source })
    }

    /// Where the host's console is logged; kept after the lab has ended.
    pub fn serial_log(&self) -> PathBuf {
        self.spec.serial_log()
    }

    /// The end of the console log.
    pub fn serial_tail(&self) -> String {
        tail(&self.spec.serial_log())
    }

    /// QEMU's process id while the host has power.
    pub fn process_id(&self) -> Option<u32> {
        let mut state = self.lock();
        (state.power_state() != PowerState::Off).then(|| state.qemu.as_ref().map(Child::id)).flatten()
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_frozen(&self, frozen: bool) -> Result<(), HostError> {
        let mut state = self.lock();
        if state.power_state() == PowerState::Off {
            return Err(self.wrong_state(PowerState::Off, "on"));
        }
        if let Some(qemu) = &state.qemu {
            let signal = if frozen { libc::SIGSTOP } else { libc::SIGCONT };
            // SAFETY: no pointers; the child has not been reaped, so the number is still its.
            unsafe { libc::kill(qemu.id() as libc::pid_t, signal) };
        }
        state.frozen = frozen;
        Ok(())
    }

    pub(super) fn need_on(&self) -> Result<(), HostError> {
        match self.power_state() {
            PowerState::On => Ok(()),
            state => Err(self.wrong_state(state, "on")),
        }
    }

    fn not_ready(&self, waited: Duration) -> HostError {
        let registers = qmp::human(&self.spec.qmp_socket(), "info registers -a").unwrap_or_else(|error| error.to_string());
        let addresses: Vec<&str> = registers.lines().filter(|line| line.starts_with("RIP")).collect();
        HostError::NotReady { host: self.spec.name.clone(), waited, processors: addresses.join("; "), serial: self.serial_tail() }
    }

    pub(super) fn wrong_state(&self, state: PowerState, needed: &'static str) -> HostError {
        HostError::State { host: self.spec.name.clone(), state, needed }
    }

    pub(super) fn agent_error(&self, source: AgentError) -> HostError {
        HostError::Agent { host: self.spec.name.clone(), source, serial: self.serial_tail() }
    }
}

impl State {
    pub(super) fn power_state(&mut self) -> PowerState {
        if self.exit_status().is_some() {
            self.kill();
        }
        match (&self.qemu, self.frozen) {
            (None, _) => PowerState::Off,
            (Some(_), true) => PowerState::Frozen,
            (Some(_), false) => PowerState::On,
        }
    }

    /// Whether this is the host's QEMU, and has not ended.
    pub(super) fn runs(&mut self, process: u32) -> bool {
        self.exit_status().is_none() && self.qemu.as_ref().is_some_and(|qemu| qemu.id() == process)
    }

    fn exit_status(&mut self) -> Option<String> {
        self.qemu.as_mut()?.try_wait().ok().flatten().map(|status| status.to_string())
    }

    pub(super) fn live_agent(&self) -> Option<Arc<Client>> {
        self.agent.clone().filter(|agent| agent.is_alive())
    }

    /// Ends the session, also for those who are using it.
    pub(super) fn drop_agent(&mut self) {
        if let Some(agent) = self.agent.take() {
            agent.close();
        }
    }

    pub(super) fn kill(&mut self) {
        self.drop_agent();
        self.frozen = false;
        self.powered_on = None;
        if let Some(mut qemu) = self.qemu.take() {
            let _ = qemu.kill();
            let _ = qemu.wait();
        }
        self.shared = None;
    }
}

impl Drop for State {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The last bytes of a log, whole lines.
fn tail(path: &Path) -> String {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let start = file.metadata()?.len().saturating_sub(TAIL_BYTES);
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    match read() {
        Ok(bytes) if bytes.is_empty() => "(nothing)".to_owned(),
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => format!("(cannot read {}: {error})", path.display()),
    }
}

/// Finds the newest forward to `port` in the table of `info usernet`:
/// `TCP[HOST_FORWARD]  13       127.0.0.1 40343       10.0.2.15    22     0     0`.
fn forwarded_port(table: &str, port: u16) -> Option<u16> {
    table.lines().filter(|line| line.trim_start().starts_with("TCP[HOST_FORWARD]")).find_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        (columns.get(5)?.parse() == Ok(port)).then(|| columns.get(3)?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_forwarded_port_is_read_from_the_table() {
        let table = "Hub -1 (mgmt):\n  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\n  \
                     TCP[HOST_FORWARD]  13       127.0.0.1 40343       10.0.2.15    22     0     0\n";
        assert_eq!(forwarded_port(table, 22), Some(40343));
        assert_eq!(forwarded_port(table, 23), None);
    }
}
