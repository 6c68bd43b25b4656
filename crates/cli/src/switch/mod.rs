//! `maru switch`, `maru port`, `maru acl` and `maru team`: the switches of a `marud`, or one that was started by hand, by its control socket.

mod acl;
mod capture;
mod flows;
mod managed;
mod place;
mod policy;
mod port;
mod team;
mod trace;

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Subcommand};
use serde_json::Value;
use switch::control::{Client, PortStatus, Request, StationStatus, Status, SwitchKind, SwitchStatus};

pub use acl::{AclCommand, run as run_acl};
use place::{CONTROL, Look, Place};
pub use port::PortCommand;
pub use team::TeamCommand;

use crate::output::{Output, print};
use crate::remote::Connect;
use crate::vm::manage::ShowArgs;

/// Where a switch that was started by hand is listened for.
#[derive(Debug, Args)]
pub struct Socket {
    /// The switch's control socket (`maru-switch --control`)
    #[arg(long = "control", visible_alias = "socket", value_name = "SOCKET", env = "MARU_SWITCH_CONTROL", default_value = CONTROL)]
    socket: PathBuf,
}

impl Socket {
    fn connect(&self) -> anyhow::Result<Client> {
        Ok(Client::connect(&self.socket)?)
    }
}

/// Subcommands of `maru switch`.
#[derive(Debug, Subcommand)]
pub enum SwitchCommand {
    /// List the switches
    List(Look),
    /// Show a switch
    Show {
        /// Its name
        #[arg(value_name = "SWITCH")]
        switch_name: String,
        #[command(flatten)]
        show: ShowArgs,
    },
    /// Make a switch, to which VMs are attached by its name
    #[command(after_help = CREATE_HELP)]
    Create(managed::CreateArgs),
    /// Change a switch's way out, or the host's address there; VMs stay attached
    Edit(managed::EditArgs),
    /// Delete switches that no VM uses
    Delete {
        /// Their names
        #[arg(required = true, value_name = "SWITCH")]
        switch_names: Vec<String>,
        #[command(flatten)]
        connect: Connect,
    },
    /// Show all ports: who is connected, what passed, what was dropped and why
    Status(Look),
    /// Show which station is behind which port
    Stations(Look),
    /// Of a switch that was started by hand: add one beside the one that is always there ("default", an external one)
    Add {
        #[command(flatten)]
        socket: Socket,
        /// Its name
        name: String,
        /// What it connects: external (VMs, the host, the wire), internal (VMs, the host), private (VMs)
        #[arg(long, value_name = "KIND", value_parser = kind)]
        kind: SwitchKind,
    },
    /// Of a switch that was started by hand: remove one that has no ports
    Remove {
        #[command(flatten)]
        socket: Socket,
        /// The switch
        name: String,
    },
    /// Show the flows with the most packets: what is done to them, and how many there were
    Flows(flows::FlowsArgs),
}

const CREATE_HELP: &str = "\
A private switch connects VMs with each other; an internal one, with the host, too; an external one, with what is behind a NIC of the host.

EXAMPLES
  VMs among themselves:
    maru switch create lan
    maru vm create web --image debian12 --switch lan

  VMs and the host, which has an address there:
    maru switch create office --host-address 10.20.0.1/24

  VMs and the network at eth1:
    maru switch create wan --uplink eth1";

fn kind(text: &str) -> Result<SwitchKind, String> {
    serde_json::from_value(text.into()).map_err(|_| format!("'{text}' is none of external, internal, private"))
}

fn kind_text(kind: SwitchKind) -> &'static str {
    match kind {
        SwitchKind::External => "external",
        SwitchKind::Internal => "internal",
        SwitchKind::Private => "private",
    }
}

