//! The switch's ports by name, and what is behind them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::control::{Backend, PortConfig, PortStatus, Request, StationStatus, Status};
use crate::pipeline::{PortError, PortNumber};
use crate::policy::PortPolicy;
use crate::links::{LinkError, Links, Missing};
use crate::ports::fd::{FdPort, FdPortError};
use crate::ports::vhost_user::FrontDoor;
use crate::ports::virtio::VirtioPort;
use crate::tables::Millis;
use crate::team::config::{TeamConfig, TeamError};
use crate::team::{Team, TeamStatus};
use crate::worker::{Device, Ended, Handle, Worker};

/// The most queue pairs of a port.
const MAX_PAIRS: u16 = 64;

/// Why a request was not done.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// A name that is there already, or none.
    #[error("there is a port '{0}' already: choose another name, or remove it first")]
    Exists(String),
    /// A name that nothing has.
    #[error("there is no port '{0}'")]
    NoPort(String),
    /// A name that is none.
    #[error("a port needs a name of 1 to 64 bytes")]
    Name,
    /// More pairs than there may be, or none.
    #[error("{0} queue pairs: a port has 1 to {MAX_PAIRS}")]
    Pairs(u16),
    /// The port or its policy.
    #[error(transparent)]
    Port(#[from] PortError),
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
    #[error("cannot listen at {path}")]
    Socket {
        /// Where.
        path: PathBuf,
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
    /// The worker.
    #[error(transparent)]
    Ended(#[from] Ended),
}

struct Entry {
    number: PortNumber,
    config: PortConfig,
    door: Option<FrontDoor>,
}

/// The owner of the ports.
pub struct Host {
    worker: Handle,
    ports: BTreeMap<String, Entry>,
    /// Once there is an uplink.
    links: Option<Links>,
    state: Option<PathBuf>,
}

impl Host {
    /// A host whose ports are kept in a file, if one is given; those that it has now are added. A port that cannot be added is left
    /// out, with a word: the others must not wait for it.
    pub fn new(worker: Handle, state: Option<PathBuf>) -> io::Result<Host> {
        let mut host = Host { worker, ports: BTreeMap::new(), links: None, state: None };
        let kept = match state.as_deref().map(std::fs::read) {
            None => Vec::new(),
            Some(Err(error)) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Some(bytes) => serde_json::from_slice::<Vec<PortConfig>>(&bytes?)?,
        };
        for port in kept {
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
    pub fn execute(&mut self, request: Request) -> Result<Value, HostError> {
        let is_change = match &request {
            Request::Status | Request::Config | Request::Stations => false,
            Request::AddPort { .. } | Request::SetPolicy { .. } | Request::RemovePort { .. } => true,
        };
        let value = match request {
            Request::Status => to_value(&self.status()?),
            Request::Config => to_value(&self.config()),
            Request::Stations => to_value(&self.stations()?),
            Request::AddPort { port } => self.add(port, Missing::Refused).map(|()| Value::Null)?,
            Request::SetPolicy { name, policy } => self.set_policy(&name, policy).map(|()| Value::Null)?,
            Request::RemovePort { name } => self.remove(&name).map(|()| Value::Null)?,
        };
        if is_change && let Some(path) = &self.state {
            keep(path, &self.config()).map_err(|source| HostError::Keep { path: path.clone(), source })?;
        }
        Ok(value)
    }

    fn config(&self) -> Vec<&PortConfig> {
        self.ports.values().map(|entry| &entry.config).collect()
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
        let policy = config.policy.clone();
        let number = match &config.backend {
            Backend::VhostUser { queues, .. } if !(1..=MAX_PAIRS).contains(queues) => return Err(HostError::Pairs(*queues)),
            Backend::VhostUser { .. } => self.attach(policy, |_| Device::Virtio(VirtioPort::default()))?,
            Backend::Tap(name) => {
                let tap = FdPort::tap(name)?;
                self.attach(policy, |_| Device::Fd(tap))?
            }
            Backend::Uplink(name) => self.add_team(TeamConfig::single(name), policy, missing)?,
            Backend::Team(team) => self.add_team(team.clone(), policy, missing)?,
        };
        let door = match &config.backend {
            Backend::VhostUser { socket, mode, queues } => {
                match FrontDoor::open(socket, *mode, self.worker.clone(), number, *queues) {
                    Ok(door) => Some(door),
                    Err(source) => {
                        self.worker.call(move |worker| forget(worker, number))?;
                        return Err(HostError::Socket { path: socket.clone(), source });
                    }
                }
            }
            Backend::Tap(_) | Backend::Uplink(_) | Backend::Team(_) => None,
        };
        self.ports.insert(config.name.clone(), Entry { number, config, door });
        Ok(())
    }

    /// Adds a port with what `make` puts behind it, at the worker's time.
    fn attach(
        &self,
        policy: PortPolicy,
        make: impl FnOnce(Millis) -> Device + Send + 'static,
    ) -> Result<PortNumber, HostError> {
        self.worker.call(move |worker| -> Result<PortNumber, HostError> {
            let number = worker.switch.add_port(policy)?;
            let device = make(worker.now());
            if let Device::Team(team) = &device {
                worker.switch.set_reflecting(number, team.is_reflecting());
            }
            worker.attach(number, device).map_err(HostError::Attach).inspect_err(|_| forget(worker, number))?;
            Ok(number)
        })?
    }

    fn add_team(&mut self, team: TeamConfig, policy: PortPolicy, missing: Missing) -> Result<PortNumber, HostError> {
        team.check()?;
        for (port, entry) in &self.ports {
            if let Some(nic) = team.nics.iter().find(|nic| entry.config.backend.nics().contains(nic)) {
                return Err(TeamError::Used { nic: nic.clone(), port: port.clone() }.into());
            }
        }
        if self.links.is_none() {
            self.links = Some(Links::start(self.worker.clone()).map_err(HostError::Links)?);
        }
        let Some(links) = &self.links else { return Err(Ended.into()) };
        // Until all is in place no change of a link comes in between.
        let mut registry = links.lock();
        let (opened, nics) = registry.open(&team.nics, missing)?;
        let number = self.attach(policy, move |now| Device::Team(Box::new(Team::new(&team, nics, now))))?;
        registry.watch(number, opened);
        Ok(number)
    }

    fn set_policy(&mut self, name: &str, policy: PortPolicy) -> Result<(), HostError> {
        let worker = self.worker.clone();
        let entry = self.entry(name)?;
        let (number, new) = (entry.number, policy.clone());
        worker.call(move |worker| worker.switch.set_policy(number, new))??;
        entry.config.policy = policy;
        Ok(())
    }

    fn remove(&mut self, name: &str) -> Result<(), HostError> {
        let entry = self.ports.remove(name).ok_or_else(|| HostError::NoPort(name.into()))?;
        // The front end first: its thread uses the port.
        drop(entry.door);
        let number = entry.number;
        if let Some(links) = &self.links {
            links.lock().forget(number);
        }
        Ok(self.worker.call(move |worker| forget(worker, number))?)
    }

    fn status(&self) -> Result<Status, HostError> {
        let numbers: Vec<PortNumber> = self.ports.values().map(|entry| entry.number).collect();
        let (counts, teams, stations, connections, decisions) = self.worker.call(move |worker| {
            let teams: Vec<Option<TeamStatus>> = numbers.iter().map(|number| worker.team_status(*number)).collect();
            let switch = &worker.switch;
            let count = |number: &PortNumber| {
                let meters = switch.meters(*number)?.collect();
                Ok::<_, PortError>((switch.counters(*number)?.report(), meters))
            };
            let counts = numbers.iter().map(count).collect::<Result<Vec<_>, _>>();
            (counts, teams, switch.stations().count(), switch.connections(), switch.decisions())
        })?;
        let ports = self.ports.values().zip(counts?).zip(teams).map(|((entry, (counters, meters)), team)| PortStatus {
            name: entry.config.name.clone(),
            backend: entry.config.backend.clone(),
            connected: match (&entry.door, &team) {
                (Some(door), _) => door.is_connected(),
                (None, Some(team)) => team.nics.iter().any(|nic| nic.is_active),
                (None, None) => true,
            },
            counters,
            meters,
            team,
        });
        Ok(Status { pid: std::process::id(), stations, connections, decisions, ports: ports.collect() })
    }

    fn stations(&self) -> Result<Vec<StationStatus>, HostError> {
        let stations = self.worker.call(|worker| worker.switch.stations().copied().collect::<Vec<_>>())?;
        let name =
            |port: PortNumber| self.ports.values().find(|entry| entry.number == port).map(|entry| entry.config.name.clone());
        let known = stations
            .iter()
            .filter_map(|station| Some(StationStatus { mac: station.mac, vlan: station.vlan, port: name(station.port)? }));
        Ok(known.collect())
    }
}

fn forget(worker: &mut Worker, number: PortNumber) {
    drop(worker.detach(number));
    // It is there: whoever asks has its number.
    let _ = worker.switch.remove_port(number);
}

fn to_value(value: &impl serde::Serialize) -> Value {
    // Plain structs with text keys: nothing in them can fail.
    serde_json::to_value(value).unwrap_or_default()
}

/// Replaces the file as a whole, so that it is never half of one.
fn keep(path: &Path, ports: &[&PortConfig]) -> io::Result<()> {
    let next = path.with_extension("next");
    let mut file = File::create(&next)?;
    file.write_all(&serde_json::to_vec_pretty(ports)?)?;
    file.sync_all()?;
    std::fs::rename(next, path)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use packet::Listener;

    use super::*;
    use crate::control::{Client, ClientError, serve};
    use crate::pipeline::{Limits, Switch};
    use crate::policy::Permission;

    fn start(directory: &Path) -> Client {
        let (worker, _) = Worker::start(Switch::new(Limits::default()), Duration::ZERO).unwrap();
        let host = Host::new(worker, Some(directory.join("state"))).unwrap();
        let control = directory.join("control");
        let listener = Listener::bind(&control).unwrap();
        std::thread::spawn(move || serve(listener, host));
        Client::connect(&control).unwrap()
    }

    fn port(directory: &Path, name: &str) -> PortConfig {
        let backend = Backend::VhostUser { socket: directory.join(name), mode: 0o600, queues: 1 };
        PortConfig { name: name.into(), backend, policy: PortPolicy::default() }
    }

    #[test]
    fn ports_are_added_changed_kept_and_removed() {
        let directory = tempfile::tempdir().unwrap();
        let mut client = start(directory.path());
        for name in ["a", "b"] {
            client.call::<Value>(&Request::AddPort { port: port(directory.path(), name) }).unwrap();
        }
        let policy = PortPolicy { router: Permission::Deny, ..PortPolicy::default() };
        client.call::<Value>(&Request::SetPolicy { name: "a".into(), policy: policy.clone() }).unwrap();
        client.call::<Value>(&Request::RemovePort { name: "b".into() }).unwrap();
        assert!(!directory.path().join("b").exists());
        let status: Status = client.call(&Request::Status).unwrap();
        assert_eq!(status.ports.iter().map(|port| (port.name.as_str(), port.connected)).collect::<Vec<_>>(), [("a", false)]);
        // Another switch with the same file, as after a crash.
        let other = tempfile::tempdir().unwrap();
        std::fs::copy(directory.path().join("state"), other.path().join("state")).unwrap();
        std::fs::remove_file(directory.path().join("a")).unwrap();
        let kept: Vec<PortConfig> = start(other.path()).call(&Request::Config).unwrap();
        assert_eq!(kept, [PortConfig { policy, ..port(directory.path(), "a") }]);
    }

    #[test]
    fn refusals_say_why_and_change_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let mut client = start(directory.path());
        let a = port(directory.path(), "a");
        client.call::<Value>(&Request::AddPort { port: a.clone() }).unwrap();
        let mut refused = |request: Request| match client.call::<Value>(&request) {
            Err(ClientError::Refused(failure)) => failure.message,
            other => panic!("{other:?}"),
        };
        assert!(refused(Request::AddPort { port: a.clone() }).contains("'a' already"));
        assert!(refused(Request::RemovePort { name: "x".into() }).contains("no port 'x'"));
        let elsewhere = Backend::VhostUser { socket: directory.path().join("no/such/place"), mode: 0o600, queues: 1 };
        let lost = PortConfig { backend: elsewhere, ..port(directory.path(), "c") };
        assert!(refused(Request::AddPort { port: lost }).contains("no/such/place"));
        let many = Backend::VhostUser { socket: directory.path().join("d"), mode: 0o600, queues: 65 };
        assert!(refused(Request::AddPort { port: PortConfig { backend: many, ..port(directory.path(), "d") } }).contains("65"));
        assert_eq!(client.call::<Vec<PortConfig>>(&Request::Config).unwrap(), [a]);
    }
}
