//! `maru port`.

use std::path::PathBuf;

use anyhow::{Context, ensure};
use clap::{Args, Subcommand};
use serde_json::Value;
use switch::control::{Backend, DEFAULT_SWITCH, Imported, PortConfig, PortState, Request, Status};
use switch::links::Missing;

use super::place::{Change, Look, Place};
use super::policy::PolicyArgs;
use super::team::TeamArgs;
use super::{Socket, capture, flows, managed, port_text, show, trace};
use crate::output::print;

const ADD_HELP: &str = "\
EXAMPLES
  A port for a VM in VLAN 10 that may use its own address only:
    maru port add web --vhost-user /run/web.port --vlan 10 --mac 52:54:00:12:34:56
    maru vm run ... --net vhost-user=/run/web.port,mac=52:54:00:12:34:56

  The host itself, and the way out:
    maru port add host --tap sw0
    maru port add wire --uplink eth1

  Two cables as one way out, as agreed with the switch at their other ends:
    maru port add wire --team eth1,eth2 --team-mode lacp

  A NIC that is used by AF_XDP, or not at all:
    maru port add wire --uplink eth1 --datapath af-xdp

  Anything else as JSON (the book's chapter about the switch has all of it):
    echo '{\"storm-limit\": 1000, \"router\": \"deny\"}' > policy.json
    maru port add db --vhost-user /run/db.port --policy policy.json";

/// Subcommands of `maru port`.
#[derive(Debug, Subcommand)]
pub enum PortCommand {
    /// List ports
    List(Look),
    /// Show a port: who is connected, what passed, what was dropped and why, and its policy
    Show {
        /// The port: VM/CARD, or a switch's name for its way out or the host
        #[arg(value_name = "PORT")]
        port_name: String,
        #[command(flatten)]
        look: Look,
    },
    /// Change what a port may do, from the next frame on
    #[command(after_help = SET_HELP)]
    Set(Box<SetArgs>),
    /// To a switch that was started by hand: add a port
    #[command(after_help = ADD_HELP)]
    Add(Box<AddArgs>),
    /// From a switch that was started by hand: remove a port
    Remove {
        #[command(flatten)]
        socket: Socket,
        /// The port
        name: String,
    },
    /// Write copies of the port's frames to a file, as tcpdump and Wireshark read it
    #[command(after_help = capture::HELP)]
    Capture(capture::CaptureArgs),
    /// Show the port's rules, and how many packets each of them has decided
    Rules(flows::RulesArgs),
    /// Say what each layer does to a frame that comes from a port, and why, without sending it
    #[command(after_help = trace::HELP)]
    Trace(Box<trace::TraceArgs>),
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
}

const SET_HELP: &str = "\
What is not named stays, for VMs of marud; with --policy, all of it is replaced. For a port of a switch that was started by hand, what is not
named is as of a new port. `maru acl` has the rules.

EXAMPLES
  A VM's card in VLAN 10, and no others may be pretended to be it:
    maru port set web/net0 --vlan 10 --mac-spoofing deny

  A router's card, with VLANs 10 to 19; and one that gets copies of what passes it:
    maru port set router/net0 --trunk 10-19 --mirror source
    maru port set probe/net0 --mirror destination";

/// `maru port set`.
#[derive(Debug, Args)]
pub struct SetArgs {
    /// The port: VM/CARD
    #[arg(value_name = "PORT")]
    port_name: String,
    #[command(flatten)]
    policy: PolicyArgs,
    #[command(flatten)]
    change: Change,
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
    #[command(flatten)]
    team: TeamArgs,
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
    /// The wire: some NICs of the host
    #[arg(long, value_name = "NIC,NIC...", value_delimiter = ',')]
    team: Option<Vec<String>>,
}

fn octal(text: &str) -> Result<u32, String> {
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777);
    mode.ok_or_else(|| format!("'{text}' are no rights like 660"))
}

