//! `maru team`: NICs that are one uplink.

use anyhow::bail;
use api::client::Method;
use api::{Switch, SwitchChange, TeamChange};
use clap::{Args, Subcommand};
use serde::de::{DeserializeOwned, IntoDeserializer, value::Error};
use serde::{Deserialize, Serialize};
use switch::control::{PortStatus, Request, Status};
use switch::ports::nic::DatapathKind;
use switch::team::TeamStatus;
use switch::team::config::{Datapath, TeamConfig, TeamMode};
use switch::team::lacp::{LacpRate, LacpStatus};
use switch::team::nic::NicStatus;

use super::managed::{path, show_switch};
use super::place::{Look, Place};
use super::show;
use crate::remote::{fields, show_one, table};
use crate::vm::manage::ShowArgs;

/// Subcommands of `maru team`.
#[derive(Debug, Subcommand)]
pub enum TeamCommand {
    /// List the ways out of external switches, and which of their NICs are in use
    List(Look),
    /// Show a switch's NICs: links, counters, and how LACP stands
    Show {
        /// The switch; of one that was started by hand, the uplink's port
        #[arg(value_name = "SWITCH")]
        switch_name: String,
        #[command(flatten)]
        look: Look,
    },
    /// Add NICs to a switch, while its VMs run
    #[command(after_help = ADD_HELP)]
    Add(NicsArgs),
    /// Take NICs away from a switch, while its VMs run
    Remove(NicsArgs),
    /// Change how a switch uses its NICs
    Edit(EditArgs),
}

const ADD_HELP: &str = "\
A switch with one NIC has a team from then on. A new one is made with it:
    maru switch create wan --team eth1,eth2 --team-mode source-port

EXAMPLES
  A second NIC, which takes over when the first loses its link:
    maru team add wan eth2

  From one NIC to another:
    maru team add wan eth2 && maru team remove wan eth1";

/// Some NICs of a switch.
#[derive(Debug, Args)]
pub struct NicsArgs {
    /// The switch
    #[arg(value_name = "SWITCH")]
    switch_name: String,
    /// The NICs
    #[arg(required = true, value_name = "NIC")]
    nics: Vec<String>,
    #[command(flatten)]
    show: ShowArgs,
}

/// `maru team edit`.
#[derive(Debug, Args)]
pub struct EditArgs {
    /// The switch
    #[arg(value_name = "SWITCH")]
    switch_name: String,
    /// How it uses its NICs: active-standby, source-port, address-hash, lacp
    #[arg(long, value_name = "MODE", value_parser = word::<api::TeamMode>)]
    mode: Option<api::TeamMode>,
    /// The NIC that is used whenever it has a link, in the mode active-standby
    #[arg(long, value_name = "NIC", conflicts_with = "no_primary")]
    primary: Option<String>,
    /// The NIC that is used stays until its link is lost
    #[arg(long)]
    no_primary: bool,
    /// How often the switch at the other end is to speak: slow (every 30 seconds), fast (every second)
    #[arg(long, value_name = "RATE", value_parser = word::<api::LacpRate>)]
    lacp_rate: Option<api::LacpRate>,
    /// The lower, the more this end has to say, in the mode lacp
    #[arg(long, value_name = "PRIORITY")]
    lacp_priority: Option<u16>,
    #[command(flatten)]
    show: ShowArgs,
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
    #[command(flatten)]
    datapath: DatapathArgs,
}

/// How frames are to come from NICs and go to them.
#[derive(Clone, Copy, Debug, Args)]
pub struct DatapathArgs {
    /// How frames come from its NICs and go to them: af-packet (if nothing is said), auto (af-xdp where the driver can), af-xdp (or not at
    /// all); with af-xdp, the host itself hears nothing on these NICs any more
    #[arg(long, value_name = "DATAPATH", value_parser = word::<api::Datapath>)]
    pub datapath: Option<api::Datapath>,
}

impl DatapathArgs {
    fn config(self) -> Datapath {
        match self.datapath.unwrap_or_default() {
            api::Datapath::Auto => Datapath::Auto,
            api::Datapath::AfPacket => Datapath::AfPacket,
            api::Datapath::AfXdp => Datapath::AfXdp,
        }
    }
}

impl TeamArgs {
    /// The team of these NICs.
    pub fn config(self, nics: Vec<String>) -> TeamConfig {
        let TeamArgs { team_mode: mode, primary, lacp_rate, datapath } = self;
        TeamConfig { nics, mode, primary, lacp_rate, datapath: datapath.config(), ..TeamConfig::single("") }
    }

    /// How frames are to come and go, as `marud` is asked for it.
    pub fn datapath(&self) -> Option<api::Datapath> {
        self.datapath.datapath
    }

