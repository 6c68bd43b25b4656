//! Limits and shares of bandwidth.
//!
//! A port's limits are buckets of bytes that fill with time; a frame passes while there is something in them, and may leave a debt, so
//! the rate is exact whatever the frames' sizes. A wire's capacity is divided among the ports that send to it: in each step, who asked
//! for it lately gets what it was promised, then its part by weight of what is left; what somebody does not use is everybody's. Only what
//! nobody has room for is: a byte that is left over by rounding would let a whole frame of whoever comes first pass.
//!
//! Time comes from outside, in nanoseconds that passed.

use crate::policy::Bandwidth;

/// Senders that asked in so many steps share a wire.
const ACTIVE: u32 = 100;
/// Nanoseconds of a step at least.
pub(super) const STEP: u64 = 100_000;
const SECOND: u128 = 1_000_000_000;

/// Bytes at once, if the policy does not say: as many milliseconds of the rate, and at least two large segments.
const BURST_MS: u64 = 20;
const SHARE_MS: u64 = 4;
const LEAST: u64 = 128 << 10;

fn burst(bytes_per_second: u64, milliseconds: u64) -> i64 {
    i64::try_from((bytes_per_second / 1000 * milliseconds).max(LEAST)).unwrap_or(i64::MAX)
}

/// A rate in bytes, exact over any number of steps.
#[derive(Debug)]
struct Rate {
    bytes_per_second: u64,
    /// What is not yet a byte, in bytes times nanoseconds.
    rest: u128,
}

impl Rate {
    fn new(bps: u64) -> Rate {
        Rate { bytes_per_second: bps / 8, rest: 0 }
    }

    fn bytes(&mut self, nanos: u64) -> i64 {
        let total = u128::from(self.bytes_per_second) * u128::from(nanos) + self.rest;
        self.rest = total % SECOND;
        i64::try_from(total / SECOND).unwrap_or(i64::MAX)
    }
}

/// A bucket.
#[derive(Debug)]
pub(super) struct Tokens {
    rate: Rate,
    there: i64,
    most: i64,
}

impl Tokens {
    fn new(bps: u64, burst_bytes: u32) -> Option<Tokens> {
        let most = if burst_bytes == 0 { burst(bps / 8, BURST_MS) } else { burst_bytes.into() };
        (bps > 0).then(|| Tokens { rate: Rate::new(bps), there: most, most })
    }

    fn refill(&mut self, nanos: u64) {
        self.there = self.there.saturating_add(self.rate.bytes(nanos)).min(self.most);
    }

    /// Whether another frame may pass.
    pub fn has(&self) -> bool {
        self.there > 0
    }

    /// A frame passes.
    pub fn take(&mut self, bytes: u64) {
        self.there = self.there.saturating_sub_unsigned(bytes);
    }
}

/// What a port may have of a wire.
#[derive(Debug)]
struct Share {
    promised: Rate,
    weight: i64,
    credit: i64,
    /// Steps since it last asked.
    silent: u32,
}

impl Share {
    /// Gives it bytes as far as it has room for them; returns how many.
    fn give(&mut self, bytes: i64, most: i64) -> i64 {
        let given = bytes.min(most - self.credit);
        self.credit += given;
        given
    }
}

/// Of a byte: in these a wire is divided, so that a small part of a slow one is not rounded away in each step.
const UNIT: i64 = 1024;
/// Nanoseconds that count at most, if the switch stood still: nobody has sent in them.
const LONGEST: u64 = 1_000_000_000;

/// A wire that senders share. All of it is in parts of a byte.
#[derive(Debug)]
struct Wire {
    rate: Rate,
    /// What nobody had room for.
    spare: i64,
    /// What could not be divided, for the next step.
    rest: i64,
    /// The most that is kept for a sender, and of what is spare.
    most: i64,
    /// By the sender's port.
    shares: Vec<Share>,
}

impl Wire {
    fn new(bps: u64) -> Option<Wire> {
        let most = burst(bps / 8, SHARE_MS) * UNIT;
        (bps > 0).then(|| Wire { rate: Rate::new(bps), spare: most, rest: 0, most, shares: Vec::new() })
    }

