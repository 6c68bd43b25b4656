//! Files that say what a cluster is and what happens to it, played in virtual time.
//!
//! ```toml
//! title = "The power of a host is cut"
//! hosts = 3
//! end_s = 30
//!
//! [[vm]]
//! name = "web"
//! memory_mib = 2048
//!
//! [[step]]
//! at_s = 10
//! do = "power-cut h1"
//! ```

mod command;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Deserialize;

use super::log::Log;
use super::machine::{Clock, Machine};
use super::world::{Delays, World};
use crate::records::{
    Failback, Fencing, GroupRule, HostRecord, LocalFiles, PlacementRecord, PolicyRecord, Power, Priority, RestartPolicy,
    own_volume,
};
use crate::{Config, HostId, VmId};
pub use command::CommandError;
use command::{Command, Named};

/// The most of each kind that a file may have.
const MOST: usize = 1000;
/// The longest time that is played, in seconds.
const LONGEST_S: f64 = 7.0 * 24.0 * 3600.0;

/// Why a scenario cannot be played.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    /// Not the form of a scenario.
    #[error("this is no scenario: {0}")]
    Form(#[from] toml::de::Error),
    /// Too little or too much of something.
    #[error("a scenario has 1 to {MOST} {0}")]
    Count(&'static str),
    /// A name twice, or one that cannot be.
    #[error("'{0}' is there twice, or is no name: names are letters, digits and dashes, at most 63")]
    Name(String),
    /// A member that is no host.
    #[error("the member '{0}' is no host of this scenario")]
    Member(String),
    /// A time that cannot be.
    #[error("{0} s is no time here: 0 to {LONGEST_S} are")]
    Time(f64),
    /// A step that cannot be.
    #[error("the step '{step}': {source}")]
    Step {
        /// As it was written.
        step: String,
        /// What is wrong.
        source: CommandError,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    title: String,
    /// How many hosts, if they are not named: h1, h2...
    #[serde(default)]
    hosts: usize,
    #[serde(default)]
    host: Vec<Host>,
    /// Hosts with a member of the store; the first three if none are named.
    #[serde(default)]
    members: Vec<String>,
    /// A further member, which is no host.
    #[serde(default)]
    witness: bool,
    #[serde(default)]
    survive_failures: u32,
    #[serde(default)]
    vm: Vec<Vm>,
    #[serde(default)]
    step: Vec<Step>,
    end_s: f64,
    #[serde(default)]
    seed: u64,
}

#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Host {
    name: String,
    memory_mib: Option<u64>,
    cpus: Option<u32>,
    fault_domain: Option<String>,
    #[serde(default)]
    volumes: BTreeSet<String>,
    /// Volumes of its own, with what is free there in MiB.
    #[serde(default)]
    local: BTreeMap<String, u64>,
    #[serde(default)]
    cpu_features: BTreeSet<String>,
    #[serde(default)]
    fencing: Fencing,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Vm {
    name: String,
    #[serde(default = "on")]
    power: Power,
    memory_mib: Option<u64>,
    vcpus: Option<u32>,
    #[serde(default)]
    priority: Priority,
    #[serde(default)]
    volumes: BTreeSet<String>,
    /// Files on volumes of one host's own.
    local: Option<LocalFiles>,
    #[serde(default)]
    cpu_features: BTreeSet<String>,
    #[serde(default)]
    preferred: Vec<HostId>,
    #[serde(default)]
    possible: Vec<HostId>,
    #[serde(default)]
    groups: Vec<GroupRule>,
    #[serde(default)]
    restart: RestartPolicy,
    #[serde(default)]
    failback: Failback,
}

fn on() -> Power {
    Power::On
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Step {
    at_s: f64,
    r#do: String,
}

/// A cluster, and what happens to it.
pub struct Scenario {
    title: String,
    hosts: Vec<(HostId, HostRecord)>,
    vms: Vec<(VmId, PlacementRecord)>,
    members: Vec<usize>,
    witness: bool,
    policy: PolicyRecord,
    steps: Vec<(Duration, Command)>,
    end: Duration,
    seed: u64,
}

/// What came of a scenario.
#[derive(Clone, Debug)]
pub struct Played {
    /// What happened, and how each VM stands at the end.
    pub log: String,
    /// What must never happen.
    pub violation: Option<String>,
}

impl Scenario {
    /// Reads a file's text.
    pub fn parse(text: &str) -> Result<Scenario, ScenarioError> {
        let file: File = toml::from_str(text)?;
        let mut hosts = file.host;
        if hosts.is_empty() {
            hosts = (1..=file.hosts.min(MOST + 1)).map(|number| Host { name: format!("h{number}"), ..Host::default() }).collect();
        }
        check_count(hosts.len(), "hosts")?;
        check_count(file.vm.len().max(1), "VMs")?;
        check_count(file.step.len().max(1), "steps")?;
        let mut names = BTreeSet::from(["witness".to_owned()]);
        for name in hosts.iter().map(|host| &host.name).chain(file.vm.iter().map(|vm| &vm.name)) {
            let right = (1..=63).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
            if !right || !names.insert(name.clone()) {
                return Err(ScenarioError::Name(name.clone()));
            }
        }
        let position = |name: &String| hosts.iter().position(|host| host.name == *name);
        let mut members = Vec::new();
        for name in &file.members {
            members.push(position(name).ok_or_else(|| ScenarioError::Member(name.clone()))?);
        }
        if members.is_empty() {
            members = (0..hosts.len().min(if file.witness { 2 } else { 3 })).collect();
        }
        if file.witness {
            members.push(hosts.len());
        }
        let hosts: Vec<(HostId, HostRecord)> = hosts.into_iter().map(|host| (host.name.as_str().into(), host.into())).collect();
        let vms: Vec<(VmId, PlacementRecord)> = file.vm.into_iter().map(|vm| (vm.name.as_str().into(), vm.into())).collect();
        let mut steps = Vec::new();
        let known = Named { hosts: &hosts, vms: &vms, witness: file.witness };
        for step in file.step {
            let command = Command::parse(&step.r#do, &known).map_err(|source| ScenarioError::Step { step: step.r#do, source })?;
            steps.push((seconds(step.at_s)?, command));
        }
        steps.sort_by_key(|(at, _)| *at);
        Ok(Scenario {
            title: file.title,
            members,
            witness: file.witness,
            policy: PolicyRecord { survive_failures: file.survive_failures },
            end: seconds(file.end_s)?,
            seed: file.seed,
            hosts,
            vms,
            steps,
        })
    }

    /// Plays it.
    pub fn play(&self) -> Played {
        let names = self.hosts.iter().map(|(id, _)| (id.clone(), true)).chain(self.witness.then(|| ("witness".into(), false)));
        let machines = names.map(|(id, is_host)| Machine::new(id, is_host, Clock::default())).collect();
        let delays = Delays {
            message: 1_000..=1_000,
            commit: 4_000..=4_000,
            start: 2_000_000..=2_000_000,
            stop: 1_000_000..=1_000_000,
            kill: 50_000..=50_000,
            copy: 5_000_000..=5_000_000,
            boot: 8_000_000..=8_000_000,
            election: 1_500_000..=1_500_000,
        };
        let rng = fastrand::Rng::with_seed(self.seed);
        let config = Config::new(HostId::from(""));
        let mut world = World::new(rng, machines, self.members.clone(), delays, config, None, Log::kept());
        world.log.line(Duration::ZERO, "*", || self.title.clone());
        world.set_up(&self.hosts, &self.vms, &self.policy);
        for (at, command) in self.steps.iter().filter(|(at, _)| *at <= self.end) {
            world.run_until(*at);
            command.run(&mut world);
        }
        world.run_until(self.end);
        let (view, unix_s) = (world.truth(), world.unix_s());
        for (vm, _) in &self.vms {
            world.log.line(self.end, "=", || format!("{vm} {}", view.why(vm, unix_s)));
        }
        if let Some(violation) = &world.checker.violation {
            world.log.line(world.now, "!", || violation.clone());
        }
        Played { violation: world.checker.violation.take(), log: world.log.text() }
    }
}

fn check_count(count: usize, what: &'static str) -> Result<(), ScenarioError> {
    if (1..=MOST).contains(&count) { Ok(()) } else { Err(ScenarioError::Count(what)) }
}

/// A time in seconds that can be.
fn seconds(time_s: f64) -> Result<Duration, ScenarioError> {
    // Not a number is in no range.
    if (0.0..=LONGEST_S).contains(&time_s) { Ok(Duration::from_secs_f64(time_s)) } else { Err(ScenarioError::Time(time_s)) }
}

impl From<Host> for HostRecord {
    fn from(host: Host) -> HostRecord {
        let id = HostId::from(host.name);
        let own = host.local.keys().map(|volume| own_volume(volume, &id));
        HostRecord {
            memory_mib: host.memory_mib.unwrap_or(16 * 1024),
            cpus: host.cpus.unwrap_or(16),
            fault_domain: host.fault_domain,
            volumes: host.volumes.into_iter().chain(own).collect(),
            local: host.local,
            cpu_features: host.cpu_features,
            fencing: host.fencing,
            ..HostRecord::default()
        }
    }
}

impl From<Vm> for PlacementRecord {
    fn from(vm: Vm) -> PlacementRecord {
        let own = vm.local.iter().flat_map(|local| local.volumes.keys().map(|volume| own_volume(volume, &local.host)));
        PlacementRecord {
            volumes: vm.volumes.iter().cloned().chain(own).collect(),
            local: vm.local,
            power: vm.power,
            start: 0,
            memory_mib: vm.memory_mib.unwrap_or(1024),
            vcpus: vm.vcpus.unwrap_or(1),
            priority: vm.priority,
            cpu_features: vm.cpu_features,
            preferred: vm.preferred,
            possible: vm.possible,
            groups: vm.groups,
            restart: vm.restart,
            failback: vm.failback,
        }
    }
}
