//! What flows and rules have counted.

use super::{Action, PortError, PortNumber, Switch};
use crate::frame::Frame;
use crate::tables::{Millis, RuleCount};

/// A flow, as others may see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowView {
    /// The port that it comes from.
    pub port: PortNumber,
    /// What its frames say; their priority is not known.
    pub frame: Frame,
    /// What is done to them.
    pub actions: Vec<Action>,
    /// Its frames.
    pub count: RuleCount,
    /// When it was first decided.
    pub begun: Millis,
    /// When its last frame came.
    pub used: Millis,
}

/// What the rules of a port have decided, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortRuleCounts {
    /// Rules by longest prefix.
    pub acl: Vec<RuleCount>,
    /// Rules by weight.
    pub extended: Vec<RuleCount>,
}

impl Switch {
    /// The flows among `count` places of the table from `from` on that hold, of a port or all; and where the next places are. The rules
    /// that they were decided by then know of their frames.
    pub fn flows(&mut self, port: Option<PortNumber>, from: usize, count: usize) -> (Vec<FlowView>, Option<usize>) {
        let Switch { flows, rules, generation, .. } = self;
        let (places, next) = flows.part(from, count);
        let mut views = Vec::new();
        for flow in places {
            rules.settle(flow);
            let (from, frame) = flow.frame();
            if flow.generation == *generation && port.is_none_or(|port| port == from) {
                let actions = flow.actions.to_vec();
                views.push(FlowView { port: from, frame, actions, count: flow.count, begun: flow.begun, used: flow.used });
            }
        }
        (views, next)
    }

    /// Has the rules know of the frames of the flows among `count` places from `from` on; returns where the next places are.
    pub fn settle(&mut self, from: usize, count: usize) -> Option<usize> {
        let Switch { flows, rules, .. } = self;
        let (places, next) = flows.part(from, count);
        places.for_each(|flow| rules.settle(flow));
        next
    }

    /// What a port's rules have decided: frames of flows that were settled, or that have gone.
    pub fn rule_counts(&self, number: PortNumber) -> Result<PortRuleCounts, PortError> {
        let places = &self.port(number)?.places;
        Ok(PortRuleCounts { acl: self.rules.get(&places.acl), extended: self.rules.get(&places.extended) })
    }
}
