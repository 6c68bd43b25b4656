//! What the guest agent of a VM tells.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What runs in a VM, in the words of its guest agent. The guest can say anything here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Guest {
    /// The agent's version.
    #[schema(example = "7.2.18")]
    pub agent_version: String,
    /// The guest's name for itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_name: Option<String>,
    /// The system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "Debian GNU/Linux 12 (bookworm)")]
    pub os: Option<String>,
    /// Its network cards.
    pub nets: Vec<GuestNet>,
}

/// A network card, as the guest sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GuestNet {
    /// The guest's name for it.
    #[schema(example = "eth0")]
    pub name: String,
    /// Its address on the cable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Its IP addresses.
    pub addresses: Vec<String>,
}
