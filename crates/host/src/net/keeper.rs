//! Keeping the switch as it is wanted: one thread, which is the only one that changes it.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde_json::Value;
use store::Transaction;
use switch::control::{Backend, Client, ClientError, DEFAULT_SWITCH, PortConfig, Request, Status, SwitchStatus};
use uuid::Uuid;

use super::process::{CGROUP, Files};
use super::wanted::{self, Config};
use super::{host_side, no_switch, port_name, port_of_switch, socket_directory};
use crate::records::{Cause, EventKind, EventRecord, NetRecord, Power, SwitchRecord};
use crate::state::{Records, State, StateError};
use crate::vm::ending::last_line;
use crate::vm::process::{self, Process};
use crate::vm::{self, Cgroups, Surroundings};

/// How long the switch may take to answer.
const ANSWER: Duration = Duration::from_secs(10);
/// How long it may take to listen after it was started.
const START: Duration = Duration::from_secs(10);
/// Between two tries to connect to one that has just been started.
const CONNECT_AGAIN: Duration = Duration::from_millis(5);
/// How long who needs ports waits for them.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two tries to do what was not possible: a NIC may be plugged in, the store may be writable again.
const AGAIN: Duration = Duration::from_secs(5);
/// A switch that lived shorter than this is not started anew at once.
const SHORT_LIFE: Duration = Duration::from_secs(10);
/// How long what the switch told is new enough.
const FRESH: Duration = Duration::from_secs(1);

/// The host's switches, for whoever needs them. A clone is the same.
#[derive(Clone)]
pub struct Network(Arc<Inner>);

struct Inner {
    program: Option<PathBuf>,
    run_directory: PathBuf,
    files: Files,
    cgroups: Cgroups,
    /// Whether the process is left unconfined.
    unconfined: bool,
    shared: Mutex<Shared>,
    changed: Condvar,
    told: Mutex<Option<(Instant, Arc<Status>)>>,
}

#[derive(Default)]
struct Shared {
    /// Network cards of VMs as they are to be while something is done to them, whatever the store says.
    holds: BTreeMap<u64, (Uuid, Vec<NetRecord>)>,
    next_hold: u64,
    /// How often someone wanted a look, and how many of these wishes were fulfilled.
    asked: u64,
    done: u64,
    outcome: Outcome,
}

/// What came of the last look.
#[derive(Clone, Debug, Default)]
struct Outcome {
    pid: Option<u32>,
    /// Why nothing works.
    error: Option<Cause>,
    /// Why single ports are not as they are to be, by their names.
    failed: BTreeMap<String, Cause>,
}

impl std::fmt::Debug for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Network").field("program", &self.0.program).finish_non_exhaustive()
    }
}

/// Network cards of a VM that have their ports as long as this is here.
pub struct Held(Option<(Network, u64)>);

impl Held {
    /// Nothing that needs a port.
    pub fn none() -> Held {
        Held(None)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some((network, hold)) = &self.0 {
            network.shared().holds.remove(hold);
            network.poke();
        }
    }
}

fn failed(message: impl Into<String>) -> Cause {
    Cause::new("switch", message, "see marud's log, and the log of the switch in marud's --run directory")
}

