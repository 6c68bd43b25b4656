//! A virtual switch, as it is stored.

use serde::{Deserialize, Serialize};
use store::record::Record;
use switch::team::config::{Datapath, TeamConfig};

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
    /// What is behind NICs of the host.
    External {
        /// They.
        #[serde(flatten)]
        uplink: UplinkRecord,
        /// What the wire carries, in bits a second; 0 if nobody knows.
        #[serde(default, skip_serializing_if = "is_zero")]
        capacity_bps: u64,
        /// How frames come from them and go to them. Their team does not say it.
        #[serde(default, skip_serializing_if = "Datapath::is_default")]
        datapath: Datapath,
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

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// The way out of a switch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum UplinkRecord {
    /// A NIC.
    Nic {
        /// Its interface.
        uplink: String,
    },
    /// Some, as the switch is told them.
    Team {
        /// They, and how they are used.
        team: TeamConfig,
    },
}

impl UplinkRecord {
    /// The NICs, and how they are used.
    pub fn team(&self) -> TeamConfig {
        match self {
            UplinkRecord::Nic { uplink } => TeamConfig::single(uplink),
            UplinkRecord::Team { team } => team.clone(),
        }
    }
}

impl From<TeamConfig> for UplinkRecord {
    fn from(team: TeamConfig) -> UplinkRecord {
        match team.as_single() {
            Some(nic) => UplinkRecord::Nic { uplink: nic.into() },
            None => UplinkRecord::Team { team },
        }
    }
}

impl SwitchKindRecord {
    /// The interfaces of the host that the switch has.
    pub fn interfaces(&self) -> Vec<&str> {
        match self {
            SwitchKindRecord::External { uplink: UplinkRecord::Nic { uplink }, .. } => vec![uplink],
            SwitchKindRecord::External { uplink: UplinkRecord::Team { team }, .. } => {
                team.nics.iter().map(String::as_str).collect()
            }
            SwitchKindRecord::Internal { interface, .. } => vec![interface],
            SwitchKindRecord::Private => Vec::new(),
        }
    }
}

impl Record for SwitchRecord {
    const PREFIX: &'static str = "switches/";
    const KIND: &'static str = "switch";
    const VERSION: u32 = 1;
}