    fn refill(&mut self, nanos: u64) {
        let (most, nanos) = (self.most, nanos.min(LONGEST));
        let new = self.rate.bytes(nanos) * UNIT;
        let mut active: Vec<(&mut Share, i64)> = Vec::new();
        for share in &mut self.shares {
            share.silent = share.silent.saturating_add(1);
            let promised = share.promised.bytes(nanos) * UNIT;
            if share.silent <= ACTIVE {
                active.push((share, promised));
            }
        }
        let promised: i64 = active.iter().map(|(_, promised)| promised).sum();
        // Promises beyond the wire are kept in proportion.
        let (kept, of) = if promised > new { (new, promised) } else { (1, 1) };
        let mut left = new + std::mem::take(&mut self.spare) + std::mem::take(&mut self.rest);
        for (share, promised) in &mut active {
            left -= share.give(part_of(*promised, kept, of), most);
        }
        // What one has no room for goes to the others, until nobody has.
        loop {
            let hungry = active.iter_mut().map(|(share, _)| share).filter(|share| share.credit < most);
            let weights: i64 = hungry.map(|share| share.weight).sum();
            let mut given = 0;
            for (share, _) in active.iter_mut().filter(|(share, _)| share.credit < most && left > 0) {
                given += share.give(part_of(left, share.weight, weights), most);
            }
            left -= given;
            if given == 0 {
                break;
            }
        }
        match active.iter().any(|(share, _)| share.credit < most) {
            true => self.rest = left,
            false => self.spare = left.min(most),
        }
    }

    fn may(&mut self, sender: u16) -> bool {
        match self.shares.get_mut(usize::from(sender)) {
            Some(share) => {
                share.silent = 0;
                share.credit > 0 || self.spare > 0
            }
            None => self.spare > 0,
        }
    }

    fn take(&mut self, sender: u16, bytes: u64) {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX).saturating_mul(UNIT);
        match self.shares.get_mut(usize::from(sender)) {
            Some(share) => {
                // What it borrows beyond what is spare, it owes alone.
                let lent = if share.credit > 0 { 0 } else { bytes.min(self.spare.max(0)) };
                self.spare -= lent;
                share.credit = share.credit.saturating_sub(bytes - lent);
            }
            None => self.spare = self.spare.saturating_sub(bytes),
        }
    }
}

fn part_of(amount: i64, part: i64, whole: i64) -> i64 {
    (i128::from(amount) * i128::from(part) / i128::from(whole)) as i64
}

/// What a port's bandwidth policy comes to.
#[derive(Debug)]
pub(super) struct Limits {
    /// What it sends.
    pub out: Option<Tokens>,
    into: Option<Tokens>,
    wire: Option<Wire>,
}

impl Limits {
    /// Of a policy that limits something.
    pub fn new(policy: &Bandwidth) -> Option<Box<Limits>> {
        let limits = Limits {
            out: Tokens::new(policy.max_out_bps, policy.burst_bytes),
            into: Tokens::new(policy.max_in_bps, policy.burst_bytes),
            wire: Wire::new(policy.capacity_bps),
        };
        (limits.out.is_some() || limits.into.is_some() || limits.wire.is_some()).then(|| Box::new(limits))
    }

    /// Whether senders share it.
    pub fn is_wire(&self) -> bool {
        self.wire.is_some()
    }