    /// The same, as `marud` is asked for it.
    pub fn wanted(&self, nics: Vec<String>) -> api::Team {
        api::Team {
            nics,
            mode: match self.team_mode {
                TeamMode::ActiveStandby => api::TeamMode::ActiveStandby,
                TeamMode::SourcePort => api::TeamMode::SourcePort,
                TeamMode::AddressHash => api::TeamMode::AddressHash,
                TeamMode::Lacp => api::TeamMode::Lacp,
            },
            primary: self.primary.clone(),
            lacp_rate: match self.lacp_rate {
                LacpRate::Slow => api::LacpRate::Slow,
                LacpRate::Fast => api::LacpRate::Fast,
            },
            lacp_priority: TeamConfig::single("").lacp_priority,
        }
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
    let teams = |status: Status| {
        let named = |PortStatus { name, team, .. }| Some(Named { name, team: team? });
        status.ports.into_iter().filter_map(named).collect::<Vec<_>>()
    };
    match command {
        TeamCommand::List(look) => match look.find()? {
            Place::Managed(client) => {
                let switches: Vec<Switch> = client.list("/switches")?;
                let external: Vec<Switch> = switches.into_iter().filter(|switch| nics_of(switch).is_some()).collect();
                Ok(show_one(look.output, &external, || {
                    let row = |switch: &Switch| {
                        let mode = switch.team.as_ref().map_or("-".into(), |team| team.mode.to_string());
                        [switch.name.clone(), mode, marked(switch)]
                    };
                    table(["SWITCH", "MODE", "NICS"], external.iter().map(row))
                })?)
            }
            Place::Direct(mut client) => {
                let teams = teams(client.call(&Request::Status)?);
                show(look.output, &teams, || teams.iter().map(direct_line).collect())
            }
        },
        TeamCommand::Show { switch_name: name, look } => match look.find()? {
            Place::Managed(client) => {
                let switch: Switch = client.get(&path(&name))?;
                let Some(nics) = nics_of(&switch) else {
                    bail!("the switch '{name}' is {}: it has no NICs", switch.kind);
                };
                Ok(show_one(look.output, &switch, || {
                    let way_out = switch.team.as_ref().map_or(nics.join(" "), line);
                    fields(&[("switch", switch.name.clone()), ("team", way_out)]) + &managed_nics(&switch.nics)
                })?)
            }
            Place::Direct(mut client) => {
                let Some(team) = teams(client.call(&Request::Status)?).into_iter().find(|team| team.name == name) else {
                    bail!("there is no uplink '{name}': `maru team list` shows which there are");
                };
                show(look.output, &team, || direct_line(&team) + &text(&team.team))
            }
        },
        TeamCommand::Add(NicsArgs { switch_name, nics, show }) => {
            change(&switch_name, TeamChange { add: nics, ..TeamChange::default() }, &show)
        }
        TeamCommand::Remove(NicsArgs { switch_name, nics, show }) => {
            change(&switch_name, TeamChange { remove: nics, ..TeamChange::default() }, &show)
        }
        TeamCommand::Edit(args) => {
            let EditArgs { switch_name, mode, primary, no_primary, lacp_rate, lacp_priority, show } = args;
            let primary = if no_primary { Some(String::new()) } else { primary };
            let team = TeamChange { mode, primary, lacp_rate, lacp_priority, ..TeamChange::default() };
            if team == TeamChange::default() {
                bail!("nothing is to be changed: name what is, see --help");
            }
            change(&switch_name, team, &show)
        }
    }
}

fn change(switch: &str, team: TeamChange, show: &ShowArgs) -> anyhow::Result<()> {
    let change = SwitchChange { team: Some(team), ..SwitchChange::default() };
    let changed: Switch = show.connect.client()?.call(Method::PATCH, &path(switch), Some(&change))?;
    Ok(show_switch(show.output, &changed)?)
}

/// The names of a switch's NICs, if it is external.
fn nics_of(switch: &Switch) -> Option<Vec<String>> {
    switch.team.as_ref().map(|team| team.nics.clone()).or_else(|| Some(vec![switch.uplink.clone()?]))
}

/// The NICs, with a star at those in use.
fn marked(switch: &Switch) -> String {
    let is_active = |name: &String| switch.nics.iter().any(|nic| nic.name == *name && nic.active);
    let nics = nics_of(switch).unwrap_or_default();
    nics.iter().map(|name| format!("{name}{}", if is_active(name) { "*" } else { "" })).collect::<Vec<_>>().join(" ")
}

/// A team of `marud`'s in a line.
pub(super) fn line(team: &api::Team) -> String {
    let mut text = format!("{}, {}", team.nics.join(" "), team.mode);
    if let Some(primary) = &team.primary {
        text += &format!(", {primary} first");
    }
    if team.mode == api::TeamMode::Lacp {
        text += &format!(", {}, priority {}", team.lacp_rate, team.lacp_priority);
    }
    text
}

/// The NICs of a switch of `marud`'s, two lines or three each.
pub(super) fn managed_nics(nics: &[api::Nic]) -> String {
    nics.iter().map(managed_nic).collect()
}

fn managed_nic(nic: &api::Nic) -> String {
    let link = link_text(nic.present, nic.link, nic.active);
    let speed = nic.speed_mbps.map(|speed| format!(", {speed} Mb/s")).unwrap_or_default();
    let mtu = nic.mtu.map(|mtu| format!(", MTU {mtu}")).unwrap_or_default();
    let counters = &nic.counters;
    let lacp = nic.lacp.as_ref().map(|api::NicLacp { receive, mux, key, partner }| {
        let partner = match partner {
            Some(partner) => format!("partner {} port {} key {}", partner.system, partner.port, partner.key),
            None => "no partner".into(),
        };
        format!("    LACP {receive}, {mux}, key {key}, {partner}\n")
    });
    let datapath = nic.datapath.as_ref().map(|path| datapath_text(&path.kind.to_string(), path.queues, path.reason.as_deref()));
    format!(
        "  {}: {link}{speed}{mtu}\n{}    from it {} frames with {} bytes{}, to it {} with {}{}\n{}",
        nic.name,
        datapath.or(nic.error.as_ref().map(|error| format!("    {error}\n"))).unwrap_or_default(),
        counters.received_packets,
        counters.received_bytes,
        lost(counters.received_drops, counters.received_errors),
        counters.sent_packets,
        counters.sent_bytes,
        lost(counters.sent_drops, counters.sent_errors),
        lacp.unwrap_or_default(),
    )
}

fn direct_line(Named { name, team }: &Named) -> String {
    let nics = team.nics.iter().map(|nic| format!(" {}{}", nic.name, if nic.is_active { "*" } else { "" }));
    format!("{name}: {},{}\n", label(team.mode), nics.collect::<String>())
}

fn link_text(is_present: bool, has_link: bool, is_active: bool) -> &'static str {
    match (is_present, has_link, is_active) {
        (false, _, _) => "not there",
        (_, false, _) => "no link",
        (_, _, true) => "in use",
        _ => "waits",
    }
}

