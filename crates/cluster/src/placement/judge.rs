//! The judgement over one VM and one host.

use std::fmt;

use super::inventory::{Closed, Inventory, Load, Needs, Slot};
use crate::HostId;
use crate::records::{Affinity, Scope};

/// How many virtual processors a processor bears before it counts as full.
const VCPUS_PER_CPU: u64 = 4;

/// What a VM went through.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// Where it ran last: what it read may still be in that host's memory.
    pub last: Option<Slot>,
    /// Where it failed lately, once for each failure.
    pub failed: Vec<Slot>,
}

/// How a VM gets to a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way<'a> {
    /// It is started there, with its files where they are.
    Start,
    /// It is handed over, with copies of the files that only its host reaches.
    Move {
        /// All of these go to this volume; to those of the same names if there is none.
        volume: Option<&'a str>,
        /// Whether it runs, and goes on there.
        runs: bool,
    },
}

/// A reason for or against a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It takes no VMs.
    Closed(Closed),
    /// The VM may run on named hosts only, and this is none of them.
    NotPossible,
    /// Too little memory is free.
    Memory {
        /// Needed, in MiB.
        needed: u64,
        /// Free, in MiB.
        free: u64,
    },
    /// The VM has more virtual processors than the host has processors.
    Cpus {
        /// Needed.
        needed: u32,
        /// There.
        there: u32,
    },
    /// A volume that the host does not reach.
    Volume(String),
    /// A volume for copies that the host does not have.
    NoVolume(String),
    /// Too little is free on a volume for copies.
    Room {
        /// Which.
        volume: String,
        /// Needed, in MiB.
        needed: u64,
        /// Free, in MiB.
        free: u64,
    },
    /// Something that its processors cannot do.
    Feature(String),
    /// VMs of a group that must not be together.
    TooClose(String),
    /// VMs of a group that must be together, and are elsewhere.
    TooFar(String),
    /// Points for memory that stays free.
    FreeMemory(i64),
    /// Points for processors that stay free.
    FreeCpus(i64),
    /// Points for being preferred.
    Preferred(i64),
    /// Points for having run here last.
    RanHere(i64),
    /// Points against, for having failed here lately.
    FailedHere(i64),
    /// Points against, for VMs of a group that should not be together.
    Close(String, i64),
    /// Points for VMs of a group that should be together.
    Near(String, i64),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Closed(Closed::Unknown) => f.write_str("no host of this cluster"),
            Reason::Closed(Closed::Dead) => f.write_str("it holds no lease"),
            Reason::Closed(Closed::Drained) => f.write_str("it is drained"),
            Reason::NotPossible => f.write_str("it is none of the hosts that the VM may run on"),
            Reason::Memory { needed, free } => write!(f, "{needed} MiB of memory are needed and {free} MiB are free"),
            Reason::Cpus { needed, there } => write!(f, "{needed} processors are needed and it has {there}"),
            Reason::Volume(name) => write!(f, "it does not reach the volume {name}"),
            Reason::NoVolume(name) => write!(f, "it has no volume {name} for copies of the VM's files"),
            Reason::Room { volume, needed, free } => {
                write!(f, "copies of the VM's files need {needed} MiB on its volume {volume}, and {free} MiB are free")
            }
            Reason::Feature(name) => write!(f, "its processors do not have {name}"),
            Reason::TooClose(group) => write!(f, "VMs of the group {group} must be apart, and one is here"),
            Reason::TooFar(group) => write!(f, "VMs of the group {group} must be together, and are elsewhere"),
            Reason::FreeMemory(points) => write!(f, "{points:+} for free memory"),
            Reason::FreeCpus(points) => write!(f, "{points:+} for free processors"),
            Reason::Preferred(points) => write!(f, "{points:+} for being preferred"),
            Reason::RanHere(points) => write!(f, "{points:+} since it ran here last"),
            Reason::FailedHere(points) => write!(f, "{points:+} since it failed here lately"),
            Reason::Close(group, points) => write!(f, "{points:+} since VMs of the group {group} should be apart"),
            Reason::Near(group, points) => write!(f, "{points:+} since VMs of the group {group} should be together"),
        }
    }
}

