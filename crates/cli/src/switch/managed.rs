//! What `marud` is asked about its switches.

use anyhow::Context;
use api::client::{Client, Method};
use api::{NewSwitch, Port, Station, Switch, SwitchChange, SwitchKind};
use clap::{Args, ValueEnum};

use super::place::card;
use super::policy::rate;
use super::team::{self, DatapathArgs, TeamArgs};
use crate::output::Output;
use crate::remote::{RemoteError, fields, show_one, shown_size, table};
use crate::vm::manage::{ShowArgs, segment};

/// `maru switch create`.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Its name: letters, digits, '-' and '_'
    name: String,
    /// Whom VMs reach over it, beside each other
    #[arg(long, value_enum)]
    kind: Option<KindOption>,
    /// The NIC that is its way out; makes it external
    #[arg(long, value_name = "NIC", conflicts_with = "team")]
    uplink: Option<String>,
    /// The NICs that are its way out together; makes it external
    #[arg(long, value_name = "NIC,NIC...", value_delimiter = ',')]
    team: Vec<String>,
    #[command(flatten)]
    team_options: TeamArgs,
    /// What its wire carries, like 10G: those who send to it share that by their policies
    #[arg(long, value_name = "BITS", value_parser = rate)]
    capacity: Option<u64>,
    /// The host's interface there, which is made; makes it internal. Called as the switch if nothing else is said
    #[arg(long, value_name = "NAME")]
    host_interface: Option<String>,
    /// The host's address there, with the length of its prefix; makes it internal
    #[arg(long, value_name = "ADDRESS/LENGTH")]
    host_address: Option<String>,
    #[command(flatten)]
    show: ShowArgs,
}

/// `--kind`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum KindOption {
    /// What is behind a NIC of the host
    External,
    /// The host
    Internal,
    /// Nobody
    Private,
}

/// `maru switch edit`.
#[derive(Debug, Args)]
pub struct EditArgs {
    /// Its name
    #[arg(value_name = "SWITCH")]
    switch_name: String,
    /// Another NIC, alone (maru team add, for one more)
    #[arg(long, value_name = "NIC")]
    uplink: Option<String>,
    /// What its wire carries, like 10G; 0 for what nobody knows
    #[arg(long, value_name = "BITS", value_parser = rate)]
    capacity: Option<u64>,
    #[command(flatten)]
    datapath: DatapathArgs,
    /// Another address of the host
    #[arg(long, value_name = "ADDRESS/LENGTH")]
    host_address: Option<String>,
    #[command(flatten)]
    show: ShowArgs,
}

pub(super) fn path(switch: &str) -> String {
    format!("/switches/{}", segment(switch))
}

impl CreateArgs {
    fn wanted(&self) -> NewSwitch {
        let kind = match self.kind {
            Some(KindOption::External) => SwitchKind::External,
            Some(KindOption::Internal) => SwitchKind::Internal,
            Some(KindOption::Private) => SwitchKind::Private,
            None if self.uplink.is_some() || !self.team.is_empty() => SwitchKind::External,
            None if self.host_interface.is_some() || self.host_address.is_some() => SwitchKind::Internal,
            None => SwitchKind::Private,
        };
        NewSwitch {
            name: self.name.clone(),
            kind,
            uplink: self.uplink.clone(),
            team: (!self.team.is_empty()).then(|| self.team_options.wanted(self.team.clone())),
            capacity_bps: self.capacity,
            datapath: self.team_options.datapath(),
            host_interface: self.host_interface.clone(),
            host_address: self.host_address.clone(),
        }
    }
}

/// Makes a switch.
pub fn create(args: &CreateArgs) -> Result<(), RemoteError> {
    let switch: Switch = args.show.connect.client()?.call(Method::POST, "/switches", Some(&args.wanted()))?;
    show_switch(args.show.output, &switch)
}

/// Changes one.
pub fn edit(args: &EditArgs) -> Result<(), RemoteError> {
    let change = SwitchChange {
        uplink: args.uplink.clone(),
        team: None,
        capacity_bps: args.capacity,
        datapath: args.datapath.datapath,
        host_address: args.host_address.clone(),
    };
    if change == SwitchChange::default() {
        return Err(RemoteError::NothingToDo);
    }
    let switch: Switch = args.show.connect.client()?.call(Method::PATCH, &path(&args.switch_name), Some(&change))?;
    show_switch(args.show.output, &switch)
}

/// Shows one.
pub fn show(name: &str, show: &ShowArgs) -> Result<(), RemoteError> {
    show_switch(show.output, &show.connect.client()?.get(&path(name))?)
}

/// Deletes some.
pub fn delete(names: &[String], client: &Client) -> Result<(), RemoteError> {
    names.iter().try_for_each(|name| Ok(client.call::<()>(Method::DELETE, &path(name), None::<&()>)?))
}

