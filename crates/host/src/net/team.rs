//! The NICs of external switches: as the API has them, and as the switch is told them.

use switch::ports::nic::{DatapathKind, DatapathStatus};
use switch::team::TeamStatus;
use switch::team::config::{Datapath, TeamConfig, TeamMode};
use switch::team::lacp::{LacpRate, LacpStatus, MuxState, ReceiveState};
use switch::team::nic::NicStatus;

use super::is_interface;
use crate::records::{Cause, UplinkRecord};

const ABOUT_TEAMS: &str = "see docs/src/switch.md, or /api/v1/openapi.json, for what a team is";

fn bad(message: impl Into<String>, way_out: &str) -> Cause {
    Cause::new("bad-switch", message, way_out)
}

/// A name that an interface can have.
pub fn interface(name: String) -> Result<String, Cause> {
    match is_interface(&name) {
        true => Ok(name),
        false => Err(bad(
            format!("'{name}' is no name of an interface"),
            "name one of 1 to 15 characters; `ip link` lists those that there are",
        )),
    }
}

fn checked(team: TeamConfig) -> Result<TeamConfig, Cause> {
    for nic in &team.nics {
        interface(nic.clone())?;
    }
    team.check().map_err(|error| bad(error.to_string(), ABOUT_TEAMS))?;
    Ok(team)
}

/// Checks a team that is wanted.
pub fn record(wanted: api::Team) -> Result<TeamConfig, Cause> {
    let api::Team { nics, mode, primary, lacp_rate, lacp_priority } = wanted;
    let (mode, lacp_rate) = (mode_of(mode), rate_of(lacp_rate));
    checked(TeamConfig { nics, mode, primary, lacp_rate, lacp_priority, datapath: Datapath::default() })
}

/// What a way out is after a change. One NIC becomes a team with the first change.
pub fn changed(uplink: &UplinkRecord, change: api::TeamChange) -> Result<TeamConfig, Cause> {
    let mut team = uplink.team();
    let api::TeamChange { add, remove, mode, primary, lacp_rate, lacp_priority } = change;
    for nic in &remove {
        let place =
            team.nics.iter().position(|own| own == nic).ok_or_else(|| {
                bad(format!("the switch has no NIC {nic}; it has {}", team.nics.join(", ")), "name one of them")
            })?;
        team.nics.remove(place);
        team.primary.take_if(|primary| primary == nic);
    }
    if team.nics.is_empty() && add.is_empty() {
        return Err(bad("an external switch without a way out", "add another NIC in the same request, or delete the switch"));
    }
    team.nics.extend(add);
    team.mode = mode.map_or(team.mode, mode_of);
    if team.mode != TeamMode::ActiveStandby {
        team.primary = None;
    }
    if let Some(primary) = primary {
        team.primary = Some(primary).filter(|primary| !primary.is_empty());
    }
    team.lacp_rate = lacp_rate.map_or(team.lacp_rate, rate_of);
    team.lacp_priority = lacp_priority.unwrap_or(team.lacp_priority);
    checked(team)
}

/// A team as the API tells it.
pub fn told(team: &TeamConfig) -> api::Team {
    api::Team {
        nics: team.nics.clone(),
        mode: match team.mode {
            TeamMode::ActiveStandby => api::TeamMode::ActiveStandby,
            TeamMode::SourcePort => api::TeamMode::SourcePort,
            TeamMode::AddressHash => api::TeamMode::AddressHash,
            TeamMode::Lacp => api::TeamMode::Lacp,
        },
        primary: team.primary.clone(),
        lacp_rate: match team.lacp_rate {
            LacpRate::Slow => api::LacpRate::Slow,
            LacpRate::Fast => api::LacpRate::Fast,
        },
        lacp_priority: team.lacp_priority,
    }
}

fn mode_of(mode: api::TeamMode) -> TeamMode {
    match mode {
        api::TeamMode::ActiveStandby => TeamMode::ActiveStandby,
        api::TeamMode::SourcePort => TeamMode::SourcePort,
        api::TeamMode::AddressHash => TeamMode::AddressHash,
        api::TeamMode::Lacp => TeamMode::Lacp,
    }
}

fn rate_of(rate: api::LacpRate) -> LacpRate {
    match rate {
        api::LacpRate::Slow => LacpRate::Slow,
        api::LacpRate::Fast => LacpRate::Fast,
    }
}

/// How frames come and go, as it is wanted.
pub fn datapath_of(datapath: api::Datapath) -> Datapath {
    match datapath {
        api::Datapath::Auto => Datapath::Auto,
        api::Datapath::AfPacket => Datapath::AfPacket,
        api::Datapath::AfXdp => Datapath::AfXdp,
    }
}

/// The same, as the API tells it.
pub fn datapath_told(datapath: Datapath) -> api::Datapath {
    match datapath {
        Datapath::Auto => api::Datapath::Auto,
        Datapath::AfPacket => api::Datapath::AfPacket,
        Datapath::AfXdp => api::Datapath::AfXdp,
    }
}