impl Network {
    /// The switches that this program is to be. Nothing is started before [`Network::keep`].
    pub fn new(program: Option<PathBuf>, run_directory: &Path, cgroups: &Cgroups, unconfined: bool) -> Network {
        Network(Arc::new(Inner {
            program,
            run_directory: run_directory.into(),
            files: Files::new(run_directory),
            cgroups: cgroups.clone(),
            unconfined,
            shared: Mutex::default(),
            changed: Condvar::new(),
            told: Mutex::default(),
        }))
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.0.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn told(&self) -> MutexGuard<'_, Option<(Instant, Arc<Status>)>> {
        self.0.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the switches as the store says, from now on.
    pub fn keep(&self, state: State, surroundings: Arc<Surroundings>) {
        let keeper = Keeper {
            network: self.clone(),
            state,
            surroundings,
            switch: None,
            applied: None,
            not_before: Instant::now(),
            delay: Duration::ZERO,
        };
        thread::spawn(move || keeper.run());
    }

    /// Something may have changed. Returns the wish, for who waits for it.
    pub fn poke(&self) -> u64 {
        let wish = {
            let mut shared = self.shared();
            shared.asked += 1;
            shared.asked
        };
        self.0.changed.notify_all();
        wish
    }

    /// Gives network cards of a VM their ports, whatever is stored of it, and waits for them. Blocks.
    pub fn hold(&self, vm: Uuid, nets: &[NetRecord]) -> Result<Held, Cause> {
        if !nets.iter().any(|net| net.switch().is_some()) {
            return Ok(Held::none());
        }
        let held = {
            let mut shared = self.shared();
            let hold = shared.next_hold;
            shared.next_hold += 1;
            shared.holds.insert(hold, (vm, nets.to_vec()));
            Held(Some((self.clone(), hold)))
        };
        let outcome = self.wait(self.poke())?;
        if let Some(error) = outcome.error {
            return Err(error);
        }
        let mut ports = nets.iter().filter(|net| net.switch().is_some()).map(|net| port_name(vm, &net.id));
        match ports.find_map(|port| outcome.failed.get(&port).cloned()) {
            Some(cause) => Err(cause),
            None => Ok(held),
        }
    }

    /// Waits until a wish is fulfilled.
    fn wait(&self, wish: u64) -> Result<Outcome, Cause> {
        let waited = self.0.changed.wait_timeout_while(self.shared(), PATIENCE, |shared| shared.done < wish);
        let (shared, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        match timeout.timed_out() {
            true => Err(failed(format!("the virtual switch was not set up within {} s", PATIENCE.as_secs()))),
            false => Ok(shared.outcome.clone()),
        }
    }

    /// Has the switches looked at now, and waits for that. Blocks.
    pub fn look(&self) -> Result<(), Cause> {
        self.wait(self.poke()).map(drop)
    }

    /// The process, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.shared().outcome.pid
    }

    /// Why nothing works, or why this port is not as it is to be.
    pub fn error(&self, port: Option<&str>) -> Option<Cause> {
        let shared = self.shared();
        shared.outcome.error.clone().or_else(|| shared.outcome.failed.get(port?).cloned())
    }

    /// A connection to the switch, by which it is asked. Blocks.
    pub fn connect(&self) -> Result<Client, ClientError> {
        let client = Client::connect(&self.0.files.control())?;
        client.set_patience(ANSWER)?;
        Ok(client)
    }

    /// Asks the switch. Blocks.
    pub fn ask<T: DeserializeOwned>(&self, request: &Request) -> Result<T, Cause> {
        let asked = self.connect().and_then(|mut client| client.call(request));
        asked.map_err(|error| failed(vmm::error_chain(&error)))
    }

    /// What the switch tells of its ports, a second old at most; nothing if it does not run. Blocks.
    pub fn status(&self) -> Option<Arc<Status>> {
        self.pid()?;
        let mut told = self.told();
        if let Some((_, status)) = told.as_ref().filter(|(at, _)| at.elapsed() < FRESH) {
            return Some(status.clone());
        }
        let status = Arc::new(self.ask::<Status>(&Request::Status).ok()?);
        *told = Some((Instant::now(), status.clone()));
        Some(status)
    }

    /// What passed the ports of a VM, with the monitor's names of counters, by network card; nothing if that is not known now. Blocks.
    pub fn counters(&self, vm: Uuid) -> Option<BTreeMap<String, BTreeMap<String, u64>>> {
        let status = self.status()?;
        let prefix = port_name(vm, "");
        let ports = status.ports.iter().filter_map(|port| Some((port.name.strip_prefix(&prefix)?, &port.counters)));
        let counters = ports.map(|(net, counters)| {
            // The switch receives what the guest sends.
            let names = [
                ("rx-packets", counters.tx_packets),
                ("rx-bytes", counters.tx_bytes),
                ("tx-packets", counters.rx_packets),
                ("tx-bytes", counters.rx_bytes),
            ];
            (net.to_owned(), names.map(|(name, value)| (name.to_owned(), value)).into())
        });
        Some(counters.collect())
    }
}

/// VMs that run, with their network cards on switches.
type Cards = BTreeMap<Uuid, Vec<NetRecord>>;

/// The switch, and the connection by which it is changed.
struct Running {
    process: Process,
    client: Option<Client>,
    since: Instant,
}

struct Keeper {
    network: Network,
    state: State,
    surroundings: Arc<Surroundings>,
    switch: Option<Running>,
    /// What it has, as far as all of it was possible.
    applied: Option<Wanted>,
    /// When it may be started next, and how long that was put off the last time.
    not_before: Instant,
    delay: Duration,
}

#[derive(PartialEq)]
struct Wanted {
    switches: Vec<SwitchRecord>,
    config: Config,
}

impl Keeper {
    fn run(mut self) {
        loop {
            let wish = self.network.shared().asked;
            let outcome = self.look();
            let is_well = outcome.error.is_none() && outcome.failed.is_empty();
            let mut shared = self.network.shared();
            tell_what_is_new(&shared.outcome, &outcome);
            shared.outcome = outcome;
            shared.done = wish;
            self.network.0.changed.notify_all();
            // A switch that has ended is started anew as soon as that may be; the rest is tried again from time to time.
            let again = match (&self.switch, is_well) {
                (_, true) => Duration::MAX,
                (None, false) => self.not_before.saturating_duration_since(Instant::now()).clamp(CONNECT_AGAIN, AGAIN),
                (Some(_), false) => AGAIN,
            };
            let waiting = |shared: &mut Shared| shared.asked == wish;
            if again == Duration::MAX {
                drop(self.network.0.changed.wait_while(shared, waiting));
            } else {
                drop(self.network.0.changed.wait_timeout_while(shared, again, waiting));
            }
        }
    }

