//! How this host stands to clusters: alone, or as one of one.

use std::net::IpAddr;
use std::sync::Arc;

use store::etcd::EtcdStore;
use tokio::sync::Notify;

use super::forming::Place;
use super::identity::Identity;
use super::members::Follower;

/// What requests about clusters are answered from.
pub struct Standing {
    /// Where this host is.
    pub place: Place,
    /// Addresses by which others may reach it, if nobody names them.
    pub found: Vec<IpAddr>,
    /// Told when `marud` is to start itself anew.
    pub again: Arc<Notify>,
    /// What it is in a cluster, if it is in one.
    pub member: Option<Membership>,
}

/// A host of a cluster.
pub struct Membership {
    /// Who it is.
    pub identity: Identity,
    /// The store.
    pub etcd: Arc<EtcdStore>,
    /// Whoever looks after its members.
    pub follower: Follower,
}