fn datapath(status: &DatapathStatus) -> api::NicDatapath {
    let kind = match status.kind {
        DatapathKind::AfPacket => api::DatapathKind::AfPacket,
        DatapathKind::AfXdpGeneric => api::DatapathKind::AfXdpGeneric,
        DatapathKind::AfXdpCopy => api::DatapathKind::AfXdpCopy,
        DatapathKind::AfXdpZeroCopy => api::DatapathKind::AfXdpZeroCopy,
    };
    api::NicDatapath { kind, queues: status.queues as u64, reason: status.reason.clone() }
}

/// The NICs of a way out, as they are.
pub fn nics(status: &TeamStatus) -> Vec<api::Nic> {
    status.nics.iter().map(nic).collect()
}

fn nic(status: &NicStatus) -> api::Nic {
    let counters = &status.counters;
    api::Nic {
        name: status.name.clone(),
        present: status.is_present,
        link: status.has_link,
        active: status.is_active,
        speed_mbps: status.speed_mbps,
        mtu: status.mtu,
        mac: status.mac.map(|mac| mac.to_string()),
        counters: api::NicCounters {
            received_packets: counters.rx_packets,
            received_bytes: counters.rx_bytes,
            received_drops: counters.rx_drops,
            received_errors: counters.rx_errors,
            sent_packets: counters.tx_packets,
            sent_bytes: counters.tx_bytes,
            sent_drops: counters.tx_drops,
            sent_errors: counters.tx_errors,
        },
        datapath: status.datapath.as_ref().map(datapath),
        error: status.error.clone(),
        lacp: status.lacp.as_ref().map(lacp),
    }
}

fn lacp(status: &LacpStatus) -> api::NicLacp {
    api::NicLacp {
        receive: match status.receive {
            ReceiveState::Disabled => api::LacpReceive::Disabled,
            ReceiveState::Expired => api::LacpReceive::Expired,
            ReceiveState::Defaulted => api::LacpReceive::Defaulted,
            ReceiveState::Current => api::LacpReceive::Current,
        },
        mux: match status.mux {
            MuxState::Detached => api::LacpMux::Detached,
            MuxState::Waiting => api::LacpMux::Waiting,
            MuxState::Attached => api::LacpMux::Attached,
            MuxState::Collecting => api::LacpMux::Collecting,
            MuxState::Distributing => api::LacpMux::Distributing,
        },
        key: status.key,
        partner: status.partner.map(|partner| api::NicPartner {
            system: partner.system.to_string(),
            system_priority: partner.system_priority,
            key: partner.key,
            port: partner.port,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(nics: &[&str], change: serde_json::Value) -> Result<TeamConfig, String> {
        let before = TeamConfig { nics: nics.iter().map(ToString::to_string).collect(), ..TeamConfig::single("") };
        let change = serde_json::from_value(change).unwrap();
        changed(&UplinkRecord::Team { team: before }, change).map_err(|cause| cause.message)
    }

    #[test]
    fn a_change_of_a_team_leaves_the_rest_as_it_is() {
        let one = UplinkRecord::Nic { uplink: "a".into() };
        let two = changed(&one, api::TeamChange { add: vec!["b".into()], ..api::TeamChange::default() }).unwrap();
        assert_eq!(two.nics, ["a", "b"]);
        let json = serde_json::json!({"primary": "b", "lacp_rate": "fast"});
        let preferring = after(&["a", "b"], json).unwrap();
        assert_eq!((preferring.primary.as_deref(), preferring.lacp_rate), (Some("b"), LacpRate::Fast));
        let team = UplinkRecord::Team { team: preferring.clone() };
        let without = |change: serde_json::Value| changed(&team, serde_json::from_value(change).unwrap()).unwrap();
        assert_eq!(without(serde_json::json!({"primary": ""})).primary, None);
        assert_eq!(without(serde_json::json!({"remove": ["b"], "add": ["c"]})).nics, ["a", "c"]);
        let lacp = without(serde_json::json!({"mode": "lacp"}));
        assert_eq!((lacp.mode, lacp.primary, lacp.lacp_rate), (TeamMode::Lacp, None, LacpRate::Fast));
        assert_eq!(record(told(&preferring)).unwrap(), preferring, "what is shown can be asked for");
    }

    #[test]
    fn a_change_that_leaves_no_team_is_refused() {
        for (change, expected) in [
            (serde_json::json!({"remove": ["c"]}), "no NIC c; it has a, b"),
            (serde_json::json!({"remove": ["a", "b"]}), "without a way out"),
            (serde_json::json!({"add": ["a"]}), "a is named twice"),
            (serde_json::json!({"add": ["a/b"]}), "no name of an interface"),
            (serde_json::json!({"primary": "c"}), "c is not in the team"),
            (serde_json::json!({"mode": "lacp", "primary": "a"}), "only the mode active-standby"),
        ] {
            let refused = after(&["a", "b"], change.clone()).unwrap_err();
            assert!(refused.contains(expected), "{change}: {refused}");
        }
    }
}