/// What was found of one host.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// The host.
    pub host: HostId,
    /// Its score; none if it cannot take the VM.
    pub score: Option<i64>,
    /// All reasons against it, or, if there are none, what the score consists of.
    pub reasons: Vec<Reason>,
}

/// Gathers reasons, or only sums up.
trait Sink {
    fn against(&mut self, reason: impl FnOnce() -> Reason);
    fn points(&mut self, points: i64, reason: impl FnOnce(i64) -> Reason);
}

#[derive(Default)]
struct Sum {
    refused: bool,
    score: i64,
}

impl Sink for Sum {
    fn against(&mut self, _reason: impl FnOnce() -> Reason) {
        self.refused = true;
    }

    fn points(&mut self, points: i64, _reason: impl FnOnce(i64) -> Reason) {
        self.score += points;
    }
}

#[derive(Default)]
struct Words {
    sum: Sum,
    against: Vec<Reason>,
    points: Vec<Reason>,
}

impl Sink for Words {
    fn against(&mut self, reason: impl FnOnce() -> Reason) {
        self.sum.refused = true;
        self.against.push(reason());
    }

    fn points(&mut self, points: i64, reason: impl FnOnce(i64) -> Reason) {
        self.sum.score += points;
        if points != 0 {
            self.points.push(reason(points));
        }
    }
}

impl Inventory {
    fn judge(&self, needs: &Needs, history: &History, slot: Slot, way: Way<'_>, sink: &mut impl Sink) {
        let load = &self.hosts[slot.0];
        if let Some(closed) = load.closed {
            sink.against(|| Reason::Closed(closed));
        }
        if !needs.possible.is_empty() && !needs.possible.contains(&slot) {
            sink.against(|| Reason::NotPossible);
        }
        // One that is off takes no memory, but could never be started where it does not fit.
        let free = if let Way::Move { runs: false, .. } = way { load.memory_mib } else { load.free_mib() };
        if free < needs.memory_mib {
            sink.against(|| Reason::Memory { needed: needs.memory_mib, free });
        }
        if load.cpus < needs.vcpus {
            sink.against(|| Reason::Cpus { needed: needs.vcpus, there: load.cpus });
        }
        let missing = |wanted, there| self.names.first_missing(wanted, there).unwrap_or_default().to_owned();
        let wanted = match way {
            Way::Move { volume, .. } if needs.files_on.is_some_and(|on| on != slot) => {
                self.judge_copies(needs, load, volume, sink);
                &needs.shared
            }
            _ => &needs.volumes,
        };
        if !wanted.within(&load.volumes) {
            sink.against(|| Reason::Volume(missing(wanted, &load.volumes)));
        }
        if !needs.features.within(&load.features) {
            sink.against(|| Reason::Feature(missing(&needs.features, &load.features)));
        }
        for rule in &needs.rules {
            let group = &self.groups[rule.group];
            let here = match rule.scope {
                Scope::Host => group.hosts.get(&slot).copied().unwrap_or(0),
                Scope::FaultDomain => group.domains.get(&load.domain).copied().unwrap_or(0),
            };
            let name = || self.group_names[rule.group].clone();
            match (rule.affinity, rule.hard) {
                (Affinity::Apart, true) if here > 0 => sink.against(|| Reason::TooClose(name())),
                (Affinity::Together, true) if group.total > here => sink.against(|| Reason::TooFar(name())),
                (Affinity::Apart, _) => sink.points(-300 * i64::from(here), |points| Reason::Close(name(), points)),
                (Affinity::Together, _) => sink.points(300 * i64::from(here.min(1)), |points| Reason::Near(name(), points)),
            }
        }
        let share = |free: u64, all: u64| i64::try_from(free * 100 / all.max(1)).unwrap_or(0);
        sink.points(share(load.free_mib().saturating_sub(needs.memory_mib), load.memory_mib), Reason::FreeMemory);
        let vcpus = u64::from(load.cpus) * VCPUS_PER_CPU;
        sink.points(share(vcpus.saturating_sub(load.used_vcpus + u64::from(needs.vcpus)), vcpus) / 2, Reason::FreeCpus);
        if let Some(rank) = needs.preferred.iter().position(|preferred| *preferred == slot) {
            sink.points(1000 - 100 * i64::try_from(rank.min(9)).unwrap_or(9), Reason::Preferred);
        }
        if history.last == Some(slot) {
            sink.points(20, Reason::RanHere);
        }
        let failures = history.failed.iter().filter(|failed| **failed == slot).count();
        sink.points(-2000 * i64::try_from(failures).unwrap_or(1), Reason::FailedHere);
    }

