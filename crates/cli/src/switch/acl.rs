//! `maru acl`: the rules of a port, of both kinds.

use std::net::IpAddr;

use anyhow::{bail, ensure};
use clap::{Args, Subcommand};
use switch::acl::{
    Address, Direction, Effect, ExtendedAcl, ExtendedRule, PacketSubject, PortRange, Prefix, PrefixAcl, PrefixAction, PrefixRule,
    Subject, Verdict,
};
use switch::frame::{Fragment, Ip, Transport};
use switch::mac::MacAddress;
use switch::policy::PortPolicy;

use super::place::{Change, Look};
use crate::output::print;
use crate::remote::{show_one, table};

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

const AFTER_HELP: &str = "\
There are two kinds of rules. One with a weight looks at addresses, protocol and ports; of those that match, the one with the highest weight
decides, and it may remember connections (--stateful), whose answers pass then. One without a weight looks at addresses alone; the one with the
longest prefix decides. A packet must be allowed by both kinds, and is, if none says anything. In is to the VM, out is from it; local is the VM.

EXAMPLES
  SSH into a VM from 10.0.0.0/8, with the answers, and nothing else in:
    maru acl add web/net0 --deny --in --weight 1
    maru acl add web/net0 --allow --in --protocol tcp --local-port 22 --remote 10.0.0.0/8 --weight 10 --stateful 60s

  Would it be let in?
    maru acl test web/net0 --in --protocol tcp --local 10.0.0.5 --local-port 22 --remote 10.1.2.3

  Nothing to or from a network, and bytes counted for another one:
    maru acl add web/net0 --deny --remote 192.168.0.0/16
    maru acl add web/net0 --meter --remote 10.0.0.0/8

  What there is; and away with two of them, by their names in the list:
    maru acl list web/net0
    maru acl remove web/net0 in:10 0";

/// Subcommands of `maru acl`.
#[derive(Debug, Subcommand)]
#[command(after_help = AFTER_HELP)]
pub enum AclCommand {
    /// List the rules of a port, those that decide first above
    List {
        /// The port: VM/CARD
        #[arg(value_name = "PORT")]
        port_name: String,
        #[command(flatten)]
        look: Look,
    },
    /// Add a rule
    Add(Box<AddArgs>),
    /// Remove rules
    Remove {
        /// The port: VM/CARD
        #[arg(value_name = "PORT")]
        port_name: String,
        /// Their names in the list, like in:10 or 0
        #[arg(required = true, value_name = "RULE")]
        rules: Vec<String>,
        #[command(flatten)]
        change: Change,
    },
    /// Say what the rules do with a packet, and which one decides
    Test(Box<TestArgs>),
}

