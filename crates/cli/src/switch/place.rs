//! Which switch: those of a `marud`, or one that was started by hand.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use api::client::{Client as Remote, Method};
use clap::Args;
use serde_json::{Value, json};
use switch::control::{Client, PortConfig, Request};
use switch::policy::PortPolicy;

use crate::output::Output;
use crate::remote::{Connect, RemoteError, TaskArgs, finish};
use crate::vm::manage::segment;

/// Where a switch that was started by hand listens, if nothing else is said.
pub const CONTROL: &str = "/run/maru-switch.control";

/// `--control`.
#[derive(Debug, Args)]
pub struct Direct {
    /// The control socket of a switch that was started by hand, instead of those of marud. A machine without marud has it at
    /// /run/maru-switch.control
    #[arg(long, visible_alias = "socket", value_name = "SOCKET", env = "MARU_SWITCH_CONTROL")]
    control: Option<PathBuf>,
}

/// Which switch, and how an answer is shown.
#[derive(Debug, Args)]
pub struct Look {
    #[command(flatten)]
    direct: Direct,
    #[command(flatten)]
    connect: Connect,
    /// How to show it
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
}

/// Which switch.
#[derive(Debug, Args)]
pub struct Where {
    #[command(flatten)]
    direct: Direct,
    #[command(flatten)]
    connect: Connect,
}

/// Which switch, and how a change is waited for.
#[derive(Debug, Args)]
pub struct Change {
    #[command(flatten)]
    direct: Direct,
    #[command(flatten)]
    pub task: TaskArgs,
}

/// Who is asked.
pub enum Place {
    /// A switch.
    Direct(Client),
    /// A `marud`.
    Managed(Remote),
}

fn find(direct: &Direct, connect: &Connect) -> anyhow::Result<Place> {
    if let Some(control) = &direct.control {
        return Ok(Place::Direct(Client::connect(control)?));
    }
    match connect.client() {
        Err(RemoteError::NoServer(_)) if Path::new(CONTROL).exists() => Ok(Place::Direct(Client::connect(CONTROL.as_ref())?)),
        Err(error @ RemoteError::NoServer(_)) => Err(error).context("name a switch that was started by hand with --control, or"),
        client => Ok(Place::Managed(client?)),
    }
}

impl Look {
    /// Who is asked.
    pub fn find(&self) -> anyhow::Result<Place> {
        find(&self.direct, &self.connect)
    }
}

impl Where {
    /// Who is asked.
    pub fn find(&self) -> anyhow::Result<Place> {
        find(&self.direct, &self.connect)
    }
}

impl Change {
    /// Who is asked.
    pub fn find(&self) -> anyhow::Result<Place> {
        find(&self.direct, &self.task.connect)
    }
}

/// The address of the port of a network card of `marud`'s, with what is asked of it there.
pub fn card_path(port: &str, what: &str) -> anyhow::Result<String> {
    let (vm, net) = card(port)?;
    Ok(format!("/vms/{}/nets/{}/port{what}", segment(vm), segment(net)))
}

/// A port's policy as it was found.
pub struct Found {
    /// The policy.
    pub policy: PortPolicy,
    /// The version of what it is a part of.
    tag: String,
}

/// The VM and the network card of a port of `marud`'s.
pub fn card(port: &str) -> anyhow::Result<(&str, &str)> {
    port.split_once('/').with_context(|| format!("'{port}' is no port of a VM: write VM/CARD, like web/net0 (maru port list)"))
}

impl Place {
    /// A port's policy.
    pub fn policy(&mut self, port: &str) -> anyhow::Result<Found> {
        match self {
            Place::Direct(client) => {
                let ports: Vec<PortConfig> = client.call(&Request::Config)?;
                let found = ports.into_iter().find(|own| own.name == port);
                let policy = found.with_context(|| format!("there is no port '{port}' (maru port list)"))?.policy;
                Ok(Found { policy, tag: String::new() })
            }
            Place::Managed(client) => {
                let path = card_path(port, "")?;
                let (port, tag): (api::Port, String) = client.get_tagged(&path)?;
                Ok(Found { policy: serde_json::from_value(serde_json::to_value(&port.policy)?)?, tag })
            }
        }
    }

    /// Gives a port this policy, if it still has the one that was found.
    pub fn set_policy(&mut self, port: &str, found: &Found, policy: &PortPolicy, args: &Change) -> anyhow::Result<()> {
        match self {
            Place::Direct(client) => {
                Ok(client.call::<Value>(&Request::SetPolicy { name: port.into(), policy: policy.clone() }).map(drop)?)
            }
            Place::Managed(client) => {
                let mut change = serde_json::to_value(policy)?;
                without_mac(&mut change);
                let (vm, net) = card(port)?;
                let path = format!("/vms/{}/nets/{}/policy", segment(vm), segment(net));
                Ok(finish(client, client.patch(&path, &found.tag, &change)?, &args.task)?)
            }
        }
    }

    /// Changes what a port's policy says of some things. At a switch that was started by hand, the rest is as of a new port.
    pub fn change_policy(&mut self, port: &str, change: Value, whole: bool, args: &Change) -> anyhow::Result<()> {
        match self {
            Place::Direct(client) => {
                let policy = serde_json::from_value(change).context("that is no policy")?;
                Ok(client.call::<Value>(&Request::SetPolicy { name: port.into(), policy }).map(drop)?)
            }
            Place::Managed(client) => {
                if change.get("mac").is_some_and(|mac| !mac.is_null()) {
                    bail!("the address of a VM's port is its network card's; `--mac-spoofing deny` is how it is kept to that");
                }
                let mut change = change;
                without_mac(&mut change);
                let (vm, net) = card(port)?;
                let path = format!("/vms/{}/nets/{}/policy", segment(vm), segment(net));
                let method = if whole { Method::PUT } else { Method::PATCH };
                Ok(finish(client, client.call(method, &path, Some(&change))?, &args.task)?)
            }
        }
    }
}

fn without_mac(policy: &mut Value) {
    if let Some(fields) = policy.as_object_mut() {
        fields.remove("mac");
        // RFC 7396: a native VLAN that is not there any more has to be taken away.
        if fields.get("vlan").is_some_and(|vlan| vlan["mode"] == "trunk" && vlan.get("native").is_none()) {
            fields["vlan"]["native"] = json!(null);
        }
    }
}