fn datapath_text(kind: &str, queues: u64, reason: Option<&str>) -> String {
    let queues = if queues > 1 { format!(", {queues} queues") } else { String::new() };
    let reason = reason.map(|reason| format!(": {reason}")).unwrap_or_default();
    format!("    by {kind}{queues}{reason}\n")
}

fn lost(drops: u64, errors: u64) -> String {
    if drops + errors > 0 { format!(" ({drops} dropped, {errors} wrong)") } else { String::new() }
}

/// The NICs, two lines or three each.
pub(super) fn text(team: &TeamStatus) -> String {
    team.nics.iter().map(nic_text).collect()
}

fn nic_text(nic: &NicStatus) -> String {
    let link = link_text(nic.is_present, nic.has_link, nic.is_active);
    let speed = nic.speed_mbps.map(|speed| format!(", {speed} Mb/s")).unwrap_or_default();
    let mtu = nic.mtu.map(|mtu| format!(", MTU {mtu}")).unwrap_or_default();
    let counters = &nic.counters;
    let datapath = nic.datapath.as_ref().map(|path| {
        let kind = match path.kind {
            DatapathKind::AfPacket => api::DatapathKind::AfPacket,
            DatapathKind::AfXdpGeneric => api::DatapathKind::AfXdpGeneric,
            DatapathKind::AfXdpCopy => api::DatapathKind::AfXdpCopy,
            DatapathKind::AfXdpZeroCopy => api::DatapathKind::AfXdpZeroCopy,
        };
        datapath_text(&kind.to_string(), path.queues as u64, path.reason.as_deref())
    });
    format!(
        "  {}: {link}{speed}{mtu}\n{}    from it {} frames with {} bytes{}, to it {} with {}{}\n{}",
        nic.name,
        datapath.or(nic.error.as_ref().map(|error| format!("    {error}\n"))).unwrap_or_default(),
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
    use switch::ports::nic::DatapathStatus;
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
            datapath: Some(DatapathStatus { kind: DatapathKind::AfXdpCopy, queues: 2, reason: Some("no zero copy".into()) }),
            error: None,
            lacp: Some(lacp),
        };
        let (name, error) = ("eth2".into(), Some("no XDP".into()));
        let gone =
            NicStatus { name, error, is_present: false, lacp: None, speed_mbps: None, mtu: None, datapath: None, ..nic.clone() };
        let team = Named { name: "wire".into(), team: TeamStatus { mode: TeamMode::Lacp, nics: vec![nic, gone] } };
        assert_eq!(direct_line(&team), "wire: lacp, eth1* eth2*\n");
        let expected = "  eth1: in use, 1000 Mb/s, MTU 1500\n    by AF_XDP with copies, 2 queues: no zero copy\n    from it 1 frames with 60 bytes, to it 2 with 120 (0 dropped, 3 wrong)\n\
            \x20   LACP current, distributing, key 101, partner 02:00:00:00:00:01 port 2 key 7\n  eth2: not there\n    no XDP\n";
        assert!(text(&team.team).starts_with(expected), "{}", text(&team.team));
    }

    #[test]
    fn a_team_of_a_switch_is_told_of_in_a_line() {
        let json = serde_json::json!({"nics": ["eth1", "eth2"], "primary": "eth2"});
        let team: api::Team = serde_json::from_value(json).unwrap();
        assert_eq!(line(&team), "eth1 eth2, active-standby, eth2 first");
        let lacp = api::Team { mode: api::TeamMode::Lacp, primary: None, ..team };
        assert_eq!(line(&lacp), "eth1 eth2, lacp, slow, priority 32768");
    }
}