    fn look(&mut self) -> Outcome {
        let mut outcome = Outcome::default();
        let done = self.notice_end().and_then(|()| self.make_as_wanted(&mut outcome));
        outcome.pid = self.switch.as_ref().map(|switch| switch.process.pid);
        outcome.error = done.err();
        outcome
    }

    /// What the store says, and what is being done to VMs.
    fn read(&self) -> Result<(Vec<SwitchRecord>, Cards), StateError> {
        let switches = self.state.all::<SwitchRecord>()?.into_iter().map(|stored| stored.record).collect();
        let vms = self.state.vms_here()?.into_iter().map(|stored| stored.record);
        let mut vms: BTreeMap<Uuid, Vec<NetRecord>> = vms.filter(|vm| vm.power == Power::On).map(|vm| (vm.id, vm.nets)).collect();
        for (vm, nets) in self.network.shared().holds.values() {
            let cards = vms.entry(*vm).or_default();
            cards.retain(|card| !nets.iter().any(|net| net.id == card.id));
            cards.extend(nets.iter().cloned());
        }
        vms.values_mut().for_each(|nets| nets.retain(|net| net.switch().is_some()));
        vms.retain(|_, nets| !nets.is_empty());
        Ok((switches, vms))
    }

    fn make_as_wanted(&mut self, outcome: &mut Outcome) -> Result<(), Cause> {
        let (switches, vms) = self.read().map_err(|error| failed(error.to_string()))?;
        for (vm, net) in vms.iter().flat_map(|(vm, nets)| nets.iter().map(move |net| (vm, net))) {
            if let Some((name, _)) = net.switch().filter(|(name, _)| !switches.iter().any(|switch| switch.name == *name)) {
                let cause = no_switch(name, switches.iter().map(|switch| switch.name.as_str()));
                outcome.failed.insert(port_name(*vm, &net.id), cause);
            }
        }
        if self.switch.is_none() {
            self.switch = self.find_or_start(!switches.is_empty())?;
        }
        if switches.is_empty() {
            return self.end();
        }
        let run_directory = self.network.0.run_directory.clone();
        for vm in vms.keys() {
            self.admit(*vm, &run_directory)?;
        }
        let vms: Vec<(Uuid, Vec<NetRecord>)> = vms.into_iter().collect();
        let config = Config::wanted(&switches, &vms, &run_directory);
        let wanted = Wanted { switches, config };
        if self.applied.as_ref() == Some(&wanted) {
            return Ok(());
        }
        self.applied = None;
        self.connect()?;
        let mut refused = self.apply(&wanted.config).map_err(|error| self.lost(&error))?;
        // What was told before is not so any more.
        *self.network.told() = None;
        set_up(&wanted.switches, &mut refused);
        outcome.failed.append(&mut refused);
        for directory in self.network.0.files.port_directories() {
            if !vms.iter().any(|(vm, _)| directory == socket_directory(&run_directory, *vm)) {
                // Its ports are gone. What stays is removed with the next one.
                let _ = fs::remove_dir_all(directory);
            }
        }
        if outcome.failed.is_empty() {
            self.applied = Some(wanted);
        }
        Ok(())
    }

