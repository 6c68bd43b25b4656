//! Entries that live only as long as someone says so.

use std::time::Duration;

use crate::{Store, StoreError};

/// Names a lease of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct LeaseId(pub i64);

impl std::fmt::Display for LeaseId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// A lease as it was granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Its name.
    pub id: LeaseId,
    /// How long it lives after each keep-alive.
    pub ttl: Duration,
}

/// A store with leases: entries put under one ([`Transaction::put_under`](crate::Transaction::put_under)) are gone when it ends, all of
/// them with one revision, and watchers are told.
///
/// # Time
/// Who holds a lease counts its TTL **from the moment before it asked** ([`grant`](Leases::grant), [`keep_alive`](Leases::keep_alive)), on a
/// clock that nobody sets. The store begins to count later, when the request has arrived. So the holder knows that its lease is over
/// before anybody else can see it. A lease may live longer than that, where the store's leader changes by nearly another TTL, but
/// never shorter, unless it is revoked.
///
/// A lease is no lock: that it lives says nothing of what its holder does now. What must not be done twice is done under a condition, or
/// with an entry's revision as the fencing token.
pub trait Leases: Store {
    /// Grants a lease. The TTL granted can differ from the one asked for: it is whole seconds, and within what the store can do.
    ///
    /// # Errors
    /// When the store does not answer. A lease that was granted nevertheless ends by itself.
    fn grant(&self, ttl: Duration) -> Result<Lease, StoreError>;

    /// Lets a lease live on, and returns the TTL that counts from now. That it returns proves that most of the store's members agree.
    ///
    /// # Errors
    /// [`StoreError::NoLease`] when it has ended. After any other error it may live on or not: what was known before holds.
    fn keep_alive(&self, lease: LeaseId) -> Result<Duration, StoreError>;

    /// Ends a lease, and with it all its entries.
    ///
    /// # Errors
    /// [`StoreError::NoLease`] when it has ended already.
    fn revoke(&self, lease: LeaseId) -> Result<(), StoreError>;
}

/// A TTL that a store can grant: whole seconds, as many as were asked for at least.
pub(crate) fn whole_seconds(ttl: Duration) -> u64 {
    /// What etcd grants at most.
    const LONGEST: u64 = 9_000_000_000;
    (ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0)).clamp(1, LONGEST)
}
