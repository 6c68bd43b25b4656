//! Flows: frames that are treated alike, and how.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;

use super::{Millis, Ref, RuleCount};
use crate::frame::{Fragment, Frame, Ip, TYPE_IPV4, Tag, Transport};
use crate::mac::MacAddress;
use crate::pipeline::Action;

/// All that decisions look at, of a frame at a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowKey([u64; 8]);

impl FlowKey {
    /// The flow of a frame that came in at a port.
    pub fn new(port: u16, frame: &Frame) -> FlowKey {
        let mut words = [0; 8];
        let tag = frame.tag.map_or(0, |tag| 0x8000 | u64::from(tag.vlan)) | u64::from(frame.stacked) << 14;
        words[0] = frame.source.bits() << 16 | u64::from(port);
        words[1] = frame.destination.bits() << 16 | tag;
        words[6] = u64::from(frame.ether_type) << 48;
        if let Some(ip) = &frame.ip {
            let address = |address| match address {
                IpAddr::V4(address) => [0, u64::from(address.to_bits())],
                IpAddr::V6(address) => [(address.to_bits() >> 64) as u64, address.to_bits() as u64],
            };
            [words[2], words[3]] = address(ip.source);
            [words[4], words[5]] = address(ip.destination);
            let fragment = match ip.fragment {
                Fragment::Whole => 0,
                Fragment::First => 1,
                Fragment::Later => 2,
            };
            let (kind, a, b) = match ip.transport {
                Transport::None => (0, 0, 0),
                Transport::Ports { source, destination } => (1, source, destination),
                Transport::Icmp { kind, code, id } => (2, u16::from_be_bytes([kind, code]), id),
                Transport::Unknown => (3, 0, 0),
            };
            words[6] |= u64::from(ip.protocol) << 40 | fragment << 36 | kind << 32 | u64::from(a) << 16 | u64::from(b);
            words[7] = 1;
        }
        FlowKey(words)
    }

    /// The port, and a frame of the flow.
    fn frame(&self) -> (u16, Frame) {
        let words = &self.0;
        let mac = |word: u64| {
            let [_, _, a, b, c, d, e, f] = (word >> 16).to_be_bytes();
            MacAddress([a, b, c, d, e, f])
        };
        let tag = (words[1] & 0x8000 != 0).then_some(Tag { vlan: words[1] as u16 & 0xfff, priority: 0 });
        let ether_type = (words[6] >> 48) as u16;
        let address = |high: u64, low: u64| match ether_type {
            TYPE_IPV4 => IpAddr::V4((low as u32).into()),
            _ => IpAddr::V6((u128::from(high) << 64 | u128::from(low)).into()),
        };
        let (a, b) = ((words[6] >> 16) as u16, words[6] as u16);
        let transport = match words[6] >> 32 & 3 {
            0 => Transport::None,
            1 => Transport::Ports { source: a, destination: b },
            2 => Transport::Icmp { kind: a.to_be_bytes()[0], code: a.to_be_bytes()[1], id: b },
            _ => Transport::Unknown,
        };
        let ip = (words[7] == 1).then(|| Ip {
            source: address(words[2], words[3]),
            destination: address(words[4], words[5]),
            protocol: (words[6] >> 40) as u8,
            transport,
            fragment: [Fragment::Whole, Fragment::First, Fragment::Later][(words[6] >> 36 & 3).min(2) as usize],
        });
        let stacked = words[1] & 0x4000 != 0;
        (words[0] as u16, Frame { destination: mac(words[1]), source: mac(words[0]), tag, stacked, ether_type, ip })
    }

    /// Well spread, and not to be foreseen without the seed: each pair of words is multiplied to 128 bits and folded.
    fn hash(&self, seed: u64) -> u64 {
        let fold = |a: u64, b: u64| {
            let product = u128::from(a) * u128::from(b);
            (product >> 64) as u64 ^ product as u64
        };
        let words = &self.0;
        let a = fold(words[0] ^ seed, words[1] ^ 0x9e37_79b9_7f4a_7c15);
        let b = fold(words[2] ^ seed.rotate_left(17), words[3] ^ 0xc2b2_ae3d_27d4_eb4f);
        let c = fold(words[4] ^ seed.rotate_left(31), words[5] ^ 0x1656_67b1_9e37_79f9);
        let d = fold(words[6] ^ seed.rotate_left(47), words[7] ^ 0x27d4_eb2f_1656_67c5);
        fold(a ^ c.rotate_left(23) ^ seed, b ^ d.rotate_left(41) ^ 0x9e37_79b9_7f4a_7c15)
    }
}

/// What a decision about the receiver rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Receiver {
    /// A group, or nothing that can change without a new generation.
    Fixed,
    /// This station is where it is.
    Known(Ref),
    /// Nobody new came since there were so many news.
    Unknown(u64),
}

/// What a decision rests on.
#[derive(Clone, Copy, Debug)]
pub struct Basis {
    /// The sender as it was learned. Without one, the decision holds for a moment only.
    pub sender: Option<Ref>,
    /// The receiver.
    pub receiver: Receiver,
    /// Where a rule denied what a connection would have let through: how many connections had been opened.
    pub opened: Option<u64>,
    /// The port of its receiver, if that is known to be behind a wire that senders share.
    pub wire: Option<u16>,
}