/// `maru acl add`.
#[derive(Debug, Args)]
pub struct AddArgs {
    /// The port: VM/CARD
    #[arg(value_name = "PORT")]
    port_name: String,
    #[command(flatten)]
    action: ActionArgs,
    #[command(flatten)]
    direction: DirectionArgs,
    /// Addresses of the VM, like 10.0.0.0/8
    #[arg(long, value_name = "PREFIX")]
    local: Option<Prefix>,
    /// Addresses elsewhere
    #[arg(long, value_name = "PREFIX")]
    remote: Option<Prefix>,
    /// The VM's station, for a rule without a weight
    #[arg(long, value_name = "MAC", conflicts_with = "weight")]
    local_mac: Option<MacAddress>,
    /// Another station, for a rule without a weight
    #[arg(long, value_name = "MAC", conflicts_with = "weight")]
    remote_mac: Option<MacAddress>,
    /// Any station, for a rule without a weight
    #[arg(long, conflicts_with = "weight")]
    any_mac: bool,
    /// The protocol: tcp, udp, icmp, icmpv6, or IANA's number
    #[arg(long, value_parser = protocol, requires = "weight")]
    protocol: Option<u8>,
    /// Port numbers of the VM, like 22 or 8000-8099
    #[arg(long, value_name = "PORTS", value_parser = ports, requires = "weight")]
    local_port: Option<PortRange>,
    /// Port numbers elsewhere
    #[arg(long, value_name = "PORTS", value_parser = ports, requires = "weight")]
    remote_port: Option<PortRange>,
    /// Among rules that match, the highest weight decides
    #[arg(long, value_name = "N")]
    weight: Option<u32>,
    /// Remember connections, until nothing went either way for so long
    #[arg(long, value_name = "TIME", value_parser = seconds, requires = "weight")]
    stateful: Option<u32>,
    #[command(flatten)]
    change: Change,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct ActionArgs {
    /// Let it through
    #[arg(long)]
    allow: bool,
    /// Drop it
    #[arg(long)]
    deny: bool,
    /// Count its bytes, for a rule without a weight
    #[arg(long, conflicts_with = "weight")]
    meter: bool,
}

#[derive(Debug, Args)]
#[group(multiple = false)]
struct DirectionArgs {
    /// What goes to the VM
    #[arg(long = "in")]
    inbound: bool,
    /// What comes from it
    #[arg(long = "out")]
    outbound: bool,
}

/// `maru acl test`.
#[derive(Debug, Args)]
pub struct TestArgs {
    /// The port: VM/CARD
    #[arg(value_name = "PORT")]
    port_name: String,
    #[command(flatten)]
    direction: DirectionArgs,
    /// The VM's address
    #[arg(long, value_name = "ADDRESS")]
    local: IpAddr,
    /// The other address
    #[arg(long, value_name = "ADDRESS")]
    remote: IpAddr,
    /// The protocol: tcp, udp, icmp, icmpv6, or IANA's number
    #[arg(long, value_parser = protocol)]
    protocol: u8,
    /// The VM's port number
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    local_port: u16,
    /// The other port number
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    remote_port: u16,
    /// The VM's station
    #[arg(long, value_name = "MAC", default_value = "02:00:00:00:00:01")]
    local_mac: MacAddress,
    /// The other station
    #[arg(long, value_name = "MAC", default_value = "02:00:00:00:00:02")]
    remote_mac: MacAddress,
    #[command(flatten)]
    look: Look,
}

fn protocol(text: &str) -> Result<u8, String> {
    match text {
        "tcp" => Ok(TCP),
        "udp" => Ok(UDP),
        "icmp" => Ok(ICMP),
        "icmpv6" => Ok(ICMPV6),
        number => number.parse().map_err(|_| format!("'{text}' is none of tcp, udp, icmp, icmpv6, and no number of a protocol")),
    }
}

fn ports(text: &str) -> Result<PortRange, String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let port = |text: &str| text.parse::<u16>().map_err(|_| format!("'{text}' is no port number"));
    Ok(PortRange { first: port(first)?, last: port(last)? })
}

fn seconds(text: &str) -> Result<u32, String> {
    let (number, unit) = match text.strip_suffix('m') {
        Some(minutes) => (minutes, 60),
        None => (text.strip_suffix('s').unwrap_or(text), 1),
    };
    let number: Option<u32> = number.parse().ok().and_then(|number: u32| number.checked_mul(unit));
    number.filter(|seconds| *seconds > 0).ok_or_else(|| format!("'{text}' is no time like 60s or 5m"))
}

impl DirectionArgs {
    fn one(&self) -> Option<Direction> {
        match (self.inbound, self.outbound) {
            (true, _) => Some(Direction::Inbound),
            (_, true) => Some(Direction::Outbound),
            _ => None,
        }
    }
}

impl AddArgs {
    /// Adds the rule to a policy.
    fn add_to(&self, policy: &mut PortPolicy) -> anyhow::Result<()> {
        let Some(weight) = self.weight else { return self.add_prefix_rule(policy) };
        let Some(direction) = self.direction.one() else { bail!("a rule with a weight is for one direction: --in or --out") };
        ensure!(!(self.action.deny && self.stateful.is_some()), "--stateful is of rules that allow: --allow");
        let effect = match (self.action.deny, self.stateful) {
            (true, _) => Effect::Deny,
            (false, Some(idle_timeout_s)) => Effect::AllowStateful { idle_timeout_s },
            (false, None) => Effect::Allow,
        };
        policy.extended_acl.push(ExtendedRule {
            effect,
            direction,
            weight,
            local: self.local,
            remote: self.remote,
            protocol: self.protocol,
            local_ports: self.local_port,
            remote_ports: self.remote_port,
        });
        Ok(())
    }

