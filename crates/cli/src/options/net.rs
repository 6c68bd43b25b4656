//! `--net tap=NAME...`, and what replaces the host's side of a saved VM's network card.

use std::str::FromStr;

use vmm::config::{MacAddress, NetBackend, NetConfig, NetLimits};

use super::disk::device_id;
use super::{OptionError, Parts, absolute};

/// The form of a network card.
pub const NET_FORM: &str = "tap=NAME|vhost-user=SOCKET[,mac=MAC][,name=NAME][,queues=N][,mtu=N][,id=ID]";
/// The form of another host side for a saved VM's network card.
const NET_OVERRIDE_FORM: &str = "ID=tap=NAME or ID=vhost-user=SOCKET (with --restore)";

/// A network card as it is written on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetOption {
    backend: NetBackend,
    mac: Option<MacAddress>,
    name: Option<String>,
    queue_pairs: u16,
    mtu: Option<u16>,
    id: Option<String>,
}

impl FromStr for NetOption {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<NetOption, OptionError> {
        let mut parts = Parts::new(text, NET_FORM)?;
        let option = NetOption {
            backend: backend(&mut parts)?,
            mac: parts.value("mac")?,
            name: parts.text("name")?,
            queue_pairs: parts.number("queues")?.unwrap_or(1),
            mtu: parts.number("mtu")?,
            id: device_id(&mut parts)?,
        };
        if option.queue_pairs == 0 {
            return Err(parts.wrong("queues", "a network card has at least one queue"));
        }
        // virtio 1.2 §5.1.4.1.
        if option.mtu.is_some_and(|mtu| mtu < 68) {
            return Err(parts.wrong("mtu", "the smallest is 68"));
        }
        parts.finish()?;
        Ok(option)
    }
}

impl NetOption {
    /// The network card: called `default_id` if it has no name of its own, with the address `default_mac` if it has none.
    pub fn config(self, default_id: impl FnOnce() -> String, default_mac: impl FnOnce() -> MacAddress) -> NetConfig {
        NetConfig {
            id: self.id.unwrap_or_else(default_id),
            mac: self.mac.unwrap_or_else(default_mac),
            name: self.name,
            queue_pairs: self.queue_pairs,
            mtu: self.mtu,
            backend: self.backend,
            slot: None,
            limits: NetLimits::default(),
        }
    }
}

fn backend(parts: &mut Parts) -> Result<NetBackend, OptionError> {
    let tap = parts.text("tap")?.map(NetBackend::Tap);
    let socket = parts.text("vhost-user")?.map(|socket| NetBackend::VhostUser(absolute(socket.as_ref())));
    match (tap, socket) {
        (Some(_), Some(_)) => Err(parts.wrong("vhost-user", "a network card has one host side, and tap= is given too")),
        (None, None) => Err(OptionError::Missing { what: "tap= or vhost-user=", form: parts.form }),
        (tap, socket) => tap.or(socket).ok_or(OptionError::Missing { what: "tap= or vhost-user=", form: parts.form }),
    }
}

/// Another host side for a saved VM's network card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetOverride {
    /// The card.
    pub id: String,
    /// What carries its frames here.
    pub backend: NetBackend,
}

impl FromStr for NetOverride {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<NetOverride, OptionError> {
        let missing = OptionError::Missing { what: "the card's name or its host side", form: NET_OVERRIDE_FORM };
        let (id, rest) =
            text.split_once('=').filter(|(id, _)| !id.is_empty() && *id != "tap" && *id != "vhost-user").ok_or(missing)?;
        let mut parts = Parts::new(rest, NET_OVERRIDE_FORM)?;
        let backend = backend(&mut parts)?;
        parts.finish()?;
        Ok(NetOverride { id: id.into(), backend })
    }
}

/// The address of a VM's card number `index` that is given none: always the same for the same VM, so that the guest finds
/// its card again. `52:54:00` is what virtual machines use; the rest is a hash (FNV-1a) of name and number.
pub fn default_mac(vm: &str, index: usize) -> MacAddress {
    let text = format!("{vm}\0{index}");
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let [a, b, c, d, e, f, ..] = hash.to_le_bytes();
    MacAddress([0x52, 0x54, 0x00, a ^ d, b ^ e, c ^ f])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<NetConfig, OptionError> {
        text.parse::<NetOption>().map(|option| option.config(|| "net0".into(), || default_mac("vm", 0)))
    }

    #[test]
    fn a_host_side_is_enough() {
        let net = parse("tap=tap0").unwrap();
        assert_eq!((net.id.as_str(), net.queue_pairs, net.mtu), ("net0", 1, None));
        assert_eq!((net.backend, net.mac), (NetBackend::Tap("tap0".into()), default_mac("vm", 0)));
    }

    #[test]
    fn every_part_in_any_order_arrives() {
        let net = parse("id=lan,mtu=9000,queues=4,mac=52:54:00:aa:bb:cc,name=storage,vhost-user=/run/s").unwrap();
        assert_eq!((net.id.as_str(), net.queue_pairs, net.mtu), ("lan", 4, Some(9000)));
        assert_eq!(net.backend, NetBackend::VhostUser("/run/s".into()));
        assert_eq!((net.mac.to_string().as_str(), net.name.as_deref()), ("52:54:00:aa:bb:cc", Some("storage")));
    }

    #[test]
    fn mistakes_name_the_part_and_show_the_form() {
        let cases = [
            ("", "tap= or vhost-user= is missing"),
            ("tap0", "tap= or vhost-user= is missing"),
            ("tap=", "tap: it needs a value"),
            ("tap=a,vhost-user=/s", "one host side"),
            ("tap=a,mac=1", "mac: '1' is no MAC address"),
            ("tap=a,mac=53:54:00:12:34:56", "address of a group"),
            ("tap=a,queues=0", "at least one queue"),
            ("tap=a,queues=-1", "'-1' is no number"),
            ("tap=a,mtu=67", "the smallest is 68"),
            ("tap=a,mtu=70000", "'70000' is no number"),
            ("tap=a,id=", "id: it needs a value"),
            ("tap=a,bridge=b", "there is no part 'bridge'"),
        ];
        for (text, expected) in cases {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(expected) && error.ends_with(NET_FORM), "{text}: {error}");
        }
    }

    #[test]
    fn an_override_is_a_name_and_a_host_side() {
        let wanted = NetOverride { id: "net0".into(), backend: NetBackend::Tap("tap7".into()) };
        assert_eq!("net0=tap=tap7".parse(), Ok(wanted));
        let switch = "lan=vhost-user=/s".parse::<NetOverride>().unwrap();
        assert_eq!(switch.backend, NetBackend::VhostUser("/s".into()));
        for text in ["tap=tap7", "net0", "net0=tap7", "=tap=x", "net0=tap=a,mtu=1500"] {
            assert!(text.parse::<NetOverride>().unwrap_err().to_string().contains("ID=tap=NAME"), "{text}");
        }
    }

    #[test]
    fn default_addresses_are_stable_and_differ() {
        assert_eq!(default_mac("web", 0), default_mac("web", 0));
        // Guests remember their cards by this address: it must never change between releases.
        assert_eq!(default_mac("vm", 0).to_string(), "52:54:00:85:ce:a4");
        let all: std::collections::HashSet<_> = (0..64).map(|i| default_mac("web", i).0).collect();
        assert_eq!(all.len(), 64);
        assert_ne!(default_mac("web", 0), default_mac("db", 0));
    }
}
