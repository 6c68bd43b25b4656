//! Who may do what, as it is stored, and what was asked for once.

use serde::{Deserialize, Serialize};
use store::record::Record;
use time::OffsetDateTime;
use uuid::Uuid;

/// `tokens/NAME`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// Its name.
    pub name: String,
    /// What its owner may do.
    pub role: RoleRecord,
    /// SHA-256 of the secret, in hexadecimal. The secret has 256 random bits: there is nothing to guess, and nothing to slow down.
    pub secret_sha256: String,
    /// When it was made.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
}

impl Record for TokenRecord {
    const PREFIX: &'static str = "tokens/";
    const KIND: &'static str = "token";
    const VERSION: u32 = 1;
}

/// What a token's owner may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RoleRecord {
    /// Look.
    Viewer,
    /// Work with VMs.
    Operator,
    /// Give tokens to others.
    Admin,
}

impl From<RoleRecord> for api::Role {
    fn from(role: RoleRecord) -> api::Role {
        match role {
            RoleRecord::Viewer => api::Role::Viewer,
            RoleRecord::Operator => api::Role::Operator,
            RoleRecord::Admin => api::Role::Admin,
        }
    }
}

impl From<api::Role> for RoleRecord {
    fn from(role: api::Role) -> RoleRecord {
        match role {
            api::Role::Viewer => RoleRecord::Viewer,
            api::Role::Operator => RoleRecord::Operator,
            api::Role::Admin => RoleRecord::Admin,
        }
    }
}

impl From<&TokenRecord> for api::Token {
    fn from(token: &TokenRecord) -> api::Token {
        api::Token { name: token.name.clone(), role: token.role.into(), created_at: token.created_at }
    }
}

/// `once/TOKEN/KEY`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OnceRecord {
    /// SHA-256 of method, address and body, in hexadecimal: another request with the same key is a mistake.
    pub request_sha256: String,
    /// The VM or task that was made.
    pub made: Uuid,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}

impl Record for OnceRecord {
    const PREFIX: &'static str = "once/";
    const KIND: &'static str = "once";
    const VERSION: u32 = 1;
}