    fn add_prefix_rule(&self, policy: &mut PortPolicy) -> anyhow::Result<()> {
        let named = [
            self.local.map(Address::LocalIp),
            self.remote.map(Address::RemoteIp),
            self.local_mac.map(Address::LocalMac),
            self.remote_mac.map(Address::RemoteMac),
            self.any_mac.then_some(Address::AnyMac),
        ];
        let mut named = named.into_iter().flatten();
        let address = named.next().unwrap_or(Address::AnyIp);
        ensure!(named.next().is_none(), "a rule without a weight is about one address; one with --weight may look at both sides");
        let action = match (self.action.deny, self.action.meter) {
            (true, _) => PrefixAction::Deny,
            (_, true) => PrefixAction::Meter,
            _ => PrefixAction::Allow,
        };
        policy.acl.push(PrefixRule { action, direction: self.direction.one(), address });
        Ok(())
    }
}

/// Does it.
pub fn run(command: AclCommand) -> anyhow::Result<()> {
    match command {
        AclCommand::List { port_name, look } => list(&port_name, &look),
        AclCommand::Add(args) => {
            let mut place = args.change.find()?;
            let found = place.policy(&args.port_name)?;
            let mut policy = found.policy.clone();
            args.add_to(&mut policy)?;
            policy.check()?;
            place.set_policy(&args.port_name, &found, &policy, &args.change)
        }
        AclCommand::Remove { port_name, rules, change } => {
            let mut place = change.find()?;
            let found = place.policy(&port_name)?;
            let policy = without(&found.policy, &rules)?;
            place.set_policy(&port_name, &found, &policy, &change)
        }
        AclCommand::Test(args) => test(&args),
    }
}

/// What a rule by weight is called: there is one of each weight and direction.
fn name(rule: &ExtendedRule) -> String {
    let direction = if rule.direction == Direction::Inbound { "in" } else { "out" };
    format!("{direction}:{}", rule.weight)
}

/// A policy without some of its rules.
fn without(policy: &PortPolicy, names: &[String]) -> anyhow::Result<PortPolicy> {
    let known = |wanted: &String| {
        let by_number = wanted.parse::<usize>().is_ok_and(|number| number < policy.acl.len());
        by_number || policy.extended_acl.iter().any(|rule| name(rule) == *wanted)
    };
    if let Some(missing) = names.iter().find(|name| !known(name)) {
        bail!("the port has no rule '{missing}': `maru acl list` has their names");
    }
    let mut left = policy.clone();
    left.extended_acl.retain(|rule| !names.contains(&name(rule)));
    let mut number = 0..;
    left.acl.retain(|_| !names.contains(&number.next().unwrap_or(0_usize).to_string()));
    Ok(left)
}

fn text(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(text)) => text,
        Ok(value) => value.to_string(),
        Err(_) => String::new(),
    }
}

