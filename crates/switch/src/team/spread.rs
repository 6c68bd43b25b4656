//! Which NIC carries what: 256 slots, each of which has a NIC. A slot stands for ports of the switch, or for flows with equal bits of
//! their hashes.

/// Slots.
pub const SLOTS: usize = 256;
/// Instead of a NIC: there is none.
pub const NOBODY: u8 = u8::MAX;

/// So little in an interval is not worth a move.
const WORTH_MOVING_BYTES: u64 = 1 << 20;

/// The slots.
#[derive(Clone, Debug)]
pub struct Spread {
    nics: [u8; SLOTS],
    /// Bytes of this interval, and of the one before.
    load: [u64; SLOTS],
    last_load: [u64; SLOTS],
}

impl Default for Spread {
    fn default() -> Spread {
        Spread { nics: [NOBODY; SLOTS], load: [0; SLOTS], last_load: [0; SLOTS] }
    }
}

impl Spread {
    /// The slot's NIC, or [`NOBODY`].
    pub fn nic(&self, slot: u8) -> u8 {
        self.nics[usize::from(slot)]
    }

    /// Which slots have another NIC than in an older state.
    pub fn moved_since(&self, old: &Spread) -> [bool; SLOTS] {
        std::array::from_fn(|slot| self.nics[slot] != old.nics[slot])
    }

    /// Counts what a slot carries.
    pub fn count(&mut self, slot: u8, bytes: usize) {
        self.load[usize::from(slot)] += bytes as u64;
    }

    /// Gives all slots to one NIC.
    pub fn give_all(&mut self, nic: Option<usize>) {
        self.nics = [nic.map_or(NOBODY, |nic| nic as u8); SLOTS];
    }

    /// Gives each NIC slots by its weight, which is zero if it cannot be used. Moves no more slots than it must, and of those that may
    /// stay or go, the ones with the least to carry.
    pub fn share(&mut self, weights: &[u64]) {
        let total: u64 = weights.iter().sum();
        if total == 0 {
            return self.give_all(None);
        }
        // How many slots each one should still get; below zero, how many it has too many. Rounded down: what is left goes round.
        let mut wanted: Vec<i64> = weights.iter().map(|weight| (SLOTS as u64 * weight / total) as i64).collect();
        let mut left = SLOTS as i64 - wanted.iter().sum::<i64>();
        for (wanted, weight) in wanted.iter_mut().zip(weights) {
            if left > 0 && *weight > 0 {
                *wanted += 1;
                left -= 1;
            }
        }
        for nic in self.nics.iter_mut() {
            match weights.get(usize::from(*nic)) {
                Some(1..) => wanted[usize::from(*nic)] -= 1,
                _ => *nic = NOBODY,
            }
        }
        let mut slots: Vec<usize> = (0..SLOTS).collect();
        slots.sort_by_key(|slot| (self.load[*slot] + self.last_load[*slot], *slot));
        for slot in slots.iter().copied() {
            let nic = usize::from(self.nics[slot]);
            if let Some(wanted) = wanted.get_mut(nic).filter(|wanted| **wanted < 0) {
                *wanted += 1;
                self.nics[slot] = NOBODY;
            }
        }
        for slot in 0..SLOTS {
            if self.nics[slot] != NOBODY {
                continue;
            }
            // The neediest, in relation to its weight, so that neighbours get different NICs.
            let needs = |nic: &usize| wanted[*nic] as f64 / weights[*nic] as f64;
            let neediest = (0..weights.len()).filter(|nic| weights[*nic] > 0).rev().max_by(|a, b| needs(a).total_cmp(&needs(b)));
            if let Some(nic) = neediest {
                wanted[nic] -= 1;
                self.nics[slot] = nic as u8;
            }
        }
    }

    /// Ends an interval: moves slots from the NIC with most to do for its weight to the one with least, until they differ by less than a
    /// tenth. What would change next to nothing stays where it is, and so does a flow that is alone in being heavy.
    pub fn rebalance(&mut self, weights: &[u64]) {
        self.last_load = std::mem::replace(&mut self.load, [0; SLOTS]);
        self.balance_by_last(weights);
    }

