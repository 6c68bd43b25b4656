//! Our switch, with what a case needs.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use bench::vswitch::Switch;
use switch::acl::{Direction, Effect, ExtendedRule};
use switch::policy::{Permission, PortPolicy};
use switch::vlan::{Vlan, VlanMode};

use crate::{Case, testpmd::MACS};

/// Rules that do not match, in the cases that have some.
pub const RULES: u32 = 100;

/// Starts a switch with two ports, which polls all the time, on one core.
pub fn start(directory: &Path, core: usize, case: Case) -> Result<Switch> {
    let policies = MACS.map(|mac| policy(case, mac));
    Switch::start(directory, Some(core), &policies.into_iter().collect::<Result<Vec<_>>>()?)
}

/// The same with so many rules at each port that do not match.
pub fn start_with_rules(directory: &Path, core: usize, rules: u32) -> Result<Switch> {
    let policy = |mac: &str| -> Result<PortPolicy> {
        Ok(PortPolicy { mac: Some(mac.parse()?), extended_acl: strangers(rules), ..PortPolicy::default() })
    };
    Switch::start(directory, Some(core), &MACS.into_iter().map(policy).collect::<Result<Vec<_>>>()?)
}

fn rule(effect: Effect, direction: Direction, weight: u32, remote: Option<Ipv4Addr>) -> ExtendedRule {
    ExtendedRule {
        effect,
        direction,
        weight,
        local: None,
        remote: remote.and_then(|remote| format!("{remote}/32").parse().ok()),
        protocol: None,
        local_ports: None,
        remote_ports: None,
    }
}

/// So many rules against as many stations that are not there.
fn strangers(count: u32) -> Vec<ExtendedRule> {
    let strangers = (0..count).map(|number| Ipv4Addr::new(10, 0, (number >> 8) as u8, number as u8));
    strangers.zip(1..).map(|(remote, weight)| rule(Effect::Deny, Direction::Inbound, weight, Some(remote))).collect()
}

/// The policy of a case for the port of a station.
fn policy(case: Case, mac: &str) -> Result<PortPolicy> {
    let plain = PortPolicy { mac: Some(mac.parse()?), ..PortPolicy::default() };
    let directions = [Direction::Inbound, Direction::Outbound];
    Ok(match case {
        Case::Hit | Case::Long => PortPolicy { extended_acl: strangers(RULES), ..plain },
        Case::Learn => PortPolicy {
            mac_spoofing: Permission::Deny,
            dhcp_server: Permission::Deny,
            router: Permission::Deny,
            vlan: VlanMode::Community { primary: Vlan::try_from(100)?, secondary: Vlan::try_from(101)? },
            ..plain
        },
        Case::Stateful => {
            let rules = directions.map(|direction| rule(Effect::AllowStateful { idle_timeout_s: 60 }, direction, 1, None));
            PortPolicy { extended_acl: rules.into(), ..plain }
        }
    })
}

/// The part of a core that a switch takes with so many ports and nothing to do.
pub fn idle(directory: &Path, ports: usize, time: Duration) -> Result<f64> {
    let switch = Switch::start(directory, None, &vec![PortPolicy::default(); ports])?;
    let stat = format!("/proc/{}/stat", switch.pid());
    let ticks = || -> Result<u64> {
        let text = std::fs::read_to_string(&stat)?;
        let fields: Vec<&str> = text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        Ok(fields[11].parse::<u64>()? + fields[12].parse::<u64>()?)
    };
    let begun = (Instant::now(), ticks()?);
    std::thread::sleep(time);
    // SAFETY: no memory is involved.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64;
    Ok((ticks()? - begun.1) as f64 / per_second / begun.0.elapsed().as_secs_f64())
}
