//! The thread that owns the [`Node`]: tells it what happens, and has done what it says.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cluster::node::renewal;
use cluster::records::{AliveRecord, Fencing, HostRecord, alive_key, host_key};
use cluster::view::{PREFIXES, is_known};
use cluster::{Action, Answer, Config, Event, Guarded, Node};
use store::record::to_bytes;
use store::{EtcdStore, LeaseId, Leases, Outcome, Replica, Revision, Store, StoreError, Transaction};
use tokio::runtime::Handle;

use super::beat::Beats;
use super::guard::{Guard, held, let_go, now};
use super::machines::{self, Found, Machines};
use super::{Input, Shared, notices, placements};
use crate::host::Host;
use crate::state::StateError;

/// Between two tries to read the store, when it does not answer.
const READ_AGAIN: Duration = Duration::from_millis(300);
/// How often it is looked what this host has, and which volumes it reaches.
const LOOK: Duration = Duration::from_secs(5);
/// How often it is looked what VMs take of its volumes, in times of that: each time, all of them are looked at.
const MEASURE: usize = 6;
/// How often the node is told the time of the day.
const WALL_CLOCK: Duration = Duration::from_secs(60);

/// What the runtime is made of.
pub struct Parts {
    /// The VMs.
    pub host: Arc<Host>,
    /// The store, and its copy.
    pub replica: Arc<Replica<EtcdStore>>,
    /// Ends VMs in time; none where there are no control groups.
    pub guard: Option<Guard>,
    /// This host's name.
    pub name: String,
    /// What the kernel calls this start of it, if that is known.
    pub boot_id: Option<String>,
    /// Its addresses: one for each network.
    pub addresses: Vec<IpAddr>,
    /// Where its API is, and where it hears heartbeats.
    pub port: u16,
    /// What hosts of this cluster share, for heartbeats.
    pub secret: Vec<u8>,
    /// Whether it only keeps the store, and runs no VMs.
    pub witness: bool,
    /// The lease under which VMs run, if the guard does not know one: this host has just become a cluster.
    pub held: Option<Guarded>,
}

/// The running part of the cluster on this host.
pub struct Runtime {
    shared: Arc<Shared>,
}

/// Why it cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The sockets for heartbeats.
    #[error("heartbeats cannot be heard at {addresses} port {port}")]
    Beats {
        /// The addresses.
        addresses: String,
        /// The port.
        port: u16,
        /// Why not.
        source: std::io::Error,
    },
    /// The thread that owns the node.
    #[error("the thread for the cluster's decisions cannot be started")]
    Thread(#[source] std::io::Error),
    /// What is stored.
    #[error(transparent)]
    State(#[from] StateError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Runtime {
    /// Begins. VMs that run are this host's until the store says something else, or the lease is over.
    pub fn start(parts: Parts) -> Result<Runtime, RuntimeError> {
        let Parts { host, replica, mut guard, name, boot_id, addresses, port, secret, witness, held: handed_over } = parts;
        let (inputs, receiver) = channel();
        let config = Config::new(name.as_str().into());
        let shared = Arc::new(Shared { config: config.clone(), boot_id, host: host.clone(), replica, inputs });
        let heard = shared.clone();
        let told = move |from, network, beat| heard.tell(Event::Heartbeat { from, network, beat });
        let beats = Beats::begin(config.host.clone(), &secret, &addresses, port, told).map_err(|source| {
            let addresses = addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            RuntimeError::Beats { addresses, port, source }
        })?;
        let status = guard
            .as_mut()
            .and_then(|guard| guard.status().inspect_err(|error| tracing::error!("{}", vmm::error_chain(error))).ok());
        let fencing = match &status {
            Some(status) if status.watchdog_ms.is_some() => Fencing::Watchdog,
            _ => Fencing::Manual,
        };
        let Found { running, bound, ended } = machines::found(&host)?;
        let locals = running.iter().chain(ended.iter().map(|(vm, _)| vm)).cloned().collect();
        let node = Node::new(config, now(), status.as_ref().and_then(held).or(handed_over), locals, bound);
        let mut machines = Machines::new(shared.clone(), Handle::current());
        running.iter().for_each(|vm| machines.follow(vm));
        for (vm, ending) in ended {
            shared.tell(Event::VmEnded { vm, ending });
        }
        let cpu_features = match witness {
            true => BTreeSet::new(),
            false => vmm::machine::cpu_features().unwrap_or_else(|error| {
                tracing::warn!("VMs can be promised nothing of the processors of this host: {}", vmm::error_chain(&error));
                BTreeSet::new()
            }),
        };
        let own = Own { addresses: addresses.iter().map(ToString::to_string).collect(), port, fencing, witness, cpu_features };
        let refresher = shared.clone();
        std::thread::spawn(move || refresh(&refresher, &own));
        shared.host.watch_copies();
        let revision = shared.replica.revision()?;
        let mut watch = shared.replica.watch("", revision)?;
        let watching = shared.clone();
        std::thread::spawn(move || {
            while let Some((revision, changes)) = watch.next_transaction() {
                watching.tell_changes(revision, changes);
            }
        });
        let driver = Driver { node, shared: shared.clone(), machines, guard, beats, runtime: Handle::current(), port };
        let drive = move || {
            store::go_first();
            driver.run(&receiver);
        };
        std::thread::Builder::new().name("cluster".into()).spawn(drive).map_err(RuntimeError::Thread)?;
        Ok(Runtime { shared })
    }

    /// Asks the node something; nothing if the program ends. Blocks.
    pub fn ask<T: Send + 'static>(&self, question: impl FnOnce(&Node) -> T + Send + 'static) -> Option<T> {
        let (sender, answer) = channel();
        let ask = Box::new(move |node: &Node| drop(sender.send(question(node))));
        self.shared.inputs.send(Input::Ask(ask)).ok()?;
        answer.recv().ok()
    }

    /// What the kernel calls this start of the host, if that is known.
    pub fn boot_id(&self) -> Option<String> {
        self.shared.boot_id.clone()
    }

    /// `marud` ends. A host that is about to be switched off, and runs no VM, needs no guard: the watchdog behind it would reset the host
    /// while that ends. Blocks.
    pub fn end(&self) {
        if self.ask(|node| node.goes_down() && !node.runs_vms()) != Some(true) {
            return;
        }
        // The lease ends by itself: nobody renews it, and the guard hears of no deadline, from here on.
        let _ = self.shared.inputs.send(Input::End);
        while self.ask(|_| ()).is_some() {}
        match let_go(&self.shared.host.surroundings.run_directory) {
            Ok(()) => tracing::info!("this host is about to be switched off, and needs no guard any more"),
            Err(error) => tracing::error!("the watchdog may reset this host while it ends: {error}"),
        }
    }

    /// The store, and its copy.
    pub fn replica(&self) -> &Arc<Replica<EtcdStore>> {
        &self.shared.replica
    }
}

