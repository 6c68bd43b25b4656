//! Leases in etcd.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tonic::transport::Channel;

use super::endpoints::{Endpoints, Failure, Repeat, exchange, failure, unary};
use super::{EtcdStore, RANGE, TXN, outcome, request, wire};
use crate::lease::whole_seconds;
use crate::{Lease, LeaseId, Leases, Outcome, StoreError, Transaction};

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
        let read = |channel| async {
            let question = wire::RangeRequest { key: vec![0], keys_only: true, ..Default::default() };
            let read: wire::RangeResponse = unary(channel, RANGE, question).await?;
            Ok((read.header, ()))
        };
        self.wait(keep_alive(self.endpoints.clone(), lease, read)).map(|(ttl, ())| ttl)
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
    /// Keeps a lease alive, and commits a transaction, which proves it as the read of [`Leases::keep_alive`] does. It may be committed more than
    /// once: it has to be one to which that makes no difference.
    ///
    /// # Errors
    /// As those of both.
    pub fn keep_alive_by(&self, lease: LeaseId, transaction: &Transaction) -> Result<Outcome, StoreError> {
        transaction.check()?;
        let request = request(transaction);
        let commit = move |channel| {
            let request = request.clone();
            async move {
                let answer: wire::TxnResponse = unary(channel, TXN, request).await?;
                Ok((answer.header.clone(), answer))
            }
        };
        match self.wait(keep_alive(self.endpoints.clone(), lease, commit)) {
            Ok((_, answer)) => outcome(transaction, answer),
            // One that puts something under a lease that is gone.
            Err(StoreError::Refused(status)) if status.code() == tonic::Code::NotFound => Err(StoreError::NoLease(lease)),
            Err(error) => Err(error),
        }
    }

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

/// Keeps a lease alive, and proves it by what `prove` does at the same member, with the header of the answer that it gives.
async fn keep_alive<T, F>(
    endpoints: Arc<Endpoints>,
    lease: LeaseId,
    prove: impl Fn(Channel) -> F,
) -> Result<(Duration, T), StoreError>
where
    F: Future<Output = Result<(Option<wire::Header>, T), Failure>>,
{
    let end = Instant::now() + endpoints.deadline;
    let mut gone = false;
    loop {
        let renewed = endpoints.call(Repeat::Harmless, |channel| renew(channel, lease, &prove)).await?;
        match renewed {
            Some((ttl, proof)) if !ttl.is_zero() => return Ok((ttl, proof)),
            // A leader that is a little behind may not have heard of it yet. After the proof it has.
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
/// who confirmed the read, or had most members agree to the transaction, after that. If they are the same, that leader is the one who has renewed the
/// lease, and whoever leads later lets it live for its whole TTL from then on.
async fn renew<T, F>(channel: Channel, lease: LeaseId, prove: impl Fn(Channel) -> F) -> Result<Option<(Duration, T)>, Failure>
where
    F: Future<Output = Result<(Option<wire::Header>, T), Failure>>,
{
    let question = tokio_stream::once(wire::LeaseRequest { id: lease.0 });
    let mut answers = exchange::<_, wire::LeaseResponse, _>(channel.clone(), KEEP_ALIVE, question).await?;
    let answer = answers.message().await.map_err(failure)?;
    let answer = answer.ok_or_else(|| Failure::Unsure("a keep-alive has no answer".into()))?;
    let (header, proof) = prove(channel).await?;
    let term = |header: Option<wire::Header>| header.map(|header| header.raft_term);
    let same = term(answer.header) == term(header);
    Ok(same.then(|| (seconds(answer.ttl), proof)))
}