    /// The same by what was measured in the last interval.
    pub fn balance_by_last(&mut self, weights: &[u64]) {
        let usable: Vec<usize> = (0..weights.len()).filter(|nic| weights[*nic] > 0).collect();
        let mut bytes = vec![0u64; weights.len()];
        for (nic, load) in self.nics.iter().zip(&self.last_load) {
            bytes.get_mut(usize::from(*nic)).into_iter().for_each(|bytes| *bytes += load);
        }
        for _ in 0..SLOTS {
            let use_of = |nic: usize, bytes: u64| bytes as f64 / weights[nic] as f64;
            let by_use = |a: &&usize, b: &&usize| use_of(**a, bytes[**a]).total_cmp(&use_of(**b, bytes[**b]));
            let (Some(&most), Some(&least)) = (usable.iter().max_by(by_use), usable.iter().min_by(by_use)) else { return };
            if most == least || bytes[most] < WORTH_MOVING_BYTES {
                return;
            }
            let now = use_of(most, bytes[most]);
            if use_of(least, bytes[least]) > now * 0.9 {
                return;
            }
            let after = |slot: &usize| {
                let load = self.last_load[*slot];
                use_of(most, bytes[most] - load).max(use_of(least, bytes[least] + load))
            };
            let theirs = (0..SLOTS).filter(|slot| usize::from(self.nics[*slot]) == most && self.last_load[*slot] > 0);
            let Some(slot) = theirs.min_by(|a, b| after(a).total_cmp(&after(b))) else { return };
            if after(&slot) > now * 0.999 {
                return;
            }
            self.nics[slot] = least as u8;
            bytes[most] -= self.last_load[slot];
            bytes[least] += self.last_load[slot];
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn counts(spread: &Spread, nics: usize) -> Vec<usize> {
        (0..nics).map(|nic| spread.nics.iter().filter(|own| usize::from(**own) == nic).count()).collect()
    }

    #[test]
    fn neighbours_get_different_nics_and_faster_ones_get_more() {
        let mut spread = Spread::default();
        spread.share(&[1000, 1000]);
        assert_eq!(spread.nics[..4], [0, 1, 0, 1]);
        let mut spread = Spread::default();
        spread.share(&[10_000, 1000, 0]);
        assert_eq!(counts(&spread, 3), [233, 23, 0]);
    }

    #[test]
    fn only_slots_of_a_dead_nic_move() {
        let mut spread = Spread::default();
        spread.share(&[1, 1, 1]);
        let before = spread.clone();
        spread.share(&[1, 0, 1]);
        assert_eq!(counts(&spread, 3), [128, 0, 128]);
        for slot in 0..SLOTS {
            assert_eq!(before.nics[slot] == 1, spread.moved_since(&before)[slot], "slot {slot}");
        }
        spread.share(&[0, 0, 0]);
        assert!(spread.nics.iter().all(|nic| *nic == NOBODY));
    }

    #[test]
    fn who_comes_back_gets_idle_slots_and_then_load_when_that_is_uneven() {
        let mut spread = Spread::default();
        spread.share(&[1, 0]);
        for slot in 0..100 {
            spread.count(slot, 1 << 20);
        }
        spread.rebalance(&[1, 0]);
        spread.share(&[1, 1]);
        assert_eq!(counts(&spread, 2), [128, 128]);
        assert!(spread.nics[..100].iter().all(|nic| *nic == 0), "what carries something has not moved");
        spread.balance_by_last(&[1, 1]);
        let moved = spread.nics[..100].iter().filter(|nic| **nic == 1).count();
        assert!((45..=50).contains(&moved), "{moved}");
    }

    #[test]
    fn one_heavy_flow_does_not_wander() {
        let mut spread = Spread::default();
        spread.share(&[1, 1]);
        let before = spread.clone();
        spread.count(0, 1 << 30);
        spread.count(2, 1 << 10);
        spread.rebalance(&[1, 1]);
        assert_eq!(spread.nics, before.nics);
        // Nor does anything for a few bytes.
        (0..SLOTS).step_by(2).for_each(|slot| spread.count(slot as u8, 1000));
        spread.rebalance(&[1, 1]);
        assert_eq!(spread.nics, before.nics);
    }

    #[test]
    fn load_goes_by_speed() {
        let weights = [10_000, 1000];
        let mut spread = Spread::default();
        spread.share(&weights);
        // All of it where the slow one is.
        for slot in (0..SLOTS).filter(|slot| spread.nics[*slot] == 1).collect::<Vec<_>>() {
            spread.count(slot as u8, 10 << 20);
        }
        spread.rebalance(&weights);
        let slow = (0..SLOTS).filter(|slot| spread.nics[*slot] == 1 && spread.last_load[*slot] > 0).count();
        assert!((2..=3).contains(&slow), "{slow} of 23");
    }

    proptest! {
        #[test]
        fn every_slot_has_a_usable_nic_if_there_is_one(
            steps in prop::collection::vec((prop::collection::vec(prop_oneof![Just(0u64), 1u64..100_000], 1..9), any::<u8>(), 0usize..1 << 40), 1..12),
        ) {
            let mut spread = Spread::default();
            for (weights, slot, bytes) in steps {
                spread.share(&weights);
                spread.count(slot, bytes);
                spread.rebalance(&weights);
                let is_any = weights.iter().any(|weight| *weight > 0);
                for nic in spread.nics {
                    assert_eq!(weights.get(usize::from(nic)).is_some_and(|weight| *weight > 0), is_any);
                }
            }
        }
    }
}
