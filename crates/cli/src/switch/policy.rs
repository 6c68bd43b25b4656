//! What a port may do, as options.

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, ValueEnum};
use serde_json::{Map, Value, json};
use switch::mac::MacAddress;
use switch::vlan::{Vlan, VlanRange};

/// A port's policy, or a part of it.
#[derive(Debug, Default, Args)]
pub struct PolicyArgs {
    /// A file with all of the policy, as JSON
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// The VLAN that the port is in, 1 to 4094; none for frames in no VLAN
    #[arg(long, value_name = "VLAN|none", value_parser = access, group = "vlans")]
    vlan: Option<Access>,
    /// VLANs that go over the port with their tags, like 10-19,30
    #[arg(long, value_name = "VLANS", value_parser = ranges, group = "vlans")]
    trunk: Option<Ranges>,
    /// The VLAN of a trunk's frames without a tag
    #[arg(long, value_name = "VLAN", value_parser = vlan, requires = "trunk")]
    native: Option<Vlan>,
    /// The port's part in a private VLAN, like isolated:100:101, community:100:102 or promiscuous:100:101,102
    #[arg(long, value_name = "PART:PRIMARY:SECONDARY", value_parser = private, group = "vlans")]
    private_vlan: Option<Value>,
    /// The address behind a port of a switch that was started by hand: the only one that may send
    #[arg(long, value_name = "MAC")]
    mac: Option<MacAddress>,
    /// Whether it may send from other addresses than its own
    #[arg(long, value_name = "WHETHER")]
    mac_spoofing: Option<Permission>,
    /// Drop what it says as a DHCP server
    #[arg(long, value_name = "WHETHER")]
    dhcp_guard: Option<Switched>,
    /// Drop what it says as a router
    #[arg(long, value_name = "WHETHER")]
    router_guard: Option<Switched>,
    /// Broadcasts, multicasts and frames to unknown stations that it may send in a second; 0 for no limit
    #[arg(long, value_name = "FRAMES")]
    storm_limit: Option<u32>,
    /// Bits in a second that it may send, with the unit K, M or G (thousands); none for no limit
    #[arg(long, value_name = "BITS", value_parser = rate)]
    max_out: Option<u64>,
    /// Bits in a second that it may get; what is above it is dropped
    #[arg(long, value_name = "BITS", value_parser = rate)]
    max_in: Option<u64>,
    /// Bits in a second that are there for it on a shared wire whenever it wants them
    #[arg(long, value_name = "BITS", value_parser = rate)]
    min_out: Option<u64>,
    /// Its part of the rest of a shared wire, 1 to 100
    #[arg(long, value_name = "N")]
    weight: Option<u8>,
    /// Its part in mirroring
    #[arg(long, value_name = "PART")]
    mirror: Option<Mirror>,
}

#[derive(Clone, Copy, Debug)]
struct Access(Option<Vlan>);

