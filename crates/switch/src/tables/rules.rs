//! How much the rules of all ports have decided.
//!
//! A flow counts its frames, and knows the rules that it was decided by. Their counts are brought up to date when the flow goes, or when
//! somebody asks.

use std::collections::HashMap;
use std::hash::Hash;

use serde::{Deserialize, Serialize};

use super::Ref;
use super::flows::Flow;
use super::slab::Slab;

/// What a rule has decided.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleCount {
    /// Frames.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// All of them.
#[derive(Debug)]
pub struct RuleCounts(Slab<RuleCount>);

impl Default for RuleCounts {
    fn default() -> RuleCounts {
        // Policies have limits, and ports.
        RuleCounts(Slab::new(u32::MAX as usize))
    }
}

impl RuleCounts {
    /// Places for a port's rules. Those that are the same as before keep theirs, and the places of others are given back.
    pub fn place<R: Eq + Hash>(&mut self, rules: &[R], old: &[R], old_places: &[Ref]) -> Vec<Ref> {
        let mut kept: HashMap<&R, Vec<Ref>> = HashMap::new();
        // The first of equal rules is the last of its list.
        old.iter().zip(old_places).rev().for_each(|(rule, at)| kept.entry(rule).or_default().push(*at));
        let mut place = |rule| match kept.get_mut(rule).and_then(Vec::pop) {
            Some(at) => at,
            None => self.0.insert(RuleCount::default()).unwrap_or(Ref::NONE),
        };
        let places = rules.iter().map(&mut place).collect();
        kept.into_values().flatten().for_each(|at| _ = self.0.remove(at));
        places
    }

    /// What rules have decided, as far as it is known.
    pub fn get(&self, places: &[Ref]) -> Vec<RuleCount> {
        places.iter().map(|at| self.0.get(*at).copied().unwrap_or_default()).collect()
    }

    /// Has rules go on from other counts, if there is one for each.
    pub fn set(&mut self, places: &[Ref], counts: &[RuleCount]) {
        if places.len() == counts.len() {
            let pairs = places.iter().zip(counts);
            pairs.for_each(|(at, count)| self.0.get_mut(*at).into_iter().for_each(|old| *old = *count));
        }
    }

    /// Adds what a flow has counted since the last time.
    pub fn settle(&mut self, flow: &mut Flow) {
        let RuleCount { packets, bytes } = flow.take_uncounted();
        for at in &flow.rules {
            if let Some(count) = self.0.get_mut(*at) {
                count.packets += packets;
                count.bytes += bytes;
            }
        }
    }
}
