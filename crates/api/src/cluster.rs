//! Hosts that become a cluster.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::Error;

/// A cluster to make of this host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewCluster {
    /// Its name, for people: letters, digits, `-`, `_` and `.`, at most 58. `maru` if it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 58, pattern = "^[A-Za-z0-9._-]+$")]
    pub name: Option<String>,
    /// The host's name in it: the host name if it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 58, pattern = "^[A-Za-z0-9._-]+$")]
    pub host: Option<String>,
    /// The host's addresses, one for each of one or two networks; the first is that of the store and the API. Found if none is given.
    #[serde(default)]
    #[schema(max_items = 2, value_type = Vec<String>)]
    pub addresses: Vec<IpAddr>,
}

/// A cluster to join.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JoinCluster {
    /// The token, made on a host of the cluster.
    pub token: String,
    /// The host's name in it: the host name if it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 58, pattern = "^[A-Za-z0-9._-]+$")]
    pub host: Option<String>,
    /// The host's addresses, one for each of one or two networks; the first is that of the store and the API. Found if none is given.
    #[serde(default)]
    #[schema(max_items = 2, value_type = Vec<String>)]
    pub addresses: Vec<IpAddr>,
    /// It is to run no VMs, and be there for the store's majority.
    #[serde(default)]
    pub witness: bool,
}

/// Not the token: what is printed ends in logs.
impl std::fmt::Debug for JoinCluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JoinCluster").field("host", &self.host).field("addresses", &self.addresses).finish_non_exhaustive()
    }
}

/// A token to join with, which is to be made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewJoinToken {
    /// For how many seconds it can be used: an hour if it is not given, a week at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 604_800)]
    pub valid_seconds: Option<u32>,
}

/// A token to join with.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CreatedJoinToken {
    /// The token. It is shown this once, and lets one host join.
    pub token: String,
    /// Until when.
    #[serde(with = "time::serde::rfc3339")]
    pub expires_at: OffsetDateTime,
}

/// Not the token: what is printed ends in logs.
impl std::fmt::Debug for CreatedJoinToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CreatedJoinToken").field("expires_at", &self.expires_at).finish_non_exhaustive()
    }
}

/// What a host says that joins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JoinRequest {
    /// The token's id; its secret is sent as that of a token of the API.
    pub token: Uuid,
    /// Names this join: the same again is the same join.
    pub join: Uuid,
    /// The host's name.
    #[schema(min_length = 1, max_length = 58, pattern = "^[A-Za-z0-9._-]+$")]
    pub host: String,
    /// Its addresses; the first is that of the store and the API.
    #[schema(min_items = 1, max_items = 2, value_type = Vec<String>)]
    pub addresses: Vec<IpAddr>,
    /// The port of its API.
    pub api_port: u16,
    /// The port of its member of the store, for clients.
    pub client_port: u16,
    /// The same for other members.
    pub peer_port: u16,
    /// It is to run no VMs.
    pub witness: bool,
    /// The version of Maru that it runs.
    #[schema(max_length = 64)]
    pub version: String,
    /// What its clock says.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// Its memory in MiB.
    pub memory_mib: u64,
    /// Its processors.
    pub cpus: u32,
    /// It has a watchdog.
    pub watchdog: bool,
    /// SHA-256 of the secret that an administrator on this host uses, in hexadecimal.
    #[schema(pattern = "^[0-9a-f]{64}$")]
    pub admin_sha256: String,
}

/// What a host needs that joins.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JoinAnswer {
    /// The cluster.
    pub cluster: Uuid,
    /// The certificate of its authority (PEM).
    pub authority: String,
    /// The authority's key (PEM).
    pub authority_key: String,
    /// The members of the store.
    pub members: Vec<StoreAddress>,
}

/// Not the key: what is printed ends in logs.
impl std::fmt::Debug for JoinAnswer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JoinAnswer").field("cluster", &self.cluster).field("members", &self.members).finish_non_exhaustive()
    }
}

/// Where a member of the store is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StoreAddress {
    /// The host.
    pub host: String,
    /// Its URL for clients.
    pub client_url: String,
}

/// How this host stands to clusters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ClusterStatus {
    /// The cluster that it is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<Cluster>,
    /// Why what was to be done about it at the last start of `marud` was not done: making a cluster, or restoring one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Error>,
}

/// A cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Cluster {
    /// What tells it from others.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// When it was made.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// The host that this answer comes from.
    pub this_host: String,
    /// The host that gives VMs to hosts, and changes the store's members.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub coordinator: Option<String>,
    /// Why the store takes no changes now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store_failure: Option<String>,
    /// What is being done about the store's members, or waited for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits: Option<String>,
    /// Its hosts, in the order of their names.
    pub hosts: Vec<ClusterHost>,
}

/// A host of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ClusterHost {
    /// Its name.
    pub name: String,
    /// Its addresses; the first is that of the store and the API.
    #[schema(value_type = Vec<String>)]
    pub addresses: Vec<IpAddr>,
    /// The port of its API.
    pub api_port: u16,
    /// Whether its lease lives.
    pub alive: bool,
    /// It runs no VMs, and is to give away those that it has.
    pub drained: bool,
    /// It is drained since it is to be switched off, or is off, and takes VMs again when it is back.
    #[serde(default)]
    pub drained_until_back: bool,
    /// How many VMs belong to it: they run there, or are about to.
    #[serde(default)]
    pub vms: u32,
    /// It is there for the store's majority alone.
    pub witness: bool,
    /// It is about to leave the cluster.
    pub leaving: bool,
    /// The version of Maru that it runs.
    pub version: String,
    /// Its part in the store.
    pub store: StorePart,
    /// Its member of the store answers, and follows a leader; false where there is none.
    pub store_answers: bool,
    /// It leads the store.
    pub leads: bool,
    /// Why its member of the store cannot go on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub damaged: Option<String>,
    /// How often all hosts had been told to make new certificates when it made its own.
    pub certificates: u64,
}

/// A host's part in the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum StorePart {
    /// It is a client.
    #[default]
    Client,
    /// It gets everything, and has no vote yet.
    Learner,
    /// It has a vote.
    Voter,
}

impl std::fmt::Display for StorePart {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            StorePart::Client => "client",
            StorePart::Learner => "learner",
            StorePart::Voter => "voter",
        })
    }
}

/// Which hosts have done something that all of them do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Certificates {
    /// How often all hosts were told to make new certificates.
    pub generation: u64,
}
