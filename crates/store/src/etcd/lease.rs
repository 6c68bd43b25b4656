//! Leases in etcd.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tonic::transport::Channel;

use super::endpoints::{Endpoints, Failure, Repeat, exchange, failure, unary};
use super::{EtcdStore, RANGE, wire};
use crate::lease::whole_seconds;
use crate::{Lease, LeaseId, Leases, StoreError, Transaction};

const GRANT: &str = "/etcdserverpb.Lease/LeaseGrant";
const REVOKE: &str = "/etcdserverpb.Lease/LeaseRevoke";
const KEEP_ALIVE: &str = "/etcdserverpb.Lease/LeaseKeepAlive";
const TIME_TO_LIVE: &str = "/etcdserverpb.Lease/LeaseTimeToLive";

impl Leases for EtcdStore {
    fn grant(&self, ttl: Duration) -> Result<Lease, StoreError> {
        let question = wire::LeaseGrantRequest { ttl: whole_seconds(ttl).try_into().unwrap_or(i64::MAX) };
        // One too many ends by itself.
        let answer: wire::LeaseGrantResponse = self.ask(Repeat::Harmless, GRANT, question)?;
        Ok(Lease { id: LeaseId(answer.id), ttl: seconds(answer.ttl) })
    }

    fn keep_alive(&self, lease: LeaseId) -> Result<Duration, StoreError> {
        let endpoints = self.endpoints.clone();
        self.wait(keep_alive(endpoints, lease))
    }

    fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        let revoked = self.ask::<_, wire::Done>(Repeat::Never, REVOKE, wire::LeaseRequest { id: lease.0 });
        match revoked {
            Err(StoreError::Refused(status)) if status.code() == tonic::Code::NotFound => Err(StoreError::NoLease(lease)),
            done => done.map(drop),
        }
    }
}

impl EtcdStore {
    /// The lease of a transaction that has ended.
    pub(super) fn gone(&self, transaction: &Transaction) -> Result<Option<LeaseId>, StoreError> {
        for lease in transaction.last_changes().iter().filter_map(|change| change.lease()) {
            let question = wire::LeaseRequest { id: lease.0 };
            let answer: wire::LeaseResponse = self.ask(Repeat::Harmless, TIME_TO_LIVE, question)?;
            if answer.ttl < 0 {
                return Ok(Some(lease));
            }
        }
        Ok(None)
    }
}

fn seconds(number: i64) -> Duration {
    Duration::from_secs(number.try_into().unwrap_or(0))
}

async fn keep_alive(endpoints: Arc<Endpoints>, lease: LeaseId) -> Result<Duration, StoreError> {
    let end = Instant::now() + endpoints.deadline;
    let mut gone = false;
    loop {
        let renewed = endpoints.call(Repeat::Harmless, |channel| renew(channel, lease)).await?;
        match renewed {
            Some(ttl) if !ttl.is_zero() => return Ok(ttl),
            // A leader that is a little behind may not have heard of it yet. After the read it has.
            Some(_) if gone => return Err(StoreError::NoLease(lease)),
            Some(_) => gone = true,
            None if Instant::now() < end => {}
            None => {
                let reason = "the leader changes again and again".into();
                return Err(StoreError::Unavailable { waited: endpoints.deadline, reason });
            }
        }
    }
}

/// Keeps a lease alive, and makes sure that it was the leader of most members who did so. `None` if the leader has changed meanwhile.
///
/// The first term is that of the last entry which the member had applied before it passed the keep-alive on; the second one that of the leader
/// who confirmed the read, by asking the other members, after that. If they are the same, that leader is the one who has renewed the
/// lease, and whoever leads later lets it live for its whole TTL from then on.
async fn renew(channel: Channel, lease: LeaseId) -> Result<Option<Duration>, Failure> {
    let question = tokio_stream::once(wire::LeaseRequest { id: lease.0 });
    let mut answers = exchange::<_, wire::LeaseResponse, _>(channel.clone(), KEEP_ALIVE, question).await?;
    let answer = answers.message().await.map_err(failure)?;
    let answer = answer.ok_or_else(|| Failure::Unsure("a keep-alive has no answer".into()))?;
    let question = wire::RangeRequest { key: vec![0], keys_only: true, ..Default::default() };
    let read: wire::RangeResponse = unary(channel, RANGE, question).await?;
    let term = |header: Option<wire::Header>| header.map(|header| header.raft_term);
    let same = term(answer.header) == term(read.header);
    Ok(same.then(|| seconds(answer.ttl)))
}
