//! The switch's ports by name, and what is behind them.

mod flows;
#[cfg(test)]
mod tests;
mod uplinks;
mod watching;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use flows::settle;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::control::{Backend, PortConfig, PortStatus, Request, StationStatus, Status, Stream, SwitchConfig, SwitchStatus, Work};
use crate::links::{LinkError, Links, Missing};
use crate::pipeline::{ImportError, Imported, Limits, PortError, PortNumber, PortState, SwitchNumber};
use crate::policy::PortPolicy;
use crate::ports::fd::{FdPort, FdPortError};
use crate::ports::vhost_user::FrontDoor;
use crate::ports::virtio::VirtioPort;
use crate::sandbox;
use crate::switches::{Named, SwitchError, Switches};
use crate::tables::Millis;
use crate::team::TeamStatus;
use crate::team::config::{TeamConfig, TeamError};
use crate::worker::{Device, Ended, Handle, Pool, Worker};

/// The most queue pairs of a port.
const MAX_PAIRS: u16 = 64;

/// Why a confined switch may not listen somewhere.
const OUTSIDE: &str = ": is it in a directory that --allow names or, without that, in the one of the control socket?";

/// So many places of a table are looked at before frames have their turn.
const PLACES_AT_ONCE: usize = 4096;
/// So many connections are imported before frames have their turn.
const CONNECTIONS_AT_ONCE: usize = 256;