    /// Who may send to it, by port: what they have used stays as it is.
    pub fn share<'a>(&mut self, senders: impl Iterator<Item = Option<&'a Bandwidth>>) {
        let Some(wire) = &mut self.wire else { return };
        let nobody = Bandwidth::default();
        for (number, policy) in senders.map(|policy| policy.unwrap_or(&nobody)).enumerate() {
            let (promised, weight) = (Rate::new(policy.min_out_bps), policy.weight.into());
            match wire.shares.get_mut(number) {
                Some(share) => (share.promised, share.weight) = (promised, weight),
                None => wire.shares.push(Share { promised, weight, credit: 0, silent: u32::MAX }),
            }
        }
    }

    /// Time passed.
    pub fn refill(&mut self, nanos: u64) {
        self.out.iter_mut().chain(&mut self.into).for_each(|tokens| tokens.refill(nanos));
        self.wire.iter_mut().for_each(|wire| wire.refill(nanos));
    }

    /// Whether a frame of `sender` may go out here now. Asking counts.
    pub fn may_pass(&mut self, sender: u16) -> bool {
        self.wire.as_mut().is_none_or(|wire| wire.may(sender)) && self.into.as_ref().is_none_or(Tokens::has)
    }

    /// It does.
    pub fn passed(&mut self, sender: u16, bytes: u64) {
        self.wire.iter_mut().for_each(|wire| wire.take(sender, bytes));
        self.into.iter_mut().for_each(|tokens| tokens.take(bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that senders bring over a wire of 1 Gbit/s in a second, each with frames of 1500 bytes and as many as it may, up to what it
    /// wants in a step.
    fn run(senders: &[(Bandwidth, u64)]) -> Vec<u64> {
        run_at(1_000_000_000, STEP, senders)
    }

    /// The same over another wire, in 10,000 steps of so many nanoseconds.
    fn run_at(capacity_bps: u64, step_nanos: u64, senders: &[(Bandwidth, u64)]) -> Vec<u64> {
        let mut limits = Limits::new(&Bandwidth { capacity_bps, ..Bandwidth::default() }).unwrap();
        limits.share(senders.iter().map(|(policy, _)| Some(policy)));
        let mut sent = vec![0; senders.len()];
        let steps = 10_000;
        for step in 0..2 * steps {
            // The first half is for the bursts.
            if step == steps {
                sent.fill(0);
            }
            limits.refill(step_nanos);
            let mut wanted: Vec<u64> = senders.iter().map(|(_, bytes)| *bytes).collect();
            let mut goes = true;
            while std::mem::take(&mut goes) {
                for sender in 0..senders.len() {
                    if wanted[sender] >= 1500 && limits.may_pass(sender as u16) {
                        limits.passed(sender as u16, 1500);
                        wanted[sender] -= 1500;
                        sent[sender] += 1500;
                        goes = true;
                    }
                }
            }
        }
        sent
    }

    const ALL: u64 = 15_000;

    fn weight(weight: u8) -> Bandwidth {
        Bandwidth { weight, ..Bandwidth::default() }
    }

    /// In tenths of a percent of the wire.
    fn shares(senders: &[(Bandwidth, u64)]) -> Vec<u64> {
        run(senders).into_iter().map(|bytes| (bytes + 62_500) / 125_000).collect()
    }

    #[test]
    fn a_full_wire_is_shared_by_weight() {
        assert_eq!(shares(&[(weight(10), ALL), (weight(30), ALL), (weight(60), ALL)]), [100, 300, 600]);
        assert_eq!(shares(&[(weight(1), ALL)]), [1000], "alone it has all of it");
    }

    #[test]
    fn what_cannot_be_divided_lets_nobody_pass_out_of_turn() {
        // In each step some bytes are left over, and the first sender is always the first to ask.
        for (capacity, step) in [(4_000_000, 1_000_007), (999_999_937, STEP), (16_000_000, 1_234_567)] {
            let weights = [1, 3, 7];
            let sent = run_at(capacity, step, &weights.map(|part| (weight(part), 10 * ALL)));
            let all: u64 = sent.iter().sum();
            for (sent, part) in sent.iter().zip(weights) {
                let expected = all * u64::from(part) / 11;
                assert!(sent.abs_diff(expected) * 100 < expected, "{sent} bytes instead of {expected} of {all}, at {capacity}");
            }
            let full = capacity as f64 / 8.0 * 1e-5 * step as f64;
            assert!((all as f64 / full - 1.0).abs() < 0.01, "{all} bytes of {full}");
        }
    }

    #[test]
    fn what_one_does_not_use_is_lent_to_the_others() {
        // The first wants 1500 of the 12,500 bytes of a step, less than its half.
        let found = shares(&[(weight(50), 1500), (weight(25), ALL), (weight(25), ALL)]);
        assert_eq!(found[0], 120);
        assert_eq!(found.iter().sum::<u64>(), 1000);
        assert!(found[1].abs_diff(found[2]) <= 20, "{found:?}");
    }

    #[test]
    fn promises_come_first_and_are_kept_in_proportion_where_they_are_too_many() {
        let promised = |bps| Bandwidth { min_out_bps: bps, ..Bandwidth::default() };
        assert_eq!(shares(&[(promised(700_000_000), ALL), (weight(1), ALL)]), [850, 150]);
        assert_eq!(shares(&[(promised(1_500_000_000), ALL), (promised(500_000_000), ALL)]), [750, 250]);
    }

    #[test]
    fn a_bucket_is_exact_with_frames_of_any_size() {
        let mut tokens = Tokens::new(100_000_000, 0).unwrap();
        let mut sent = 0u64;
        for step in 0..20_000u64 {
            tokens.refill(STEP);
            if step == 10_000 {
                sent = 0;
            }
            for size in [60, 65_160, 1514] {
                if tokens.has() {
                    tokens.take(size);
                    sent += size;
                }
            }
        }
        assert!(sent.abs_diff(12_500_000) < 100_000, "{sent} bytes in a second");
    }
}
