//! Which switches and ports there are to be, and what must be asked for so that there are.

use std::collections::BTreeMap;
use std::path::Path;

use switch::control::{Backend, PortConfig, Request, SwitchKind};
use switch::links::Missing;
use switch::policy::{Bandwidth, PortPolicy};
use switch::team::config::TeamConfig;
use switch::vlan::VlanMode;
use uuid::Uuid;

use super::socket_directory;
use crate::records::{NetRecord, SwitchKindRecord, SwitchRecord};

/// The rights of a port's socket. Who may get there is decided by its directory.
const SOCKET_MODE: u32 = 0o666;

/// The name that the port of a network card has in the switch.
pub fn port_name(vm: Uuid, net: &str) -> String {
    format!("{vm}/{net}")
}

/// The name of a switch's own port, if it has one: its way out, or the host.
pub fn port_of_switch(switch: &SwitchRecord) -> Option<String> {
    match switch.kind {
        SwitchKindRecord::External { .. } | SwitchKindRecord::Internal { .. } => Some(switch.name.clone()),
        SwitchKindRecord::Private => None,
    }
}

/// Switches and ports, as they are or are to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// The switches that were added to the process.
    pub switches: BTreeMap<String, SwitchKind>,
    /// The ports by their names.
    pub ports: BTreeMap<String, PortConfig>,
}

impl Config {
    /// What is wanted. `vms` are those that run, with their network cards.
    pub fn wanted(switches: &[SwitchRecord], vms: &[(Uuid, Vec<NetRecord>)], run_directory: &Path) -> Config {
        let mut config = Config::default();
        for switch in switches {
            let mut bandwidth = Bandwidth::default();
            let (kind, backend, vlan) = match &switch.kind {
                // Everything may go out, as it is.
                SwitchKindRecord::External { uplink, capacity_bps, datapath } => {
                    bandwidth.capacity_bps = *capacity_bps;
                    let team = TeamConfig { datapath: *datapath, ..uplink.team() };
                    (SwitchKind::External, Some(Backend::from(team)), VlanMode::all())
                }
                SwitchKindRecord::Internal { interface, .. } => {
                    (SwitchKind::Internal, Some(Backend::Tap(interface.clone())), VlanMode::Untagged)
                }
                SwitchKindRecord::Private => (SwitchKind::Private, None, VlanMode::Untagged),
            };
            config.switches.insert(switch.name.clone(), kind);
            if let Some((name, backend)) = port_of_switch(switch).zip(backend) {
                let policy = PortPolicy { vlan, bandwidth, ..PortPolicy::default() };
                config.add(PortConfig { name, switch: switch.name.clone(), backend, policy });
            }
        }
        for (vm, net) in vms.iter().flat_map(|(vm, nets)| nets.iter().map(move |net| (vm, net))) {
            let Some((switch, policy)) = net.switch().filter(|(name, _)| config.switches.contains_key(*name)) else { continue };
            let socket = socket_directory(run_directory, *vm).join(&net.id);
            let backend = Backend::VhostUser { socket, mode: SOCKET_MODE, queues: 1 };
            // An address that is none was refused when the card was made.
            let policy = PortPolicy { mac: net.mac.parse().ok(), ..policy.clone() };
            config.add(PortConfig { name: port_name(*vm, &net.id), switch: switch.into(), backend, policy });
        }
        config
    }

    fn add(&mut self, port: PortConfig) {
        self.ports.insert(port.name.clone(), port);
    }

    /// Whether a port can stay when this becomes what is wanted. An uplink gets other NICs while it is there, but for one that another port has
    /// now.
    fn keeps(&self, name: &str, wanted: &Config) -> bool {
        let (Some(own), Some(new)) = (self.ports.get(name), wanted.ports.get(name)) else { return false };
        let kind = |config: &Config| config.switches.get(&own.switch).copied();
        if own.switch != new.switch || kind(self) != kind(wanted) {
            return false;
        }
        let (before, after) = (own.backend.nics(), new.backend.nics());
        let mut others = self.ports.values().filter(|port| port.name != name);
        let is_taken = others.any(|port| port.backend.nics().iter().any(|nic| after.contains(nic)));
        own.backend == new.backend || !(before.is_empty() || after.is_empty() || is_taken)
    }

