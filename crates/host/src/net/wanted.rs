//! Which ports there are to be, and what must be asked for so that there are.

use std::collections::BTreeMap;
use std::path::Path;

use switch::control::{Backend, PortConfig, Request};
use switch::mac::MacAddress;
use switch::policy::PortPolicy;
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

/// The ports that are wanted, by their names. `vms` are those that run, with their network cards.
pub fn ports(switches: &[SwitchRecord], vms: &[(Uuid, Vec<NetRecord>)], run_directory: &Path) -> BTreeMap<String, PortConfig> {
    let mut ports = BTreeMap::new();
    let mut add = |name: String, backend: Backend, policy: PortPolicy| {
        ports.insert(name.clone(), PortConfig { name, backend, policy });
    };
    for switch in switches {
        let Some(name) = port_of_switch(switch) else { continue };
        match &switch.kind {
            // Everything may go out, as it is.
            SwitchKindRecord::External { uplink } => {
                add(name, Backend::Uplink(uplink.clone()), PortPolicy { vlan: VlanMode::all(), ..PortPolicy::default() });
            }
            SwitchKindRecord::Internal { interface, .. } => add(name, Backend::Tap(interface.clone()), PortPolicy::default()),
            SwitchKindRecord::Private => {}
        }
    }
    for (vm, nets) in vms {
        for net in nets {
            let Some((_, policy)) = net.switch().filter(|(name, _)| switches.iter().any(|switch| switch.name == *name)) else {
                continue;
            };
            let socket = socket_directory(run_directory, *vm).join(&net.id);
            // An address that is none was refused when the card was made.
            let mac: Option<MacAddress> = net.mac.parse().ok();
            let backend = Backend::VhostUser { socket, mode: SOCKET_MODE, queues: 1 };
            add(port_name(*vm, &net.id), backend, PortPolicy { mac, ..policy.clone() });
        }
    }
    ports
}

/// What must be asked for: first what goes, then what changes, then what comes.
pub fn plan(now: &[PortConfig], wanted: &BTreeMap<String, PortConfig>) -> Vec<Request> {
    let (mut requests, mut changed) = (Vec::new(), Vec::new());
    for port in now {
        match wanted.get(&port.name) {
            Some(wanted) if PortConfig { policy: port.policy.clone(), ..wanted.clone() } == *port => {
                if wanted.policy != port.policy {
                    changed.push(Request::SetPolicy { name: port.name.clone(), policy: wanted.policy.clone() });
                }
            }
            _ => requests.push(Request::RemovePort { name: port.name.clone() }),
        }
    }
    requests.append(&mut changed);
    let stays = |port: &PortConfig| {
        now.iter().any(|own| own.name == port.name && PortConfig { policy: own.policy.clone(), ..port.clone() } == *own)
    };
    requests.extend(wanted.values().filter(|port| !stays(port)).map(|port| Request::AddPort { port: port.clone() }));
    requests
}

/// The port that a request is about.
pub fn subject(request: &Request) -> Option<&str> {
    match request {
        Request::AddPort { port } => Some(&port.name),
        Request::SetPolicy { name, .. } | Request::RemovePort { name } => Some(name),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::AttachmentRecord;

    const VM: Uuid = Uuid::from_u128(7);

    fn net(id: &str, switch: &str) -> NetRecord {
        let attachment = AttachmentRecord::Switch { switch: switch.into(), policy: PortPolicy::default().into() };
        NetRecord { id: id.into(), mac: "52:54:00:00:00:01".into(), attachment, disconnected: false }
    }

    fn wanted(nets: Vec<NetRecord>) -> BTreeMap<String, PortConfig> {
        let external = SwitchRecord { name: "wan".into(), kind: SwitchKindRecord::External { uplink: "eth1".into() } };
        let private = SwitchRecord { name: "lan".into(), kind: SwitchKindRecord::Private };
        ports(&[external, private], &[(VM, nets)], Path::new("/run/maru"))
    }

    #[test]
    fn running_cards_and_ways_out_have_ports() {
        let tap = NetRecord { attachment: AttachmentRecord::Tap { tap: "t".into() }, ..net("net9", "lan") };
        let ports = wanted(vec![net("net0", "lan"), net("net1", "gone"), tap]);
        assert_eq!(ports.keys().collect::<Vec<_>>(), [&port_name(VM, "net0"), "wan"]);
        let port = &ports[&port_name(VM, "net0")];
        let Backend::VhostUser { socket, .. } = &port.backend else { panic!("{port:?}") };
        assert_eq!(socket.to_str().unwrap(), format!("/run/maru/switch/ports/{VM}/net0"));
        assert_eq!(port.policy.mac.unwrap().to_string(), "52:54:00:00:00:01");
    }

    #[test]
    fn only_the_difference_is_asked_for() {
        let before: Vec<PortConfig> = wanted(vec![net("net0", "lan"), net("net1", "lan")]).into_values().collect();
        let mut after = wanted(vec![net("net0", "lan"), net("net2", "lan")]);
        assert_eq!(plan(&before, &wanted(vec![net("net0", "lan"), net("net1", "lan")])), []);
        let changed = after.get_mut(&port_name(VM, "net0")).unwrap();
        changed.policy.storm_limit = 9;
        let changed = changed.clone();
        after.get_mut("wan").unwrap().backend = Backend::Uplink("eth2".into());
        let (gone, new) = (port_name(VM, "net1"), after[&port_name(VM, "net2")].clone());
        let expected = [
            Request::RemovePort { name: gone },
            Request::RemovePort { name: "wan".into() },
            Request::SetPolicy { name: changed.name, policy: changed.policy },
            Request::AddPort { port: new },
            Request::AddPort { port: after["wan"].clone() },
        ];
        assert_eq!(plan(&before, &after), expected);
    }
}
