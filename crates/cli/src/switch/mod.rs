//! `maru switch` and `maru port`: a running switch, by its control socket.

mod port;

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Subcommand};
use switch::control::{Client, PortStatus, Request, StationStatus, Status};

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
    /// Show which station is behind which port
    Stations {
        #[command(flatten)]
        socket: Socket,
        /// How to show it
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
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
            let line = |station: &StationStatus| format!("{}  vlan {:<4}  {}\n", station.mac, station.vlan, station.port);
            show(output, &stations, || stations.iter().map(line).collect())
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
    let Status { pid, stations, connections, decisions, work, ports } = status;
    let busy = 100.0 * work.busy_cycles as f64 / work.cycles.max(1) as f64;
    let head = format!(
        "switch {pid}: {stations} stations, {connections} connections, {decisions} flows decided, {} frames, busy {busy:.1} % of the time\n",
        work.packets
    );
    ports.iter().map(port_text).fold(head, |text, port| text + &port)
}

fn port_text(port: &PortStatus) -> String {
    let counters = &port.counters;
    let connected = if port.connected { "connected" } else { "nobody there" };
    let (rx, tx) = ((counters.rx_packets, counters.rx_bytes), (counters.tx_packets, counters.tx_bytes));
    let mut text =
        format!("{}: {connected}, from it {} frames with {} bytes, to it {} with {}\n", port.name, rx.0, rx.1, tx.0, tx.1);
    for (reason, count) in &counters.drops {
        text += &format!("  dropped {count}: {reason}\n");
    }
    for (rule, bytes) in &port.meters {
        text += &format!("  rule {rule} of its ACL metered {bytes} bytes\n");
    }
    text
}