    /// What must be asked for so that this becomes what is wanted: first what goes, then what changes, then what comes.
    pub fn plan(&self, wanted: &Config) -> Vec<Request> {
        let stays = |(name, kind): &(&String, &SwitchKind)| wanted.switches.get(*name) == Some(kind);
        let is_there = |(name, kind): &(&String, &SwitchKind)| self.switches.get(*name) == Some(kind);
        let gone = self.ports.keys().filter(|name| !self.keeps(name, wanted));
        let mut requests: Vec<Request> = gone.map(|name| Request::RemovePort { name: name.clone() }).collect();
        let gone = self.switches.iter().filter(|switch| !stays(switch));
        requests.extend(gone.map(|(name, _)| Request::RemoveSwitch { name: name.clone() }));
        let kept = wanted.ports.values().filter(|port| self.keeps(&port.name, wanted));
        for (own, port) in kept.filter_map(|port| Some((self.ports.get(&port.name)?, port))) {
            let name = port.name.clone();
            match &port.backend {
                backend if *backend == own.backend => {}
                Backend::Uplink(nic) => requests.push(Request::SetTeam { name, team: TeamConfig::single(nic) }),
                Backend::Team(team) => requests.push(Request::SetTeam { name, team: team.clone() }),
                Backend::VhostUser { .. } | Backend::Tap(_) => {}
            }
            if port.policy != own.policy {
                requests.push(Request::SetPolicy { name: port.name.clone(), policy: port.policy.clone() });
            }
        }
        let new = wanted.switches.iter().filter(|switch| !is_there(switch));
        requests.extend(new.map(|(name, kind)| Request::AddSwitch { name: name.clone(), kind: *kind }));
        let new = wanted.ports.values().filter(|port| !self.keeps(&port.name, wanted));
        // A NIC that is not there may be plugged in.
        requests.extend(new.map(|port| Request::AddPort { port: port.clone(), missing: Missing::Awaited }));
        requests
    }
}

