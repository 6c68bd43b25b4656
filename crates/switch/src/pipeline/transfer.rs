//! What a port knows, taken along when its VM moves to a switch of another process.
//!
//! The connections of a port may be many, and frames of all ports wait meanwhile: they are exported and imported some at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{Limits, PortError, PortNumber, Switch};
use crate::acl::{ConnectionKey, Direction, PrefixAction};
use crate::counters::{CounterReport, Counters};
use crate::mac::MacAddress;
use crate::policy::{PolicyError, PortPolicy};
use crate::tables::{Learned, Millis, RuleCount};

/// The form that is written and read.
pub const PORT_STATE_VERSION: u32 = 1;

/// A port's policy and what it knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PortState {
    /// [`PORT_STATE_VERSION`].
    pub version: u32,
    /// Its policy.
    pub policy: PortPolicy,
    /// Connections that its stateful rules remember.
    pub connections: Vec<ConnectionState>,
    /// Stations behind it.
    pub stations: Vec<StationState>,
    /// What it has counted.
    pub counters: CounterReport,
    /// Bytes that its meters counted, by the number of the rule.
    pub meters: BTreeMap<u32, u64>,
    /// What its rules by longest prefix have decided.
    #[serde(default)]
    pub acl_counts: Vec<RuleCount>,
    /// What its rules by weight have decided.
    #[serde(default)]
    pub extended_acl_counts: Vec<RuleCount>,
}

/// A connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ConnectionState {
    /// The address behind the port.
    pub local: IpAddr,
    /// The other address.
    pub remote: IpAddr,
    /// IANA's number.
    pub protocol: u8,
    /// Port, echo identifier, or zero.
    pub local_port: u16,
    /// Port, echo identifier, or zero.
    pub remote_port: u16,
    /// In which direction it was opened.
    pub opened: Direction,
    /// Milliseconds since the last packet.
    pub idle_ms: u64,
    /// Milliseconds without a packet after which it is over.
    pub idle_timeout_ms: u64,
}

/// A station.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct StationState {
    /// Its address.
    pub mac: MacAddress,
    /// Its VLAN; of a private VLAN, the primary; 0 for none.
    pub vlan: u16,
}

/// What an import came to. What is left out is over, not allowed by the rules, or above a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Imported {
    /// Connections that stand.
    pub connections: usize,
    /// Connections that do not.
    pub connections_left_out: usize,
    /// Stations that are now behind the port.
    pub stations: usize,
    /// Stations that are not.
    pub stations_left_out: usize,
}

/// Why nothing was imported.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImportError {
    /// Of a later release.
    #[error("a port's state of version {0}: this switch reads version {PORT_STATE_VERSION}; upgrade it")]
    Version(u32),
    /// More than the port may have.
    #[error("{count} {what}: the switch and the policy that comes with them allow {most}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// So many.
        count: usize,
        /// Not more than so many.
        most: usize,
    },
    /// A connection between addresses of two kinds.
    #[error("a connection between {local} and {remote}: both are of IPv4, or both of IPv6")]
    MixedAddresses {
        /// One side.
        local: IpAddr,
        /// The other.
        remote: IpAddr,
    },
    /// A station that cannot be one.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The port or its policy.
    #[error(transparent)]
    Port(#[from] PortError),
}

impl PortState {
    /// Whether it makes sense by itself.
    fn check(&self, limits: &Limits) -> Result<(), ImportError> {
        if self.version != PORT_STATE_VERSION {
            return Err(ImportError::Version(self.version));
        }
        let counts = [
            ("connections", self.connections.len(), limits.connections.min(self.policy.max_connections as usize)),
            ("stations", self.stations.len(), limits.stations.min(self.policy.max_stations as usize)),
        ];
        if let Some((what, count, most)) = counts.into_iter().find(|(_, count, most)| count > most) {
            return Err(ImportError::TooMany { what, count, most });
        }
        if let Some(mixed) = self.connections.iter().find(|one| one.local.is_ipv4() != one.remote.is_ipv4()) {
            return Err(ImportError::MixedAddresses { local: mixed.local, remote: mixed.remote });
        }
        match self.stations.iter().find(|station| !station.mac.is_station()) {
            Some(station) => Err(PolicyError::Mac(station.mac).into()),
            None => Ok(()),
        }
    }
}

