//! What hosts share about themselves, beside what [`cluster::records`] decides with.
//!
//! | key | record | who changes it |
//! |---|---|---|
//! | `cluster/info` | the cluster: its id and name | who makes it |
//! | `cluster/certificates` | which certificates hosts are to have | users |
//! | `members/HOST` | how a host is reached, and its part in the store | the host; the coordinator |
//! | `joins/ID` | a token to join with | users; who lets a host join |

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use store::etcd::admin::MemberId;
use store::record::Record;
use time::OffsetDateTime;
use uuid::Uuid;

/// The name of [`ClusterRecord`].
pub const INFO: &str = "info";
/// The name of [`cluster::records::CoordinatorRecord`].
pub const COORDINATOR: &str = "coordinator";
/// The name of [`CertificatesRecord`].
pub const CERTIFICATES: &str = "certificates";

/// `cluster/info`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterRecord {
    /// What tells it from others.
    pub id: Uuid,
    /// Its name, for people.
    pub name: String,
    /// When it was made.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// The version of Maru that made it.
    pub version: String,
}

impl Record for ClusterRecord {
    const PREFIX: &'static str = "cluster/";
    const KIND: &'static str = "cluster";
    const VERSION: u32 = 1;
}

/// `cluster/certificates`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificatesRecord {
    /// Counts the times that all hosts were told to make new ones.
    pub generation: u64,
}

impl Record for CertificatesRecord {
    const PREFIX: &'static str = "cluster/";
    const KIND: &'static str = "certificates";
    const VERSION: u32 = 1;
}

/// A host's part in the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MemberState {
    /// It is a client.
    #[default]
    Client,
    /// It gets everything, and has no vote yet.
    Learner,
    /// It has a vote.
    Voter,
}

/// `members/HOST`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberRecord {
    /// Its addresses, one for each network; the first is that of the store and the API.
    pub addresses: Vec<IpAddr>,
    /// The port of its API.
    pub api_port: u16,
    /// Where its member of the store is for clients, if it has one.
    pub client_url: String,
    /// Where it is for other members.
    pub peer_url: String,
    /// It runs no VMs, and is there for the store's majority.
    #[serde(default)]
    pub witness: bool,
    /// The version of Maru that it runs.
    pub version: String,
    /// Its part in the store.
    #[serde(default)]
    pub state: MemberState,
    /// Its member of the store.
    #[serde(default)]
    pub member: Option<MemberId>,
    /// It is about to leave the cluster.
    #[serde(default)]
    pub leaving: bool,
    /// Why its member of the store cannot go on with its data: it is to be made anew.
    #[serde(default)]
    pub damaged: Option<String>,
    /// The generation of its certificate.
    #[serde(default)]
    pub certificates: u64,
    /// The join by which it became a member: a repeated one is recognised.
    pub join: Uuid,
    /// When it joined.
    #[serde(with = "time::serde::rfc3339")]
    pub joined_at: OffsetDateTime,
}

impl Record for MemberRecord {
    const PREFIX: &'static str = "members/";
    const KIND: &'static str = "member";
    const VERSION: u32 = 1;
}

/// `joins/ID`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRecord {
    /// SHA-256 of the secret, in hexadecimal.
    pub secret_sha256: String,
    /// Until when it can be used.
    #[serde(with = "time::serde::rfc3339")]
    pub expires_at: OffsetDateTime,
    /// Who has used it.
    #[serde(default)]
    pub used: Option<UsedRecord>,
}

/// The join that a token was used for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsedRecord {
    /// The join.
    pub join: Uuid,
    /// The host's name.
    pub host: String,
}

impl Record for JoinRecord {
    const PREFIX: &'static str = "joins/";
    const KIND: &'static str = "join";
    const VERSION: u32 = 1;
}

/// The longest name of a host: with it, the name of its token is one.
pub const MAX_HOST: usize = 58;

/// Whether a host can be called so.
pub fn is_host_name(name: &str) -> bool {
    name.len() <= MAX_HOST && vmm::config::check_id(name).is_ok()
}

/// The name of the token that an administrator on this host itself uses.
pub fn local_token(host: &str) -> String {
    format!("admin.{host}")
}

#[cfg(test)]
mod tests {
    use store::record::{from_bytes, to_bytes};
    use time::macros::datetime;
    use uuid::uuid;

    use super::*;

    const AT: OffsetDateTime = datetime!(2026-11-28 08:00 UTC);
    const ID: Uuid = uuid!("7d9b5e0a-53f2-4d9e-9f0f-3f6f3a3a2b11");

    fn stays<T: Record + PartialEq + std::fmt::Debug>(record: &T, golden: &str) {
        assert_eq!(String::from_utf8(to_bytes(record)).unwrap(), golden);
        assert_eq!(from_bytes::<T>("key", golden.as_bytes()).unwrap(), *record);
    }

    #[test]
    fn version_1_is_read_and_written_as_ever() {
        stays(
            &ClusterRecord { id: ID, name: "maru".into(), created_at: AT, version: "0.1.0".into() },
            r#"{"kind":"cluster","version":1,"data":{"id":"7d9b5e0a-53f2-4d9e-9f0f-3f6f3a3a2b11","name":"maru","created_at":"2026-11-28T08:00:00Z","version":"0.1.0"}}"#,
        );
        stays(&CertificatesRecord { generation: 3 }, r#"{"kind":"certificates","version":1,"data":{"generation":3}}"#);
        stays(
            &MemberRecord {
                addresses: vec!["192.0.2.2".parse().unwrap()],
                api_port: 8420,
                client_url: "https://192.0.2.2:2379".into(),
                peer_url: "https://192.0.2.2:2380".into(),
                witness: true,
                version: "0.1.0".into(),
                state: MemberState::Voter,
                member: Some(MemberId(7)),
                leaving: false,
                damaged: None,
                certificates: 1,
                join: ID,
                joined_at: AT,
            },
            r#"{"kind":"member","version":1,"data":{"addresses":["192.0.2.2"],"api_port":8420,"client_url":"https://192.0.2.2:2379","peer_url":"https://192.0.2.2:2380","witness":true,"version":"0.1.0","state":"voter","member":7,"leaving":false,"damaged":null,"certificates":1,"join":"7d9b5e0a-53f2-4d9e-9f0f-3f6f3a3a2b11","joined_at":"2026-11-28T08:00:00Z"}}"#,
        );
        stays(
            &JoinRecord { secret_sha256: "ab".into(), expires_at: AT, used: Some(UsedRecord { join: ID, host: "h2".into() }) },
            r#"{"kind":"join","version":1,"data":{"secret_sha256":"ab","expires_at":"2026-11-28T08:00:00Z","used":{"join":"7d9b5e0a-53f2-4d9e-9f0f-3f6f3a3a2b11","host":"h2"}}}"#,
        );
    }
}
