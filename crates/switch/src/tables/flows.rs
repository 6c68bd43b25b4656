//! Flows: frames that are treated alike, and how.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;

use super::{Millis, Ref, RuleCount};
use crate::frame::{Fragment, Frame, Ip, MAX_FRAME_BYTES, TCP, TYPE_IPV4, Tag, Transport, UDP};
use crate::mac::MacAddress;
use crate::pipeline::Action;

/// How a key says that there are ports.
const PORTS: u64 = 1;

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
        words[7] = u64::from(frame.is_announcement) << 1;
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
                Transport::Ports { source, destination } => (PORTS, source, destination),
                Transport::Icmp { kind, code, id } => (2, u16::from_be_bytes([kind, code]), id),
                Transport::Unknown => (3, 0, 0),
            };
            words[6] |= u64::from(ip.protocol) << 40 | fragment << 36 | kind << 32 | u64::from(a) << 16 | u64::from(b);
            words[7] |= 1;
        }
        FlowKey(words)
    }

    /// The same, straight from the bytes of what is most common: TCP or UDP over IPv4 that is whole and has neither a tag nor options.
    /// `None` says nothing about the frame.
    #[inline(always)]
    pub fn quick(port: u16, head: &[u8], length: usize) -> Option<FlowKey> {
        // Ethernet, IPv4, and what is looked at of TCP or UDP, in words as they were copied: others would wait for the copy to settle.
        let head: &[u8; 40] = head.first_chunk()?;
        let word = |at: usize| u64::from_be_bytes(std::array::from_fn(|byte| head[8 * at + byte]));
        let words = [word(0), word(1), word(2), word(3), word(4)];
        let protocol = words[2] as u8;
        let least = match protocol {
            TCP => 40,
            UDP => 28,
            _ => return None,
        };
        let total = (words[2] >> 48) as usize;
        let is_plain = words[1] >> 8 & 0xff_ffff == u64::from(TYPE_IPV4) << 8 | 0x45 && words[2] >> 16 & 0x3fff == 0;
        if !is_plain || total < least || total > length - 14 || length > MAX_FRAME_BYTES {
            return None;
        }
        let source = (words[0] & 0xffff) << 48 | words[1] >> 32 << 16;
        let destination = words[0] >> 16 << 16;
        let (from, to) = (words[3] >> 16 & 0xffff_ffff, (words[3] & 0xffff) << 16 | words[4] >> 48);
        let kind = u64::from(TYPE_IPV4) << 48 | u64::from(protocol) << 40 | PORTS << 32 | words[4] >> 16 & 0xffff_ffff;
        Some(FlowKey([source | u64::from(port), destination, 0, from, 0, to, kind, 1]))
    }

    /// Word by word, because words are what it was just made of.
    #[inline(always)]
    fn is(&self, other: &FlowKey) -> bool {
        let ([a, b, c, d, e, f, g, h], other) = (self.0, &other.0);
        a == other[0]
            && b == other[1]
            && c == other[2]
            && d == other[3]
            && e == other[4]
            && f == other[5]
            && g == other[6]
            && h == other[7]
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
        let is_announcement = words[7] & 2 != 0;
        let (destination, source) = (mac(words[1]), mac(words[0]));
        (words[0] as u16, Frame { destination, source, tag, stacked, ether_type, is_announcement, ip })
    }

    /// Well spread, and not to be foreseen without the seed: each pair of words is multiplied to 128 bits and folded.
    #[inline(always)]
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
    /// When, and with which state of the tables, it was last found to be true.
    pub checked: (Millis, u64),
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
        Flow {
            key,
            generation,
            basis,
            actions,
            decided: now,
            used: now,
            count: none,
            counted: none,
            begun: now,
            rules,
            checked: (now, 0),
        }
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
    #[inline(always)]
    pub fn hash(&self, key: &FlowKey) -> u64 {
        key.hash(self.seed)
    }

    /// Where a flow is.
    #[inline(always)]
    pub fn find(&self, key: &FlowKey, hash: u64) -> Option<usize> {
        let bucket = hash as usize & self.mask;
        let tag = (hash >> 32) as u32;
        for (way, its) in self.tags[bucket].iter().enumerate() {
            let at = bucket * WAYS + way;
            if *its == tag && self.flows[at].as_ref().is_some_and(|flow| flow.key.is(key)) {
                return Some(at);
            }
        }
        None
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
    use proptest::prelude::*;

    use super::*;
    use crate::frame::HEADER_BYTES;
    use crate::frame::build::{ethernet, mac};

    fn key(frame: &[u8], length: usize) -> Option<FlowKey> {
        Frame::parse(frame, length).ok().map(|frame| FlowKey::new(3, &frame))
    }

    proptest! {
        #[test]
        fn the_quick_key_is_the_same_key(
            is_udp: bool, a: u16, b: u16, from: u32, to: u32, at in 0usize..54, byte: u8, less in 0usize..30, more in 0usize..2000
        ) {
            let (from, to) = ((IpAddr::V4(from.into()), a), (IpAddr::V4(to.into()), b));
            let frame = if is_udp { ethernet(mac(1), mac(2)).udp(from, to) } else { ethernet(mac(1), mac(2)).tcp(from, to) };
            prop_assert_eq!(FlowKey::quick(3, &frame, frame.len()), key(&frame, frame.len()));
            prop_assert!(FlowKey::quick(3, &frame, frame.len()).is_some());
            // With a byte changed, cut off, or longer, there may be none; but never another one.
            let mut other = frame.clone();
            let last = other.len() - 1;
            other[at.min(last)] = byte;
            other.truncate(frame.len().saturating_sub(less));
            let longer = if other.len() == frame.len() { HEADER_BYTES.max(frame.len()) + more } else { other.len() };
            other.resize(longer.min(HEADER_BYTES), byte);
            for length in [other.len(), longer] {
                if let Some(quick) = FlowKey::quick(3, &other, length) {
                    prop_assert_eq!(Some(quick), key(&other, length));
                }
            }
        }
    }

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
