//! Runs that are made of a seed.

use std::time::Duration;

use super::faults::Fault;
use super::log::Log;
use super::machine::{Clock, Machine};
use super::world::{Counts, Delays, Mutation, World};
use crate::records::{
    Affinity, Failback, Fencing, GroupRule, HostRecord, LocalFiles, PlacementRecord, PolicyRecord, Power, Priority,
    RestartPolicy, Scope, Strength, own_volume,
};
use crate::{Config, HostId, Network, VmId};

/// How far clocks are from the truth at most, in millionths. Real ones keep to a tenth of that; the margin covers it for both clocks.
const DRIFT_PPM: i64 = 5_000;
/// How long a cluster has to get everything right after the last fault.
const SETTLE: Duration = Duration::from_secs(150);

/// What became of a run.
#[derive(Clone, Debug)]
pub struct Report {
    /// What must not have happened, or not have stayed.
    pub violation: Option<String>,
    /// What happened, if that was asked for.
    pub log: String,
    /// How long it took to get everything right after the last fault.
    pub settled_after: Duration,
    /// How often things happened.
    pub counts: Counts,
}

/// Which faults there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Faults {
    /// All of them.
    All,
    /// No machine stands still as a whole; all else.
    NoFreezes,
}

/// One run: 3 to 7 hosts, a few VMs on each, a dozen faults, and time to get everything right.
pub fn run(seed: u64, mutation: Option<Mutation>, faults: Faults, keep_log: bool) -> Report {
    let mut rng = fastrand::Rng::with_seed(seed);
    let hosts = rng.usize(3..=7);
    let witness = rng.u32(0..4) == 0;
    let members = if hosts >= 5 && rng.bool() { 5 } else { 3 };
    let names: Vec<HostId> = (1..=hosts).map(|number| HostId::from(format!("h{number}"))).collect();
    let mut machines: Vec<Machine> = names.iter().map(|name| Machine::new(name.clone(), true, drift(&mut rng))).collect();
    let mut members: Vec<usize> = (0..members).collect();
    if witness {
        machines.push(Machine::new("witness".into(), false, drift(&mut rng)));
        let last = members.len() - 1;
        members[last] = hosts;
    }
    let delays = Delays {
        message: 100..=4_000,
        commit: 500..=12_000,
        start: 300_000..=2_000_000,
        stop: 50_000..=1_500_000,
        kill: 1_000..=250_000,
        copy: 200_000..=8_000_000,
        boot: 2_000_000..=4_000_000,
        election: 1_000_000..=2_000_000,
    };
    let config = Config {
        read_every: Duration::from_secs(6),
        gather_for: Duration::from_secs(8),
        gather_rest_for: Duration::from_secs(1),
        parallel_starts: 3,
        parallel_moves: 2,
        parallel_copies: 2,
        copy_again: Duration::from_secs(5),
        batch: 4,
        ..Config::new(HostId::from(""))
    };
    let log = if keep_log { Log::kept() } else { Log::default() };
    let mut world = World::new(rng, machines, members.clone(), delays, config, mutation, log);
    let vms = vms(&mut world.rng, &names);
    let records: Vec<(HostId, HostRecord)> = names.iter().map(|name| (name.clone(), host(&mut world.rng, name))).collect();
    world.set_up(&records, &vms, &PolicyRecord::default());
    world.failures = 40;
    world.lies = [0, 60, 15][world.rng.usize(0..3)];
    let long = world.rng.u32(0..25) == 0;
    let end = Duration::from_secs(if long { 240 } else { world.rng.u64(25..50) });
    let vms: Vec<VmId> = vms.into_iter().map(|(vm, _)| vm).collect();
    for _ in 0..world.rng.u32(3..14) {
        plan_fault(&mut world, &names, &vms, &members, faults, end);
    }
    world.run_until(end);
    // What was cut or switched off comes back, and hosts that were drained may take VMs again.
    let no_more_lies = std::mem::take(&mut world.lies);
    world.fault(Fault::Heal);
    for machine in 0..world.machines.len() {
        world.fault(Fault::PowerOn(machine));
        world.fault(Fault::MemberStart(machine));
    }
    let deadline = end + SETTLE;
    let mut unsettled = None;
    while world.checker.violation.is_none() && world.now < deadline {
        world.run_until(world.now + Duration::from_secs(1));
        // A user whose word was refused, since the store had no quorum, says it again.
        if world.leads() {
            let truth = world.truth();
            let drained = names.iter().filter(|name| truth.host(name).is_some_and(|host| !host.is_active()));
            drained.for_each(|host| world.fault(Fault::Resume(host.clone())));
        }
        unsettled = world.unsettled();
        if unsettled.is_none() {
            break;
        }
    }
    let settled_after = world.now - end;
    let stuck = unsettled.map(|what| format!("{what}, {SETTLE:?} after the last fault (lies {no_more_lies})"));
    let violation = world.checker.violation.take().or(stuck);
    Report { violation, counts: world.counts, log: world.log.text(), settled_after }
}

