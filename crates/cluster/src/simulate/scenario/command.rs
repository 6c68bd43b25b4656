//! What a step does: a verb and names.

use std::time::Duration;

use super::super::faults::Fault;
use super::super::world::World;
use super::{LONGEST_S, seconds};
use crate::records::{HostRecord, PlacementRecord};
use crate::{HostId, Network, VmId};

/// What can be named.
pub(super) struct Named<'a> {
    pub(super) hosts: &'a [(HostId, HostRecord)],
    pub(super) vms: &'a [(VmId, PlacementRecord)],
    pub(super) witness: bool,
}

/// Why a step is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// Nothing that can be done.
    #[error(
        "there is no such command; there are power-cut, power-on, freeze, crash-marud, stop-marud, stop-guard, crash-member, \
         start-member, stop-member, cut, mend, isolate, isolate-out, isolate-in, rejoin, loss, slow, heal, power-off-guest, crash-vm, \
         start, stop, move, drain, go-down, resume, confirm-dead, explain, what-if"
    )]
    Verb,
    /// Too few words, or too many.
    #[error("write it as '{0}'")]
    Words(&'static str),
    /// No machine.
    #[error("there is no machine '{0}'")]
    Machine(String),
    /// No VM.
    #[error("there is no VM '{0}'")]
    Vm(String),
    /// No network.
    #[error("'{0}' is no network; 1 and 2 are")]
    Network(String),
    /// No number.
    #[error("'{0}' is no number of seconds (0 to {LONGEST_S}), or of percent (0 to 100)")]
    Number(String),
}

/// A step.
pub(super) enum Command {
    Faults(Vec<Fault>),
    Explain(VmId),
    WhatIf(HostId),
}

impl Named<'_> {
    fn machine(&self, name: &str) -> Result<usize, CommandError> {
        let host = self.hosts.iter().position(|(id, _)| id.as_str() == name);
        let witness = (self.witness && name == "witness").then_some(self.hosts.len());
        host.or(witness).ok_or_else(|| CommandError::Machine(name.into()))
    }

    fn host(&self, name: &str) -> Result<HostId, CommandError> {
        let host = self.hosts.iter().find(|(id, _)| id.as_str() == name);
        host.map(|(id, _)| id.clone()).ok_or_else(|| CommandError::Machine(name.into()))
    }

    fn vm(&self, name: &str) -> Result<VmId, CommandError> {
        let vm = self.vms.iter().find(|(id, _)| id.as_str() == name);
        vm.map(|(id, _)| id.clone()).ok_or_else(|| CommandError::Vm(name.into()))
    }

    /// All other machines.
    fn peers(&self, machine: usize) -> impl Iterator<Item = usize> {
        (0..self.hosts.len() + usize::from(self.witness)).filter(move |peer| *peer != machine)
    }
}

fn network(name: &str) -> Result<Network, CommandError> {
    match name {
        "1" => Ok(Network::First),
        "2" => Ok(Network::Second),
        _ => Err(CommandError::Network(name.into())),
    }
}

fn time(text: &str) -> Result<Duration, CommandError> {
    let number = || CommandError::Number(text.into());
    seconds(text.parse().map_err(|_| number())?).map_err(|_| number())
}

