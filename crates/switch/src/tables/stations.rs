//! Which station is behind which port.

use std::collections::HashMap;

use super::slab::Slab;
use super::{Millis, Ref};
use crate::mac::MacAddress;

/// Where stations know each other: a VLAN of a switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Domain {
    /// The switch.
    pub switch: u16,
    /// The VLAN: of a private VLAN, the primary; 0 for none.
    pub vlan: u16,
}

/// A station.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Station {
    /// Where it was learned.
    pub domain: Domain,
    /// Its address.
    pub mac: MacAddress,
    /// The port that it is behind.
    pub port: u16,
    /// Whether it stays there until the port goes, because the port's policy names it.
    pub pinned: bool,
    seen: Millis,
}

/// What learning came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learned {
    /// It is behind this port, as far as is known.
    Here(Ref),
    /// It was behind another port until now.
    Moved(Ref),
    /// It belongs to another port.
    Taken,
    /// There is no room for it, of the port or at all.
    Full,
}

/// All stations.
#[derive(Debug)]
pub struct Stations {
    by_address: HashMap<(Domain, MacAddress), Ref>,
    slab: Slab<Station>,
    per_port: HashMap<u16, u32>,
    max_age: Millis,
    /// Grows whenever a station is new: then who floods must ask again.
    pub news: u64,
}

impl Stations {
    /// At most `capacity`; who is silent for `max_age` is forgotten.
    pub fn new(capacity: usize, max_age: Millis) -> Stations {
        let slab = Slab::new(capacity);
        Stations { by_address: HashMap::new(), slab, per_port: HashMap::new(), max_age, news: 0 }
    }

    /// Where a station is.
    pub fn find(&self, domain: Domain, mac: MacAddress, now: Millis) -> Option<(Ref, u16)> {
        let at = *self.by_address.get(&(domain, mac))?;
        let station = self.slab.get(at)?;
        (!self.is_old(station, now)).then_some((at, station.port))
    }

    fn is_old(&self, station: &Station, now: Millis) -> bool {
        !station.pinned && now.saturating_sub(station.seen) > self.max_age
    }

    /// Whether the station is still where it was; a look at it does not keep it.
    pub fn holds(&self, at: Ref, now: Millis) -> bool {
        self.slab.get(at).is_some_and(|station| !self.is_old(station, now))
    }

    /// The station sends: keeps it. `false` if it is no longer there.
    pub fn touch(&mut self, at: Ref, now: Millis) -> bool {
        let max_age = self.max_age;
        match self.slab.get_mut(at) {
            Some(station) if station.pinned || now.saturating_sub(station.seen) <= max_age => {
                station.seen = now;
                true
            }
            _ => false,
        }
    }

    /// A station sends from behind a port.
    pub fn learn(&mut self, domain: Domain, mac: MacAddress, port: u16, pinned: bool, most: u32, now: Millis) -> Learned {
        if let Some(at) = self.by_address.get(&(domain, mac)).copied() {
            let Some(station) = self.slab.get(at).copied() else { return Learned::Full };
            let is_old = self.is_old(&station, now);
            if station.port == port || (station.pinned && !pinned) {
                if station.port != port {
                    return Learned::Taken;
                }
                self.slab.get_mut(at).into_iter().for_each(|station| (station.seen, station.pinned) = (now, pinned));
                return Learned::Here(at);
            }
            if station.pinned {
                return Learned::Taken;
            }
            if self.count(port) >= most {
                return Learned::Full;
            }
            self.leave(station.port);
            *self.per_port.entry(port).or_default() += 1;
            let at = self.slab.renew(at);
            self.by_address.insert((domain, mac), at);
            self.slab.get_mut(at).into_iter().for_each(|station| {
                (station.port, station.seen, station.pinned) = (port, now, pinned);
            });
            return if is_old { Learned::Here(at) } else { Learned::Moved(at) };
        }
        if self.count(port) >= most {
            return Learned::Full;
        }
        let Some(at) = self.slab.insert(Station { domain, mac, port, pinned, seen: now }) else { return Learned::Full };
        self.by_address.insert((domain, mac), at);
        *self.per_port.entry(port).or_default() += 1;
        self.news += 1;
        Learned::Here(at)
    }

    fn count(&self, port: u16) -> u32 {
        self.per_port.get(&port).copied().unwrap_or(0)
    }

    fn leave(&mut self, port: u16) {
        if let Some(count) = self.per_port.get_mut(&port) {
            *count -= 1;
        }
    }

    /// Forgets who is old among the next `count`.
    pub fn sweep(&mut self, count: usize, now: Millis) {
        let max_age = self.max_age;
        let mut removed = Vec::new();
        let is_old = |station: &Station| !station.pinned && now.saturating_sub(station.seen) > max_age;
        self.slab.sweep(count, is_old, |station| removed.push(station));
        for station in removed {
            self.by_address.remove(&(station.domain, station.mac));
            self.leave(station.port);
        }
    }

    /// Forgets all behind a port.
    pub fn forget_port(&mut self, port: u16) {
        let theirs: Vec<Ref> = self.slab.refs().filter(|(_, station)| station.port == port).map(|(at, _)| at).collect();
        for at in theirs {
            if let Some(station) = self.slab.remove(at) {
                self.by_address.remove(&(station.domain, station.mac));
            }
        }
        self.per_port.remove(&port);
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Station> {
        self.slab.refs().map(|(_, station)| station)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.slab.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