    /// Whether a host has room for copies of a VM's files.
    fn judge_copies(&self, needs: &Needs, load: &Load, volume: Option<&str>, sink: &mut impl Sink) {
        let mut room = |volume: &str, needed: u64| match load.local.get(volume) {
            Some(free) if *free >= needed => {}
            Some(free) => sink.against(|| Reason::Room { volume: volume.into(), needed, free: *free }),
            None => sink.against(|| Reason::NoVolume(volume.into())),
        };
        match volume {
            // What is free on one that all hosts see, this host says when it is asked.
            Some(volume) if self.names.has(volume, &load.volumes) => {}
            Some(volume) => room(volume, needs.files.iter().map(|(_, mib)| mib).sum()),
            None => needs.files.iter().for_each(|(volume, mib)| room(volume, *mib)),
        }
    }

    /// The host's score for a VM; none if it cannot take it.
    pub fn score(&self, needs: &Needs, history: &History, slot: Slot, way: Way<'_>) -> Option<i64> {
        let mut sum = Sum::default();
        self.judge(needs, history, slot, way, &mut sum);
        (!sum.refused).then_some(sum.score)
    }

    /// The host with the highest score; of several, the first that was ever heard of.
    pub fn best(&self, needs: &Needs, history: &History, way: Way<'_>) -> Option<Slot> {
        let scored = (0..self.hosts.len()).map(Slot).filter_map(|slot| Some((self.score(needs, history, slot, way)?, slot)));
        scored.max_by_key(|(score, slot)| (*score, std::cmp::Reverse(*slot))).map(|(_, slot)| slot)
    }

    /// What speaks for and against each host, the best first.
    pub fn explain(&self, needs: &Needs, history: &History, way: Way<'_>) -> Vec<Verdict> {
        let judged = (0..self.hosts.len()).map(Slot).map(|slot| {
            let mut words = Words::default();
            self.judge(needs, history, slot, way, &mut words);
            let (score, reasons) = if words.sum.refused { (None, words.against) } else { (Some(words.sum.score), words.points) };
            Verdict { host: self.host(slot).clone(), score, reasons }
        });
        let mut verdicts: Vec<Verdict> = judged.collect();
        verdicts.sort_by_key(|verdict| (verdict.score.is_none(), std::cmp::Reverse(verdict.score)));
        verdicts
    }

    /// Why no host takes a VM, in words: each reason with the hosts that it holds for.
    pub fn refusal(&self, needs: &Needs, history: &History, way: Way<'_>) -> String {
        let mut reasons: Vec<(String, Vec<String>)> = Vec::new();
        for verdict in self.explain(needs, history, way) {
            let Some(first) = verdict.reasons.first() else { continue };
            let (text, host) = (first.to_string(), verdict.host.to_string());
            match reasons.iter_mut().find(|(known, _)| *known == text) {
                Some((_, hosts)) => hosts.push(host),
                None => reasons.push((text, vec![host])),
            }
        }
        if reasons.is_empty() {
            return "the cluster has no hosts".into();
        }
        const SHOWN: usize = 4;
        let more = reasons.len().saturating_sub(SHOWN);
        let mut parts: Vec<String> =
            reasons.iter().take(SHOWN).map(|(text, hosts)| format!("{}: {text}", names(hosts))).collect();
        if more > 0 {
            parts.push(format!("and {more} more reasons"));
        }
        parts.join("; ")
    }
}

/// A few names, and how many more there are.
fn names(hosts: &[String]) -> String {
    const SHOWN: usize = 5;
    match hosts.len() {
        0..=SHOWN => hosts.join(", "),
        all => format!("{} and {} more", hosts[..SHOWN].join(", "), all - SHOWN),
    }
}
