//! How etcd is started.

use std::ffi::OsString;

use super::{Membership, ServerConfig, Version};

/// How many revisions watches can look back; what is older is compacted every five minutes.
const REVISIONS_KEPT: u32 = 100_000;
/// After how many changes members are written down where etcd 3.4 finds them early enough for its check at the start.
const SNAPSHOT_COUNT: u32 = 10_000;

pub(super) fn of(config: &ServerConfig, version: Version) -> Vec<OsString> {
    let mut flags: Vec<OsString> = Vec::new();
    let mut flag = |name: &str, value: &dyn AsRef<std::ffi::OsStr>| {
        let mut text = OsString::from(format!("--{name}="));
        text.push(value.as_ref());
        flags.push(text);
    };
    flag("name", &config.name);
    flag("data-dir", &config.directory);
    flag("listen-peer-urls", &config.peer_url);
    flag("initial-advertise-peer-urls", &config.peer_url);
    flag("listen-client-urls", &config.client_url);
    flag("advertise-client-urls", &config.client_url);
    flag("initial-cluster", &initial_cluster(config));
    match &config.membership {
        Membership::Create { token } => {
            flag("initial-cluster-state", &"new");
            flag("initial-cluster-token", token);
        }
        Membership::Join => flag("initial-cluster-state", &"existing"),
        Membership::Alone => flag("force-new-cluster", &"true"),
    }
    if let Some(tls) = &config.tls {
        for (side, authenticate) in [("", "client-cert-auth"), ("peer-", "peer-client-cert-auth")] {
            flag(&format!("{side}trusted-ca-file"), &tls.authority);
            flag(&format!("{side}cert-file"), &tls.certificate);
            flag(&format!("{side}key-file"), &tls.key);
            flag(authenticate, &"true");
        }
    }
    flag("quota-backend-bytes", &config.quota_bytes.to_string());
    flag("auto-compaction-mode", &"revision");
    flag("auto-compaction-retention", &REVISIONS_KEPT.to_string());
    // Someone who comes back asks first whether an election would be won, and does not unseat a leader that all others follow.
    flag("pre-vote", &"true");
    // Nobody uses etcd over plain HTTP requests.
    flag("enable-grpc-gateway", &"false");
    flag("logger", &"zap");
    flag("log-outputs", &"stderr");
    flag("log-level", &"warn");
    let corruption_check = format!("{}s", config.corruption_check.as_secs());
    if version >= Version(3, 6, 0) {
        flag("feature-gates", &"InitialCorruptCheck=true,CompactHashCheck=true");
        flag("corrupt-check-time", &corruption_check);
    } else {
        flag("snapshot-count", &SNAPSHOT_COUNT.to_string());
        flag("experimental-initial-corrupt-check", &"true");
        flag("experimental-corrupt-check-time", &corruption_check);
        if version >= Version(3, 5, 5) {
            flag("experimental-compact-hash-check-enabled", &"true");
        }
    }
    flags
}

/// All members, as etcd wants to be told of them.
pub(super) fn initial_cluster(config: &ServerConfig) -> String {
    config.members.iter().map(|(name, url)| format!("{name}={url}")).collect::<Vec<_>>().join(",")
}