/// The name of the port or switch that a request of a plan is about.
pub fn subject(request: &Request) -> &str {
    match request {
        Request::AddPort { port, .. } => &port.name,
        Request::SetPolicy { name, .. } | Request::SetTeam { name, .. } | Request::RemovePort { name } => name,
        Request::AddSwitch { name, .. } | Request::RemoveSwitch { name } => name,
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use switch::team::config::Datapath;

    use super::*;
    use crate::records::AttachmentRecord;

    const VM: Uuid = Uuid::from_u128(7);

    fn net(id: &str, switch: &str) -> NetRecord {
        let attachment = AttachmentRecord::Switch { switch: switch.into(), policy: PortPolicy::default().into() };
        NetRecord { id: id.into(), mac: "52:54:00:00:00:01".into(), name: None, attachment, disconnected: false }
    }

    fn external(nics: &[&str], capacity_bps: u64) -> SwitchKindRecord {
        let nics = nics.iter().map(ToString::to_string).collect();
        let uplink = TeamConfig { nics, ..TeamConfig::single("") }.into();
        SwitchKindRecord::External { uplink, capacity_bps, datapath: Datapath::default() }
    }

    fn wanted(nets: Vec<NetRecord>) -> Config {
        let external = SwitchRecord { name: "wan".into(), kind: external(&["eth1"], 0) };
        let private = SwitchRecord { name: "lan".into(), kind: SwitchKindRecord::Private };
        Config::wanted(&[external, private], &[(VM, nets)], Path::new("/run/maru"))
    }

    #[test]
    fn running_cards_and_ways_out_have_ports() {
        let tap = NetRecord { attachment: AttachmentRecord::Tap { tap: "t".into() }, ..net("net9", "lan") };
        let config = wanted(vec![net("net0", "lan"), net("net1", "gone"), tap]);
        assert_eq!(config.ports.keys().collect::<Vec<_>>(), [&port_name(VM, "net0"), "wan"]);
        let port = &config.ports[&port_name(VM, "net0")];
        let Backend::VhostUser { socket, .. } = &port.backend else { panic!("{port:?}") };
        assert_eq!(socket.to_str().unwrap(), format!("/run/maru/switch/ports/{VM}/net0"));
        assert_eq!((port.policy.mac.unwrap().to_string().as_str(), port.switch.as_str()), ("52:54:00:00:00:01", "lan"));
    }

    #[test]
    fn only_the_difference_is_asked_for() {
        let before = wanted(vec![net("net0", "lan"), net("net1", "lan")]);
        assert_eq!(before.plan(&before), []);
        let mut after = wanted(vec![net("net0", "lan"), net("net2", "lan")]);
        let changed = after.ports.get_mut(&port_name(VM, "net0")).unwrap();
        changed.policy.storm_limit = 9;
        let changed = changed.clone();
        after.ports.get_mut("wan").unwrap().backend = Backend::Uplink("eth2".into());
        after.ports.get_mut("wan").unwrap().policy.bandwidth.capacity_bps = 8000;
        after.switches.insert("more".into(), SwitchKind::Private);
        let new = after.ports[&port_name(VM, "net2")].clone();
        let expected = [
            Request::RemovePort { name: port_name(VM, "net1") },
            Request::SetPolicy { name: changed.name, policy: changed.policy },
            Request::SetTeam { name: "wan".into(), team: TeamConfig::single("eth2") },
            Request::SetPolicy { name: "wan".into(), policy: after.ports["wan"].policy.clone() },
            Request::AddSwitch { name: "more".into(), kind: SwitchKind::Private },
            Request::AddPort { port: new, missing: Missing::Awaited },
        ];
        assert_eq!(before.plan(&after), expected);
    }

    #[test]
    fn an_uplink_gets_another_datapath_while_it_is_there() {
        let before = wanted(vec![]);
        let SwitchKindRecord::External { uplink, capacity_bps, .. } = external(&["eth1"], 0) else { panic!() };
        let kind = SwitchKindRecord::External { uplink, capacity_bps, datapath: Datapath::AfXdp };
        let mut after = before.clone();
        let by_xdp = Config::wanted(&[SwitchRecord { name: "wan".into(), kind }], &[], Path::new("/run/maru"));
        after.ports.extend(by_xdp.ports);
        let team = TeamConfig { datapath: Datapath::AfXdp, ..TeamConfig::single("eth1") };
        assert_eq!(before.plan(&after), [Request::SetTeam { name: "wan".into(), team }]);
    }

    #[test]
    fn a_nic_that_another_uplink_has_is_taken_away_from_it_first() {
        let switches = |first: &[&str], second: &[&str]| {
            let switch = |name: &str, nics: &[&str]| SwitchRecord { name: name.into(), kind: external(nics, 0) };
            Config::wanted(&[switch("a", first), switch("b", second)], &[], Path::new("/run/maru"))
        };
        let before = switches(&["eth1", "eth2"], &["eth3"]);
        let after = switches(&["eth1"], &["eth2", "eth3"]);
        let expected = [
            Request::RemovePort { name: "b".into() },
            Request::SetTeam { name: "a".into(), team: TeamConfig::single("eth1") },
            Request::AddPort { port: after.ports["b"].clone(), missing: Missing::Awaited },
        ];
        assert_eq!(before.plan(&after), expected);
        let crossed = switches(&["eth3"], &["eth1", "eth2"]);
        let removed = before.plan(&crossed).into_iter().filter(|request| matches!(request, Request::RemovePort { .. }));
        assert_eq!(removed.count(), 2);
    }

    #[test]
    fn a_switch_of_another_kind_is_a_new_one_with_new_ports() {
        let before = wanted(vec![net("net0", "lan")]);
        let mut after = before.clone();
        after.switches.insert("lan".into(), SwitchKind::Internal);
        let port = after.ports[&port_name(VM, "net0")].clone();
        let expected = [
            Request::RemovePort { name: port.name.clone() },
            Request::RemoveSwitch { name: "lan".into() },
            Request::AddSwitch { name: "lan".into(), kind: SwitchKind::Internal },
            Request::AddPort { port, missing: Missing::Awaited },
        ];
        assert_eq!(before.plan(&after), expected);
        let nothing = Config::default();
        assert_eq!(before.plan(&nothing).len(), 4);
    }
}
