//! Starting VMs with their host, as it is stored.

use serde::{Deserialize, Serialize};
use store::record::Record;
use time::OffsetDateTime;
use uuid::Uuid;

/// Whether a VM is started with its host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AutoStartRecord {
    /// Whether.
    pub policy: AutoStartPolicyRecord,
    /// After the one before it, in seconds.
    pub delay_seconds: u32,
    /// Smaller numbers come first.
    pub order: u32,
}

/// When.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AutoStartPolicyRecord {
    /// Never.
    #[default]
    Never,
    /// Always.
    Always,
    /// If it was on.
    IfItRan,
}

/// `boots/last`: the host's last start that `marud` has seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootedRecord {
    /// The kernel's id of it.
    pub boot_id: String,
    /// VMs that are still to be started, in their order.
    pub pending: Vec<PendingStart>,
}

/// A VM that is to be started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingStart {
    /// The VM.
    pub vm: Uuid,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}

impl Record for BootedRecord {
    const PREFIX: &'static str = "boots/";
    const KIND: &'static str = "booted";
    const VERSION: u32 = 1;
}

impl From<api::AutoStart> for AutoStartRecord {
    fn from(auto_start: api::AutoStart) -> AutoStartRecord {
        AutoStartRecord {
            policy: match auto_start.policy {
                api::AutoStartPolicy::Never => AutoStartPolicyRecord::Never,
                api::AutoStartPolicy::Always => AutoStartPolicyRecord::Always,
                api::AutoStartPolicy::IfItRan => AutoStartPolicyRecord::IfItRan,
            },
            delay_seconds: auto_start.delay_seconds,
            order: auto_start.order,
        }
    }
}

impl From<AutoStartRecord> for api::AutoStart {
    fn from(auto_start: AutoStartRecord) -> api::AutoStart {
        api::AutoStart {
            policy: match auto_start.policy {
                AutoStartPolicyRecord::Never => api::AutoStartPolicy::Never,
                AutoStartPolicyRecord::Always => api::AutoStartPolicy::Always,
                AutoStartPolicyRecord::IfItRan => api::AutoStartPolicy::IfItRan,
            },
            delay_seconds: auto_start.delay_seconds,
            order: auto_start.order,
        }
    }
}
