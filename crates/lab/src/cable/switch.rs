//! The learning switch in the middle of a cable net, without I/O; time comes as a value.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::conditions::{Conditions, Counters, Direction, Way};

/// Longest time a frame may wait for its turn on a rate-limited link.
const LONGEST_QUEUE: Duration = Duration::from_millis(200);
/// Most frames under way in a delayed net: 1 Gbit/s of large frames for about 1.5 s.
const MOST_UNDER_WAY: usize = 128 * 1024;
const HEADER: usize = 14;

type Mac = [u8; 6];
/// An Ethernet frame. Shared, because a broadcast goes to many.
pub type Frame = Arc<[u8]>;

#[derive(Debug, Default)]
struct Link {
    plugged_in: bool,
    ways: [(Conditions, Option<Instant>); 2],
    counters: Counters,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct UnderWay {
    due: Instant,
    /// Keeps frames that are due at the same time in order.
    number: u64,
    to: usize,
    frame: Frame,
}

/// Links by host, and frames under way.
#[derive(Debug, Default)]
pub struct Switch {
    links: BTreeMap<usize, Link>,
    learned: HashMap<Mac, usize>,
    under_way: BinaryHeap<Reverse<UnderWay>>,
    count: u64,
    random: u64,
}

impl Switch {
    /// A switch whose losses follow from `seed`.
    pub fn new(seed: u64) -> Self {
        Switch { random: seed, ..Switch::default() }
    }

    /// A host's NIC got or lost power.
    pub fn plug(&mut self, host: usize, plugged_in: bool) {
        self.links.entry(host).or_default().plugged_in = plugged_in;
    }

    /// Changes the conditions of a host's link.
    pub fn change(&mut self, host: usize, direction: Direction, change: impl Fn(&mut Conditions)) {
        let link = self.links.entry(host).or_default();
        for way in Way::ALL.into_iter().filter(|&way| direction.includes(way)) {
            change(&mut link.ways[way as usize].0);
        }
    }

    /// The conditions of what a host sends and of what it receives.
    pub fn conditions(&self, host: usize) -> (Conditions, Conditions) {
        self.links.get(&host).map(|link| (link.ways[0].0, link.ways[1].0)).unwrap_or_default()
    }

    /// What went over a host's link.
    pub fn counters(&self, host: usize) -> Counters {
        self.links.get(&host).map(|link| link.counters).unwrap_or_default()
    }

    /// A frame that a host's queue had no room for.
    pub fn count_full(&mut self, host: usize) {
        self.links.entry(host).or_default().counters.dropped_full += 1;
    }

    /// A host sent a frame. Gives whether it got onto the net.
    pub fn receive(&mut self, now: Instant, from: usize, frame: Frame) -> bool {
        let Some((destination, source)) = addresses(&frame) else { return false };
        let counters = &mut self.links.entry(from).or_default().counters;
        counters.frames_from_host += 1;
        counters.bytes_from_host += frame.len() as u64;
        let Some(arrival) = self.pass(now, from, Way::FromHost, frame.len()) else { return false };
        if !is_group(source) {
            self.learned.insert(source, from);
        }
        let known = if is_group(destination) { None } else { self.learned.get(&destination).copied() };
        let targets: Vec<usize> = match known {
            Some(to) if to == from => Vec::new(),
            Some(to) => vec![to],
            None => self.links.iter().filter(|(host, link)| **host != from && link.plugged_in).map(|(host, _)| *host).collect(),
        };
        for to in targets {
            let Some(due) = self.pass(arrival, to, Way::ToHost, frame.len()) else { continue };
            if self.under_way.len() >= MOST_UNDER_WAY {
                self.count_full(to);
                continue;
            }
            self.count += 1;
            self.under_way.push(Reverse(UnderWay { due, number: self.count, to, frame: frame.clone() }));
        }
        true
    }

    /// When the next frame arrives.
    pub fn next_due(&self) -> Option<Instant> {
        self.under_way.peek().map(|next| next.0.due)
    }

    /// The next frame that has arrived by now, and where. What arrives at a link that was cut meanwhile is lost.
    pub fn take_due(&mut self, now: Instant) -> Option<(usize, Frame)> {
        while self.next_due().is_some_and(|due| due <= now) {
            let Reverse(UnderWay { to, frame, .. }) = self.under_way.pop()?;
            let link = self.links.entry(to).or_default();
            if link.ways[Way::ToHost as usize].0.cut {
                link.counters.dropped_cut += 1;
                continue;
            }
            if link.plugged_in {
                link.counters.frames_to_host += 1;
                link.counters.bytes_to_host += frame.len() as u64;
                return Some((to, frame));
            }
        }
        None
    }

    /// When a frame that enters one way of a link at `start` has passed it, if it does.
    fn pass(&mut self, start: Instant, host: usize, way: Way, bytes: usize) -> Option<Instant> {
        let chance = self.next_percent();
        let link = self.links.entry(host).or_default();
        let (conditions, busy_until) = &mut link.ways[way as usize];
        if conditions.cut {
            link.counters.dropped_cut += 1;
            return None;
        }
        if chance < conditions.loss_percent {
            link.counters.dropped_loss += 1;
            return None;
        }
        let mut end = start;
        if let Some(rate) = conditions.bits_per_second {
            let begin = busy_until.map_or(start, |busy| busy.max(start));
            if begin - start > LONGEST_QUEUE {
                link.counters.dropped_full += 1;
                return None;
            }
            end = begin + Duration::from_secs_f64(bytes as f64 * 8.0 / rate.max(1) as f64);
            *busy_until = Some(end);
        }
        Some(end + conditions.delay)
    }

