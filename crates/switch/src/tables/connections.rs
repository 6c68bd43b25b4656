//! Connections that stateful rules remember.

use std::collections::HashMap;

use super::slab::Slab;
use super::{Millis, Ref};
use crate::acl::{ConnectionKey, Direction};

/// How many places are looked at for what is over before a new connection is refused.
const SWEEP: usize = 64;

/// How a connection is remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remembered {
    /// For so long without a packet.
    pub idle_timeout: Millis,
    /// By this rule.
    pub rule: Ref,
}

#[derive(Debug)]
struct Connection {
    key: ConnectionKey,
    opened: Direction,
    idle_timeout: Millis,
    used: Millis,
    /// The rule that remembers it.
    rule: Ref,
}

impl Connection {
    fn is_over(&self, now: Millis) -> bool {
        now.saturating_sub(self.used) > self.idle_timeout
    }
}

/// All connections of all ports.
#[derive(Debug)]
pub struct Connections {
    by_key: HashMap<ConnectionKey, Ref>,
    slab: Slab<Connection>,
    per_port: HashMap<u16, u32>,
    /// Grows whenever one is opened: then what was denied must be asked again.
    pub opened: u64,
}

impl Connections {
    /// At most `capacity`.
    pub fn new(capacity: usize) -> Connections {
        Connections { by_key: HashMap::new(), slab: Slab::new(capacity), per_port: HashMap::new(), opened: 0 }
    }

    /// The connection that was opened in the other direction, and the rule that remembers it.
    pub fn answered(&self, key: &ConnectionKey, direction: Direction, now: Millis) -> Option<(Ref, Ref)> {
        let at = *self.by_key.get(key)?;
        let connection = self.slab.get(at)?;
        (connection.opened == direction.opposite() && !connection.is_over(now)).then_some((at, connection.rule))
    }

    /// A packet of it passes, if it still stands.
    pub fn keep(&mut self, at: Ref, now: Millis) -> bool {
        let connection = self.slab.get_mut(at).filter(|connection| !connection.is_over(now));
        connection.map(|connection| connection.used = now).is_some()
    }

    /// Remembers a connection, if the port may have another.
    pub fn open(&mut self, key: ConnectionKey, opened: Direction, by: Remembered, most: u32, now: Millis) -> Option<Ref> {
        let Remembered { idle_timeout, rule } = by;
        if let Some(mut at) = self.by_key.get(&key).copied() {
            // One that is over, or was opened from the other side, must not carry flows that were decided by it.
            if self.slab.get(at).is_none_or(|old| old.opened != opened || old.is_over(now)) {
                at = self.slab.renew(at);
                self.opened += 1;
                self.by_key.insert(key, at);
            }
            *self.slab.get_mut(at)? = Connection { key, opened, idle_timeout, used: now, rule };
            return Some(at);
        }
        if self.count(key.port) >= most {
            self.sweep(SWEEP, now);
        }
        if self.count(key.port) >= most {
            return None;
        }
        let at = self.slab.insert(Connection { key, opened, idle_timeout, used: now, rule })?;
        self.by_key.insert(key, at);
        *self.per_port.entry(key.port).or_default() += 1;
        self.opened += 1;
        Some(at)
    }

    /// Whether [`Connections::open`] would find or make room for it.
    pub fn would_open(&self, key: &ConnectionKey, most: u32, now: Millis) -> bool {
        if self.by_key.contains_key(key) {
            return true;
        }
        let count = self.count(key.port);
        if count < most {
            return !self.slab.is_full();
        }
        let over = |port: u16| self.slab.over(SWEEP, move |one| one.is_over(now) && one.key.port == port).count();
        count - (over(key.port) as u32) < most
    }

    fn count(&self, port: u16) -> u32 {
        self.per_port.get(&port).copied().unwrap_or(0)
    }

    fn removed(&mut self, connection: &Connection) {
        self.by_key.remove(&connection.key);
        if let Some(count) = self.per_port.get_mut(&connection.key.port) {
            *count -= 1;
        }
    }

    /// Forgets what is over among the next `count`.
    pub fn sweep(&mut self, count: usize, now: Millis) {
        let mut removed = Vec::new();
        self.slab.sweep(count, |connection| connection.is_over(now), |connection| removed.push(connection));
        removed.iter().for_each(|connection| self.removed(connection));
    }

    /// Forgets those of a port that no rule remembers, by what they are and the direction in which they were opened.
    pub fn retain(&mut self, port: u16, remembers: impl Fn(&ConnectionKey, Direction) -> Option<Remembered>) {
        let theirs: Vec<Ref> = self.slab.refs().filter(|(_, one)| one.key.port == port).map(|(at, _)| at).collect();
        for at in theirs {
            let Some(connection) = self.slab.get_mut(at) else { continue };
            match remembers(&connection.key, connection.opened) {
                Some(by) => connection.rule = by.rule,
                None => {
                    if let Some(connection) = self.slab.remove(at) {
                        self.removed(&connection);
                    }
                }
            }
        }
    }

    /// Those of a port that stand, among `count` places from `from` on: key, direction, how long they were idle, and how long they may be.
    /// With them the place to go on from, if there are more.
    #[expect(clippy::type_complexity, reason = "a list and a number")]
    pub fn part(
        &self,
        port: u16,
        from: usize,
        count: usize,
        now: Millis,
    ) -> (Vec<(ConnectionKey, Direction, Millis, Millis)>, Option<usize>) {
        let (places, next) = self.slab.part(from, count);
        let theirs = places.filter(|connection| connection.key.port == port && !connection.is_over(now));
        let state = |one: &Connection| (one.key, one.opened, now.saturating_sub(one.used), one.idle_timeout);
        (theirs.map(state).collect(), next)
    }

    /// Takes over a connection that was idle for so long at another switch. Returns whether it stands now.
    pub fn restore(
        &mut self,
        key: ConnectionKey,
        opened: Direction,
        by: Remembered,
        idle: Millis,
        most: u32,
        now: Millis,
    ) -> bool {
        // One that was opened here meanwhile has seen later packets.
        let standing = self.by_key.get(&key).and_then(|at| self.slab.get(*at)).filter(|old| !old.is_over(now));
        if let Some(standing) = standing {
            return standing.opened == opened;
        }
        let Some(at) = self.open(key, opened, by, most, now) else { return false };
        self.slab.get_mut(at).into_iter().for_each(|connection| connection.used = now.saturating_sub(idle));
        true
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