/// A decision.
#[derive(Debug)]
pub struct Flow {
    key: FlowKey,
    /// The configuration that it was decided by.
    pub generation: u64,
    /// What else.
    pub basis: Basis,
    /// What is done to its frames, in order.
    pub actions: Box<[Action]>,
    /// When it was made.
    pub decided: Millis,
    /// When its last frame came.
    pub used: Millis,
    /// Its frames, since it was first decided.
    pub count: RuleCount,
    /// Those that its rules know of.
    counted: RuleCount,
    /// When it was first decided.
    pub begun: Millis,
    /// The rules that it was decided by.
    pub rules: Box<[Ref]>,
}

impl Flow {
    /// A decision that was just made.
    pub fn new(key: FlowKey, generation: u64, basis: Basis, actions: &[Action], rules: &[Ref], now: Millis) -> Flow {
        let (actions, rules) = (actions.into(), rules.into());
        let none = RuleCount::default();
        Flow { key, generation, basis, actions, decided: now, used: now, count: none, counted: none, begun: now, rules }
    }

    /// The port that its frames come from, and what they say.
    pub fn frame(&self) -> (u16, Frame) {
        self.key.frame()
    }

    /// What it has counted since the last time.
    pub(super) fn take_uncounted(&mut self) -> RuleCount {
        let RuleCount { packets, bytes } = std::mem::replace(&mut self.counted, self.count);
        RuleCount { packets: self.count.packets - packets, bytes: self.count.bytes - bytes }
    }
}

const WAYS: usize = 4;

/// All flows: a cache of decisions, where a new one takes the place of the one that was used the longest time ago.
#[derive(Debug)]
pub struct Flows {
    seed: u64,
    mask: usize,
    tags: Box<[[u32; WAYS]]>,
    flows: Box<[Option<Flow>]>,
}

impl Flows {
    /// Room for `capacity`, rounded up to a power of two.
    pub fn new(capacity: usize) -> Flows {
        let buckets = capacity.div_ceil(WAYS).next_power_of_two();
        let flows = (0..buckets * WAYS).map(|_| None).collect();
        Flows { seed: RandomState::new().hash_one(0), mask: buckets - 1, tags: vec![[0; WAYS]; buckets].into(), flows }
    }

    /// A flow's hash: where it is, and which of a receiver's queues it takes.
    pub fn hash(&self, key: &FlowKey) -> u64 {
        key.hash(self.seed)
    }

    /// Where a flow is.
    pub fn find(&self, key: &FlowKey, hash: u64) -> Option<usize> {
        let bucket = hash as usize & self.mask;
        let tag = (hash >> 32) as u32;
        (0..WAYS)
            .filter(|way| self.tags[bucket][*way] == tag)
            .map(|way| bucket * WAYS + way)
            .find(|at| self.flows[*at].as_ref().is_some_and(|flow| flow.key == *key))
    }

    /// What is there.
    pub fn at(&mut self, place: usize) -> Option<&mut Flow> {
        self.flows[place].as_mut()
    }

    /// What is in `count` places from `from` on, and where the next places are.
    pub fn part(&mut self, from: usize, count: usize) -> (impl Iterator<Item = &mut Flow>, Option<usize>) {
        let end = from.saturating_add(count).min(self.flows.len());
        let next = (end < self.flows.len()).then_some(end);
        (self.flows[from.min(end)..end].iter_mut().flatten(), next)
    }

    /// Keeps a flow; returns where. `settle` gets the one whose place it takes.
    pub fn insert(&mut self, hash: u64, mut flow: Flow, settle: impl FnOnce(&mut Flow)) -> usize {
        let bucket = hash as usize & self.mask;
        let place = self.find(&flow.key, hash).unwrap_or_else(|| {
            let ways = bucket * WAYS..(bucket + 1) * WAYS;
            ways.min_by_key(|at| self.flows[*at].as_ref().map_or(0, |flow| flow.used + 1)).unwrap_or(bucket * WAYS)
        });
        if let Some(old) = &mut self.flows[place] {
            settle(old);
            if old.key == flow.key {
                (flow.count, flow.counted, flow.begun) = (old.count, old.counted, old.begun);
            }
        }
        self.tags[bucket][place % WAYS] = (hash >> 32) as u32;
        self.flows[place] = Some(flow);
        place
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::build::{ethernet, mac};

    #[test]
    fn a_flow_tells_what_its_frames_say() {
        let (four, six) = ((["10.0.0.1", "10.0.0.2"]), ["fd00::1", "fd00::2"]);
        let at = |text: &str, port: u16| (text.parse().unwrap(), port);
        let start = || ethernet(mac(1), mac(2));
        let frames = [
            start().other(0x0806),
            start().tag(5).tag(6).other(0x88cc),
            start().tag(4095).tcp(at(four[0], 65535), at(four[1], 1)),
            start().udp(at(six[0], 3), at(six[1], 4)),
            start().icmp(at(six[0], 0).0, at(six[1], 0).0, 128),
            start().ipv4("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap(), 17, 10, &[0; 64]),
        ];
        for bytes in frames {
            let frame = Frame::parse(&bytes, bytes.len()).unwrap();
            let key = FlowKey::new(7, &frame);
            assert_eq!(key.frame(), (7, frame));
        }
    }
}
