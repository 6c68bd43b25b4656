//! `maru switch` and `maru port`: a running switch, by its control socket.

mod port;

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Subcommand};
use serde_json::Value;
use switch::control::{Client, PortStatus, Request, StationStatus, Status, SwitchKind, SwitchStatus};

pub use port::PortCommand;

use crate::output::{Output, print};

/// Where a switch is listened for.
#[derive(Debug, Args)]
pub struct Socket {
    /// The switch's control socket (`maru-switch --control`)
    #[arg(long, value_name = "SOCKET", default_value = "/run/maru-switch.control")]
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
    /// Show the switch and its ports: who is connected, what passed, what was dropped and why
    Status {
        #[command(flatten)]
        socket: Socket,
        /// How to show it
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Add a switch beside the one that is always there ("default", an external one)
    Add {
        #[command(flatten)]
        socket: Socket,
        /// Its name
        name: String,
        /// What it connects: external (VMs, the host, the wire), internal (VMs, the host), private (VMs)
        #[arg(long, value_name = "KIND", value_parser = kind)]
        kind: SwitchKind,
    },
    /// Remove a switch that has no ports
    Remove {
        #[command(flatten)]
        socket: Socket,
        /// The switch
        name: String,
    },
    /// Show the switches
    List {
        #[command(flatten)]
        socket: Socket,
        /// How to show it
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Show which station is behind which port
    Stations {
        #[command(flatten)]
        socket: Socket,
        /// How to show it
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
}

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
        SwitchCommand::Status { socket, output } => {
            let status: Status = socket.connect()?.call(&Request::Status)?;
            show(output, &status, || status_text(&status))
        }
        SwitchCommand::Stations { socket, output } => {
            let stations: Vec<StationStatus> = socket.connect()?.call(&Request::Stations)?;
            let line = |station: &StationStatus| {
                let StationStatus { mac, vlan, switch, port } = station;
                format!("{mac}  vlan {vlan:<4}  {port} of {switch}\n")
            };
            show(output, &stations, || stations.iter().map(line).collect())
        }
        SwitchCommand::Add { socket, name, kind } => {
            socket.connect()?.call::<Value>(&Request::AddSwitch { name, kind })?;
            Ok(())
        }
        SwitchCommand::Remove { socket, name } => {
            socket.connect()?.call::<Value>(&Request::RemoveSwitch { name })?;
            Ok(())
        }
        SwitchCommand::List { socket, output } => {
            let switches: Vec<SwitchStatus> = socket.connect()?.call(&Request::Switches)?;
            let line = |switch: &SwitchStatus| {
                let SwitchStatus { name, kind, ports, stations } = switch;
                format!("{name}: {}, {ports} ports, {stations} stations\n", kind_text(*kind))
            };
            show(output, &switches, || switches.iter().map(line).collect())
        }
    }
}

/// Does it.
pub fn run_port(command: PortCommand) -> anyhow::Result<()> {
    port::run(command)
}

fn show(output: Output, value: &impl serde::Serialize, text: impl FnOnce() -> String) -> anyhow::Result<()> {
    Ok(print(&output.render(value, text).context("writing the result")?)?)
}

fn status_text(status: &Status) -> String {
    let Status { pid, stations, connections, decisions, ports } = status;
    let head = format!("switch {pid}: {stations} stations, {connections} connections, {decisions} flows decided\n");
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
    for (reason, count) in &counters.drops {
        text += &format!("  dropped {count}: {reason}\n");
    }
    for (rule, bytes) in &port.meters {
        text += &format!("  rule {rule} of its ACL metered {bytes} bytes\n");
    }
    text
}
