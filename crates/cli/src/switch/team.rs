//! `maru team`: NICs that are one uplink.

use anyhow::bail;
use clap::{Args, Subcommand};
use serde::de::{DeserializeOwned, IntoDeserializer, value::Error};
use serde::{Deserialize, Serialize};
use switch::control::{PortStatus, Request, Status};
use switch::team::TeamStatus;
use switch::team::config::{TeamConfig, TeamMode};
use switch::team::lacp::{LacpRate, LacpStatus};
use switch::team::nic::NicStatus;

use super::{Output, Socket, show};

/// Subcommands of `maru team`.
#[derive(Debug, Subcommand)]
pub enum TeamCommand {
    /// Show the uplinks and which of their NICs are in use
    List {
        #[command(flatten)]
        socket: Socket,
        /// How to show it
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Show an uplink: links, counters, and how LACP stands
    Show {
        #[command(flatten)]
        socket: Socket,
        /// The port
        name: String,
        /// How to show it
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
}

/// How a new team is to use its NICs.
#[derive(Debug, Args)]
pub struct TeamArgs {
    /// How the team uses its NICs: active-standby, source-port, address-hash, lacp
    #[arg(long, value_name = "MODE", default_value = "active-standby", value_parser = word::<TeamMode>, requires = "team")]
    team_mode: TeamMode,
    /// The NIC that is used whenever it has a link, in the mode active-standby
    #[arg(long, value_name = "NIC", requires = "team")]
    primary: Option<String>,
    /// How often the switch at the other end is to speak: slow (every 30 seconds), fast (every second)
    #[arg(long, value_name = "RATE", default_value = "slow", value_parser = word::<LacpRate>, requires = "team")]
    lacp_rate: LacpRate,
}

impl TeamArgs {
    /// The team of these NICs.
    pub fn config(self, nics: Vec<String>) -> TeamConfig {
        let TeamArgs { team_mode: mode, primary, lacp_rate } = self;
        TeamConfig { nics, mode, primary, lacp_rate, ..TeamConfig::single("") }
    }
}

/// A word that stands for a value in JSON, too.
fn word<T: DeserializeOwned>(text: &str) -> Result<T, Error> {
    T::deserialize(text.into_deserializer())
}

fn label(value: impl Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|value| Some(value.as_str()?.to_owned())).unwrap_or_default()
}

/// A team with the name of its port.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Named {
    name: String,
    #[serde(flatten)]
    team: TeamStatus,
}

/// Does it.
pub fn run(command: TeamCommand) -> anyhow::Result<()> {
    let teams = |socket: &Socket| -> anyhow::Result<Vec<Named>> {
        let status: Status = socket.connect()?.call(&Request::Status)?;
        let named = |PortStatus { name, team, .. }| Some(Named { name, team: team? });
        Ok(status.ports.into_iter().filter_map(named).collect())
    };
    match command {
        TeamCommand::List { socket, output } => {
            let teams = teams(&socket)?;
            show(output, &teams, || teams.iter().map(line).collect())
        }
        TeamCommand::Show { socket, name, output } => {
            let Some(team) = teams(&socket)?.into_iter().find(|team| team.name == name) else {
                bail!("there is no uplink '{name}': `maru team list` shows which there are");
            };
            show(output, &team, || line(&team) + &text(&team.team))
        }
    }
}

fn line(Named { name, team }: &Named) -> String {
    let nics = team.nics.iter().map(|nic| format!(" {}{}", nic.name, if nic.is_active { "*" } else { "" }));
    format!("{name}: {},{}\n", label(team.mode), nics.collect::<String>())
}

/// The NICs, two lines or three each.
pub(super) fn text(team: &TeamStatus) -> String {
    team.nics.iter().map(nic_text).collect()
}

fn nic_text(nic: &NicStatus) -> String {
    let link = match (nic.is_present, nic.has_link, nic.is_active) {
        (false, _, _) => "not there",
        (_, false, _) => "no link",
        (_, _, true) => "in use",
        _ => "waits",
    };
    let speed = nic.speed_mbps.map(|speed| format!(", {speed} Mb/s")).unwrap_or_default();
    let mtu = nic.mtu.map(|mtu| format!(", MTU {mtu}")).unwrap_or_default();
    let lost = |drops, errors| if drops + errors > 0 { format!(" ({drops} dropped, {errors} wrong)") } else { String::new() };
    let counters = &nic.counters;
    format!(
        "  {}: {link}{speed}{mtu}\n    from it {} frames with {} bytes{}, to it {} with {}{}\n{}",
        nic.name,
        counters.rx_packets,
        counters.rx_bytes,
        lost(counters.rx_drops, counters.rx_errors),
        counters.tx_packets,
        counters.tx_bytes,
        lost(counters.tx_drops, counters.tx_errors),
        nic.lacp.as_ref().map(lacp_text).unwrap_or_default(),
    )
}

fn lacp_text(LacpStatus { receive, mux, key, partner }: &LacpStatus) -> String {
    let partner = match partner {
        Some(partner) => format!("partner {} port {} key {}", partner.system, partner.port, partner.key),
        None => "no partner".into(),
    };
    format!("    LACP {}, {}, key {key}, {partner}\n", label(receive), label(mux))
}

#[cfg(test)]
mod tests {
    use switch::team::lacp::{LacpPartner, MuxState, ReceiveState};
    use switch::team::nic::NicCounters;

    use super::*;

    #[test]
    fn a_team_is_told_of_in_a_few_lines() {
        let partner = LacpPartner { system: "02:00:00:00:00:01".parse().unwrap(), system_priority: 1, key: 7, port: 2 };
        let lacp = LacpStatus { receive: ReceiveState::Current, mux: MuxState::Distributing, key: 101, partner: Some(partner) };
        let counters =
            NicCounters { rx_packets: 1, rx_bytes: 60, tx_packets: 2, tx_bytes: 120, tx_errors: 3, ..NicCounters::default() };
        let nic = NicStatus {
            name: "eth1".into(),
            is_present: true,
            has_link: true,
            is_active: true,
            speed_mbps: Some(1000),
            mtu: Some(1500),
            mac: None,
            counters,
            lacp: Some(lacp),
        };
        let gone = NicStatus { name: "eth2".into(), is_present: false, lacp: None, speed_mbps: None, mtu: None, ..nic.clone() };
        let team = Named { name: "wire".into(), team: TeamStatus { mode: TeamMode::Lacp, nics: vec![nic, gone] } };
        assert_eq!(line(&team), "wire: lacp, eth1* eth2*\n");
        let expected = "  eth1: in use, 1000 Mb/s, MTU 1500\n    from it 1 frames with 60 bytes, to it 2 with 120 (0 dropped, 3 wrong)\n\
            \x20   LACP current, distributing, key 101, partner 02:00:00:00:00:01 port 2 key 7\n  eth2: not there\n";
        assert!(text(&team.team).starts_with(expected), "{}", text(&team.team));
    }
}
