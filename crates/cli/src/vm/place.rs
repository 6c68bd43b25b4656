//! Where VMs of a cluster run: explained, wanted, changed.

use api::client::Method;
use clap::{Args, ValueEnum};
use serde_json::{Map, Value, json};

use crate::output::Output;
use crate::remote::{Connect, RemoteError, fields, show_one, table};
use crate::vm::manage::segment;

/// Which VM, and how it is shown.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// Its name or id
    vm: String,
    #[command(flatten)]
    connect: Connect,
    /// How to show the result
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// Where a VM is to go.
#[derive(Debug, Args)]
pub struct MoveArgs {
    /// Its name or id
    vm: String,
    /// The host that it is to go to
    #[arg(long, value_name = "HOST")]
    to: String,
    /// The volume there for copies of files that only its host reaches; those of the same names if left out
    #[arg(long)]
    volume: Option<String>,
    #[command(flatten)]
    connect: Connect,
}

/// Who starts first.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum PriorityOption {
    /// After all others
    Low,
    /// As most
    Medium,
    /// Before all others
    High,
}

/// What is wanted of the place of a VM. What is not given stays.
#[derive(Debug, Args)]
pub struct PlacementArgs {
    /// Its name or id
    vm: String,
    /// Who starts first when not all can at once
    #[arg(long, value_enum)]
    priority: Option<PriorityOption>,
    /// Hosts that it would like, the best first; '' for none
    #[arg(long, value_name = "HOST,HOST")]
    prefer: Option<String>,
    /// Hosts that it may run on; '' for all
    #[arg(long, value_name = "HOST,HOST")]
    only: Option<String>,
    /// Groups that it is in: NAME:apart or NAME:together, with ':hard' behind that if it must be, and ':domain' for fault domains instead of
    /// hosts; '' for none. May be given several times
    #[arg(long, value_name = "GROUP", value_parser = group)]
    group: Vec<Option<api::GroupRule>>,
    /// How often it is started again in the period after it, or its host, failed; 0 is never
    #[arg(long, value_name = "TIMES")]
    restarts: Option<u32>,
    /// The period in seconds
    #[arg(long, value_name = "SECONDS")]
    restart_period: Option<u64>,
    /// Whether it goes back after a failure: never, immediate, or a time of the day in UTC, like 22:00-06:00
    #[arg(long, value_name = "WHEN", value_parser = failback)]
    failback: Option<api::Failback>,
    #[command(flatten)]
    connect: Connect,
    /// How to show the result
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

fn group(text: &str) -> Result<Option<api::GroupRule>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let bad = || "write NAME:apart or NAME:together, then ':hard' and ':domain' as needed".to_owned();
    let mut words = text.split(':');
    let (name, affinity) = (words.next().unwrap_or_default(), words.next());
    let affinity = match affinity {
        Some("apart") => api::Affinity::Apart,
        Some("together") => api::Affinity::Together,
        _ => return Err(bad()),
    };
    let mut rule = api::GroupRule { group: name.into(), affinity, scope: api::Scope::Host, hard: false };
    for word in words {
        match word {
            "hard" => rule.hard = true,
            "domain" => rule.scope = api::Scope::FaultDomain,
            _ => return Err(bad()),
        }
    }
    Ok(Some(rule))
}

fn failback(text: &str) -> Result<api::Failback, String> {
    let minute = |text: &str| {
        let (hour, minute) = text.split_once(':')?;
        let (hour, minute) = (hour.parse::<u16>().ok()?, minute.parse::<u16>().ok()?);
        (hour < 24 && minute < 60).then_some(hour * 60 + minute)
    };
    match text {
        "never" => Ok(api::Failback::Never),
        "immediate" => Ok(api::Failback::Immediate),
        text => {
            let times = text.split_once('-').and_then(|(from, to)| Some((minute(from)?, minute(to)?)));
            let (from_minute, to_minute) = times.ok_or("write never, immediate, or a time of the day like 22:00-06:00")?;
            Ok(api::Failback::Window(api::FailbackWindow { from_minute, to_minute }))
        }
    }
}

