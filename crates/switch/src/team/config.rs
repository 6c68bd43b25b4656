//! What a team is to be: the configuration type, as it is on the control socket.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::lacp::{DEFAULT_PRIORITY, LacpRate};

/// The most NICs of a team.
pub const MAX_NICS: usize = 8;

/// How a team uses its NICs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TeamMode {
    /// One carries everything, the others wait.
    #[default]
    ActiveStandby,
    /// Each port of the switch has its NIC. Any switches at the other end.
    SourcePort,
    /// Each flow has its NIC, and NICs with much to do give flows to others. Any switches at the other end: frames that leave through
    /// another NIC than their station's have that NIC's address, so that no switch sees a station in two places.
    AddressHash,
    /// Each flow has its NIC, as agreed with the switch at the other end (802.3ad).
    Lacp,
}

/// How frames come from NICs and go to them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Datapath {
    /// By AF_PACKET: with any NIC, with large segments, and the host keeps what it has on the NIC.
    #[default]
    AfPacket,
    /// By AF_XDP where the NIC's driver has XDP of its own and the host has no address on the NIC, by AF_PACKET otherwise.
    Auto,
    /// By AF_XDP, or not at all.
    AfXdp,
}

impl Datapath {
    /// Whether it is what it is if nothing is said.
    pub fn is_default(&self) -> bool {
        *self == Datapath::default()
    }
}

/// NICs that are one uplink.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct TeamConfig {
    /// The NICs, by the names of their interfaces.
    pub nics: Vec<String>,
    /// How they are used.
    #[serde(default)]
    pub mode: TeamMode,
    /// The NIC that is used whenever it has a link; of `active-standby`. Without one, the NIC that is used stays until its link is lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub primary: Option<String>,
    /// How often the partner is to speak; of `lacp`.
    #[serde(default)]
    pub lacp_rate: LacpRate,
    /// The lower, the more this end has to say; of `lacp`.
    #[serde(default = "default_priority")]
    pub lacp_priority: u16,
    /// How frames come and go.
    #[serde(default, skip_serializing_if = "Datapath::is_default")]
    pub datapath: Datapath,
}

fn default_priority() -> u16 {
    DEFAULT_PRIORITY
}

/// What is wrong with a team.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TeamError {
    /// Too many or none.
    #[error("{0} NICs: a team has 1 to {MAX_NICS}")]
    Nics(usize),
    /// A NIC twice.
    #[error("the NIC {0} is named twice")]
    Twice(String),
    /// A primary that is none of them.
    #[error("the primary NIC {0} is not in the team")]
    Primary(String),
    /// A primary in another mode.
    #[error("only the mode active-standby has a primary NIC")]
    PrimaryMode,
    /// A NIC that another port has.
    #[error("the NIC {nic} is an uplink already, of the port '{port}'")]
    Used {
        /// The NIC.
        nic: String,
        /// Who has it.
        port: String,
    },
}

impl TeamConfig {
    /// A NIC alone.
    pub fn single(nic: &str) -> TeamConfig {
        TeamConfig {
            nics: vec![nic.into()],
            mode: TeamMode::default(),
            primary: None,
            lacp_rate: LacpRate::default(),
            lacp_priority: DEFAULT_PRIORITY,
            datapath: Datapath::default(),
        }
    }

    /// The NIC, if it is one alone and nothing else is said.
    pub fn as_single(&self) -> Option<&str> {
        let nic = self.nics.first()?;
        (*self == TeamConfig::single(nic)).then_some(nic)
    }

    /// Whether it makes sense.
    pub fn check(&self) -> Result<(), TeamError> {
        if !(1..=MAX_NICS).contains(&self.nics.len()) {
            return Err(TeamError::Nics(self.nics.len()));
        }
        let mut seen = BTreeSet::new();
        if let Some(nic) = self.nics.iter().find(|nic| !seen.insert(*nic)) {
            return Err(TeamError::Twice(nic.clone()));
        }
        match &self.primary {
            Some(_) if self.mode != TeamMode::ActiveStandby => Err(TeamError::PrimaryMode),
            Some(primary) if !self.nics.contains(primary) => Err(TeamError::Primary(primary.clone())),
            _ => Ok(()),
        }
    }
}
