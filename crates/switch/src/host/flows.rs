//! Requests about what flows and rules have counted. Tables are looked through a part at a time, so that frames have their turn.

use super::{Host, HostError, PLACES_AT_ONCE};
use crate::control::{FlowStatus, PortRules, RuleStatus};
use crate::explain::{action, frame_text};
use crate::pipeline::{FlowView, PortNumber};
use crate::tables::RuleCount;
use crate::worker::Handle;

/// The most flows of an answer.
const MAX_FLOWS: u64 = 10_000;

impl Host {
    /// The flows with the most frames, of one port or all.
    pub(super) fn flows(&self, name: Option<&str>, most: u64) -> Result<Vec<FlowStatus>, HostError> {
        if !(1..=MAX_FLOWS).contains(&most) {
            return Err(HostError::Flows { count: most, most: MAX_FLOWS });
        }
        let place = name.map(|name| self.place(name)).transpose()?;
        let workers = place.as_ref().map_or(self.workers.started(), |(worker, _)| std::slice::from_ref(worker));
        let port = place.as_ref().map(|(_, number)| *number);
        let mut all = Vec::new();
        for worker in workers {
            all.extend(self.flows_of(worker, port, most as usize)?);
        }
        all.sort_by_key(|flow| std::cmp::Reverse(flow.packets));
        all.truncate(most as usize);
        Ok(all)
    }

    fn flows_of(&self, worker: &Handle, port: Option<PortNumber>, most: usize) -> Result<Vec<FlowStatus>, HostError> {
        let mut found: Vec<FlowView> = Vec::new();
        let mut next = Some(0);
        while let Some(from) = next {
            let (part, more) = worker.call(move |worker| worker.switch.flows(port, from, PLACES_AT_ONCE))?;
            found.extend(part);
            found.sort_by_key(|flow| std::cmp::Reverse(flow.count.packets));
            found.truncate(most);
            next = more;
        }
        let now = worker.call(|worker| worker.now())?;
        let names = self.names(worker);
        let status = |flow: FlowView| {
            Some(FlowStatus {
                port: names.get(&flow.port)?.clone(),
                frame: frame_text(&flow.frame),
                actions: flow.actions.iter().map(|one| action(one, &names)).collect(),
                packets: flow.count.packets,
                bytes: flow.count.bytes,
                age_ms: now.saturating_sub(flow.begun),
                idle_ms: now.saturating_sub(flow.used),
            })
        };
        Ok(found.into_iter().filter_map(status).collect())
    }

    /// A port's rules, and what they have decided.
    pub(super) fn rules(&self, name: &str) -> Result<PortRules, HostError> {
        let entry = self.ports.get(name).ok_or_else(|| HostError::NoPort(name.into()))?;
        settle(&entry.worker)?;
        let (number, policy) = (entry.number, entry.config.policy.clone());
        let counts = entry.worker.call(move |worker| worker.switch.rule_counts(number))??;
        Ok(PortRules { acl: statuses(policy.acl, counts.acl), extended_acl: statuses(policy.extended_acl, counts.extended) })
    }
}

/// Has all rules of a worker know of the frames of all flows.
pub(super) fn settle(worker: &Handle) -> Result<(), HostError> {
    let mut next = Some(0);
    while let Some(from) = next {
        next = worker.call(move |worker| worker.switch.settle(from, PLACES_AT_ONCE))?;
    }
    Ok(())
}

fn statuses<R>(rules: Vec<R>, counts: Vec<RuleCount>) -> Vec<RuleStatus<R>> {
    let status = |(rule, count): (R, RuleCount)| RuleStatus { rule, packets: count.packets, bytes: count.bytes };
    rules.into_iter().zip(counts).map(status).collect()
}
