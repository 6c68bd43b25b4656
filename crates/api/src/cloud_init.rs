//! What a guest is told at its first start, by cloud-init.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What cloud-init in the guest finds, on a small disk of its own (NoCloud). When any of it changes, the guest takes itself for a new instance at its
/// next start.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CloudInit {
    /// The guest's name for itself; the VM's name if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "web.example.org")]
    pub host_name: Option<String>,
    /// The name of the first user; the system's own, like `debian`, if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "alice")]
    pub user: Option<String>,
    /// Keys with which the first user may log in: lines of an `authorized_keys`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ssh_keys: Vec<String>,
    /// A password for the first user, who must be named, as `mkpasswd` makes it. Never told again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(write_only)]
    pub password_hash: Option<String>,
    /// What is known of its network cards. Those that are not here use DHCP.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nets: Vec<CloudNet>,
    /// User data, as it is, instead of what is made of user, keys and password. Never told again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(write_only)]
    pub user_data: Option<String>,
}

/// The addresses of a network card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CloudNet {
    /// The card's name in the VM.
    #[schema(example = "net0")]
    pub id: String,
    /// Its addresses, each with the length of its network's prefix. None means DHCP.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(example = json!(["10.0.0.5/24"]))]
    pub addresses: Vec<String>,
    /// Where packets for everywhere else go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "10.0.0.1")]
    pub gateway: Option<String>,
    /// Name servers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub name_servers: Vec<String>,
}

/// Not the secrets: what is printed ends in logs.
impl std::fmt::Debug for CloudInit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let CloudInit { host_name, user, ssh_keys, nets, .. } = self;
        f.debug_struct("CloudInit")
            .field("host_name", host_name)
            .field("user", user)
            .field("ssh_keys", ssh_keys)
            .field("nets", nets)
            .finish_non_exhaustive()
    }
}