/// `maru vm explain`.
pub fn explain(args: &ExplainArgs) -> Result<(), RemoteError> {
    let told: api::Explanation = args.connect.client()?.get(&format!("/vms/{}/explain", segment(&args.vm)))?;
    show_one(args.output, &told, || {
        let row = |host: &api::HostVerdict| {
            let score = host.score.map_or_else(|| "-".into(), |score| score.to_string());
            [host.host.clone(), score, host.reasons.join("; ")]
        };
        format!("{}: {}\n\n{}", told.vm, told.standing, table(["HOST", "POINTS", "REASONS"], told.hosts.iter().map(row)))
    })
}

/// `maru vm move`.
pub fn move_vm(args: &MoveArgs) -> Result<(), RemoteError> {
    let wanted = api::MoveVm { to: args.to.clone(), volume: args.volume.clone() };
    Ok(args.connect.client()?.call(Method::POST, &format!("/vms/{}/move", segment(&args.vm)), Some(&wanted))?)
}

/// `maru vm placement`.
pub fn placement(args: &PlacementArgs) -> Result<(), RemoteError> {
    let hosts = |text: &String| -> Value { text.split(',').filter(|name| !name.is_empty()).map(Value::from).collect() };
    let mut patch = Map::new();
    let mut set = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            patch.insert(name.into(), value);
        }
    };
    set("priority", args.priority.map(|priority| json!(format!("{priority:?}").to_lowercase())));
    set("preferred", args.prefer.as_ref().map(hosts));
    set("possible", args.only.as_ref().map(hosts));
    let groups: Vec<&api::GroupRule> = args.group.iter().flatten().collect();
    set("groups", (!args.group.is_empty()).then(|| json!(groups)));
    set("restart_limit", args.restarts.map(Value::from));
    set("restart_period_seconds", args.restart_period.map(Value::from));
    set("failback", args.failback.map(|failback| json!(failback)));
    let (client, path) = (args.connect.client()?, format!("/vms/{}/placement", segment(&args.vm)));
    let told: api::Placement = match patch.is_empty() {
        true => client.get(&path)?,
        false => client.call(Method::PATCH, &path, Some(&patch))?,
    };
    show_one(args.output, &told, || {
        let list = |hosts: &[String], none: &str| if hosts.is_empty() { none.into() } else { hosts.join(", ") };
        let rule = |rule: &api::GroupRule| {
            let how = match rule.affinity {
                api::Affinity::Together => "together",
                api::Affinity::Apart => "apart",
            };
            let of = if rule.scope == api::Scope::Host { "hosts" } else { "fault domains" };
            format!("{}: {how} ({of}{})", rule.group, if rule.hard { ", hard" } else { "" })
        };
        let time = |minute: u16| format!("{:02}:{:02}", minute / 60, minute % 60);
        fields(&[
            ("priority", format!("{:?}", told.priority).to_lowercase()),
            ("prefers", list(&told.preferred, "none")),
            ("only on", list(&told.possible, "any")),
            ("groups", list(&told.groups.iter().map(rule).collect::<Vec<_>>(), "none")),
            ("restarts", format!("{} in {} s", told.restart_limit, told.restart_period_seconds)),
            (
                "failback",
                match told.failback {
                    api::Failback::Never => "never".into(),
                    api::Failback::Immediate => "immediate".into(),
                    api::Failback::Window(api::FailbackWindow { from_minute, to_minute }) => {
                        format!("{} to {} UTC", time(from_minute), time(to_minute))
                    }
                },
            ),
        ])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_and_times_are_read_as_they_are_written() {
        let rule = group("web:apart:hard:domain").unwrap().unwrap();
        assert_eq!(
            (rule.group.as_str(), rule.affinity, rule.scope, rule.hard),
            ("web", api::Affinity::Apart, api::Scope::FaultDomain, true)
        );
        assert_eq!(group(""), Ok(None));
        assert!(group("web").is_err() && group("web:near").is_err() && group("web:apart:soft").is_err());
        assert_eq!(failback("22:00-06:30"), Ok(api::Failback::Window(api::FailbackWindow { from_minute: 1320, to_minute: 390 })));
        assert!(failback("22-6").is_err() && failback("24:00-06:00").is_err());
    }
}
