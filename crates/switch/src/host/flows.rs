//! Requests about what flows and rules have counted. Tables are looked through a part at a time, so that frames have their turn.

use super::{Host, HostError, PLACES_AT_ONCE};
use crate::control::{FlowStatus, PortRules, RuleStatus};
use crate::explain::{action, frame_text};
use crate::pipeline::FlowView;
use crate::tables::RuleCount;

/// The most flows of an answer.
const MAX_FLOWS: u64 = 10_000;

impl Host {
    /// The flows with the most frames, of one port or all.
    pub(super) fn flows(&mut self, name: Option<&str>, most: u64) -> Result<Vec<FlowStatus>, HostError> {
        if !(1..=MAX_FLOWS).contains(&most) {
            return Err(HostError::Flows { count: most, most: MAX_FLOWS });
        }
        let port = name.map(|name| self.entry(name).map(|entry| entry.number)).transpose()?;
        let mut found: Vec<FlowView> = Vec::new();
        let mut next = Some(0);
        while let Some(from) = next {
            let (part, more) = self.worker.call(move |worker| worker.switch.flows(port, from, PLACES_AT_ONCE))?;
            found.extend(part);
            found.sort_by_key(|flow| std::cmp::Reverse(flow.count.packets));
            found.truncate(most as usize);
            next = more;
        }
        let now = self.worker.call(|worker| worker.now())?;
        let names = self.names();
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

    /// Has all rules know of the frames of all flows.
    pub(super) fn settle(&mut self) -> Result<(), HostError> {
        let mut next = Some(0);
        while let Some(from) = next {
            next = self.worker.call(move |worker| worker.switch.settle(from, PLACES_AT_ONCE))?;
        }
        Ok(())
    }

    /// A port's rules, and what they have decided.
    pub(super) fn rules(&mut self, name: &str) -> Result<PortRules, HostError> {
        self.settle()?;
        let entry = self.entry(name)?;
        let (number, policy) = (entry.number, entry.config.policy.clone());
        let counts = self.worker.call(move |worker| worker.switch.rule_counts(number))??;
        Ok(PortRules { acl: statuses(policy.acl, counts.acl), extended_acl: statuses(policy.extended_acl, counts.extended) })
    }
}

fn statuses<R>(rules: Vec<R>, counts: Vec<RuleCount>) -> Vec<RuleStatus<R>> {
    let status = |(rule, count): (R, RuleCount)| RuleStatus { rule, packets: count.packets, bytes: count.bytes };
    rules.into_iter().zip(counts).map(status).collect()
}
