//! Flows: frames that are treated alike, and how.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;

use super::{Millis, Ref};
use crate::frame::{Fragment, Frame, Transport};
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
}

impl Flow {
    /// A decision that was just made.
    pub fn new(key: FlowKey, generation: u64, basis: Basis, actions: &[Action], now: Millis) -> Flow {
        Flow { key, generation, basis, actions: actions.into(), decided: now, used: now }
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

    /// Keeps a flow; returns where.
    pub fn insert(&mut self, hash: u64, flow: Flow) -> usize {
        let bucket = hash as usize & self.mask;
        let place = self.find(&flow.key, hash).unwrap_or_else(|| {
            let ways = bucket * WAYS..(bucket + 1) * WAYS;
            ways.min_by_key(|at| self.flows[*at].as_ref().map_or(0, |flow| flow.used + 1)).unwrap_or(bucket * WAYS)
        });
        self.tags[bucket][place % WAYS] = (hash >> 32) as u32;
        self.flows[place] = Some(flow);
        place
    }
}