    /// Makes the directory for a VM's sockets, in which its monitor finds them.
    fn admit(&self, vm: Uuid, run_directory: &Path) -> Result<(), Cause> {
        let monitor = vm::find(&self.surroundings, vm).ok().flatten().map(|process| process.pid);
        let directory = socket_directory(run_directory, vm);
        let made = self.network.0.files.admit(&directory, monitor);
        made.map_err(|error| failed(format!("{} cannot be made: {error}", directory.display())))
    }

    /// Asks for what is not as it is wanted; gives what is refused, by ports. Ports are in each other's way at times: what is refused is asked
    /// for again while there is progress.
    fn apply(&mut self, wanted: &Config) -> Result<BTreeMap<String, Cause>, ClientError> {
        let client = self.switch.as_mut().and_then(|running| running.client.as_mut()).ok_or(ClientError::Gone)?;
        let mut gone = Vec::new();
        let refused = loop {
            let now = ask_for_config(client)?;
            gone.extend(taps(&now).filter(|tap| !taps(wanted).any(|other| other == *tap)).map(String::from));
            let (mut refused, mut progress) = (BTreeMap::new(), false);
            for request in now.plan(wanted) {
                match client.call::<Value>(&request) {
                    Ok(_) => progress = true,
                    Err(ClientError::Refused(failure)) => {
                        let way_out = "do what it says; it is asked again every few seconds";
                        let cause = Cause::new("port", format!("the virtual switch refuses: {failure}"), way_out);
                        refused.insert(wanted::subject(&request).to_owned(), cause);
                    }
                    Err(error) => return Err(error),
                }
            }
            if refused.is_empty() || !progress {
                break refused;
            }
        };
        remove_interfaces(&gone);
        Ok(refused)
    }

    /// The connection is of no use any more. What has become of the process is seen with the next look.
    fn lost(&mut self, error: &ClientError) -> Cause {
        if let Some(running) = &mut self.switch {
            running.client = None;
        }
        failed(format!("the virtual switch cannot be asked: {}", vmm::error_chain(error)))
    }

    /// Whether the switch has ended: then it is told, and started anew.
    fn notice_end(&mut self) -> Result<(), Cause> {
        let Some(running) = self.switch.take_if(|running| running.process.has_ended()) else { return Ok(()) };
        self.applied = None;
        let words = last_line(&self.network.0.files.log(), "maru-switch: ").map(|words| format!(": {words}")).unwrap_or_default();
        self.delay = match running.since.elapsed() > SHORT_LIFE {
            true => Duration::ZERO,
            false => (self.delay * 2).clamp(Duration::from_millis(50), AGAIN),
        };
        self.not_before = Instant::now() + self.delay;
        let text = format!("the virtual switch, process {}, has ended, and is started again{words}", running.process.pid);
        reap(running.process);
        tracing::error!("{text}");
        let told = self.state.commit(&Transaction::new().tell(&EventRecord::now(EventKind::SwitchAlarm, text)));
        told.map(drop).map_err(|error| failed(error.to_string()))
    }

    /// The switch that runs, or a new one if one is needed.
    fn find_or_start(&mut self, needed: bool) -> Result<Option<Running>, Cause> {
        let Inner { files, cgroups, program, unconfined, .. } = &*self.network.0;
        let not_found = |error: io::Error| failed(format!("the virtual switch that runs cannot be found: {error}"));
        let process = match files.find().map_err(not_found)? {
            Some(process) => process,
            None if !needed => return Ok(None),
            None if Instant::now() < self.not_before => {
                return Err(failed("the virtual switch ended at once, and is about to be started again"));
            }
            None => {
                let program = program.as_ref().ok_or_else(|| {
                    let way_out = "install it there, or name it with marud's --switch";
                    Cause::new("no-switch-program", "there is no maru-switch beside marud or on PATH", way_out)
                })?;
                let spawned = files.spawn(program, cgroups, *unconfined);
                spawned.map_err(|error| failed(format!("{} cannot be started: {error}", program.display())))?
            }
        };
        tracing::info!("the virtual switch is process {}", process.pid);
        // Its end is looked at when it comes.
        let pidfd = process.pidfd.try_clone().map_err(|error| failed(error.to_string()))?;
        let network = self.network.clone();
        thread::spawn(move || {
            process::wait(&pidfd);
            network.poke();
        });
        Ok(Some(Running { process, client: None, since: Instant::now() }))
    }

