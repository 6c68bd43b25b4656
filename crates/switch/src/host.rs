//! The switch's ports by name, and what is behind them.

mod flows;
mod uplinks;
mod watching;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::control::{Backend, PortConfig, PortStatus, Request, StationStatus, Status, Stream, SwitchConfig, SwitchStatus};
use crate::links::{LinkError, Links, Missing};
use crate::pipeline::{ImportError, Imported, PortError, PortNumber, PortState, SwitchNumber};
use crate::policy::PortPolicy;
use crate::ports::fd::{FdPort, FdPortError};
use crate::ports::vhost_user::FrontDoor;
use crate::ports::virtio::VirtioPort;
use crate::switches::{SwitchError, Switches};
use crate::tables::Millis;
use crate::team::TeamStatus;
use crate::team::config::{TeamConfig, TeamError};
use crate::worker::{Device, Ended, Handle, Worker};

/// The most queue pairs of a port.
const MAX_PAIRS: u16 = 64;

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
    worker: Handle,
    switches: Switches,
    ports: BTreeMap<String, Entry>,
    /// Once there is an uplink.
    links: Option<Links>,
    state: Option<PathBuf>,
}

impl Host {
    /// A host whose ports are kept in a file, if one is given; those that it has now are added. A port that cannot be added is left
    /// out, with a word: the others must not wait for it.
    pub fn new(worker: Handle, state: Option<PathBuf>) -> io::Result<Host> {
        let mut host = Host { worker, switches: Switches::default(), ports: BTreeMap::new(), links: None, state: None };
        let kept = match state.as_deref().map(std::fs::read) {
            None => Kept::default(),
            Some(Err(error)) if error.kind() == io::ErrorKind::NotFound => Kept::default(),
            Some(bytes) => serde_json::from_slice::<Kept>(&bytes?)?,
        };
        for switch in kept.switches {
            host.switches.add(switch).map_err(io::Error::other)?;
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
            Request::AddSwitch { name, kind } => self.switches.add(SwitchConfig { name, kind }).map(|()| Value::Null)?,
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

    fn remove_switch(&mut self, name: &str) -> Result<(), HostError> {
        let ports = self.ports.values().filter(|entry| entry.config.switch == name).count();
        Ok(self.switches.remove(name, ports)?)
    }

    fn switches(&self) -> Result<Vec<SwitchStatus>, HostError> {
        let mut stations = BTreeMap::<u16, usize>::new();
        for station in self.worker.call(|worker| worker.switch.stations().copied().collect::<Vec<_>>())? {
            *stations.entry(station.domain.switch).or_default() += 1;
        }
        let status = |(number, config): (u16, &SwitchConfig)| SwitchStatus {
            ports: self.ports.values().filter(|entry| entry.config.switch == config.name).count(),
            stations: stations.get(&number).copied().unwrap_or(0),
            name: config.name.clone(),
            kind: config.kind,
        };
        Ok(self.switches.iter().map(status).collect())
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
        let switch = self.switches.admit(&config.switch, &config.backend)?;
        let policy = config.policy.clone();
        let number = match &config.backend {
            Backend::VhostUser { queues, .. } if !(1..=MAX_PAIRS).contains(queues) => return Err(HostError::Pairs(*queues)),
            Backend::VhostUser { .. } => self.attach(switch, policy, |_| Device::Virtio(VirtioPort::default()))?,
            Backend::Tap(name) => {
                let tap = FdPort::tap(name)?;
                self.attach(switch, policy, |_| Device::Fd(tap))?
            }
            Backend::Uplink(name) => self.add_team(switch, TeamConfig::single(name), policy, missing)?,
            Backend::Team(team) => self.add_team(switch, team.clone(), policy, missing)?,
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
        switch: SwitchNumber,
        policy: PortPolicy,
        make: impl FnOnce(Millis) -> Device + Send + 'static,
    ) -> Result<PortNumber, HostError> {
        self.worker.call(move |worker| -> Result<PortNumber, HostError> {
            let number = worker.switch.add_port_to(switch, policy)?;
            let device = make(worker.now());
            if let Device::Team(team) = &device {
                worker.switch.set_reflecting(number, team.is_reflecting());
            }
            worker.attach(number, device).map_err(HostError::Attach).inspect_err(|_| forget(worker, number))?;
            Ok(number)
        })?
    }

    fn set_policy(&mut self, name: &str, policy: PortPolicy) -> Result<(), HostError> {
        let worker = self.worker.clone();
        let entry = self.entry(name)?;
        let (number, new) = (entry.number, policy.clone());
        worker.call(move |worker| worker.switch.set_policy(number, new))??;
        entry.config.policy = policy;
        Ok(())
    }

    fn export(&mut self, name: &str) -> Result<PortState, HostError> {
        let number = self.entry(name)?.number;
        self.settle()?;
        let mut state = self.worker.call(move |worker| worker.switch.export_port(number))??;
        let mut next = Some(0);
        while let Some(from) = next {
            let part = move |worker: &mut Worker| worker.switch.export_connections(number, from, PLACES_AT_ONCE, worker.now());
            let (connections, more) = self.worker.call(part)?;
            state.connections.extend(connections);
            next = more;
        }
        Ok(state)
    }

    fn import(&mut self, name: &str, state: PortState) -> Result<Imported, HostError> {
        let number = self.entry(name)?.number;
        let (policy, connections) = (state.policy.clone(), state.connections.clone());
        let all_else = move |worker: &mut Worker| worker.switch.import_port(number, &state, worker.now());
        let mut imported = self.worker.call(all_else)??;
        self.entry(name)?.config.policy = policy;
        for part in connections.chunks(CONNECTIONS_AT_ONCE) {
            let connections = part.to_vec();
            let some = move |worker: &mut Worker| worker.switch.import_connections(number, &connections, worker.now());
            let standing = self.worker.call(some)??;
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
            links.lock().forget(number);
        }
        Ok(self.worker.call(move |worker| forget(worker, number))?)
    }

    fn status(&self) -> Result<Status, HostError> {
        let numbers: Vec<PortNumber> = self.ports.values().map(|entry| entry.number).collect();
        let (counts, teams, stations, connections, decisions, work) = self.worker.call(move |worker| {
            let teams: Vec<Option<TeamStatus>> = numbers.iter().map(|number| worker.team_status(*number)).collect();
            let switch = &worker.switch;
            let count = |number: &PortNumber| {
                let meters = switch.meters(*number)?.collect();
                Ok::<_, PortError>((switch.counters(*number)?.report(), meters))
            };
            let counts = numbers.iter().map(count).collect::<Result<Vec<_>, _>>();
            (counts, teams, switch.stations().count(), switch.connections(), switch.decisions(), worker.work())
        })?;
        let ports = self.ports.values().zip(counts?).zip(teams).map(|((entry, (counters, meters)), team)| PortStatus {
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
        });
        Ok(Status { pid: std::process::id(), stations, connections, decisions, work, ports: ports.collect() })
    }

    fn stations(&self) -> Result<Vec<StationStatus>, HostError> {
        let stations = self.worker.call(|worker| worker.switch.stations().copied().collect::<Vec<_>>())?;
        let ports: BTreeMap<PortNumber, &PortConfig> = self.ports.values().map(|entry| (entry.number, &entry.config)).collect();
        let known = stations.iter().filter_map(|station| {
            let PortConfig { name, switch, .. } = ports.get(&station.port)?;
            Some(StationStatus { mac: station.mac, vlan: station.domain.vlan, switch: switch.clone(), port: name.clone() })
        });
        Ok(known.collect())
    }
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use packet::Listener;

    use super::*;
    use crate::acl::Direction;
    use crate::control::{Client, ClientError, DEFAULT_SWITCH, SwitchKind, serve};
    use crate::pipeline::{ConnectionState, Limits, Switch};
    use crate::policy::Permission;

    pub(super) fn start(directory: &Path) -> Client {
        let (worker, _) = Worker::start(Switch::new(Limits::default()), Duration::ZERO).unwrap();
        let host = Host::new(worker, Some(directory.join("state"))).unwrap();
        let control = directory.join("control");
        let listener = Listener::bind(&control).unwrap();
        std::thread::spawn(move || serve(listener, host));
        Client::connect(&control).unwrap()
    }

    pub(super) fn port(directory: &Path, name: &str) -> PortConfig {
        let backend = Backend::VhostUser { socket: directory.join(name), mode: 0o600, queues: 1 };
        PortConfig { name: name.into(), switch: DEFAULT_SWITCH.into(), backend, policy: PortPolicy::default() }
    }

    #[test]
    fn ports_are_added_changed_kept_and_removed() {
        let directory = tempfile::tempdir().unwrap();
        let mut client = start(directory.path());
        for name in ["a", "b"] {
            client.call::<Value>(&Request::AddPort { port: port(directory.path(), name), missing: Missing::Refused }).unwrap();
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
    fn switches_are_kept_and_say_what_they_connect() {
        let directory = tempfile::tempdir().unwrap();
        let mut client = start(directory.path());
        let mut ask = |request: Request| match client.call::<Value>(&request) {
            Ok(value) => Ok(value),
            Err(ClientError::Refused(failure)) => Err(failure.message),
            Err(error) => panic!("{error}"),
        };
        let add = |name: &str, kind| Request::AddSwitch { name: name.into(), kind };
        ask(add("inner", SwitchKind::Private)).unwrap();
        ask(add("spare", SwitchKind::Internal)).unwrap();
        assert!(ask(add("inner", SwitchKind::External)).unwrap_err().contains("'inner' already"));
        let on = |switch: &str, backend| Request::AddPort {
            port: PortConfig { switch: switch.into(), backend, ..port(directory.path(), "a") },
            missing: Missing::Refused,
        };
        let vm = || port(directory.path(), "a").backend;
        assert!(ask(on("inner", Backend::Tap("t".into()))).unwrap_err().contains("private: its ports are VMs"));
        assert!(ask(on("spare", Backend::Uplink("e".into()))).unwrap_err().contains("internal: its ports are VMs and the host"));
        assert!(ask(on("other", vm())).unwrap_err().contains("no switch 'other'"));
        ask(on("inner", vm())).unwrap();
        let remove = |name: &str| Request::RemoveSwitch { name: name.into() };
        assert!(ask(remove("inner")).unwrap_err().contains("1 ports"));
        assert!(ask(remove(DEFAULT_SWITCH)).unwrap_err().contains("always there"));
        ask(remove("spare")).unwrap();
        let other = tempfile::tempdir().unwrap();
        std::fs::copy(directory.path().join("state"), other.path().join("state")).unwrap();
        std::fs::remove_file(directory.path().join("a")).unwrap();
        let switches: Vec<SwitchStatus> = start(other.path()).call(&Request::Switches).unwrap();
        let status = |name: &str, kind, ports| SwitchStatus { name: name.into(), kind, ports, stations: 0 };
        assert_eq!(switches, [status(DEFAULT_SWITCH, SwitchKind::External, 0), status("inner", SwitchKind::Private, 1)]);
    }

    #[test]
    fn a_ports_state_crosses_the_socket_however_long_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let mut client = start(directory.path());
        client.call::<Value>(&Request::AddPort { port: port(directory.path(), "a"), missing: Missing::Refused }).unwrap();
        let mut state: PortState = client.call(&Request::ExportPort { name: "a".into() }).unwrap();
        let rule = r#"{"effect": {"allow-stateful": {"idle-timeout-s": 60}}, "direction": "outbound", "weight": 1}"#;
        state.policy.extended_acl = vec![serde_json::from_str(rule).unwrap()];
        state.connections = (0..5000u16)
            .map(|number| ConnectionState {
                local: "10.0.0.1".parse().unwrap(),
                remote: "10.0.0.2".parse().unwrap(),
                protocol: 6,
                local_port: number,
                remote_port: 80,
                opened: Direction::Outbound,
                // One of them is over.
                idle_ms: if number == 0 { 60_001 } else { 30_000 },
                idle_timeout_ms: 60_000,
            })
            .collect();
        assert!(serde_json::to_vec(&state).unwrap().len() > 4 * packet::MAX_PACKET);
        let import = Request::ImportPort { name: "a".into(), state: Box::new(state.clone()) };
        let imported: Imported = client.call(&import).unwrap();
        assert_eq!((imported.connections, imported.connections_left_out), (4999, 1));
        let again: PortState = client.call(&Request::ExportPort { name: "a".into() }).unwrap();
        assert_eq!((again.policy, again.connections.len()), (state.policy.clone(), 4999));
        assert!(again.connections.iter().all(|one| (30_000..60_000).contains(&one.idle_ms)));
        let kept: Vec<PortConfig> = client.call(&Request::Config).unwrap();
        assert_eq!(kept[0].policy, state.policy);
    }

    #[test]
    fn refusals_say_why_and_change_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let mut client = start(directory.path());
        let a = port(directory.path(), "a");
        client.call::<Value>(&Request::AddPort { port: a.clone(), missing: Missing::Refused }).unwrap();
        let mut refused = |request: Request| match client.call::<Value>(&request) {
            Err(ClientError::Refused(failure)) => failure.message,
            other => panic!("{other:?}"),
        };
        assert!(refused(Request::AddPort { port: a.clone(), missing: Missing::Refused }).contains("'a' already"));
        assert!(refused(Request::RemovePort { name: "x".into() }).contains("no port 'x'"));
        let elsewhere = Backend::VhostUser { socket: directory.path().join("no/such/place"), mode: 0o600, queues: 1 };
        let lost = PortConfig { backend: elsewhere, ..port(directory.path(), "c") };
        assert!(refused(Request::AddPort { port: lost, missing: Missing::Refused }).contains("no/such/place"));
        let many = Backend::VhostUser { socket: directory.path().join("d"), mode: 0o600, queues: 65 };
        let many = PortConfig { backend: many, ..port(directory.path(), "d") };
        assert!(refused(Request::AddPort { port: many, missing: Missing::Refused }).contains("65"));
        let team = TeamConfig::single("eth0");
        assert!(refused(Request::SetTeam { name: "a".into(), team: team.clone() }).contains("'a' is no uplink"));
        assert!(refused(Request::SetTeam { name: "x".into(), team }).contains("no port 'x'"));
        assert_eq!(client.call::<Vec<PortConfig>>(&Request::Config).unwrap(), [a]);
    }
}