impl Switch {
    /// All of a port but its connections. Its rules have decided what [`Switch::rule_counts`] says.
    pub fn export_port(&self, number: PortNumber) -> Result<PortState, PortError> {
        let port = self.port(number)?;
        let stations = self.stations.iter().filter(|station| station.port == number);
        Ok(PortState {
            version: PORT_STATE_VERSION,
            policy: port.policy.clone(),
            connections: Vec::new(),
            stations: stations.map(|station| StationState { mac: station.mac, vlan: station.domain.vlan }).collect(),
            counters: port.counters.report(),
            meters: port.meters.clone(),
            acl_counts: self.rules.get(&port.places.acl),
            extended_acl_counts: self.rules.get(&port.places.extended),
        })
    }

    /// Those of a port's connections that are among `count` places of the table from `from` on, and where the next ones are.
    pub fn export_connections(
        &self,
        number: PortNumber,
        from: usize,
        count: usize,
        now: Millis,
    ) -> (Vec<ConnectionState>, Option<usize>) {
        let (found, next) = self.connections.part(number, from, count, now);
        let state = |(key, opened, idle_ms, idle_timeout_ms): (ConnectionKey, Direction, Millis, Millis)| {
            let ConnectionKey { local, remote, protocol, local_port, remote_port, .. } = key;
            ConnectionState { local, remote, protocol, local_port, remote_port, opened, idle_ms, idle_timeout_ms }
        };
        (found.into_iter().map(state).collect(), next)
    }

    /// Gives a port the policy, stations and counters of another one. Its connections are then to be imported. On an error, nothing
    /// changed.
    pub fn import_port(&mut self, number: PortNumber, state: &PortState, now: Millis) -> Result<Imported, ImportError> {
        state.check(&self.limits)?;
        self.set_policy(number, state.policy.clone())?;
        let Switch { ports, stations, domains, rules, .. } = self;
        let Some(port) = ports[usize::from(number)].as_mut() else { return Err(PortError::NoPort(number).into()) };
        port.counters = Counters::from(&state.counters);
        rules.set(&port.places.acl, &state.acl_counts);
        rules.set(&port.places.extended, &state.extended_acl_counts);
        let is_meter = |rule: &u32| port.policy.acl.get(*rule as usize).is_some_and(|rule| rule.action == PrefixAction::Meter);
        port.meters = state.meters.iter().filter(|(rule, _)| is_meter(rule)).map(|(rule, bytes)| (*rule, *bytes)).collect();
        let own: BTreeSet<_> = port.policy.vlan.given().map(|vlan| domains.of(port.switch, vlan)).collect();
        let only = port.only_station();
        let most = port.policy.max_stations;
        let mut imported = Imported::default();
        for station in &state.stations {
            let domain = own.iter().find(|domain| domain.vlan == station.vlan);
            let learned = domain
                .filter(|_| only.is_none_or(|mac| mac == station.mac))
                .map(|domain| stations.learn(*domain, station.mac, number, only.is_some(), most, now));
            match learned.and_then(Learned::station) {
                Some(_) => imported.stations += 1,
                None => imported.stations_left_out += 1,
            }
        }
        Ok(imported)
    }

    /// Has connections of another port stand at this one, with the idle time that they have left. Returns how many do; those that its
    /// rules would not remember do not.
    ///
    /// The clock must have begun so long ago as connections may be idle.
    pub fn import_connections(
        &mut self,
        number: PortNumber,
        connections: &[ConnectionState],
        now: Millis,
    ) -> Result<usize, PortError> {
        self.port(number)?;
        let Switch { ports, connections: table, .. } = self;
        let Some(port) = ports[usize::from(number)].as_ref() else { return Err(PortError::NoPort(number)) };
        let stands = |one: &&ConnectionState| {
            let ConnectionState { local, remote, protocol, local_port, remote_port, opened, idle_ms, idle_timeout_ms } = **one;
            let key = ConnectionKey { port: number, local, remote, protocol, local_port, remote_port };
            let Some(by) = port.remembers(&key, opened) else { return false };
            idle_ms <= by.idle_timeout.min(idle_timeout_ms)
                && table.restore(key, opened, by, idle_ms, port.policy.max_connections, now)
        };
        Ok(connections.iter().filter(stands).count())
    }
}
