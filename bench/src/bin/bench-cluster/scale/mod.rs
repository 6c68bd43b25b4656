//! A node for each host, and a real etcd.
//!
//! ```text
//!   etcd ×3 ◀── transactions, proven renewals ── 128 hosts: a thread, a node, a lease, a client each
//!      │                                            ▲
//!      └── watch ×N ──▶ copy ×N ── what changes ────┴──▶ the observer: since when is it so?
//! ```
//!
//! Hosts do what `marud` does (`crates/host/src/cluster/runtime.rs`), and write what it writes, but for VMs, which only take time, heartbeats,
//! which decide nothing, and users. All of them and etcd share this machine's processors: where a cluster of real hosts would have those of
//! each, times here are longer. What the coordinator thinks is counted in processor time of its thread, so others do not matter there.

mod copy;
mod host;
mod members;
mod observer;
mod records;
mod report;
mod world;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use cluster::records::{AliveRecord, COORDINATOR_KEY, CoordinatorRecord, Holder, alive_key, host_key, placement_key};
use cluster::{HostId, View, requests};
use store::record::to_bytes;
use store::{EtcdStore, Leases, Outcome, Store, Transaction};

use crate::options::Options;
use crate::shape::{Shape, host_name, vm_name};
use host::{Host, Input};
use members::Members;
use observer::{Observer, coordinator};
use report::{Mark, Report};
use world::World;

/// How long anything may take until something must be wrong.
const PATIENCE: Duration = Duration::from_secs(900);
/// How long it is looked what a cluster costs in which nothing happens.
const REST: Duration = Duration::from_secs(10);
/// VMs whose records are written at once in the beginning.
const WRITTEN_AT_ONCE: usize = 64;
/// How long the lease of whoever is the coordinator before all begins may live.
const PILOT_TTL: Duration = Duration::from_secs(3600);

/// A host that has power.
struct Powered {
    sender: Sender<Input>,
    thread: JoinHandle<()>,
}

struct Cluster {
    members: Members,
    client: EtcdStore,
    world: Arc<World>,
    hosts: BTreeMap<HostId, Powered>,
    observer: Observer,
}

fn commit(client: &EtcdStore, transaction: &Transaction) -> anyhow::Result<()> {
    match client.commit(transaction)? {
        Outcome::Committed(_) => Ok(()),
        Outcome::Conflict { key, .. } => bail!("{key} was not what it was thought to be"),
    }
}

/// Who gives no VMs to hosts until all of them are there.
fn pilot() -> HostId {
    "pilot".into()
}

/// Writes what there is before the first host: hosts, VMs that are to run, and a coordinator who does nothing. Gives that one's lease.
fn prepare(client: &EtcdStore, options: &Options) -> anyhow::Result<store::LeaseId> {
    let shape = Shape::new();
    for number in 0..options.hosts {
        commit(client, &Transaction::new().put(host_key(&host_name(number)), to_bytes(&shape.host(number))))?;
    }
    let numbers: Vec<usize> = (0..options.vms).collect();
    for some in numbers.chunks(WRITTEN_AT_ONCE) {
        let put = |transaction: Transaction, number: &usize| {
            transaction.put(placement_key(&vm_name(*number)), to_bytes(&shape.placement(*number)))
        };
        commit(client, &some.iter().fold(Transaction::new(), put))?;
    }
    let lease = client.grant(PILOT_TTL)?.id;
    let record = CoordinatorRecord { holder: Holder { host: pilot(), incarnation: lease } };
    let alive = to_bytes(&AliveRecord { incarnation: lease });
    commit(client, &Transaction::new().put(COORDINATOR_KEY, to_bytes(&record)).put_under(alive_key(&pilot()), alive, lease))?;
    Ok(lease)
}

impl Cluster {
    /// Starts etcd and all hosts, and waits until each has its lease. Gives the lease of the coordinator who does nothing.
    fn start(options: &Options) -> anyhow::Result<(Cluster, store::LeaseId)> {
        let members = Members::start(&options.directory)?;
        let client = members.client(0)?;
        let pilot = prepare(&client, options)?;
        let world = Arc::new(World::new(options.start, options.save));
        let channels: Vec<_> = (0..options.hosts).map(|_| channel()).collect();
        let mut copies = Vec::new();
        for number in 0..options.watches {
            let listeners = channels.iter().skip(number).step_by(options.watches).map(|(sender, _)| sender.clone()).collect();
            copies.push(copy::begin(members.client(number)?, listeners, world.clone())?);
        }
        let observer = Observer::new(&copies[0])?;
        let mut hosts = BTreeMap::new();
        for (number, (sender, receiver)) in channels.into_iter().enumerate() {
            let name = host_name(number);
            let parts = host::Parts {
                name: name.clone(),
                client: members.client(number)?,
                replica: copies[number % options.watches].clone(),
                world: world.clone(),
                sender: sender.clone(),
            };
            let host = Host::new(parts)?;
            let thread = std::thread::Builder::new().name(name.to_string()).spawn(move || host.run(&receiver))?;
            hosts.insert(name, Powered { sender, thread });
        }
        let mut cluster = Cluster { members, client, world, hosts, observer };
        let all = options.hosts;
        let alive = move |view: &View| view.hosts().filter(|(_, host)| host.record.is_some() && host.alive.is_some()).count();
        cluster.observer.until("a lease for each host", PATIENCE, |view| alive(view) == all)?;
        Ok((cluster, pilot))
    }

