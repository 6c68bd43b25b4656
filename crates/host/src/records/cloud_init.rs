//! What a guest is told at its first start, as it is stored.

use serde::{Deserialize, Serialize};

/// What cloud-init in the guest finds.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the words of api::CloudInit, which says what they mean")]
pub struct CloudInitRecord {
    pub host_name: Option<String>,
    pub user: Option<String>,
    pub ssh_keys: Vec<String>,
    pub password_hash: Option<String>,
    pub nets: Vec<CloudNetRecord>,
    pub user_data: Option<String>,
}

/// The addresses of a network card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the words of api::CloudNet, which says what they mean")]
pub struct CloudNetRecord {
    pub id: String,
    pub addresses: Vec<String>,
    pub gateway: Option<String>,
    pub name_servers: Vec<String>,
}

/// Not the secrets: what is printed ends in logs.
impl std::fmt::Debug for CloudInitRecord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.told().fmt(f)
    }
}

impl CloudInitRecord {
    /// What the API tells: everything but the secrets.
    pub fn told(&self) -> api::CloudInit {
        let net = |net: &CloudNetRecord| api::CloudNet {
            id: net.id.clone(),
            addresses: net.addresses.clone(),
            gateway: net.gateway.clone(),
            name_servers: net.name_servers.clone(),
        };
        api::CloudInit {
            host_name: self.host_name.clone(),
            user: self.user.clone(),
            ssh_keys: self.ssh_keys.clone(),
            password_hash: None,
            nets: self.nets.iter().map(net).collect(),
            user_data: None,
        }
    }
}

impl From<&api::CloudInit> for CloudInitRecord {
    fn from(wanted: &api::CloudInit) -> CloudInitRecord {
        let net = |net: &api::CloudNet| CloudNetRecord {
            id: net.id.clone(),
            addresses: net.addresses.clone(),
            gateway: net.gateway.clone(),
            name_servers: net.name_servers.clone(),
        };
        CloudInitRecord {
            host_name: wanted.host_name.clone(),
            user: wanted.user.clone(),
            ssh_keys: wanted.ssh_keys.clone(),
            password_hash: wanted.password_hash.clone(),
            nets: wanted.nets.iter().map(net).collect(),
            user_data: wanted.user_data.clone(),
        }
    }
}