fn drift(rng: &mut fastrand::Rng) -> Clock {
    Clock { drift_ppm: rng.i64(-DRIFT_PPM..=DRIFT_PPM) }
}

/// The volume of the same name that each host has for itself.
const LOCAL: &str = "local";

fn host(rng: &mut fastrand::Rng, name: &HostId) -> HostRecord {
    let fencing = if rng.u32(0..10) == 0 { Fencing::Manual } else { Fencing::Watchdog };
    let (volumes, local) = ([own_volume(LOCAL, name)].into(), [(LOCAL.to_owned(), 4096)].into());
    HostRecord { memory_mib: 64 * 1024, cpus: 16, fencing, volumes, local, ..HostRecord::default() }
}

fn vms(rng: &mut fastrand::Rng, hosts: &[HostId]) -> Vec<(VmId, PlacementRecord)> {
    let count = rng.usize(hosts.len()..=hosts.len() * 3);
    let record = |rng: &mut fastrand::Rng, number: usize| {
        let apart = GroupRule {
            group: format!("group{}", number % 4),
            affinity: Affinity::Apart,
            scope: Scope::Host,
            strength: Strength::Soft,
        };
        let files = (rng.u32(0..3) == 0).then(|| hosts[rng.usize(0..hosts.len())].clone());
        let local = files.map(|host| LocalFiles { host, volumes: [(LOCAL.to_owned(), 1024)].into() });
        PlacementRecord {
            volumes: local.iter().map(|local| own_volume(LOCAL, &local.host)).collect(),
            local,
            power: if rng.u32(0..6) == 0 { Power::Off } else { Power::On },
            start: 1,
            memory_mib: rng.u64(1..=8) * 512,
            vcpus: rng.u32(1..=4),
            priority: [Priority::Low, Priority::Medium, Priority::High][rng.usize(0..3)],
            preferred: if rng.u32(0..4) == 0 { vec![hosts[rng.usize(0..hosts.len())].clone()] } else { Vec::new() },
            groups: if rng.bool() { vec![apart] } else { Vec::new() },
            restart: RestartPolicy { limit: rng.u32(1..5), period_s: 3600 },
            failback: if rng.bool() { Failback::Immediate } else { Failback::Never },
            ..PlacementRecord::default()
        }
    };
    (1..=count).map(|number| (VmId::from(format!("vm{number}")), record(rng, number))).collect()
}