    fn mark(&self) -> anyhow::Result<Mark> {
        Mark::new(&self.world, &self.members, &self.client)
    }

    fn all_run(&self) -> anyhow::Result<Instant> {
        self.world.all_run(PATIENCE).context("not all VMs run")
    }

    /// All VMs that are to run have no host, and there is nobody to give them one: then there is.
    fn start_all(&mut self, options: &Options, pilot: store::LeaseId, report: &mut Report) -> anyhow::Result<()> {
        self.world.set_goal(options.vms);
        let before = self.mark()?;
        let begin = Instant::now();
        self.client.revoke(pilot)?;
        let noticed = self.observer.until("a coordinator", PATIENCE, |view| coordinator(view).is_some())?;
        let owned = self.observer.until("an owner for each VM", PATIENCE, settled)?;
        let run = self.all_run()?;
        let what = format!("start all on {} hosts", options.hosts);
        report.phase(what, options.vms, [noticed, owned, run].map(|at| at - begin), self.hosts.len() - 1, before, self.mark()?);
        Ok(())
    }

    /// Cuts the power of some hosts, the coordinator among them.
    fn lose(&mut self, options: &Options, report: &mut Report) -> anyhow::Result<()> {
        let coordinator = coordinator(self.observer.view()).context("there is no coordinator")?;
        let others = self.hosts.keys().rev().filter(|host| **host != coordinator).take(options.lose.saturating_sub(1));
        let lost: Vec<HostId> = others.cloned().chain([coordinator.clone()]).take(options.lose).collect();
        let before = self.mark()?;
        let begin = Instant::now();
        let powered: Vec<Powered> = lost.iter().filter_map(|host| self.hosts.remove(host)).collect();
        for host in &powered {
            let _ = host.sender.send(Input::Ends);
        }
        for host in powered {
            host.thread.join().ok().context("the thread of a host has failed")?;
        }
        let vms = self.world.lost(&lost);
        let dead = |view: &View, host: &HostId| view.host(host).is_none_or(|host| host.alive.is_none());
        let noticed = self.observer.until("the end of leases", PATIENCE, |view| lost.iter().all(|host| dead(view, host)))?;
        let owned = self.observer.until("new owners", PATIENCE, |view| without_vms(view, &lost) && settled(view))?;
        let run = self.all_run()?;
        let what = format!("lose {} hosts, the coordinator among them", lost.len());
        report.phase(what, vms, [noticed, owned, run].map(|at| at - begin), self.hosts.len() - 1, before, self.mark()?);
        Ok(())
    }

    fn drain(&mut self, options: &Options, report: &mut Report) -> anyhow::Result<()> {
        let coordinator = coordinator(self.observer.view());
        let drained: Vec<HostId> =
            self.hosts.keys().filter(|host| Some(*host) != coordinator.as_ref()).take(options.drain).cloned().collect();
        let view = self.observer.view();
        let vms = drained.iter().filter_map(|host| view.host(host)).map(|host| host.vms.len()).sum();
        let before = self.mark()?;
        let begin = Instant::now();
        for host in &drained {
            commit(&self.client, &requests::drain(self.observer.view(), host)?)?;
        }
        let moving = |view: &View| view.moving().next().is_some();
        let noticed = self.observer.until("the first move", PATIENCE, moving)?;
        let owned = self.observer.until("empty hosts", PATIENCE, |view| without_vms(view, &drained) && settled(view))?;
        let run = self.all_run()?;
        let what = format!("drain {} hosts", drained.len());
        report.phase(what, vms, [noticed, owned, run].map(|at| at - begin), self.hosts.len() - 1, before, self.mark()?);
        Ok(())
    }

    /// Nothing happens.
    fn rest(&self, report: &mut Report) -> anyhow::Result<()> {
        let before = self.mark()?;
        std::thread::sleep(REST);
        report.load("at rest".into(), before, self.mark()?);
        Ok(())
    }

    /// What may not be, and would make the figures worthless.
    fn check(&self, options: &Options) -> anyhow::Result<()> {
        let twice = self.world.ran_twice();
        ensure!(twice.is_empty(), "{} VMs ran on two hosts at once, {} among them", twice.len(), twice[0]);
        let count = self.observer.view().vms().count();
        ensure!(count == options.vms, "there are {count} VMs, and not {}", options.vms);
        Ok(())
    }
}

/// Each VM that is to run has a host that lives, and goes nowhere.
fn settled(view: &View) -> bool {
    view.homeless().next().is_none() && view.moving().next().is_none()
}

fn without_vms(view: &View, hosts: &[HostId]) -> bool {
    hosts.iter().filter_map(|host| view.host(host)).all(|host| host.vms.is_empty())
}

/// Measures, and prints what was found.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let mut report = Report::new(options);
    let (mut cluster, pilot) = Cluster::start(options)?;
    cluster.start_all(options, pilot, &mut report)?;
    cluster.rest(&mut report)?;
    cluster.lose(options, &mut report)?;
    cluster.drain(options, &mut report)?;
    cluster.check(options)?;
    print!("{}", report.text(&cluster.world));
    for host in cluster.hosts.values() {
        let _ = host.sender.send(Input::Ends);
    }
    for host in std::mem::take(&mut cluster.hosts).into_values() {
        host.thread.join().ok().context("the thread of a host has failed")?;
    }
    Ok(())
}
