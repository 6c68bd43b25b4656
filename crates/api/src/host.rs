//! The host itself.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;

/// A host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HostInfo {
    /// Its name.
    pub name: String,
    /// Names and addresses that its certificate is for: by which clients may know it.
    pub names: Vec<String>,
    /// The version of `marud`.
    pub version: String,
    /// When `marud` started.
    #[serde(with = "time::serde::rfc3339")]
    pub started_at: OffsetDateTime,
    /// Processors that are on.
    pub cpus: u32,
    /// Memory of the host in bytes.
    pub memory_bytes: u64,
    /// Memory in bytes that could be given out without swapping.
    pub memory_available_bytes: u64,
    /// VMs that are defined.
    pub vms: u32,
    /// VMs that run, or are paused.
    pub vms_running: u32,
}
