//! `maru switch flows` and `maru port rules`: what was counted.

use anyhow::Context;
use clap::Args;
use serde::Serialize;
use switch::control::{FlowStatus, PortRules, Request, RuleStatus};

use super::place::{Look, Place, card_path};
use super::{show, trace};

/// Which flows.
#[derive(Debug, Args)]
pub struct FlowsArgs {
    #[command(flatten)]
    look: Look,
    /// Only those that come from this port; marud has to be told one
    #[arg(long, value_name = "PORT")]
    port: Option<String>,
    /// Not more than so many
    #[arg(long, value_name = "N", default_value_t = 50)]
    most: u64,
}

/// Whose rules.
#[derive(Debug, Args)]
pub struct RulesArgs {
    #[command(flatten)]
    look: Look,
    /// The port: VM/CARD
    #[arg(value_name = "PORT")]
    port_name: String,
}

pub(super) fn flows(args: FlowsArgs) -> anyhow::Result<()> {
    let FlowsArgs { look, port, most } = args;
    let flows: Vec<FlowStatus> = match look.find()? {
        Place::Direct(mut client) => client.call(&Request::Flows { name: port, most })?,
        Place::Managed(client) => {
            let port = port.context("name the port whose flows are asked for: --port VM/CARD")?;
            let flows: Vec<api::Flow> = client.list(&card_path(&port, &format!("/flows?most={most}"))?)?;
            flows.into_iter().map(status_of).collect()
        }
    };
    let text = |flow: &FlowStatus| {
        let FlowStatus { port, frame, actions, packets, bytes, age_ms, idle_ms } = flow;
        let (age, idle) = (age_ms / 1000, idle_ms / 1000);
        let head = format!("{port}: {frame}\n  {packets} packets, {bytes} bytes in {age} s, the last {idle} s ago\n");
        actions.iter().fold(head, |text, action| text + "  => " + &trace::action_text(action) + "\n")
    };
    show(look.output, &flows, || flows.iter().map(text).collect())
}

fn status_of(flow: api::Flow) -> FlowStatus {
    let api::Flow { port, frame, actions, packets, bytes, age_ms, idle_ms } = flow;
    FlowStatus { port, frame, actions: actions.into_iter().map(trace::action_of).collect(), packets, bytes, age_ms, idle_ms }
}

pub(super) fn rules(args: RulesArgs) -> anyhow::Result<()> {
    let RulesArgs { look, port_name: name } = args;
    match look.find()? {
        Place::Direct(mut client) => {
            let rules: PortRules = client.call(&Request::Rules { name })?;
            show(look.output, &rules, || lines("acl", &rules.acl) + &lines("extended-acl", &rules.extended_acl))
        }
        Place::Managed(client) => {
            let port: api::Port = client.get(&card_path(&name, "")?)?;
            let line = |told: &api::RuleCounters| format!("{}: {} packets, {} bytes\n", told.rule, told.packets, told.bytes);
            show(look.output, &port.rules, || port.rules.iter().map(line).collect())
        }
    }
}

fn lines<R: Serialize>(kind: &str, rules: &[RuleStatus<R>]) -> String {
    let line = |(number, status): (usize, &RuleStatus<R>)| {
        let rule = serde_json::to_string(&status.rule).unwrap_or_default();
        format!("{kind} {number}: {} packets, {} bytes: {rule}\n", status.packets, status.bytes)
    };
    rules.iter().enumerate().map(line).collect()
}