impl Shared {
    fn tell_changes(&self, revision: Revision, mut changes: Vec<store::Changed>) {
        changes.retain(|change| is_known(&change.key));
        if !changes.is_empty() {
            self.tell(Event::Changed { revision, changes });
        }
    }
}

struct Driver {
    node: Node,
    shared: Arc<Shared>,
    machines: Machines,
    guard: Option<Guard>,
    beats: Beats,
    runtime: Handle,
    port: u16,
}

impl Driver {
    fn run(mut self, inputs: &Receiver<Input>) {
        let mut wall_at = now();
        loop {
            if now() >= wall_at {
                wall_at = now() + WALL_CLOCK;
                let unix_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
                self.step(Event::WallClock { unix_s });
            }
            let wake = self.node.wake_at().min(wall_at);
            match inputs.recv_timeout(wake.since(now())) {
                Ok(Input::Event(event)) => self.step(event),
                Ok(Input::Ask(question)) => question(&self.node),
                Ok(Input::End) => return,
                Err(RecvTimeoutError::Timeout) => self.step(Event::Timer),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn step(&mut self, event: Event) {
        for action in self.node.step(now(), event) {
            self.perform(action);
        }
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Read => self.work(read),
            Action::TakeLease { attempt } => self.work(move |shared| take_lease(shared, attempt)),
            Action::RenewLease { attempt, lease, alive } => self.work(move |shared| renew(shared, attempt, lease, alive)),
            Action::Guard { lease, deadline } => {
                let extended = self.guard.as_mut().map(|guard| guard.extend(lease, deadline));
                if let Some(Err(error)) = extended {
                    tracing::error!("VMs will end: {}", vmm::error_chain(&error));
                }
            }
            Action::Commit { commit, transaction } => self.work(move |shared| {
                let answer = match shared.replica.remote().commit(&transaction) {
                    Ok(Outcome::Committed(revision)) => Answer::Done(revision),
                    Ok(Outcome::Conflict { key, .. }) => Answer::Conflict { key },
                    Err(error) => {
                        tracing::debug!("a transaction's end is not known: {error}");
                        Answer::Unknown
                    }
                };
                shared.tell(Event::Committed { commit, answer });
            }),
            // Whether there is something to restore, the VM's own record says; and whether it is bound to this host, its owner's.
            Action::Start { vm, token, restore: _, bound: _ } => self.machines.start(&vm, token),
            Action::Stop(vm) => self.machines.stop(&vm),
            Action::Save(vm) => self.machines.save(&vm),
            Action::Copy { vm, to, volume } => self.machines.copy(&vm, &to, volume),
            Action::EndCopy(vm) => self.machines.end_copy(&vm),
            Action::Kill(vm) => self.machines.kill(&vm),
            Action::Beat { to, beat } => {
                let host = self.node.view().host(&to).and_then(|host| host.record.as_ref());
                if let Some(host) = host {
                    let port = if host.record.port == 0 { self.port } else { host.record.port };
                    self.beats.send(&host.record.addresses, port, beat);
                }
            }
            Action::Tell(notice) => {
                tracing::info!("{notice}");
                self.work(move |shared| {
                    if let Err(error) = notices::store(&shared.host.state, shared.config.host.as_str(), &notice) {
                        tracing::debug!("it cannot be stored that {notice}: {error}");
                    }
                });
            }
        }
    }

    /// Does what waits for the store on a thread for that.
    fn work(&self, work: impl FnOnce(&Shared) + Send + 'static) {
        let shared = self.shared.clone();
        self.runtime.spawn_blocking(move || work(&shared));
    }
}

fn read(shared: &Shared) {
    loop {
        match shared.replica.current(&PREFIXES) {
            Ok(snapshot) => return shared.tell(Event::Entries(snapshot)),
            Err(error) => tracing::debug!("the store cannot be read: {error}"),
        }
        std::thread::sleep(READ_AGAIN);
    }
}

fn take_lease(shared: &Shared, attempt: u64) {
    let refused = |reason: String| shared.tell(Event::LeaseRefused { attempt, reason });
    let store = shared.replica.remote();
    let lease = match store.grant(shared.config.ttl) {
        Ok(lease) => lease.id,
        Err(error) => return refused(error.to_string()),
    };
    let key = alive_key(&shared.config.host);
    let record = AliveRecord { incarnation: lease };
    let taken = store.commit(&Transaction::new().absent(key.clone()).put_under(key, to_bytes(&record), lease));
    let reason = match taken {
        Ok(Outcome::Committed(_)) => return shared.tell(Event::LeaseTaken { attempt, lease }),
        Ok(Outcome::Conflict { .. }) => "the lease of this host's life before has not ended yet".to_owned(),
        Err(error) => error.to_string(),
    };
    // It would end by itself.
    let _ = store.revoke(lease);
    refused(reason);
}

fn renew(shared: &Shared, attempt: u64, lease: LeaseId, alive: Revision) {
    match shared.replica.remote().keep_alive_by(lease, &renewal(&shared.config.host, lease, alive)) {
        Ok(Outcome::Committed(_)) => shared.tell(Event::LeaseRenewed { attempt }),
        Ok(Outcome::Conflict { .. }) | Err(StoreError::NoLease(_)) => shared.tell(Event::LeaseEnded { lease }),
        Err(error) => tracing::debug!("the lease is not renewed: {error}"),
    }
}

/// What this host says of itself.
struct Own {
    addresses: Vec<String>,
    port: u16,
    fencing: Fencing,
    witness: bool,
    cpu_features: BTreeSet<String>,
}

/// Keeps `hosts/HOST` true, for ever.
fn refresh(shared: &Shared, own: &Own) {
    for look in 0.. {
        if let Err(error) = refresh_once(shared, own) {
            tracing::debug!("what this host has cannot be stored: {error}");
        }
        if look % MEASURE == 0
            && let Err(error) = placements::measure(&shared.host.state, &shared.host.surroundings.volumes)
        {
            tracing::debug!("what VMs take of this host's volumes cannot be stored: {error}");
        }
        std::thread::sleep(LOOK);
    }
}

fn refresh_once(shared: &Shared, own: &Own) -> Result<(), StateError> {
    let state = &shared.host.state;
    let name = shared.config.host.as_str();
    shared.host.open_shared_volumes()?;
    // A host that was removed from the cluster does not come back by itself.
    let Some(stored) = state.read::<HostRecord>(name)? else { return Ok(()) };
    let known = placements::shared_volumes(state)?;
    let volumes: BTreeSet<String> =
        shared.host.surroundings.volumes.names().iter().map(|volume| placements::reach(volume, name, &known)).collect();
    let capacity = shared.host.surroundings.ledger.capacity();
    let record = HostRecord {
        memory_mib: if own.witness { 0 } else { capacity.for_vms_bytes() >> 20 },
        cpus: if own.witness { 0 } else { capacity.cpus },
        local: match own.witness {
            true => BTreeMap::new(),
            false => placements::room(&shared.host.surroundings.volumes, &known, &stored.record.local),
        },
        addresses: own.addresses.clone(),
        port: own.port,
        volumes,
        fencing: own.fencing,
        cpu_features: own.cpu_features.clone(),
        ..match &shared.boot_id {
            Some(boot_id) => stored.record.clone().started(boot_id),
            None => stored.record.clone(),
        }
    };
    if record != stored.record {
        let key = host_key(&shared.config.host);
        let told = state.commit(&Transaction::new().unchanged(key.clone(), stored.revision).put(key, to_bytes(&record)))?;
        if matches!(told, Outcome::Committed(_)) && record.wanted != stored.record.wanted {
            tracing::info!("this host had been drained to be switched off; it is back, and takes VMs again");
        }
    }
    Ok(())
}