fn rule_text(rule: &ExtendedRule) -> String {
    let range = |name: &str, range: &PortRange| match range.first == range.last {
        true => format!("{name} {}", range.first),
        false => format!("{name} {}-{}", range.first, range.last),
    };
    let protocol = |protocol: u8| match protocol {
        TCP => "tcp".into(),
        UDP => "udp".into(),
        ICMP => "icmp".into(),
        ICMPV6 => "icmpv6".into(),
        number => format!("protocol {number}"),
    };
    let parts = [
        rule.protocol.map(protocol),
        rule.local.map(|local| format!("local {}", String::from(local))),
        rule.local_ports.as_ref().map(|ports| range("local port", ports)),
        rule.remote.map(|remote| format!("remote {}", String::from(remote))),
        rule.remote_ports.as_ref().map(|ports| range("remote port", ports)),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    if parts.is_empty() { "everything".into() } else { parts.join(", ") }
}

fn effect_text(effect: &Effect) -> String {
    match effect {
        Effect::Allow => "allow".into(),
        Effect::AllowStateful { idle_timeout_s } => format!("allow, stateful {idle_timeout_s}s"),
        Effect::Deny => "deny".into(),
    }
}

fn list(port: &str, look: &Look) -> anyhow::Result<()> {
    let policy = look.find()?.policy(port)?.policy;
    let told = serde_json::json!({"acl": policy.acl, "extended-acl": policy.extended_acl});
    let mut extended = policy.extended_acl.clone();
    extended.sort_by_key(|rule| (rule.direction == Direction::Outbound, std::cmp::Reverse(rule.weight)));
    Ok(show_one(look.output, &told, || {
        let direction = |direction: Direction| if direction == Direction::Inbound { "in" } else { "out" };
        let by_weight = extended
            .iter()
            .map(|rule| [name(rule), direction(rule.direction).into(), effect_text(&rule.effect), rule_text(rule)]);
        let by_prefix = policy.acl.iter().enumerate().map(|(number, rule)| {
            let direction = rule.direction.map_or("both", direction);
            [number.to_string(), direction.into(), text(&rule.action), text(&rule.address)]
        });
        table(["RULE", "DIRECTION", "ACTION", "WHAT"], by_weight.chain(by_prefix))
    })?)
}

/// What the rules of a port do with a packet.
#[derive(Debug, PartialEq, Eq, serde::Serialize)]
struct Told {
    /// Whether it passes.
    passes: bool,
    /// Whether a connection is remembered, whose answers pass.
    stateful: bool,
    /// The rules that decide, by their names.
    rules: Vec<String>,
}

fn decide(policy: &PortPolicy, subject: &Subject) -> anyhow::Result<Told> {
    let by_prefix = PrefixAcl::new(&policy.acl)?.decide(subject);
    let (verdict, number) = ExtendedAcl::new(&policy.extended_acl)?.decide(subject);
    let by_weight = number.and_then(|number| policy.extended_acl.get(number as usize)).map(name);
    let rules = [by_prefix.mac, by_prefix.ip].into_iter().flatten().map(|number| number.to_string()).chain(by_weight).collect();
    let stateful = matches!(verdict, Verdict::Remember { .. });
    Ok(Told { passes: by_prefix.allowed && verdict != Verdict::Deny, stateful, rules })
}

fn test(args: &TestArgs) -> anyhow::Result<()> {
    let Some(direction) = args.direction.one() else { bail!("a packet goes in one direction: --in or --out") };
    ensure!(args.local.is_ipv4() == args.remote.is_ipv4(), "both addresses are of IPv4, or both of IPv6");
    let ends = ((args.local, args.local_port), (args.remote, args.remote_port));
    let ((source, source_port), (destination, destination_port)) = match direction {
        Direction::Inbound => (ends.1, ends.0),
        Direction::Outbound => ends,
    };
    let transport = match args.protocol {
        TCP | UDP => Transport::Ports { source: source_port, destination: destination_port },
        ICMP | ICMPV6 => Transport::Icmp { kind: 0, code: 0, id: 0 },
        _ => Transport::None,
    };
    let ip = Ip { source, destination, protocol: args.protocol, transport, fragment: Fragment::Whole };
    let packet = Some(PacketSubject { local: args.local, remote: args.remote, ip });
    let subject = Subject { direction, local_mac: args.local_mac, remote_mac: args.remote_mac, packet };
    let told = decide(&args.look.find()?.policy(&args.port_name)?.policy, &subject)?;
    let said = args.look.output.render(&told, || {
        let rules = match &told.rules[..] {
            [] => "no rule is about it".into(),
            [rule] => format!("rule {rule} decides"),
            rules => format!("rules {} decide", rules.join(", ")),
        };
        match (told.passes, told.stateful) {
            (true, false) => format!("it passes: {rules}\n"),
            (true, true) => format!("it passes, and so do the answers: {rules}\n"),
            (false, _) => format!("it is dropped: {rules}\n"),
        }
    })?;
    Ok(print(&said)?)
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::json;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(subcommand)]
        command: AclCommand,
    }

    fn add(policy: &mut PortPolicy, words: &str) -> Result<(), String> {
        let line = format!("acl add web/net0 {words}");
        let parsed = Command::try_parse_from(line.split(' ')).map_err(|error| error.to_string())?;
        let AclCommand::Add(args) = parsed.command else { panic!("another command") };
        args.add_to(policy).map_err(|error| error.to_string())
    }

    #[test]
    fn rules_are_added_with_readable_options_named_and_removed() {
        let mut policy = PortPolicy::default();
        add(&mut policy, "--deny --in --weight 1").unwrap();
        add(&mut policy, "--allow --in --protocol tcp --local-port 22 --remote 10.0.0.0/8 --weight 10 --stateful 60s").unwrap();
        add(&mut policy, "--deny --remote 192.168.0.0/16").unwrap();
        add(&mut policy, "--meter --out").unwrap();
        let expected = json!([
            {"effect": "deny", "direction": "inbound", "weight": 1, "local": null, "remote": null, "protocol": null,
                "local-ports": null, "remote-ports": null},
            {"effect": {"allow-stateful": {"idle-timeout-s": 60}}, "direction": "inbound", "weight": 10, "local": null,
                "remote": "10.0.0.0/8", "protocol": 6, "local-ports": {"first": 22, "last": 22}, "remote-ports": null},
        ]);
        assert_eq!(serde_json::to_value(&policy.extended_acl).unwrap(), expected);
        let expected = json!([
            {"action": "deny", "direction": null, "address": {"remote-ip": "192.168.0.0/16"}},
            {"action": "meter", "direction": "outbound", "address": "any-ip"},
        ]);
        assert_eq!(serde_json::to_value(&policy.acl).unwrap(), expected);
        policy.check().unwrap();
        let left = without(&policy, &["in:10".into(), "0".into()]).unwrap();
        assert_eq!((left.extended_acl.len(), left.acl.len(), left.acl[0].action), (1, 1, PrefixAction::Meter));
        assert!(without(&policy, &["in:11".into()]).unwrap_err().to_string().contains("in:11"));
    }

    #[test]
    fn a_packet_is_judged_as_the_switch_would() {
        let mut policy = PortPolicy::default();
        add(&mut policy, "--deny --in --weight 1").unwrap();
        add(&mut policy, "--allow --in --protocol tcp --local-port 22 --remote 10.0.0.0/8 --weight 10 --stateful 60s").unwrap();
        add(&mut policy, "--deny --remote 10.9.0.0/16").unwrap();
        let judged = |remote: &str, port: u16| {
            let (local, remote) = ("10.0.0.5".parse().unwrap(), remote.parse().unwrap());
            let transport = Transport::Ports { source: 4000, destination: port };
            let ip = Ip { source: remote, destination: local, protocol: TCP, transport, fragment: Fragment::Whole };
            let packet = Some(PacketSubject { local, remote, ip });
            let nobody = MacAddress([2; 6]);
            let subject = Subject { direction: Direction::Inbound, local_mac: nobody, remote_mac: nobody, packet };
            let Told { passes, stateful, rules } = decide(&policy, &subject).unwrap();
            (passes, stateful, rules.join(" "))
        };
        assert_eq!(judged("10.1.2.3", 22), (true, true, "in:10".into()));
        assert_eq!(judged("10.1.2.3", 23), (false, false, "in:1".into()));
        assert_eq!(judged("11.1.2.3", 22), (false, false, "in:1".into()));
        assert_eq!(judged("10.9.2.3", 22), (false, true, "0 in:10".into()));
    }

    #[test]
    fn mistakes_are_explained() {
        for (words, expected) in [
            ("--in --weight 1", "--allow"),
            ("--allow --weight 1", "--in or --out"),
            ("--allow --in --protocol tcp", "--weight"),
            ("--deny --in --weight 1 --stateful 60s", "--stateful"),
            ("--allow --local 10.0.0.1 --remote 10.0.0.2", "about one address"),
            ("--allow --remote 10.0.0.0/33", "no IP address"),
            ("--allow --in --weight 1 --local-port x", "no port number"),
            ("--allow --in --weight 1 --stateful 0s", "no time"),
        ] {
            let error = add(&mut PortPolicy::default(), words).unwrap_err();
            assert!(error.contains(expected), "{words}: {error}");
        }
    }
}
