//! A host: the thread that owns its node, as in `marud`'s `cluster::runtime`, with VMs that only take time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cluster::node::renewal;
use cluster::records::{AliveRecord, alive_key};
use cluster::view::PREFIXES;
use cluster::{Action, Answer, Config, Ending, Event, HostId, Moment, Node, Notice, VmId};
use store::record::to_bytes;
use store::{EtcdStore, Leases, Outcome, Replica, Store, StoreError, Transaction};
use tokio::runtime::{Builder, Runtime};

use super::records;
use super::world::{World, thread_time};

/// What the thread of a host is told.
pub enum Input {
    Event(Event),
    /// What is written before a VM starts, or is saved, is written.
    Begun(VmId, Work),
    /// The power is cut.
    Ends,
}

/// What takes time.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Work {
    Start,
    Save,
}

/// What a host is made of.
pub struct Parts {
    pub name: HostId,
    /// Its own way to etcd.
    pub client: EtcdStore,
    /// The copy of etcd that it reads in.
    pub replica: Arc<Replica<EtcdStore>>,
    pub world: Arc<World>,
    pub sender: Sender<Input>,
}

/// What those see that wait for the store.
struct Shared {
    config: Config,
    client: EtcdStore,
    replica: Arc<Replica<EtcdStore>>,
    world: Arc<World>,
    sender: Sender<Input>,
}

/// The thread's own.
pub struct Host {
    node: Node,
    shared: Arc<Shared>,
    runtime: Runtime,
    /// What takes time, and until when.
    under_way: BTreeMap<VmId, (Work, Option<Moment>)>,
}

impl Host {
    pub fn new(parts: Parts) -> anyhow::Result<Host> {
        let Parts { name, client, replica, world, sender } = parts;
        let config = Config::new(name);
        let node = Node::new(config.clone(), world.now(), None, Vec::new(), BTreeSet::new());
        // Nothing but its threads for what waits is used, of which each `marud` has as many.
        let runtime = Builder::new_current_thread().build()?;
        let shared = Arc::new(Shared { config, client, replica, world, sender });
        Ok(Host { node, shared, runtime, under_way: BTreeMap::new() })
    }

    /// Runs until the power is cut.
    pub fn run(mut self, inputs: &Receiver<Input>) {
        let unix_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        self.step(Event::WallClock { unix_s });
        loop {
            let now = self.shared.world.now();
            let due: Vec<VmId> =
                self.under_way.iter().filter(|(_, (_, at))| at.is_some_and(|at| at <= now)).map(|(vm, _)| vm.clone()).collect();
            due.into_iter().for_each(|vm| self.is_done(vm));
            let next = self.under_way.values().filter_map(|(_, at)| *at).min();
            let wake = next.map_or(self.node.wake_at(), |at| at.min(self.node.wake_at()));
            match inputs.recv_timeout(wake.since(self.shared.world.now())) {
                Ok(Input::Event(event)) => self.step(event),
                Ok(Input::Begun(vm, work)) => self.begun(&vm, work),
                Err(RecvTimeoutError::Timeout) => self.step(Event::Timer),
                Ok(Input::Ends) | Err(RecvTimeoutError::Disconnected) => return self.runtime.shutdown_background(),
            }
        }
    }

