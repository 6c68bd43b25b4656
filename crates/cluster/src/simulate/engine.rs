//! The store, as hosts see it: one leader among members, with a clock of its own; leases begin anew when the leader changes, as etcd's do.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use store::record::to_bytes;
use store::{Changed, LeaseId, Leases, MemoryStore, Outcome, Revision, Snapshot, Store, Transaction, Watch};

use super::machine::Clock;
use crate::node::renewal;
use crate::records::{AliveRecord, alive_key};
use crate::{Answer, Event, HostId};

/// The changes of one transaction.
#[derive(Clone)]
pub(super) struct Batch {
    pub(super) revision: Revision,
    pub(super) changes: Arc<Vec<Changed>>,
}

/// What a host asks for.
#[derive(Clone)]
pub(super) enum Request {
    List,
    Take { attempt: u64, host: HostId },
    Renew { attempt: u64, lease: LeaseId, host: HostId, alive: Revision },
    Commit { commit: u64, transaction: Transaction },
}

pub(super) struct Engine {
    store: MemoryStore,
    watch: Watch,
    ttl: Duration,
    leases: BTreeSet<LeaseId>,
    /// Machines that are members.
    pub(super) members: Vec<usize>,
    /// A member, as an index into the machines. It may have died since.
    pub(super) leader: usize,
    /// An election is under way.
    pub(super) election: bool,
    /// The leader's clock, and what the store's time was when it began to lead.
    clock: Clock,
    began: (Duration, Duration),
}

impl Engine {
    pub(super) fn new(members: Vec<usize>, clock: Clock, ttl: Duration) -> Engine {
        let store = MemoryStore::new();
        let watch = store.watch("", Revision(0)).expect("an empty store has forgotten nothing");
        let leader = members[0];
        let began = (Duration::ZERO, Duration::ZERO);
        Engine { store, watch, ttl, leases: BTreeSet::new(), members, leader, election: false, clock, began }
    }

    /// Lets the time of the leader's clock pass; only while it leads.
    pub(super) fn advance(&mut self, now: Duration) {
        self.store.advance(self.began.1 + self.clock.measured(now.saturating_sub(self.began.0)));
    }

    /// When the next lease ends if nobody renews it.
    pub(super) fn next_end(&self) -> Option<Duration> {
        let end = self.store.next_end()?;
        Some(self.began.0 + self.clock.real(end.saturating_sub(self.began.1)))
    }

    /// Another member leads, or the same again.
    pub(super) fn lead(&mut self, now: Duration, leader: usize, clock: Clock) {
        self.leader = leader;
        self.clock = clock;
        self.began = (now, self.store.now());
        self.leases.retain(|lease| self.store.keep_alive(*lease).is_ok());
    }

    /// What was committed since this was asked last.
    pub(super) fn committed(&mut self) -> Vec<Batch> {
        let transactions = self.watch.try_transactions().into_iter();
        transactions.map(|(revision, changes)| Batch { revision, changes: Arc::new(changes) }).collect()
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        self.store.range("").expect("a store in memory answers")
    }

    pub(super) fn commit(&self, transaction: &Transaction) -> Answer {
        match self.store.commit(transaction).expect("a store in memory answers, and nodes make transactions that are allowed") {
            Outcome::Committed(revision) => Answer::Done(revision),
            Outcome::Conflict { key, .. } => Answer::Conflict { key },
        }
    }

    pub(super) fn handle(&mut self, request: Request) -> Event {
        match request {
            Request::List => Event::Entries(self.snapshot()),
            Request::Take { attempt, host } => {
                let lease = self.store.grant(self.ttl).expect("a store in memory answers").id;
                let record = to_bytes(&AliveRecord { incarnation: lease });
                let put = Transaction::new().absent(alive_key(&host)).put_under(alive_key(&host), record, lease);
                match self.commit(&put) {
                    Answer::Done(_) => {
                        self.leases.insert(lease);
                        Event::LeaseTaken { attempt, lease }
                    }
                    _ => {
                        let revoked = self.store.revoke(lease);
                        debug_assert!(revoked.is_ok());
                        Event::LeaseRefused { attempt, reason: "the lease of this host's life before still lives".into() }
                    }
                }
            }
            Request::Renew { attempt, lease, host, alive } => {
                let kept = self.store.keep_alive(lease).is_ok();
                if kept && matches!(self.commit(&renewal(&host, lease, alive)), Answer::Done(_)) {
                    Event::LeaseRenewed { attempt }
                } else {
                    self.leases.remove(&lease);
                    Event::LeaseEnded { lease }
                }
            }
            Request::Commit { commit, transaction } => Event::Committed { commit, answer: self.commit(&transaction) },
        }
    }
}