/// Does it.
pub fn run(command: SwitchCommand) -> anyhow::Result<()> {
    match command {
        SwitchCommand::Create(args) => Ok(managed::create(&args)?),
        SwitchCommand::Edit(args) => Ok(managed::edit(&args)?),
        SwitchCommand::Show { switch_name, show } => Ok(managed::show(&switch_name, &show)?),
        SwitchCommand::Delete { switch_names, connect } => Ok(managed::delete(&switch_names, &connect.client()?)?),
        SwitchCommand::Status(look) => match look.find()? {
            Place::Managed(client) => Ok(managed::status(&client, look.output)?),
            Place::Direct(mut client) => {
                let status: Status = client.call(&Request::Status)?;
                show(look.output, &status, || status_text(&status))
            }
        },
        SwitchCommand::Stations(look) => match look.find()? {
            Place::Managed(client) => Ok(managed::stations(&client, look.output)?),
            Place::Direct(mut client) => {
                let stations: Vec<StationStatus> = client.call(&Request::Stations)?;
                let line = |station: &StationStatus| {
                    let StationStatus { mac, vlan, switch, port } = station;
                    format!("{mac}  vlan {vlan:<4}  {port} of {switch}\n")
                };
                show(look.output, &stations, || stations.iter().map(line).collect())
            }
        },
        SwitchCommand::Flows(args) => flows::flows(args),
        SwitchCommand::Add { socket, name, kind } => {
            socket.connect()?.call::<Value>(&Request::AddSwitch { name, kind })?;
            Ok(())
        }
        SwitchCommand::Remove { socket, name } => {
            socket.connect()?.call::<Value>(&Request::RemoveSwitch { name })?;
            Ok(())
        }
        SwitchCommand::List(look) => match look.find()? {
            Place::Managed(client) => Ok(managed::list(&client, look.output)?),
            Place::Direct(mut client) => {
                let switches: Vec<SwitchStatus> = client.call(&Request::Switches)?;
                let line = |switch: &SwitchStatus| {
                    let SwitchStatus { name, kind, ports, stations, worker } = switch;
                    format!("{name}: {}, {ports} ports, {stations} stations, thread {worker}\n", kind_text(*kind))
                };
                show(look.output, &switches, || switches.iter().map(line).collect())
            }
        },
    }
}

/// Does it.
pub fn run_port(command: PortCommand) -> anyhow::Result<()> {
    port::run(command)
}

/// Does it.
pub fn run_team(command: TeamCommand) -> anyhow::Result<()> {
    team::run(command)
}

fn show(output: Output, value: &impl serde::Serialize, text: impl FnOnce() -> String) -> anyhow::Result<()> {
    Ok(print(&output.render(value, text).context("writing the result")?)?)
}

fn status_text(status: &Status) -> String {
    let Status { pid, confined, stations, connections, decisions, work, ports } = status;
    let busy = 100.0 * work.busy_cycles as f64 / work.cycles.max(1) as f64;
    let unconfined = if *confined { "" } else { ", UNCONFINED" };
    let head = format!(
        "switch {pid}{unconfined}: {stations} stations, {connections} connections, {decisions} flows decided, {} frames, busy {busy:.1} % of the time\n",
        work.packets
    );
    ports.iter().map(port_text).fold(head, |text, port| text + &port)
}

fn port_text(port: &PortStatus) -> String {
    let counters = &port.counters;
    let connected = if port.connected { "connected" } else { "nobody there" };
    let (rx, tx) = ((counters.rx_packets, counters.rx_bytes), (counters.tx_packets, counters.tx_bytes));
    let mut text = format!(
        "{} of {}: {connected}, from it {} frames with {} bytes, to it {} with {}\n",
        port.name, port.switch, rx.0, rx.1, tx.0, tx.1
    );
    text += &port.team.as_ref().map(team::text).unwrap_or_default();
    for (reason, count) in &counters.drops {
        text += &format!("  dropped {count}: {reason}\n");
    }
    for (rule, bytes) in &port.meters {
        text += &format!("  rule {rule} of its ACL metered {bytes} bytes\n");
    }
    text
}