pub(super) fn run(command: PortCommand) -> anyhow::Result<()> {
    match command {
        PortCommand::Add(args) => {
            let AddArgs { socket, name, switch, backend, team, queues, mode, policy } = *args;
            let has_nics = backend.uplink.is_some() || backend.team.is_some();
            ensure!(has_nics || team.datapath().is_none(), "--datapath is for NICs: name them with --uplink or --team");
            let backend = match backend {
                BackendArgs { tap: Some(name), .. } => Backend::Tap(name),
                BackendArgs { uplink: Some(name), .. } => Backend::from(team.config(vec![name])),
                BackendArgs { team: Some(nics), .. } => Backend::Team(team.config(nics)),
                BackendArgs { vhost_user, .. } => {
                    let socket = std::path::absolute(vhost_user.unwrap_or_default()).context("the socket's path")?;
                    Backend::VhostUser { socket, mode, queues }
                }
            };
            let policy = serde_json::from_value(policy.read()?).context("that is no policy")?;
            let port = PortConfig { name, switch, backend, policy };
            socket.connect()?.call::<Value>(&Request::AddPort { port, missing: Missing::Refused })?;
        }
        PortCommand::Set(args) => {
            let SetArgs { port_name: port, policy, change } = *args;
            let whole = policy.is_whole();
            let policy = policy.read()?;
            let nothing = policy.as_object().is_some_and(serde_json::Map::is_empty);
            ensure!(whole || !nothing, "nothing is to be changed: name what is, see --help");
            change.find()?.change_policy(&port, policy, whole, &change)?;
        }
        PortCommand::Show { port_name: port, look } => match look.find()? {
            Place::Managed(client) => managed::show_port(&client, &port, look.output)?,
            Place::Direct(mut client) => {
                let status: Status = client.call(&Request::Status)?;
                let found = status.ports.into_iter().find(|own| own.name == port);
                let found = found.with_context(|| format!("there is no port '{port}' (maru port list)"))?;
                show(look.output, &found, || port_text(&found))?;
            }
        },
        PortCommand::Remove { socket, name } => {
            socket.connect()?.call::<Value>(&Request::RemovePort { name })?;
        }
        PortCommand::Capture(args) => capture::run(args)?,
        PortCommand::Rules(args) => flows::rules(args)?,
        PortCommand::Trace(args) => trace::run(*args)?,
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
        PortCommand::List(look) => {
            let mut client = match look.find()? {
                Place::Managed(client) => return Ok(managed::list_ports(&client, look.output)?),
                Place::Direct(client) => client,
            };
            let ports: Vec<PortConfig> = client.call(&Request::Config)?;
            let line = |port: &PortConfig| {
                let policy = serde_json::to_string(&port.policy).unwrap_or_default();
                let backend = match &port.backend {
                    Backend::VhostUser { socket, .. } => format!("vhost-user {}", socket.display()),
                    Backend::Tap(name) => format!("tap {name}"),
                    Backend::Uplink(name) => format!("uplink {name}"),
                    Backend::Team(team) => format!("team {}", serde_json::to_string(team).unwrap_or_default()),
                };
                format!("{} of {}: {backend}, {policy}\n", port.name, port.switch)
            };
            show(look.output, &ports, || ports.iter().map(line).collect())?;
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
    fn options_become_a_port() {
        let line = ["add", "a", "--vhost-user", "/s", "--vlan", "10", "--mode", "660"];
        let PortCommand::Add(args) = parse(&line).unwrap().command else { panic!("another command") };
        assert_eq!(args.mode, 0o660);
        assert_eq!(args.policy.read().unwrap(), serde_json::json!({"vlan": {"mode": "access", "vlan": 10}}));
    }

    #[test]
    fn nics_become_a_team() {
        let line = ["add", "a", "--team", "eth1,eth2", "--team-mode", "lacp", "--lacp-rate", "fast"];
        let PortCommand::Add(args) = parse(&line).unwrap().command else { panic!("another command") };
        let config = args.team.config(args.backend.team.unwrap());
        let expected = r#"{"nics": ["eth1", "eth2"], "mode": "lacp", "lacp-rate": "fast"}"#;
        assert_eq!(config, serde_json::from_str(expected).unwrap());
        let error = parse(&["add", "a", "--team", "eth1", "--team-mode", "magic"]).unwrap_err();
        assert!(error.contains("active-standby"), "{error}");
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
