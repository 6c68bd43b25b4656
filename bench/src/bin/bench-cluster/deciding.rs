//! How long the cluster's core thinks.
//!
//! One real node decides, as the coordinator and for its own host; the store is in memory, and the other hosts do what they are told at once. So
//! the times are those of decisions alone, without etcd and without VMs.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use bench::table::table;
use cluster::node::renewal;
use cluster::records::{
    AliveRecord, Holder, Home, Left, MoveReason, MoveRecord, OwnerRecord, alive_key, host_key, move_key, owner_key, placement_key,
};
use cluster::view::Standing;
use cluster::{Action, Answer, Config, Event, HostId, Moment, Node, VmId, requests};
use store::record::{Record, from_bytes, to_bytes};
use store::{Lease, Leases, MemoryStore, Outcome, Revision, Store, Transaction, Watch};

use crate::options::Options;
use crate::shape::{Shape, host_name, vm_name};

/// What passes between two looks of the node, in its own time: about a commit of etcd.
const ROUND: Duration = Duration::from_millis(5);
/// Rounds after which something must be wrong.
const ROUNDS: u32 = 200_000;

/// How long the node thought.
#[derive(Default)]
struct Thought {
    total: Duration,
    longest: Duration,
    steps: u32,
    transactions: u32,
    rounds: u32,
}

struct Cluster {
    node: Node,
    store: MemoryStore,
    watch: Watch,
    now: Moment,
    leases: Vec<(HostId, Lease)>,
    thought: Thought,
}

fn committed(store: &MemoryStore, transaction: &Transaction) -> anyhow::Result<Revision> {
    match store.commit(transaction)? {
        Outcome::Committed(revision) => Ok(revision),
        Outcome::Conflict { key, .. } => bail!("{key} was not what it was thought to be"),
    }
}

impl Cluster {
    fn new(options: &Options) -> anyhow::Result<Cluster> {
        let store = MemoryStore::new();
        let mut leases = Vec::new();
        let shape = Shape::new();
        for number in 0..options.hosts {
            let host = host_name(number);
            let mut transaction = Transaction::new().put(host_key(&host), to_bytes(&shape.host(number)));
            // The first host is the node itself, and takes its own lease.
            if number > 0 {
                let lease = store.grant(Duration::from_secs(1_000_000))?;
                transaction = transaction.put_under(alive_key(&host), to_bytes(&AliveRecord { incarnation: lease.id }), lease.id);
                leases.push((host, lease));
            }
            committed(&store, &transaction)?;
        }
        for number in 0..options.vms {
            let placement = to_bytes(&shape.placement(number));
            committed(&store, &Transaction::new().put(placement_key(&vm_name(number)), placement))?;
        }
        let watch = store.watch("", store.range("none/")?.revision)?;
        let node = Node::new(Config::new(host_name(0)), Moment::default(), None, Vec::new(), BTreeSet::new());
        Ok(Cluster { node, store, watch, now: Moment::default(), leases, thought: Thought::default() })
    }

    fn step(&mut self, event: Event) -> Vec<Action> {
        let begin = Instant::now();
        let actions = self.node.step(self.now, event);
        let took = begin.elapsed();
        self.thought.total += took;
        self.thought.longest = self.thought.longest.max(took);
        self.thought.steps += 1;
        actions
    }

    /// Everything that follows from an event at once.
    fn tell(&mut self, event: Event) -> anyhow::Result<()> {
        let mut actions = self.step(event);
        loop {
            let mut events = Vec::new();
            for action in actions.drain(..) {
                events.extend(self.act(action)?);
            }
            let transactions = self.watch.try_transactions().into_iter();
            events.extend(transactions.map(|(revision, changes)| Event::Changed { revision, changes }));
            if events.is_empty() {
                return Ok(());
            }
            for event in events {
                actions.extend(self.step(event));
            }
        }
    }

    fn act(&mut self, action: Action) -> anyhow::Result<Option<Event>> {
        Ok(match action {
            Action::Read => Some(Event::Entries(self.store.range("")?)),
            Action::TakeLease { attempt } => {
                let lease = self.store.grant(Duration::from_secs(1_000_000))?.id;
                let key = alive_key(&host_name(0));
                let record = to_bytes(&AliveRecord { incarnation: lease });
                committed(&self.store, &Transaction::new().absent(key.clone()).put_under(key, record, lease))?;
                Some(Event::LeaseTaken { attempt, lease })
            }
            Action::RenewLease { attempt, lease, alive } => {
                committed(&self.store, &renewal(&host_name(0), lease, alive))?;
                Some(Event::LeaseRenewed { attempt })
            }
            Action::Commit { commit, transaction } => {
                self.thought.transactions += 1;
                let answer = match self.store.commit(&transaction)? {
                    Outcome::Committed(revision) => Answer::Done(revision),
                    Outcome::Conflict { key, .. } => Answer::Conflict { key },
                };
                Some(Event::Committed { commit, answer })
            }
            Action::Start { vm, .. } => Some(Event::VmRunning(vm)),
            Action::Save(vm) => Some(Event::VmEnded { vm, ending: cluster::Ending::Saved }),
            Action::Stop(vm) | Action::Kill(vm) => bail!("{vm} is not to stop"),
            // No VM here has files of one host's own.
            Action::Copy { .. } | Action::EndCopy(_) | Action::Guard { .. } | Action::Beat { .. } | Action::Tell(_) => None,
        })
    }

