//! `maru port`.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, Subcommand};
use serde_json::Value;
use switch::control::{Backend, DEFAULT_SWITCH, Imported, PortConfig, PortState, Request};
use switch::mac::MacAddress;
use switch::policy::{Permission, PortPolicy};
use switch::vlan::{Vlan, VlanMode};

use super::{Output, Socket, show};
use crate::output::print;

const ADD_HELP: &str = "\
EXAMPLES
  A port for a VM in VLAN 10 that may use its own address only:
    maru port add web --vhost-user /run/web.port --vlan 10 --mac 52:54:00:12:34:56
    maru vm run ... --net vhost-user=/run/web.port,mac=52:54:00:12:34:56

  The host itself, and the way out:
    maru port add host --tap sw0
    maru port add wire --uplink eth1

  Anything else as JSON (the book's chapter about the switch has all of it):
    echo '{\"storm-limit\": 1000, \"router\": \"deny\"}' > policy.json
    maru port add db --vhost-user /run/db.port --policy policy.json";

/// Subcommands of `maru port`.
#[derive(Debug, Subcommand)]
pub enum PortCommand {
    /// Add a port to the switch
    #[command(after_help = ADD_HELP)]
    Add(Box<AddArgs>),
    /// Give a port another policy, from the next frame on
    Set {
        #[command(flatten)]
        socket: Socket,
        /// The port
        name: String,
        #[command(flatten)]
        policy: PolicyArgs,
    },
    /// Remove a port
    Remove {
        #[command(flatten)]
        socket: Socket,
        /// The port
        name: String,
    },
    /// Print all that a port knows, as JSON, to move with its VM: policy, connections, stations, counters
    Export {
        #[command(flatten)]
        socket: Socket,
        /// The port
        name: String,
    },
    /// Give a port what another one knew; its policy and what it has counted are replaced
    Import {
        #[command(flatten)]
        socket: Socket,
        /// The port
        name: String,
        /// What `maru port export` printed; - is standard input
        file: PathBuf,
    },
    /// Show the ports as they are configured
    List {
        #[command(flatten)]
        socket: Socket,
        /// How to show it
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
}

/// A new port.
#[derive(Debug, Args)]
pub struct AddArgs {
    #[command(flatten)]
    socket: Socket,
    /// Its name
    name: String,
    /// The switch that it belongs to
    #[arg(long, value_name = "SWITCH", default_value = DEFAULT_SWITCH)]
    switch: String,
    #[command(flatten)]
    backend: BackendArgs,
    /// Queue pairs that a VM may use
    #[arg(long, value_name = "N", default_value_t = 8, requires = "vhost_user")]
    queues: u16,
    /// The rights of the VM's socket, in octal: who may connect becomes the port
    #[arg(long, value_name = "MODE", default_value = "600", value_parser = octal, requires = "vhost_user")]
    mode: u32,
    #[command(flatten)]
    policy: PolicyArgs,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct BackendArgs {
    /// A VM, for which the switch listens here
    #[arg(long, value_name = "SOCKET")]
    vhost_user: Option<PathBuf>,
    /// The host itself: a TAP, made if there is none
    #[arg(long, value_name = "NAME")]
    tap: Option<String>,
    /// The wire: a NIC of the host
    #[arg(long, value_name = "NIC")]
    uplink: Option<String>,
}

/// A port's policy.
#[derive(Debug, Args)]
pub struct PolicyArgs {
    /// A file with all of the policy, as JSON
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// The VLAN that the port is in, 1 to 4094
    #[arg(long, value_name = "VLAN", value_parser = vlan)]
    vlan: Option<Vlan>,
    /// The only address that may send
    #[arg(long, value_name = "MAC")]
    mac: Option<MacAddress>,
}

fn octal(text: &str) -> Result<u32, String> {
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777);
    mode.ok_or_else(|| format!("'{text}' are no rights like 660"))
}

fn vlan(text: &str) -> Result<Vlan, String> {
    let number: u16 = text.parse().map_err(|_| format!("'{text}' is no VLAN"))?;
    Vlan::try_from(number).map_err(|error| error.to_string())
}

impl PolicyArgs {
    fn read(self) -> anyhow::Result<PortPolicy> {
        let mut policy = self.policy.as_deref().map(read_file).transpose()?.unwrap_or_default();
        if let Some(vlan) = self.vlan {
            policy.vlan = VlanMode::Access { vlan };
        }
        if let Some(mac) = self.mac {
            policy.mac = Some(mac);
            policy.mac_spoofing = Permission::Deny;
        }
        Ok(policy)
    }
}

fn read_file(path: &Path) -> anyhow::Result<PortPolicy> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read the policy {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is no policy", path.display()))
}

pub(super) fn run(command: PortCommand) -> anyhow::Result<()> {
    match command {
        PortCommand::Add(args) => {
            let AddArgs { socket, name, switch, backend, queues, mode, policy } = *args;
            let backend = match backend {
                BackendArgs { tap: Some(name), .. } => Backend::Tap(name),
                BackendArgs { uplink: Some(name), .. } => Backend::Uplink(name),
                BackendArgs { vhost_user, .. } => {
                    let socket = std::path::absolute(vhost_user.unwrap_or_default()).context("the socket's path")?;
                    Backend::VhostUser { socket, mode, queues }
                }
            };
            let port = PortConfig { name, switch, backend, policy: policy.read()? };
            socket.connect()?.call::<Value>(&Request::AddPort { port })?;
        }
        PortCommand::Set { socket, name, policy } => {
            socket.connect()?.call::<Value>(&Request::SetPolicy { name, policy: policy.read()? })?;
        }
        PortCommand::Remove { socket, name } => {
            socket.connect()?.call::<Value>(&Request::RemovePort { name })?;
        }
        PortCommand::Export { socket, name } => {
            let state: PortState = socket.connect()?.call(&Request::ExportPort { name })?;
            print(&(serde_json::to_string(&state)? + "\n"))?;
        }
        PortCommand::Import { socket, name, file } => {
            let text =
                if file.as_os_str() == "-" { std::io::read_to_string(std::io::stdin()) } else { std::fs::read_to_string(&file) };
            let text = text.with_context(|| format!("cannot read {}", file.display()))?;
            let state = serde_json::from_str(&text).with_context(|| format!("{} is no state of a port", file.display()))?;
            let imported: Imported = socket.connect()?.call(&Request::ImportPort { name, state: Box::new(state) })?;
            let Imported { connections, connections_left_out, stations, stations_left_out } = imported;
            print(&format!(
                "{connections} connections and {stations} stations; left out: {connections_left_out} and {stations_left_out}\n"
            ))?;
        }
        PortCommand::List { socket, output } => {
            let ports: Vec<PortConfig> = socket.connect()?.call(&Request::Config)?;
            let line = |port: &PortConfig| {
                let policy = serde_json::to_string(&port.policy).unwrap_or_default();
                let backend = match &port.backend {
                    Backend::VhostUser { socket, .. } => format!("vhost-user {}", socket.display()),
                    Backend::Tap(name) => format!("tap {name}"),
                    Backend::Uplink(name) => format!("uplink {name}"),
                };
                format!("{} of {}: {backend}, {policy}\n", port.name, port.switch)
            };
            show(output, &ports, || ports.iter().map(line).collect())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(subcommand)]
        command: PortCommand,
    }

    fn parse(line: &[&str]) -> Result<Command, String> {
        Command::try_parse_from([&["port"], line].concat()).map_err(|error| error.to_string())
    }

    #[test]
    fn options_become_a_policy() {
        let line = ["add", "a", "--vhost-user", "/s", "--vlan", "10", "--mac", "52:54:00:00:00:01", "--mode", "660"];
        let PortCommand::Add(args) = parse(&line).unwrap().command else { panic!("another command") };
        assert_eq!(args.mode, 0o660);
        let policy = args.policy.read().unwrap();
        assert_eq!(policy.vlan, VlanMode::Access { vlan: 10.try_into().unwrap() });
        assert_eq!((policy.mac, policy.mac_spoofing), ("52:54:00:00:00:01".parse().ok(), Permission::Deny));
    }

    #[test]
    fn mistakes_are_explained() {
        let cases: [(&[&str], &str); 5] = [
            (&["add", "a"], "--vhost-user"),
            (&["add", "a", "--tap", "t", "--uplink", "e"], "cannot be used with"),
            (&["add", "a", "--tap", "t", "--vlan", "4095"], "1 to 4094"),
            (&["add", "a", "--vhost-user", "/s", "--mode", "999"], "no rights"),
            (&["set", "a", "--mac", "1"], "no MAC address"),
        ];
        for (line, expected) in cases {
            let error = parse(line).unwrap_err();
            assert!(error.contains(expected), "{line:?}: {error}");
        }
    }
}