    /// Connects to it, if that is not done. One that was just started may need a moment.
    fn connect(&mut self) -> Result<(), Cause> {
        let control = self.network.0.files.control();
        let Some(running) = self.switch.as_mut().filter(|running| running.client.is_none()) else { return Ok(()) };
        let deadline = running.since + START;
        let client = loop {
            match Client::connect(&control) {
                Ok(client) => break client,
                Err(error) if running.process.has_ended() || Instant::now() >= deadline => {
                    return Err(failed(format!("the virtual switch does not answer: {}", vmm::error_chain(&error))));
                }
                Err(_) => thread::sleep(CONNECT_AGAIN),
            }
        };
        client.set_patience(ANSWER).map_err(|error| failed(error.to_string()))?;
        running.client = Some(client);
        Ok(())
    }

    /// Nobody needs a switch.
    fn end(&mut self) -> Result<(), Cause> {
        let Some(Running { process, client, .. }) = self.switch.take() else { return Ok(()) };
        self.applied = None;
        let client = client.map_or_else(|| Client::connect(&self.network.0.files.control()), Ok);
        // One that does not answer is ended all the same.
        let config = client.and_then(|mut client| ask_for_config(&mut client)).unwrap_or_default();
        let wrong = |error: io::Error| failed(format!("the virtual switch that nobody needs stays: {error}"));
        process::kill(&process.pidfd).map_err(wrong)?;
        process::wait(&process.pidfd);
        reap(process);
        remove_interfaces(&taps(&config).map(String::from).collect::<Vec<_>>());
        self.network.0.cgroups.remove(CGROUP).map_err(wrong)?;
        self.network.0.files.remove().map_err(wrong)
    }
}

/// Asks for the exit status of a process that has ended, if it is a child of ours.
fn reap(process: Process) {
    if let Some(mut child) = process.child {
        // It is not waited for: it has ended.
        let _ = child.wait();
    }
}

/// What the switch has.
fn ask_for_config(client: &mut Client) -> Result<Config, ClientError> {
    let switches: Vec<SwitchStatus> = client.call(&Request::Switches)?;
    let ports: Vec<PortConfig> = client.call(&Request::Config)?;
    let added = switches.into_iter().filter(|switch| switch.name != DEFAULT_SWITCH);
    Ok(Config {
        switches: added.map(|switch| (switch.name, switch.kind)).collect(),
        ports: ports.into_iter().map(|port| (port.name.clone(), port)).collect(),
    })
}

/// The host's interfaces that are behind ports.
fn taps(config: &Config) -> impl Iterator<Item = &str> {
    config.ports.values().filter_map(|port| match &port.backend {
        Backend::Tap(name) => Some(name.as_str()),
        _ => None,
    })
}

fn remove_interfaces(interfaces: &[String]) {
    for interface in interfaces {
        if let Err(error) = host_side::remove_interface(interface) {
            tracing::warn!("the interface {interface} of a switch that is gone stays: {error}");
        }
    }
}

/// Sees to the host's side of switches whose ports are there.
fn set_up(switches: &[SwitchRecord], refused: &mut BTreeMap<String, Cause>) {
    for switch in switches {
        let port = port_of_switch(switch).filter(|port| !refused.contains_key(port));
        if let Some((port, Err(cause))) = port.map(|port| (port, host_side::set_up(&switch.kind))) {
            refused.insert(port, cause);
        }
    }
}

/// Says what was not known before: not every few seconds.
fn tell_what_is_new(before: &Outcome, now: &Outcome) {
    let said = |cause: &Cause| tracing::error!("{}; {}", cause.message, cause.way_out);
    now.error.iter().filter(|error| before.error.as_ref() != Some(error)).for_each(said);
    for (port, cause) in now.failed.iter().filter(|(port, cause)| before.failed.get(*port) != Some(cause)) {
        tracing::warn!("the port {port} is not as it is to be: {}", cause.message);
    }
}
