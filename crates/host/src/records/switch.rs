//! A virtual switch, as it is stored.

use serde::{Deserialize, Serialize};
use store::record::Record;

/// `switches/NAME`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwitchRecord {
    /// Its name.
    pub name: String,
    /// Whom VMs reach over it.
    pub kind: SwitchKindRecord,
}

/// Whom VMs reach over a switch, beside each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum SwitchKindRecord {
    /// What is behind a NIC of the host.
    External {
        /// The NIC.
        uplink: String,
    },
    /// The host.
    Internal {
        /// Its interface there.
        interface: String,
        /// Its address there, with the length of its prefix.
        address: Option<String>,
    },
    /// Nobody else.
    Private,
}

impl Record for SwitchRecord {
    const PREFIX: &'static str = "switches/";
    const KIND: &'static str = "switch";
    const VERSION: u32 = 1;
}