    /// The other hosts hand over what is to go elsewhere.
    fn hand_over(&self) -> anyhow::Result<()> {
        for entry in self.store.range(MoveRecord::PREFIX)?.entries {
            let moving: MoveRecord = from_bytes(&entry.key, &entry.value)?;
            let vm = VmId::from(entry.key.trim_start_matches(MoveRecord::PREFIX));
            let owner = self.store.get(&owner_key(&vm))?.context("a VM without an owner moves")?;
            let mut record: OwnerRecord = from_bytes(&owner.key, &owner.value)?;
            let from = record.holder.take().context("a VM that nobody holds moves")?.host;
            if from == host_name(0) {
                continue;
            }
            let alive = self.store.get(&alive_key(&moving.to))?.context("a VM moves to a dead host")?;
            let incarnation = from_bytes::<AliveRecord>(&alive.key, &alive.value)?.incarnation;
            record.holder = Some(Holder { host: moving.to, incarnation });
            record.home = (moving.reason == MoveReason::Drain).then_some(Home { host: from, left: Left::Drain });
            committed(&self.store, &Transaction::new().put(owner_key(&vm), to_bytes(&record)).delete(move_key(&vm)))?;
        }
        Ok(())
    }

    /// Lets time pass until nothing is left to be done, and says how long the node thought.
    fn until(&mut self, done: impl Fn(&Node) -> bool) -> anyhow::Result<Thought> {
        self.thought = Thought::default();
        while !done(&self.node) {
            ensure!(self.thought.rounds < ROUNDS, "it does not come to an end");
            self.thought.rounds += 1;
            self.hand_over()?;
            self.now = self.now + ROUND;
            self.tell(Event::Timer)?;
        }
        Ok(std::mem::take(&mut self.thought))
    }
}

/// Measures, and prints what was found.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let mut cluster = Cluster::new(options)?;
    let mut rows =
        vec![["what", "VMs", "transactions", "thought, ms", "longest, ms", "for each VM, us"].map(String::from).to_vec()];
    let mut row = |what: String, vms: usize, thought: &Thought| {
        let millis = |time: Duration| format!("{:.1}", time.as_secs_f64() * 1e3);
        let each = thought.total.as_secs_f64() * 1e6 / vms.max(1) as f64;
        let (transactions, total, longest) = (thought.transactions.to_string(), millis(thought.total), millis(thought.longest));
        rows.push(vec![what, vms.to_string(), transactions, total, longest, format!("{each:.1}")]);
    };
    let all = options.vms;
    let settled = move |node: &Node| {
        node.coordinates()
            && node.view().homeless().next().is_none()
            && node.view().moving().next().is_none()
            && node.view().vms().count() == all
    };
    let thought = cluster.until(settled)?;
    row(format!("start all on {} hosts", options.hosts), all, &thought);

    let vms_of = |node: &Node, host: &HostId| node.view().host(host).map_or(0, |host| host.vms.len());
    let lost: Vec<(HostId, Lease)> = cluster.leases.split_off(cluster.leases.len() - options.lose);
    let vms = lost.iter().map(|(host, _)| vms_of(&cluster.node, host)).sum();
    for (_, lease) in &lost {
        cluster.store.revoke(lease.id)?;
    }
    let begin = Instant::now();
    let outlook = cluster.node.view().what_if(&[host_name(1)]);
    let what_if = begin.elapsed();
    let gone: Vec<HostId> = lost.into_iter().map(|(host, _)| host).collect();
    let thought = cluster.until(|node| gone.iter().all(|host| vms_of(node, host) == 0) && settled(node))?;
    row(format!("lose {} hosts", options.lose), vms, &thought);

    let drained: Vec<HostId> = (1..=options.drain).map(host_name).collect();
    let vms = drained.iter().map(|host| vms_of(&cluster.node, host)).sum();
    for host in &drained {
        let transaction = requests::drain(cluster.node.view(), host)?;
        committed(&cluster.store, &transaction)?;
    }
    let thought = cluster.until(|node| drained.iter().all(|host| vms_of(node, host) == 0) && settled(node))?;
    row(format!("drain {} hosts", options.drain), vms, &thought);

    let held = cluster.node.view().vms().filter(|(vm, _)| matches!(cluster.node.view().standing(vm), Standing::Held(_))).count();
    ensure!(held == all, "only {held} of {all} VMs have a host");
    print!("{}", table(&rows));
    println!("what-if of one host, {} VMs: {:.1} ms", outlook.fates.len(), what_if.as_secs_f64() * 1e3);
    Ok(())
}