pub(super) fn show_switch(output: Output, switch: &Switch) -> Result<(), RemoteError> {
    show_one(output, switch, || {
        let mut shown = vec![("name", switch.name.clone()), ("kind", switch.kind.to_string())];
        shown.extend(switch.uplink.clone().map(|nic| ("uplink", nic)));
        shown.extend(switch.team.as_ref().map(|team| ("team", team::line(team))));
        shown.extend(switch.capacity_bps.map(|bits| ("capacity", format!("{bits} bits a second"))));
        shown.extend(Some(switch.datapath).filter(|path| !path.is_default()).map(|path| ("datapath", path.to_string())));
        shown.extend(switch.host_interface.clone().map(|name| ("host interface", name)));
        shown.extend(switch.host_address.clone().map(|address| ("host address", address)));
        shown.push(("network cards", switch.nets.to_string()));
        shown.extend(switch.pid.map(|pid| ("process", pid.to_string())));
        shown.extend(switch.error.clone().map(|error| ("error", error)));
        fields(&shown) + &team::managed_nics(&switch.nics)
    })
}

/// Lists switches.
pub fn list(client: &Client, output: Output) -> Result<(), RemoteError> {
    let switches: Vec<Switch> = client.list("/switches")?;
    show_one(output, &switches, || {
        let row = |switch: &Switch| {
            let team = switch.team.as_ref().map(|team| team.nics.join(","));
            let beyond = [&switch.uplink, &team, &switch.host_interface, &switch.host_address].into_iter().flatten().cloned();
            let beyond: Vec<String> = beyond.collect();
            let works = if switch.error.is_some() { "no" } else { "yes" };
            [switch.name.clone(), switch.kind.to_string(), beyond.join(" "), switch.nets.to_string(), works.into()]
        };
        table(["NAME", "KIND", "UPLINK OR HOST", "CARDS", "WORKS"], switches.iter().map(row))
    })
}

/// Shows who is behind which port.
pub fn stations(client: &Client, output: Output) -> Result<(), RemoteError> {
    let mut all = Vec::new();
    for switch in client.list::<Switch>("/switches")? {
        let stations: Vec<Station> = client.list(&format!("{}/stations", path(&switch.name)))?;
        all.extend(stations.into_iter().map(|station| (switch.name.clone(), station)));
    }
    let told: Vec<serde_json::Value> = all
        .iter()
        .map(|(switch, station)| serde_json::json!({"switch": switch, "mac": station.mac, "vlan": station.vlan, "port": station.port}))
        .collect();
    show_one(output, &told, || {
        let row = |(switch, station): &(String, Station)| {
            [station.mac.clone(), station.vlan.to_string(), station.port.clone(), switch.clone()]
        };
        table(["MAC", "VLAN", "PORT", "SWITCH"], all.iter().map(row))
    })
}

/// Shows what passes all ports.
pub fn status(client: &Client, output: Output) -> Result<(), RemoteError> {
    let ports: Vec<Port> = client.list("/ports")?;
    show_one(output, &ports, || ports.iter().map(port_text).collect())
}

/// Lists ports.
pub fn list_ports(client: &Client, output: Output) -> Result<(), RemoteError> {
    let ports: Vec<Port> = client.list("/ports")?;
    show_one(output, &ports, || {
        let row = |port: &Port| {
            let connected = if port.connected { "yes" } else { "no" };
            let mac = port.mac.clone().unwrap_or_default();
            [port.name.clone(), port.switch.clone(), port.kind.to_string(), connected.into(), vlan_text(&port.policy.vlan), mac]
        };
        table(["PORT", "SWITCH", "KIND", "CONNECTED", "VLAN", "MAC"], ports.iter().map(row))
    })
}

/// Shows a port: of a network card, or a switch's own.
pub fn show_port(client: &Client, name: &str, output: Output) -> anyhow::Result<()> {
    let port: Port = match card(name) {
        Ok((vm, net)) => client.get(&format!("/vms/{}/nets/{}/port", segment(vm), segment(net)))?,
        Err(error) => client.list::<Port>("/ports")?.into_iter().find(|port| port.name == name).ok_or(error)?,
    };
    let policy = serde_json::to_string(&port.policy).context("the policy")?;
    Ok(show_one(output, &port, || format!("{}  policy {policy}\n", port_text(&port)))?)
}

fn vlan_text(vlan: &api::VlanMode) -> String {
    match vlan {
        api::VlanMode::Untagged => "none".into(),
        api::VlanMode::Access { vlan } => vlan.to_string(),
        api::VlanMode::Trunk { .. } => "trunk".into(),
        api::VlanMode::Isolated { primary, secondary } => format!("isolated {primary}:{secondary}"),
        api::VlanMode::Community { primary, secondary } => format!("community {primary}:{secondary}"),
        api::VlanMode::Promiscuous { primary, .. } => format!("promiscuous {primary}"),
    }
}

fn port_text(port: &Port) -> String {
    let connected = if port.connected { "connected" } else { "nobody there" };
    let mut text = format!("{} of {}: {connected}\n", port.name, port.switch);
    if let Some(counters) = &port.counters {
        let (sent, received) = (shown_size(counters.sent_bytes), shown_size(counters.received_bytes));
        text += &format!("  sent {} frames, {sent}; received {}, {received}\n", counters.sent_packets, counters.received_packets);
        for (reason, count) in &counters.drops {
            text += &format!("  dropped {count}: {reason}\n");
        }
    }
    for (rule, bytes) in &port.meters {
        text += &format!("  rule {rule} of its ACL metered {}\n", shown_size(*bytes));
    }
    for told in &port.rules {
        text += &format!("  rule {}: {} frames, {}\n", told.rule, told.packets, shown_size(told.bytes));
    }
    if let Some(error) = &port.error {
        text += &format!("  error: {error}\n");
    }
    text
}