/// Why a request was not done.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// A name that is there already, or none.
    #[error("there is a port '{0}' already: choose another name, or remove it first")]
    Exists(String),
    /// A name that nothing has.
    #[error("there is no port '{0}'")]
    NoPort(String),
    /// A port that is no uplink.
    #[error("the port '{0}' is no uplink: only those have NICs")]
    NoUplink(String),
    /// A name that is none.
    #[error("a port needs a name of 1 to 64 bytes")]
    Name,
    /// More pairs than there may be, or none.
    #[error("{0} queue pairs: a port has 1 to {MAX_PAIRS}")]
    Pairs(u16),
    /// The port or its policy.
    #[error(transparent)]
    Port(#[from] PortError),
    /// What another port knew.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// A text that is no frame.
    #[error("a frame is given as pairs of hexadecimal digits")]
    Hex,
    /// A frame that is shorter than what is given of it.
    #[error("a frame of {length} bytes, of which {given} are given")]
    FrameLength {
        /// What it should be.
        length: usize,
        /// What there is.
        given: usize,
    },
    /// No flow, or more than may be asked for.
    #[error("{count} flows: 1 to {most} can be asked for")]
    Flows {
        /// What was asked for.
        count: u64,
        /// The most.
        most: u64,
    },
    /// No frame, or more than may be asked for.
    #[error("{count} frames: 1 to {most} can be asked for")]
    Count {
        /// What was asked for.
        count: u64,
        /// The most.
        most: u64,
    },
    /// The switch.
    #[error(transparent)]
    Switch(#[from] SwitchError),
    /// The kernel's side.
    #[error(transparent)]
    Fd(#[from] FdPortError),
    /// The NICs of an uplink.
    #[error(transparent)]
    Team(#[from] TeamError),
    /// The same, as the kernel sees them.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The thread that hears of links.
    #[error("cannot hear of changes of the NICs' links")]
    Links(#[source] io::Error),
    /// The socket.
    #[error("cannot listen at {path}{hint}")]
    Socket {
        /// Where.
        path: PathBuf,
        /// What may help.
        hint: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Waiting for frames.
    #[error("cannot wait for the port's frames")]
    Attach(#[source] io::Error),
    /// The state file.
    #[error("cannot keep the ports in {path}: what was asked for is in effect until the switch ends")]
    Keep {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A worker that cannot be had.
    #[error("cannot start another thread for frames")]
    Worker(#[source] io::Error),
    /// A worker that is gone.
    #[error(transparent)]
    Ended(#[from] Ended),
}

struct Entry {
    worker: Handle,
    /// At the worker.
    number: PortNumber,
    config: PortConfig,
    door: Option<FrontDoor>,
}

/// The state file.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Kept {
    /// All but the default one.
    #[serde(default)]
    switches: Vec<SwitchConfig>,
    ports: Vec<PortConfig>,
}

/// What a client gets.
pub struct Answer {
    /// At once.
    pub value: Value,
    /// What sends it the rest.
    pub(crate) rest: Option<Stream>,
}

/// The owner of the ports.
pub struct Host {
    workers: Pool,
    switches: Switches,
    ports: BTreeMap<String, Entry>,
    /// Once there is an uplink.
    links: Option<Links>,
    state: Option<PathBuf>,
}

impl Host {
    /// A host whose ports are kept in a file, if one is given; those that it has now are added. A port that cannot be added is left
    /// out, with a word: the others must not wait for it.
    pub fn new(workers: Pool, state: Option<PathBuf>) -> io::Result<Host> {
        let mut host = Host { workers, switches: Switches::default(), ports: BTreeMap::new(), links: None, state: None };
        let kept = match state.as_deref().map(std::fs::read) {
            None => Kept::default(),
            Some(Err(error)) if error.kind() == io::ErrorKind::NotFound => Kept::default(),
            Some(bytes) => serde_json::from_slice::<Kept>(&bytes?)?,
        };
        for switch in kept.switches {
            host.switches.add(switch, host.workers.most()).map_err(io::Error::other)?;
        }
        for port in kept.ports {
            let name = port.name.clone();
            // NICs may come later than the switch when a machine starts.
            if let Err(error) = host.add(port, Missing::Awaited) {
                eprintln!("maru-switch: port '{name}' is left out: {}", crate::error_chain(&error));
            }
        }
        host.state = state;
        Ok(host)
    }

    /// Does what a client asks for.
    pub fn execute(&mut self, request: Request) -> Result<Answer, HostError> {
        let mut rest = None;
        let is_change = match &request {
            Request::Status | Request::Config | Request::Stations | Request::Switches | Request::ExportPort { .. } => false,
            Request::Trace { .. } | Request::TraceLive { .. } | Request::Capture { .. } => false,
            Request::Flows { .. } | Request::Rules { .. } => false,
            Request::AddSwitch { .. } | Request::RemoveSwitch { .. } => true,
            Request::AddPort { .. } | Request::SetPolicy { .. } | Request::ImportPort { .. } | Request::RemovePort { .. } => true,
            Request::SetTeam { .. } => true,
        };
        let value = match request {
            Request::Status => to_value(&self.status()?),
            Request::Config => to_value(&self.config()),
            Request::Stations => to_value(&self.stations()?),
            Request::Switches => to_value(&self.switches()?),
            Request::AddSwitch { name, kind } => self.add_switch(SwitchConfig { name, kind }).map(|()| Value::Null)?,
            Request::RemoveSwitch { name } => self.remove_switch(&name).map(|()| Value::Null)?,
            Request::AddPort { port, missing } => self.add(port, missing).map(|()| Value::Null)?,
            Request::SetTeam { name, team } => self.set_team(&name, team).map(|()| Value::Null)?,
            Request::SetPolicy { name, policy } => self.set_policy(&name, policy).map(|()| Value::Null)?,
            Request::ExportPort { name } => to_value(&self.export(&name)?),
            Request::ImportPort { name, state } => to_value(&self.import(&name, *state)?),
            Request::Trace { name, frame, length } => to_value(&self.trace(&name, &frame, length)?),
            Request::Flows { name, most } => to_value(&self.flows(name.as_deref(), most)?),
            Request::Rules { name } => to_value(&self.rules(&name)?),
            Request::TraceLive { name, count, filter } => {
                rest = Some(self.trace_live(&name, count, filter)?);
                Value::Null
            }
            Request::Capture { name, direction, count, snap_bytes } => {
                rest = Some(self.capture(&name, direction, count, snap_bytes)?);
                Value::Null
            }
            Request::RemovePort { name } => self.remove(&name).map(|()| Value::Null)?,
        };
        if is_change && let Some(path) = &self.state {
            keep(path, &self.kept()).map_err(|source| HostError::Keep { path: path.clone(), source })?;
        }
        Ok(Answer { value, rest })
    }

    fn config(&self) -> Vec<&PortConfig> {
        self.ports.values().map(|entry| &entry.config).collect()
    }

    fn kept(&self) -> Kept {
        Kept { switches: self.switches.added(), ports: self.config().into_iter().cloned().collect() }
    }

    fn add_switch(&mut self, config: SwitchConfig) -> Result<(), HostError> {
        Ok(self.switches.add(config, self.workers.most())?)
    }

    fn remove_switch(&mut self, name: &str) -> Result<(), HostError> {
        let ports = self.ports.values().filter(|entry| entry.config.switch == name).count();
        Ok(self.switches.remove(name, ports)?)
    }

    fn switches(&self) -> Result<Vec<SwitchStatus>, HostError> {
        let mut stations = BTreeMap::<u16, usize>::new();
        for worker in self.workers.started() {
            for station in worker.call(|worker| worker.switch.stations().copied().collect::<Vec<_>>())? {
                *stations.entry(station.domain.switch).or_default() += 1;
            }
        }
        let status = |(number, Named { config, worker }): (u16, &Named)| SwitchStatus {
            ports: self.ports.values().filter(|entry| entry.config.switch == config.name).count(),
            stations: stations.get(&number).copied().unwrap_or(0),
            name: config.name.clone(),
            kind: config.kind,
            worker: *worker,
        };
        Ok(self.switches.iter().map(status).collect())
    }

    /// The ports that a worker has.
    fn ports_of(&self, worker: &Handle) -> impl Iterator<Item = &Entry> {
        self.ports.values().filter(move |entry| entry.worker == *worker)
    }

    /// The worker that has a port, and its number there.
    fn place(&self, name: &str) -> Result<(Handle, PortNumber), HostError> {
        let entry = self.ports.get(name).ok_or_else(|| HostError::NoPort(name.into()))?;
        Ok((entry.worker.clone(), entry.number))
    }

    fn entry(&mut self, name: &str) -> Result<&mut Entry, HostError> {
        self.ports.get_mut(name).ok_or_else(|| HostError::NoPort(name.into()))
    }

    fn add(&mut self, config: PortConfig, missing: Missing) -> Result<(), HostError> {
        if !(1..=64).contains(&config.name.len()) {
            return Err(HostError::Name);
        }
        if self.ports.contains_key(&config.name) {
            return Err(HostError::Exists(config.name));
        }
        let most = Limits::default().ports;
        if self.ports.len() >= most {
            return Err(PortError::TooMany(most).into());
        }
        let (switch, worker) = self.switches.admit(&config.switch, &config.backend)?;
        let worker = self.workers.get(worker).map_err(HostError::Worker)?;
        let policy = config.policy.clone();
        let number = match &config.backend {
            Backend::VhostUser { queues, .. } if !(1..=MAX_PAIRS).contains(queues) => return Err(HostError::Pairs(*queues)),
            Backend::VhostUser { .. } => attach(&worker, switch, policy, |_| Device::Virtio(VirtioPort::default()))?,
            Backend::Tap(name) => {
                let tap = FdPort::tap(name)?;
                attach(&worker, switch, policy, |_| Device::Fd(tap))?
            }
            Backend::Uplink(name) => self.add_team(&worker, switch, TeamConfig::single(name), policy, missing)?,
            Backend::Team(team) => self.add_team(&worker, switch, team.clone(), policy, missing)?,
        };
        let door = match &config.backend {
            Backend::VhostUser { socket, mode, queues } => {
                match FrontDoor::open(socket, *mode, worker.clone(), number, *queues) {
                    Ok(door) => Some(door),
                    Err(source) => {
                        worker.call(move |worker| forget(worker, number))?;
                        let is_outside = source.kind() == io::ErrorKind::PermissionDenied && sandbox::is_confined();
                        let hint = if is_outside { OUTSIDE } else { "" };
                        return Err(HostError::Socket { path: socket.clone(), hint, source });
                    }
                }
            }
            Backend::Tap(_) | Backend::Uplink(_) | Backend::Team(_) => None,
        };
        self.ports.insert(config.name.clone(), Entry { worker, number, config, door });
        Ok(())
    }

    fn set_policy(&mut self, name: &str, policy: PortPolicy) -> Result<(), HostError> {
        let entry = self.entry(name)?;
        let (number, new) = (entry.number, policy.clone());
        entry.worker.call(move |worker| worker.switch.set_policy(number, new))??;
        entry.config.policy = policy;
        Ok(())
    }

    fn export(&self, name: &str) -> Result<PortState, HostError> {
        let (worker, number) = self.place(name)?;
        settle(&worker)?;
        let mut state = worker.call(move |worker| worker.switch.export_port(number))??;
        let mut next = Some(0);
        while let Some(from) = next {
            let part = move |worker: &mut Worker| worker.switch.export_connections(number, from, PLACES_AT_ONCE, worker.now());
            let (connections, more) = worker.call(part)?;
            state.connections.extend(connections);
            next = more;
        }
        Ok(state)
    }

    fn import(&mut self, name: &str, state: PortState) -> Result<Imported, HostError> {
        let (worker, number) = self.place(name)?;
        let (policy, connections) = (state.policy.clone(), state.connections.clone());
        let all_else = move |worker: &mut Worker| worker.switch.import_port(number, &state, worker.now());
        let mut imported = worker.call(all_else)??;
        self.entry(name)?.config.policy = policy;
        for part in connections.chunks(CONNECTIONS_AT_ONCE) {
            let connections = part.to_vec();
            let some = move |worker: &mut Worker| worker.switch.import_connections(number, &connections, worker.now());
            let standing = worker.call(some)??;
            imported.connections += standing;
            imported.connections_left_out += part.len() - standing;
        }
        Ok(imported)
    }

    fn remove(&mut self, name: &str) -> Result<(), HostError> {
        let entry = self.ports.remove(name).ok_or_else(|| HostError::NoPort(name.into()))?;
        // The front end first: its thread uses the port.
        drop(entry.door);
        let number = entry.number;
        if let Some(links) = &self.links {
            links.lock().forget(&entry.worker, number);
        }
        Ok(entry.worker.call(move |worker| forget(worker, number))?)
    }

    fn status(&self) -> Result<Status, HostError> {
        let (pid, confined) = (std::process::id(), sandbox::is_confined());
        let work = Work::default();
        let mut status = Status { pid, confined, stations: 0, connections: 0, decisions: 0, work, ports: Vec::new() };
        for worker in self.workers.started() {
            let numbers: Vec<PortNumber> = self.ports_of(worker).map(|entry| entry.number).collect();
            let (counts, teams, stations, connections, decisions, work) = worker.call(move |worker| {
                let teams: Vec<Option<TeamStatus>> = numbers.iter().map(|number| worker.team_status(*number)).collect();
                let switch = &worker.switch;
                let count = |number: &PortNumber| {
                    let meters = switch.meters(*number)?.collect();
                    Ok::<_, PortError>((switch.counters(*number)?.report(), meters))
                };
                let counts = numbers.iter().map(count).collect::<Result<Vec<_>, _>>();
                (counts, teams, switch.stations().count(), switch.connections(), switch.decisions(), worker.work())
            })?;
            status.stations += stations;
            status.connections += connections;
            status.decisions += decisions;
            status.work = status.work + work;
            let ports = self.ports_of(worker).zip(counts?).zip(teams);
            status.ports.extend(ports.map(|((entry, (counters, meters)), team)| PortStatus {
                name: entry.config.name.clone(),
                switch: entry.config.switch.clone(),
                backend: entry.config.backend.clone(),
                connected: match (&entry.door, &team) {
                    (Some(door), _) => door.is_connected(),
                    (None, Some(team)) => team.nics.iter().any(|nic| nic.is_active),
                    (None, None) => true,
                },
                counters,
                meters,
                team,
            }));
        }
        status.ports.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(status)
    }

    fn stations(&self) -> Result<Vec<StationStatus>, HostError> {
        let mut all = Vec::new();
        for worker in self.workers.started() {
            let stations = worker.call(|worker| worker.switch.stations().copied().collect::<Vec<_>>())?;
            let ports: BTreeMap<PortNumber, &PortConfig> =
                self.ports_of(worker).map(|entry| (entry.number, &entry.config)).collect();
            all.extend(stations.iter().filter_map(|station| {
                let PortConfig { name, switch, .. } = ports.get(&station.port)?;
                Some(StationStatus { mac: station.mac, vlan: station.domain.vlan, switch: switch.clone(), port: name.clone() })
            }));
        }
        Ok(all)
    }
}

/// Adds a port with what `make` puts behind it, at the worker's time.
fn attach(
    worker: &Handle,
    switch: SwitchNumber,
    policy: PortPolicy,
    make: impl FnOnce(Millis) -> Device + Send + 'static,
) -> Result<PortNumber, HostError> {
    worker.call(move |worker| -> Result<PortNumber, HostError> {
        let number = worker.switch.add_port_to(switch, policy)?;
        let device = make(worker.now());
        if let Device::Team(team) = &device {
            worker.switch.set_reflecting(number, team.is_reflecting());
        }
        worker.attach(number, device).map_err(HostError::Attach).inspect_err(|_| forget(worker, number))?;
        Ok(number)
    })?
}

fn forget(worker: &mut Worker, number: PortNumber) {
    drop(worker.detach(number));
    worker.watches.forget_port(number);
    // It is there: whoever asks has its number.
    let _ = worker.switch.remove_port(number);
}

fn to_value(value: &impl serde::Serialize) -> Value {
    // Plain structs with text keys: nothing in them can fail.
    serde_json::to_value(value).unwrap_or_default()
}

/// Replaces the file as a whole, so that it is never half of one.
fn keep(path: &Path, kept: &Kept) -> io::Result<()> {
    let next = path.with_extension("next");
    let mut file = File::create(&next)?;
    file.write_all(&serde_json::to_vec_pretty(kept)?)?;
    file.sync_all()?;
    std::fs::rename(next, path)
}
