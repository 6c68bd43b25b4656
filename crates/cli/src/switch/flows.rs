//! `maru switch flows` and `maru port rules`: what was counted.

use clap::Args;
use serde::Serialize;
use switch::control::{FlowStatus, PortRules, Request, RuleStatus};

use super::{Output, Socket, show, trace};

/// Which flows.
#[derive(Debug, Args)]
pub struct FlowsArgs {
    #[command(flatten)]
    socket: Socket,
    /// Only those that come from this port
    #[arg(long, value_name = "PORT")]
    port: Option<String>,
    /// Not more than so many
    #[arg(long, value_name = "N", default_value_t = 50)]
    most: u64,
    /// How to show it
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// Whose rules.
#[derive(Debug, Args)]
pub struct RulesArgs {
    #[command(flatten)]
    socket: Socket,
    /// The port
    name: String,
    /// How to show it
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

pub(super) fn flows(args: FlowsArgs) -> anyhow::Result<()> {
    let FlowsArgs { socket, port, most, output } = args;
    let flows: Vec<FlowStatus> = socket.connect()?.call(&Request::Flows { name: port, most })?;
    let text = |flow: &FlowStatus| {
        let FlowStatus { port, frame, actions, packets, bytes, age_ms, idle_ms } = flow;
        let (age, idle) = (age_ms / 1000, idle_ms / 1000);
        let head = format!("{port}: {frame}\n  {packets} packets, {bytes} bytes in {age} s, the last {idle} s ago\n");
        actions.iter().fold(head, |text, action| text + "  => " + &trace::action_text(action) + "\n")
    };
    show(output, &flows, || flows.iter().map(text).collect())
}

pub(super) fn rules(args: RulesArgs) -> anyhow::Result<()> {
    let RulesArgs { socket, name, output } = args;
    let rules: PortRules = socket.connect()?.call(&Request::Rules { name })?;
    show(output, &rules, || lines("acl", &rules.acl) + &lines("extended-acl", &rules.extended_acl))
}

fn lines<R: Serialize>(kind: &str, rules: &[RuleStatus<R>]) -> String {
    let line = |(number, status): (usize, &RuleStatus<R>)| {
        let rule = serde_json::to_string(&status.rule).unwrap_or_default();
        format!("{kind} {number}: {} packets, {} bytes: {rule}\n", status.packets, status.bytes)
    };
    rules.iter().enumerate().map(line).collect()
}