impl Command {
    pub(super) fn parse(text: &str, named: &Named<'_>) -> Result<Command, CommandError> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let (verb, rest) = words.split_first().ok_or(CommandError::Verb)?;
        let usage = match *verb {
            "power-cut" | "power-on" | "crash-member" | "start-member" => "VERB MACHINE",
            "freeze" | "crash-marud" | "stop-marud" | "stop-guard" | "stop-member" => "VERB MACHINE SECONDS",
            "cut" | "mend" => "VERB NETWORK FROM TO",
            "isolate" | "isolate-out" | "isolate-in" | "rejoin" => "VERB NETWORK MACHINE",
            "loss" => "loss NETWORK PERCENT",
            "slow" => "slow SECONDS",
            "heal" => "heal",
            "power-off-guest" | "crash-vm" | "start" | "stop" | "explain" => "VERB VM",
            "move" => "move VM HOST",
            "drain" | "go-down" | "resume" | "confirm-dead" | "what-if" => "VERB HOST",
            _ => return Err(CommandError::Verb),
        };
        let fault = match (*verb, rest) {
            ("power-cut", [machine]) => Fault::PowerCut(named.machine(machine)?),
            ("power-on", [machine]) => Fault::PowerOn(named.machine(machine)?),
            ("crash-member", [machine]) => Fault::MemberCrash(named.machine(machine)?),
            ("start-member", [machine]) => Fault::MemberStart(named.machine(machine)?),
            ("freeze", [machine, s]) => Fault::Freeze(named.machine(machine)?, time(s)?),
            ("crash-marud", [machine, s]) => Fault::DaemonCrash(named.machine(machine)?, time(s)?),
            ("stop-marud", [machine, s]) => Fault::DaemonFreeze(named.machine(machine)?, time(s)?),
            ("stop-guard", [machine, s]) => Fault::GuardAway(named.machine(machine)?, time(s)?),
            ("stop-member", [machine, s]) => Fault::MemberFreeze(named.machine(machine)?, time(s)?),
            ("cut", [on, from, to]) => Fault::Cut(network(on)?, named.machine(from)?, named.machine(to)?),
            ("mend", [on, from, to]) => Fault::Mend(network(on)?, named.machine(from)?, named.machine(to)?),
            ("isolate" | "isolate-out" | "isolate-in" | "rejoin", [on, machine]) => {
                let (on, machine) = (network(on)?, named.machine(machine)?);
                let one = |from, to| if *verb == "rejoin" { Fault::Mend(on, from, to) } else { Fault::Cut(on, from, to) };
                let out = named.peers(machine).filter(|_| *verb != "isolate-in").map(|peer| one(machine, peer));
                let into = named.peers(machine).filter(|_| *verb != "isolate-out").map(|peer| one(peer, machine));
                return Ok(Command::Faults(out.chain(into).collect()));
            }
            ("loss", [on, percent]) => {
                let number = percent.parse().ok().filter(|percent| *percent <= 100);
                Fault::Loss(network(on)?, number.ok_or_else(|| CommandError::Number((*percent).into()))?)
            }
            ("slow", [s]) => Fault::Slow(time(s)?),
            ("heal", []) => Fault::Heal,
            ("power-off-guest", [vm]) => Fault::GuestPowersOff(named.vm(vm)?),
            ("crash-vm", [vm]) => Fault::VmCrash(named.vm(vm)?),
            ("start", [vm]) => Fault::Start(named.vm(vm)?),
            ("stop", [vm]) => Fault::Stop(named.vm(vm)?),
            ("move", [vm, host]) => Fault::Move(named.vm(vm)?, named.host(host)?),
            ("drain", [host]) => Fault::Drain(named.host(host)?),
            ("go-down", [host]) => Fault::GoDown(named.host(host)?),
            ("resume", [host]) => Fault::Resume(named.host(host)?),
            ("confirm-dead", [host]) => Fault::ConfirmDead(named.host(host)?),
            ("explain", [vm]) => return Ok(Command::Explain(named.vm(vm)?)),
            ("what-if", [host]) => return Ok(Command::WhatIf(named.host(host)?)),
            _ => return Err(CommandError::Words(usage)),
        };
        Ok(Command::Faults(vec![fault]))
    }

    pub(super) fn run(&self, world: &mut World) {
        let (now, unix_s) = (world.now, world.unix_s());
        match self {
            Command::Faults(faults) => faults.iter().for_each(|fault| world.fault(fault.clone())),
            Command::Explain(vm) => {
                for verdict in world.truth().explain(vm, unix_s) {
                    let reasons: Vec<String> = verdict.reasons.iter().map(ToString::to_string).collect();
                    let score = verdict.score.map_or("no".into(), |score| score.to_string());
                    world.log.line(now, "?", || format!("{vm} on {}: {score} ({})", verdict.host, reasons.join(", ")));
                }
            }
            Command::WhatIf(host) => {
                for (vm, fate) in world.truth().what_if(std::slice::from_ref(host)).fates {
                    world.log.line(now, "?", || match fate {
                        crate::placement::Fate::Goes(to) => format!("without {host}, {vm} goes to {to}"),
                        crate::placement::Fate::Waits(reason) => format!("without {host}, {vm} waits: {reason}"),
                    });
                }
            }
        }
    }
}