    /// An even number in 0..100 (splitmix64).
    fn next_percent(&mut self) -> f64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64 * 100.0
    }
}

fn addresses(frame: &[u8]) -> Option<(Mac, Mac)> {
    if frame.len() < HEADER {
        return None;
    }
    Some((frame[..6].try_into().ok()?, frame[6..12].try_into().ok()?))
}

/// Broadcast and multicast.
fn is_group(mac: Mac) -> bool {
    mac[0] & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(to: u8, from: u8) -> Frame {
        let mut bytes = vec![2, 0, 0, 0, 0, to, 2, 0, 0, 0, 0, from, 8, 0];
        bytes.resize(1000, from);
        if to == 0xff {
            bytes[..6].fill(0xff);
        }
        bytes.into()
    }

    fn switch(hosts: usize) -> Switch {
        let mut switch = Switch::new(1);
        (0..hosts).for_each(|host| switch.plug(host, true));
        switch
    }

    fn arrivals(switch: &mut Switch, now: Instant) -> Vec<usize> {
        std::iter::from_fn(|| switch.take_due(now)).map(|arrival| arrival.0).collect()
    }

    #[test]
    fn a_known_address_gets_its_frames_alone_and_an_unknown_one_reaches_all() {
        let (mut switch, now) = (switch(3), Instant::now());
        switch.receive(now, 0, frame(1, 0));
        assert_eq!(arrivals(&mut switch, now), [1, 2]);
        switch.receive(now, 1, frame(0, 1));
        switch.receive(now, 0, frame(1, 0));
        assert_eq!(arrivals(&mut switch, now), [0, 1]);
        switch.receive(now, 1, frame(0xff, 1));
        assert_eq!(arrivals(&mut switch, now), [0, 2]);
    }

    #[test]
    fn a_one_way_cut_stops_only_that_way() {
        let (mut switch, now) = (switch(2), Instant::now());
        switch.change(0, Direction::ToHost, |conditions| conditions.cut = true);
        switch.receive(now, 0, frame(0xff, 0));
        switch.receive(now, 1, frame(0xff, 1));
        assert_eq!(arrivals(&mut switch, now), [1]);
        assert_eq!(switch.counters(0).dropped_cut, 1);
    }

    #[test]
    fn a_cut_loses_what_is_under_way() {
        let (mut switch, now) = (switch(2), Instant::now());
        switch.change(1, Direction::ToHost, |conditions| conditions.delay = Duration::from_millis(10));
        switch.receive(now, 0, frame(1, 0));
        switch.change(1, Direction::Both, |conditions| conditions.cut = true);
        assert!(arrivals(&mut switch, now + Duration::from_secs(1)).is_empty());
    }

    #[test]
    fn a_delay_holds_frames_back_and_keeps_their_order() {
        let (mut switch, now) = (switch(2), Instant::now());
        switch.change(0, Direction::FromHost, |conditions| conditions.delay = Duration::from_millis(20));
        for n in 0..10 {
            let mut bytes = frame(1, 0).to_vec();
            bytes[20] = n;
            switch.receive(now, 0, bytes.into());
        }
        assert!(arrivals(&mut switch, now + Duration::from_millis(19)).is_empty());
        let order: Vec<u8> =
            std::iter::from_fn(|| switch.take_due(now + Duration::from_millis(20))).map(|(_, frame)| frame[20]).collect();
        assert_eq!(order, (0..10).collect::<Vec<u8>>());
    }

    #[test]
    fn a_rate_limit_spaces_frames_and_drops_what_waits_too_long() {
        let (mut switch, now) = (switch(2), Instant::now());
        // 1000 bytes each: 125 frames per second.
        switch.change(0, Direction::FromHost, |conditions| conditions.bits_per_second = Some(1_000_000));
        (0..100).for_each(|_| {
            switch.receive(now, 0, frame(1, 0));
        });
        assert_eq!(arrivals(&mut switch, now + Duration::from_millis(80)).len(), 10);
        assert_eq!(arrivals(&mut switch, now + Duration::from_secs(1)).len(), 16);
        assert_eq!(switch.counters(0).dropped_full, 74);
    }

    #[test]
    fn about_the_asked_part_is_lost() {
        let (mut switch, now) = (switch(2), Instant::now());
        switch.change(0, Direction::FromHost, |conditions| conditions.loss_percent = 25.0);
        (0..4000).for_each(|_| {
            switch.receive(now, 0, frame(1, 0));
        });
        let lost = switch.counters(0).dropped_loss;
        assert!((900..1100).contains(&lost), "{lost}");
    }

    proptest::proptest! {
        #[test]
        fn no_frame_makes_it_panic_or_come_back(bytes in proptest::collection::vec(0u8..=255, 0..40)) {
            let (mut switch, now) = (switch(3), Instant::now());
            switch.receive(now, 0, bytes.into());
            assert!(!arrivals(&mut switch, now).contains(&0));
        }
    }
}
