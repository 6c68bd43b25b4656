//! What was found.

use std::time::{Duration, Instant};

use bench::stats::Summary;
use bench::table::table;
use store::EtcdStore;

use super::members::{Members, processor_time};
use super::world::{Load, Thought, World};
use crate::options::Options;

/// What had been counted at a moment.
pub struct Mark {
    at: Instant,
    decided: u64,
    records: u64,
    notices: u64,
    renewals: u64,
    others: u64,
    told: u64,
    file_bytes: u64,
    etcd: Duration,
    own: Duration,
    /// Since the mark before.
    thought: Thought,
    /// Since the mark before: how long each transaction of the core took.
    commits: Vec<Duration>,
}

impl Mark {
    pub fn new(world: &World, members: &Members, client: &EtcdStore) -> anyhow::Result<Mark> {
        let Load { decided, records, notices, renewals, others, told, .. } = &world.load;
        Ok(Mark {
            at: Instant::now(),
            decided: decided.get(),
            records: records.get(),
            notices: notices.get(),
            renewals: renewals.get(),
            others: others.get(),
            told: told.get(),
            file_bytes: members.file_bytes(client)?,
            etcd: members.processor_time()?,
            own: processor_time("self")?,
            thought: world.take_thought(),
            commits: world.take_commits(),
        })
    }
}

/// Two tables: how long it took, and what it cost.
pub struct Report {
    setting: String,
    floor: Floor,
    times: Vec<Vec<String>>,
    loads: Vec<Vec<String>>,
}

/// What VMs take by themselves.
struct Floor {
    start: Duration,
    save: Duration,
}

fn cells<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(String::from).to_vec()
}

fn seconds(time: Duration) -> String {
    format!("{:.2}", time.as_secs_f64())
}

fn millis(time: Duration) -> String {
    format!("{:.1}", time.as_secs_f64() * 1e3)
}

impl Report {
    pub fn new(options: &Options) -> Report {
        let setting = format!(
            "\n{} hosts, each with a node, a lease and a client of its own, and {} members of etcd on {} processors. {} watches and copies \
             of etcd, which the hosts share.\n",
            options.hosts,
            super::members::MEMBERS,
            std::thread::available_parallelism().map_or(0, usize::from),
            options.watches
        );
        let times = cells([
            "seconds until",
            "VMs",
            "it is noticed",
            "all are owned",
            "all run",
            "coordinator, ms",
            "longest step, ms",
            "other nodes, ms each",
        ]);
        let loads = cells([
            "etcd",
            "decisions",
            "ms each (from, to)",
            "VMs' records",
            "notices",
            "renewals",
            "transactions/s",
            "requests/s",
            "changes told",
            "database, MiB",
            "etcd's processors",
            "hosts' processors",
        ]);
        let floor = Floor { start: options.start, save: options.save };
        Report { setting, floor, times: vec![times], loads: vec![loads] }
    }

    /// What happened between two marks: how long it took until it was noticed, all VMs were owned, and all ran.
    pub fn phase(
        &mut self,
        what: String,
        vms: usize,
        [noticed, owned, run]: [Duration; 3],
        others: usize,
        before: Mark,
        after: Mark,
    ) {
        let Thought { coordinator, longest, others: other_nodes } = after.thought;
        let each = other_nodes / u32::try_from(others.max(1)).unwrap_or(u32::MAX);
        let mut row = vec![what.clone(), vms.to_string()];
        row.extend([noticed, owned, run].map(seconds));
        row.extend([coordinator, longest, each].map(millis));
        self.times.push(row);
        self.load(what, before, after);
    }

    /// What was asked of etcd between two marks.
    pub fn load(&mut self, what: String, before: Mark, after: Mark) {
        let time = (after.at - before.at).as_secs_f64();
        let [decided, records, notices, renewals, others, told] = [
            after.decided - before.decided,
            after.records - before.records,
            after.notices - before.notices,
            after.renewals - before.renewals,
            after.others - before.others,
            after.told - before.told,
        ];
        let transactions = decided + records + notices;
        let a_second = |number: u64| format!("{:.0}", number as f64 / time);
        let share = |after: Duration, before: Duration| format!("{:.2}", (after - before).as_secs_f64() / time);
        let mut row = vec![what];
        row.push(decided.to_string());
        row.push(Summary::of(after.commits.iter().map(|took| took.as_secs_f64() * 1e3)).to_string());
        row.extend([records, notices, renewals].map(|number| number.to_string()));
        row.push(a_second(transactions));
        // A proven renewal is a keep-alive and a read.
        row.push(a_second(transactions + 2 * renewals + others));
        row.push(told.to_string());
        row.push((after.file_bytes >> 20).to_string());
        row.push(share(after.etcd, before.etcd));
        row.push(share(after.own, before.own));
        self.loads.push(row);
    }

    pub fn text(&self, world: &World) -> String {
        let Report { setting, floor, times, loads } = self;
        let lost: Vec<String> =
            world.take_unproven().iter().map(|(host, at)| format!("{host} after {:.1} s", at.0.as_secs_f64())).collect();
        let lost = if lost.is_empty() { "none".into() } else { lost.join(", ") };
        format!(
            "{setting}A VM takes {} ms to start, eight at once on a host, and {} ms to be saved, four at once.\n\n{}\n{}\n\
             Requests that failed: {}. Leases that could not be proven in time: {lost}.\n",
            floor.start.as_millis(),
            floor.save.as_millis(),
            table(times),
            table(loads),
            world.load.failed.get()
        )
    }
}
