//! Renewals of other hosts, as this one sees them: a lease whose holder has written none for a whole TTL is ended.
//!
//! The store ends leases by itself, too, but begins all of them anew when its leader changes. So when a host dies that led it, its lease would
//! live for the election, a grace, and another TTL. What is seen here does not depend on that: whoever sees a renewal sees it later
//! than it was sent, and waits for a TTL from then on. The transaction that ends the lease is done only if there was no later renewal, and
//! after it none is done.

use std::collections::BTreeMap;
use std::time::Duration;

use store::record::Stored;
use store::{LeaseId, Revision, Transaction};

use super::{Node, Purpose};
use crate::records::{Holder, RenewalRecord, alive_key, renewal_key};
use crate::{HostId, Moment};

/// The last renewal that was seen of a host.
struct Seen {
    revision: Revision,
    at: Moment,
    /// When its end was asked for last.
    asked: Option<Moment>,
}

#[derive(Default)]
pub(super) struct Renewals {
    seen: BTreeMap<HostId, Seen>,
    /// When the next lease may have to be ended.
    wake_at: Option<Moment>,
}

impl Renewals {
    pub(super) fn wake_at(&self) -> Moment {
        self.wake_at.unwrap_or(Moment(Duration::MAX))
    }
}

impl Node {
    pub(super) fn renewal_touched(&mut self, host: HostId) {
        match self.view.host(&host).and_then(|view| view.renewed.as_ref()) {
            Some(Stored { revision, .. }) => {
                let seen = Seen { revision: *revision, at: self.now, asked: None };
                self.renewals.seen.insert(host, seen);
            }
            None => {
                self.renewals.seen.remove(&host);
            }
        }
    }

    /// Ends leases that were not renewed: the coordinator those of all others, and the others, one after the other, that of a
    /// coordinator.
    pub(super) fn end_leases(&mut self, me: &Holder) {
        self.renewals.wake_at = None;
        let coordinator = self.view.coordinator().map(|coordinator| coordinator.record.holder.host.clone());
        let overdue: Vec<(HostId, Transaction)> = match coordinator {
            Some(host) if host == me.host => {
                let hosts: Vec<HostId> = self.renewals.seen.keys().filter(|host| **host != me.host).cloned().collect();
                hosts.into_iter().filter_map(|host| Some((host.clone(), self.end_of(&host, Duration::ZERO)?))).collect()
            }
            Some(host) => {
                let rank = self.rank(Some(&host));
                self.end_of(&host, rank).map(|end| (host, end)).into_iter().collect()
            }
            None => Vec::new(),
        };
        for (host, transaction) in overdue {
            if let Some(seen) = self.renewals.seen.get_mut(&host) {
                seen.asked = Some(self.now);
                self.commit(transaction, Purpose::End);
            }
        }
    }

    /// What ends a host's lease, if that is due; else it is remembered when it may be.
    fn end_of(&mut self, host: &HostId, rank: Duration) -> Option<Transaction> {
        let view = self.view.host(host)?;
        let (alive, renewed) = (view.alive.as_ref()?, view.renewed.as_ref()?);
        // A renewal of the life before says nothing about this one.
        if alive.record.incarnation != renewed.record.incarnation {
            return None;
        }
        let seen = self.renewals.seen.get(host).filter(|seen| seen.revision == renewed.revision)?;
        let mut due = seen.at + self.config.ttl + rank;
        if let Some(asked) = seen.asked {
            due = due.max(asked + self.config.retry_after);
        }
        if self.now < due {
            self.renewals.wake_at = Some(self.renewals.wake_at.map_or(due, |at| at.min(due)));
            return None;
        }
        let transaction = Transaction::new().unchanged(alive_key(host), alive.revision);
        let transaction = transaction.unchanged(renewal_key(host), renewed.revision);
        Some(transaction.delete(renewal_key(host)).delete(alive_key(host)))
    }
}

/// What a host commits with each renewal of its lease; `alive` is the revision of its `alive/HOST`.
pub fn renewal(host: &HostId, lease: LeaseId, alive: Revision) -> Transaction {
    let record = store::record::to_bytes(&RenewalRecord { incarnation: lease });
    Transaction::new().unchanged(alive_key(host), alive).put_under(renewal_key(host), record, lease)
}