#[derive(Clone, Debug)]
struct Ranges(Vec<VlanRange>);

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Permission {
    /// It may
    Allow,
    /// It may not
    Deny,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Switched {
    /// It is
    On,
    /// It is not
    Off,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Mirror {
    /// None
    None,
    /// What it sends and gets is copied
    Source,
    /// It gets the copies
    Destination,
}

/// Reads a VLAN.
pub fn vlan(text: &str) -> Result<Vlan, String> {
    let number: u16 = text.parse().map_err(|_| format!("'{text}' is no VLAN"))?;
    Vlan::try_from(number).map_err(|error| error.to_string())
}

fn access(text: &str) -> Result<Access, String> {
    if text == "none" { Ok(Access(None)) } else { vlan(text).map(|vlan| Access(Some(vlan))) }
}

fn ranges(text: &str) -> Result<Ranges, String> {
    let range = |text: &str| {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let range = VlanRange { first: vlan(first)?, last: vlan(last)? };
        if range.first > range.last { Err(format!("{text} ends before it begins")) } else { Ok(range) }
    };
    text.split(',').map(range).collect::<Result<_, _>>().map(Ranges)
}

fn private(text: &str) -> Result<Value, String> {
    let parts: Vec<&str> = text.split(':').collect();
    let [part, primary, secondary] = parts[..] else {
        return Err("write the part, the primary VLAN and the secondary one".into());
    };
    let primary = vlan(primary)?;
    match part {
        "isolated" | "community" => Ok(json!({"mode": part, "primary": primary, "secondary": vlan(secondary)?})),
        "promiscuous" => {
            let secondaries = secondary.split(',').map(vlan).collect::<Result<Vec<_>, _>>()?;
            Ok(json!({"mode": part, "primary": primary, "secondaries": secondaries}))
        }
        _ => Err(format!("'{part}' is none of isolated, community, promiscuous")),
    }
}

/// Bits in a second.
pub fn rate(text: &str) -> Result<u64, String> {
    if text == "none" {
        return Ok(0);
    }
    let units = [('K', 1000), ('M', 1_000_000), ('G', 1_000_000_000_u64)];
    let unit = units.into_iter().find_map(|(unit, bits)| Some((text.strip_suffix(unit)?, bits)));
    let (number, unit) = unit.unwrap_or((text, 1));
    let bits = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
    bits.ok_or_else(|| format!("'{text}' is no rate like 100M"))
}

impl PolicyArgs {
    /// Whether a whole policy is named.
    pub fn is_whole(&self) -> bool {
        self.policy.is_some()
    }

    /// What is named of a policy, as JSON.
    pub fn read(self) -> anyhow::Result<Value> {
        let mut policy = match &self.policy {
            None => Map::new(),
            Some(path) => {
                let text = std::fs::read_to_string(path).with_context(|| format!("cannot read the policy {}", path.display()))?;
                serde_json::from_str(&text).with_context(|| format!("{} is no policy", path.display()))?
            }
        };
        let vlan = match (self.vlan, self.trunk, self.private_vlan) {
            (Some(Access(None)), ..) => Some(json!({"mode": "untagged"})),
            (Some(Access(Some(vlan))), ..) => Some(json!({"mode": "access", "vlan": vlan})),
            (None, Some(Ranges(allowed)), _) => Some(match self.native {
                Some(native) => json!({"mode": "trunk", "native": native, "allowed": allowed}),
                None => json!({"mode": "trunk", "allowed": allowed}),
            }),
            (None, None, private) => private,
        };
        let rates = [("max-out-bps", self.max_out), ("max-in-bps", self.max_in), ("min-out-bps", self.min_out)];
        let weight = ("weight", self.weight.map(u64::from));
        let named: Vec<(&str, u64)> =
            rates.into_iter().chain([weight]).filter_map(|(name, value)| Some((name, value?))).collect();
        if !named.is_empty() {
            let bandwidth = policy.entry("bandwidth").or_insert_with(|| json!({})).as_object_mut();
            let bandwidth = bandwidth.context("the policy's bandwidth is no object")?;
            bandwidth.extend(named.into_iter().map(|(name, value)| (name.to_owned(), json!(value))));
        }
        let mut set = |name: &str, value: Option<Value>| drop(value.and_then(|value| policy.insert(name.into(), value)));
        set("vlan", vlan);
        set("mac", self.mac.map(|mac| json!(mac)));
        set("mac-spoofing", self.mac.map(|_| json!("deny")));
        set(
            "mac-spoofing",
            self.mac_spoofing.map(|it| if matches!(it, Permission::Allow) { json!("allow") } else { json!("deny") }),
        );
        let guard = |guard: Switched| if matches!(guard, Switched::On) { json!("deny") } else { json!("allow") };
        set("dhcp-server", self.dhcp_guard.map(guard));
        set("router", self.router_guard.map(guard));
        set("storm-limit", self.storm_limit.map(|limit| json!(limit)));
        let mirror = |mirror: Mirror| match mirror {
            Mirror::None => "none",
            Mirror::Source => "source",
            Mirror::Destination => "destination",
        };
        set("mirroring", self.mirror.map(|part| json!(mirror(part))));
        Ok(Value::Object(policy))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Policy {
        #[command(flatten)]
        args: PolicyArgs,
    }

    fn read(words: &[&str]) -> Result<Value, String> {
        let policy = Policy::try_parse_from([&["policy"], words].concat()).map_err(|error| error.to_string())?;
        policy.args.read().map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn what_is_named_becomes_a_policy_and_nothing_else() {
        assert_eq!(read(&[]), Ok(json!({})));
        assert_eq!(read(&["--vlan", "10"]), Ok(json!({"vlan": {"mode": "access", "vlan": 10}})));
        assert_eq!(read(&["--vlan", "none"]), Ok(json!({"vlan": {"mode": "untagged"}})));
        let trunk = json!({"mode": "trunk", "native": 1, "allowed": [{"first": 10, "last": 19}, {"first": 30, "last": 30}]});
        assert_eq!(read(&["--trunk", "10-19,30", "--native", "1"]), Ok(json!({ "vlan": trunk })));
        let promiscuous = json!({"mode": "promiscuous", "primary": 100, "secondaries": [101, 102]});
        assert_eq!(read(&["--private-vlan", "promiscuous:100:101,102"]), Ok(json!({ "vlan": promiscuous })));
        let words = [
            "--mac-spoofing",
            "allow",
            "--dhcp-guard",
            "on",
            "--router-guard",
            "off",
            "--storm-limit",
            "9",
            "--mirror",
            "source",
        ];
        let expected =
            json!({"mac-spoofing": "allow", "dhcp-server": "deny", "router": "allow", "storm-limit": 9, "mirroring": "source"});
        assert_eq!(read(&words), Ok(expected));
        let bandwidth = json!({"bandwidth": {"max-out-bps": 100_000_000, "max-in-bps": 0, "weight": 5}});
        assert_eq!(read(&["--max-out", "100M", "--max-in", "none", "--weight", "5"]), Ok(bandwidth));
        let mac = "52:54:00:00:00:01";
        assert_eq!(read(&["--mac", mac]), Ok(json!({"mac": mac, "mac-spoofing": "deny"})));
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), r#"{"storm-limit": 5, "router": "deny"}"#).unwrap();
        let path = file.path().to_str().unwrap();
        assert_eq!(read(&["--policy", path, "--storm-limit", "6"]), Ok(json!({"storm-limit": 6, "router": "deny"})));
    }

    #[test]
    fn mistakes_are_explained() {
        for (words, expected) in [
            (&["--vlan", "4095"][..], "1 to 4094"),
            (&["--vlan", "1", "--trunk", "2"], "cannot be used with"),
            (&["--native", "1"], "--trunk"),
            (&["--trunk", "9-1"], "ends before"),
            (&["--private-vlan", "isolated:1"], "the secondary one"),
            (&["--private-vlan", "lonely:1:2"], "none of isolated"),
            (&["--max-out", "fast"], "no rate"),
            (&["--mac", "1"], "no MAC address"),
            (&["--policy", "/nonexistent"], "cannot read the policy"),
        ] {
            let error = read(words).unwrap_err();
            assert!(error.contains(expected), "{words:?}: {error}");
        }
    }
}