/// Chooses a fault, and when it ends.
fn plan_fault(world: &mut World, hosts: &[HostId], vms: &[VmId], members: &[usize], faults: Faults, end: Duration) {
    let rng = &mut world.rng;
    let all = world.machines.len();
    let at = Duration::from_micros(rng.u64(3_000_000..micros(end)));
    let left = micros(end - at);
    // Most are short, some last until the end.
    let longest = [300_000, 2_000_000, 8_000_000, 60_000_000][rng.usize(0..4)].min(left).max(1);
    let time = Duration::from_micros(rng.u64(0..longest));
    let (machine, other) = (rng.usize(0..all), rng.usize(0..all));
    let member = members[rng.usize(0..members.len())];
    let network = Network::ALL[usize::from(rng.u32(0..3) == 0)];
    let vm = vms[rng.usize(0..vms.len())].clone();
    let host = hosts[rng.usize(0..hosts.len())].clone();
    let happens = match rng.u32(0..25) {
        0 | 1 => vec![(at, Fault::PowerCut(machine)), (at + time, Fault::PowerOn(machine))],
        2..=4 if faults == Faults::All => vec![(at, Fault::Freeze(machine, time))],
        2 | 5 => vec![(at, Fault::DaemonCrash(machine, time))],
        3 | 6 => vec![(at, Fault::DaemonFreeze(machine, time))],
        4 | 7 | 8 => vec![(at, Fault::GuardAway(machine, time))],
        9 => vec![(at, Fault::MemberCrash(member)), (at + time, Fault::MemberStart(member))],
        10 => vec![(at, Fault::MemberFreeze(member, time))],
        11 | 12 => vec![(at, Fault::Cut(network, machine, other)), (at + time, Fault::Mend(network, machine, other))],
        13..=15 => {
            // One machine is alone, or can only send, or only receive.
            let (sends, receives) = [(false, false), (true, false), (false, true)][rng.usize(0..3)];
            let mut happens = Vec::new();
            for peer in (0..all).filter(|peer| *peer != machine) {
                if !sends {
                    happens.push((at, Fault::Cut(network, machine, peer)));
                    happens.push((at + time, Fault::Mend(network, machine, peer)));
                }
                if !receives {
                    happens.push((at, Fault::Cut(network, peer, machine)));
                    happens.push((at + time, Fault::Mend(network, peer, machine)));
                }
            }
            happens
        }
        16 => vec![(at, Fault::Loss(network, rng.u32(5..60))), (at + time, Fault::Loss(network, 0))],
        17 => vec![(at, Fault::Slow(time))],
        18 => match rng.u32(0..6) {
            // Everything loses its power.
            0 => (0..all).flat_map(|one| [(at, Fault::PowerCut(one)), (at + time, Fault::PowerOn(one))]).collect(),
            1 | 2 => vec![(at, Fault::GuestPowersOff(vm))],
            _ => vec![(at, Fault::VmCrash(vm))],
        },
        19 => {
            let drain = if rng.bool() { Fault::Drain(host.clone()) } else { Fault::GoDown(host.clone()) };
            vec![(at, drain), (at + time, Fault::Resume(host))]
        }
        20 => vec![(at, Fault::Stop(vm.clone())), (at + time, Fault::Start(vm))],
        21 => vec![(at, Fault::Move(vm, host))],
        22 => vec![(at, Fault::Stop(vm))],
        23 => {
            // Answers come late, and what is sent after a moment does not arrive.
            let cut = at + Duration::from_millis(rng.u64(500..3_000));
            let mended = cut + time.max(Duration::from_secs(6));
            let peers = (0..all).filter(|peer| *peer != machine);
            let out = |peer| (cut.min(end), Fault::Cut(Network::First, machine, peer));
            let back = |peer| (mended.min(end), Fault::Mend(Network::First, machine, peer));
            let cuts = peers.flat_map(|peer| [out(peer), back(peer)]);
            cuts.chain([(at, Fault::Slow(Duration::from_secs(5).min(Duration::from_micros(left))))]).collect()
        }
        _ => vec![(at, Fault::Start(vm))],
    };
    for (at, fault) in happens {
        // A drain ends after the last fault; whether it was given in time to be done is not what is tried here.
        let at = if matches!(fault, Fault::Resume(_)) { at.max(end) } else { at };
        world.fault_at(at, fault);
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