    fn step(&mut self, event: Event) {
        let before = thread_time();
        let actions = self.node.step(self.shared.world.now(), event);
        self.shared.world.thought(thread_time() - before, self.node.coordinates());
        actions.into_iter().for_each(|action| self.perform(action));
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Read => self.work(read),
            Action::TakeLease { attempt } => self.work(move |shared| take_lease(shared, attempt)),
            Action::RenewLease { attempt, lease, alive } => self.work(move |shared| {
                shared.world.load.renewals.add(1);
                match shared.client.keep_alive_by(lease, &renewal(&shared.config.host, lease, alive)) {
                    Ok(Outcome::Committed(_)) => shared.tell(Event::LeaseRenewed { attempt }),
                    Ok(Outcome::Conflict { .. }) | Err(StoreError::NoLease(_)) => shared.tell(Event::LeaseEnded { lease }),
                    Err(_) => shared.world.load.failed.add(1),
                }
            }),
            Action::Commit { commit, transaction } => self.work(move |shared| {
                shared.world.load.decided.add(1);
                let sent = Instant::now();
                let committed = shared.client.commit(&transaction);
                shared.world.committed(sent.elapsed());
                let answer = match committed {
                    Ok(Outcome::Committed(revision)) => Answer::Done(revision),
                    Ok(Outcome::Conflict { key, .. }) => Answer::Conflict { key },
                    Err(_) => {
                        shared.world.load.failed.add(1);
                        Answer::Unknown
                    }
                };
                shared.tell(Event::Committed { commit, answer });
            }),
            Action::Start { vm, .. } => self.begin(vm, Work::Start),
            Action::Save(vm) => self.begin(vm, Work::Save),
            Action::Stop(vm) => self.end(vm, Ending::Stopped),
            Action::Kill(vm) => self.end(vm, Ending::Killed),
            Action::Tell(notice) => {
                if let Notice::LeaseLost { .. } = notice {
                    self.shared.world.unproven(&self.shared.config.host);
                }
                self.work(|shared| {
                    shared.world.load.notices.add(1);
                    shared.write(records::notice());
                });
            }
            // Nobody guards VMs that are none, heartbeats decide nothing, and all files are on volumes that all reach.
            Action::Guard { .. } | Action::Beat { .. } | Action::Copy { .. } | Action::EndCopy(_) => {}
        }
    }

    /// Begins what takes time, with what is written before.
    fn begin(&mut self, vm: VmId, work: Work) {
        self.under_way.insert(vm.clone(), (work, None));
        self.work(move |shared| {
            if work == Work::Start {
                // Whoever takes a VM over makes sure that it has not missed anything.
                shared.world.load.others.add(1);
                if shared.replica.current(&[]).is_err() {
                    shared.world.load.failed.add(1);
                }
            }
            shared.write_all(records::before(&vm, work));
            let _ = shared.sender.send(Input::Begun(vm, work));
        });
    }

    fn begun(&mut self, vm: &VmId, work: Work) {
        let takes = if work == Work::Start { self.shared.world.start } else { self.shared.world.save };
        let until = self.shared.world.now() + takes;
        // Unless it was killed.
        if let Some((_, at)) = self.under_way.get_mut(vm).filter(|(under_way, _)| *under_way == work) {
            *at = Some(until);
        }
    }

    fn is_done(&mut self, vm: VmId) {
        let Some((work, _)) = self.under_way.remove(&vm) else { return };
        let written = vm.clone();
        self.work(move |shared| shared.write_all(records::after(&written, work)));
        match work {
            Work::Start => {
                self.shared.world.runs(&vm, &self.shared.config.host);
                self.step(Event::VmRunning(vm));
            }
            Work::Save => self.end(vm, Ending::Saved),
        }
    }

    fn end(&mut self, vm: VmId, ending: Ending) {
        self.under_way.remove(&vm);
        self.shared.world.ended(&vm);
        self.step(Event::VmEnded { vm, ending });
    }

    /// Does what waits for the store on a thread for that.
    fn work(&self, work: impl FnOnce(&Shared) + Send + 'static) {
        let shared = self.shared.clone();
        self.runtime.spawn_blocking(move || work(&shared));
    }
}

impl Shared {
    fn tell(&self, event: Event) {
        // Its host may have lost its power.
        let _ = self.sender.send(Input::Event(event));
    }

    fn write(&self, transaction: Transaction) {
        if self.client.commit(&transaction).is_err() {
            self.world.load.failed.add(1);
        }
    }

    fn write_all(&self, transactions: Vec<Transaction>) {
        for transaction in transactions {
            self.world.load.records.add(1);
            self.write(transaction);
        }
    }
}

fn read(shared: &Shared) {
    loop {
        shared.world.load.others.add(1);
        match shared.replica.current(&PREFIXES) {
            Ok(snapshot) => return shared.tell(Event::Entries(snapshot)),
            Err(_) => shared.world.load.failed.add(1),
        }
        // As long as `marud` waits.
        std::thread::sleep(Duration::from_millis(300));
    }
}

fn take_lease(shared: &Shared, attempt: u64) {
    let refused = |reason: String| shared.tell(Event::LeaseRefused { attempt, reason });
    shared.world.load.others.add(1);
    let lease = match shared.client.grant(shared.config.ttl) {
        Ok(lease) => lease.id,
        Err(error) => return refused(error.to_string()),
    };
    let key = alive_key(&shared.config.host);
    let record = to_bytes(&AliveRecord { incarnation: lease });
    shared.world.load.decided.add(1);
    match shared.client.commit(&Transaction::new().absent(key.clone()).put_under(key, record, lease)) {
        Ok(Outcome::Committed(_)) => shared.tell(Event::LeaseTaken { attempt, lease }),
        Ok(Outcome::Conflict { .. }) => refused("the lease of this host's life before has not ended yet".into()),
        Err(error) => refused(error.to_string()),
    }
}
