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
    /// Until then, what comes in from a team does not move it.
    held: Millis,
}

/// What learning came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learned {
    /// Nobody knew it; now it is behind this port.
    New(Ref),
    /// It is behind this port, as was known.
    Here(Ref),
    /// It was behind another port until now.
    Moved(Ref),
    /// It belongs to another port.
    Taken,
    /// There is no room for it, of the port or at all.
    Full,
}

impl Learned {
    /// The station, if it is behind the port now.
    pub fn station(self) -> Option<Ref> {
        match self {
            Learned::New(at) | Learned::Here(at) | Learned::Moved(at) => Some(at),
            Learned::Taken | Learned::Full => None,
        }
    }
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

    /// The station has been announced from here: what comes back of that must not move it until `until`.
    pub fn hold(&mut self, at: Ref, until: Millis) {
        self.slab.get_mut(at).into_iter().for_each(|station| station.held = until);
    }

    /// Whether it may not be moved now.
    pub fn is_held(&self, at: Ref, now: Millis) -> bool {
        self.slab.get(at).is_some_and(|station| now < station.held)
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

    /// What [`Stations::learn`] would say. A station that is new has no place yet.
    pub fn would_learn(&self, domain: Domain, mac: MacAddress, port: u16, most: u32, now: Millis) -> Learned {
        let known = self.by_address.get(&(domain, mac)).and_then(|at| Some((*at, self.slab.get(*at)?)));
        match known {
            Some((at, station)) if station.port == port && self.is_old(station, now) => Learned::New(at),
            Some((at, station)) if station.port == port => Learned::Here(at),
            Some((_, station)) if station.pinned => Learned::Taken,
            _ if self.count(port) >= most => Learned::Full,
            Some((at, station)) if self.is_old(station, now) => Learned::New(at),
            Some((at, _)) => Learned::Moved(at),
            None if self.slab.is_full() => Learned::Full,
            None => Learned::New(Ref::NONE),
        }
    }

    /// A station sends from behind a port.
    pub fn learn(&mut self, domain: Domain, mac: MacAddress, port: u16, pinned: bool, most: u32, now: Millis) -> Learned {
        let learned = self.would_learn(domain, mac, port, most, now);
        match learned {
            Learned::Taken | Learned::Full => learned,
            Learned::Here(at) => {
                self.slab.get_mut(at).into_iter().for_each(|station| (station.seen, station.pinned) = (now, pinned));
                learned
            }
            Learned::New(Ref::NONE) => {
                let station = Station { domain, mac, port, pinned, seen: now, held: 0 };
                let Some(at) = self.slab.insert(station) else { return Learned::Full };
                self.by_address.insert((domain, mac), at);
                *self.per_port.entry(port).or_default() += 1;
                self.news += 1;
                Learned::New(at)
            }
            Learned::New(at) | Learned::Moved(at) => {
                let old = self.slab.get(at).map(|station| station.port);
                old.into_iter().for_each(|port| self.leave(port));
                *self.per_port.entry(port).or_default() += 1;
                let at = self.slab.renew(at);
                self.by_address.insert((domain, mac), at);
                self.slab.get_mut(at).into_iter().for_each(|station| {
                    (station.port, station.seen, station.pinned) = (port, now, pinned);
                });
                if matches!(learned, Learned::Moved(_)) {
                    return Learned::Moved(at);
                }
                // As good as forgotten: flows to it went to all.
                self.news += 1;
                Learned::New(at)
            }
        }
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

    /// Grows with each change of who is here.
    pub fn changes(&self) -> u64 {
        self.slab.changes
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
