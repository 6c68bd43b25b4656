//! Heartbeats: who is silent. They tell users what is going on seconds before a lease ends; no VM is started because of them.

use std::collections::BTreeMap;

use super::{Config, Node};
use crate::view::HostView;
use crate::{Action, Beat, HostId, Moment, Network, Notice};

struct Peer {
    /// Since when it is listened to.
    since: Moment,
    /// When it was heard last on each network.
    heard: [Option<Moment>; 2],
    /// What was told of it.
    silent: [bool; 2],
}

impl Peer {
    fn new(now: Moment) -> Peer {
        Peer { since: now, heard: [None; 2], silent: [false; 2] }
    }
}

pub(super) struct Peers {
    peers: BTreeMap<HostId, Peer>,
    pub(super) beat_at: Moment,
    /// Nobody is missed before this moment: they have had no time to be heard.
    listens_since: Moment,
}

impl Peers {
    pub(super) fn new(now: Moment, config: &Config) -> Peers {
        Peers { peers: BTreeMap::new(), beat_at: now + config.beat_every, listens_since: now }
    }
}

impl Node {
    pub(super) fn heard(&mut self, from: HostId, network: Network, _beat: Beat) {
        let now = self.now;
        let peer = self.peers.peers.entry(from.clone()).or_insert_with(|| Peer::new(now));
        let index = network as usize;
        peer.heard[index] = Some(self.now);
        if std::mem::take(&mut peer.silent[index]) && self.tells_of(&from) {
            self.tell(Notice::NetworkHeard(from, network));
        }
    }

    /// One host tells of the others, and the others tell of that one.
    fn tells_of(&self, host: &HostId) -> bool {
        self.coordinates() || self.view.coordinator().is_some_and(|coordinator| coordinator.record.holder.host == *host)
    }

    pub(super) fn beat(&mut self) {
        if self.now < self.peers.beat_at {
            return;
        }
        // A host that was frozen has heard nobody, which is not their fault.
        if self.now.since(self.peers.beat_at) > self.config.suspect_after {
            self.peers.listens_since = self.now;
        }
        self.peers.beat_at = self.now + self.config.beat_every;
        let beat = Beat { leased: self.lease.held().is_some() };
        let mut notices = Vec::new();
        let own = self.view.host(&self.config.host).and_then(|host| host.record.as_ref());
        let own_has_one = own.is_some_and(|host| host.record.addresses.len() == 1);
        for (host, view) in self.view.hosts().filter(|(host, _)| **host != self.config.host) {
            self.actions.push(Action::Beat { to: host.clone(), beat });
            if view.alive.is_none() {
                self.peers.peers.remove(host);
                continue;
            }
            let peer = self.peers.peers.entry(host.clone()).or_insert_with(|| Peer::new(self.now));
            let since = self.peers.listens_since.max(peer.since);
            let mut silence = peer.heard.map(|heard| self.now.since(heard.unwrap_or(since).max(since)));
            // With one network there is nothing to be told of another one.
            let has_one = |host: &HostView| host.record.as_ref().is_some_and(|host| host.record.addresses.len() == 1);
            if has_one(view) || own_has_one {
                silence[1] = silence[0];
            }
            let before = peer.silent;
            peer.silent = silence.map(|time| time >= self.config.suspect_after);
            match peer.silent {
                [true, true] if before != [true, true] => {
                    notices.push((host.clone(), Notice::Suspected(host.clone(), silence[0].min(silence[1]))));
                }
                [true, false] if !before[0] => notices.push((host.clone(), Notice::NetworkSilent(host.clone(), Network::First))),
                [false, true] if !before[1] => notices.push((host.clone(), Notice::NetworkSilent(host.clone(), Network::Second))),
                _ => {}
            }
        }
        for (host, notice) in notices {
            if self.tells_of(&host) {
                self.tell(notice);
            }
        }
    }
}
