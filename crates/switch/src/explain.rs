//! Traces in words, and which frames are traced.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::acl::{Direction, Prefix, Verdict};
use crate::counters::DropReason;
use crate::frame::{Fragment, Frame, ICMP, ICMPV6, TCP, Transport, UDP};
use crate::mac::MacAddress;
use crate::pipeline::{Action, Destination, PortNumber, Step, TagEdit, Trace};
use crate::tables::Learned;
use crate::vlan::Wire;

/// The ports' names by their numbers.
pub type Names = BTreeMap<PortNumber, String>;

/// What would be done to a frame, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct TraceReport {
    /// The port that it comes from.
    pub port: String,
    /// What it says about itself.
    pub frame: String,
    /// What each layer said, in order.
    pub steps: Vec<TraceStep>,
    /// What is done, in order.
    pub actions: Vec<TraceAction>,
}

/// What a layer said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct TraceStep {
    /// The layer.
    pub layer: String,
    /// The port whose policy or place it is about.
    pub port: String,
    /// Whether the frame, or the copy for this port, goes on.
    pub passes: bool,
    /// Why.
    pub why: String,
}

/// What is done to frames of the flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "kebab-case")]
pub enum TraceAction {
    /// They go on while a connection stands, and keep it.
    Track,
    /// They go on within the sender's storm limit.
    Limit,
    /// Their bytes are counted.
    Meter {
        /// The port.
        port: String,
        /// The rule of its ACL.
        rule: u32,
    },
    /// A copy for a port.
    Deliver {
        /// The port.
        port: String,
        /// What is done to the tag: `keep`, `pop`, `push 10`, `replace 10`.
        tag: String,
    },
    /// No copy for a port, or for nobody.
    Drop {
        /// The port at which it counts.
        port: String,
        /// As in the counters.
        reason: String,
    },
}

/// Which frames are meant: those that have all that is given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct FrameFilter {
    /// The sending station.
    pub source_mac: Option<MacAddress>,
    /// The receiving station, or a group.
    pub destination_mac: Option<MacAddress>,
    /// The sender of the packet.
    pub source_ip: Option<Prefix>,
    /// The receiver of the packet.
    pub destination_ip: Option<Prefix>,
    /// IANA's number.
    pub protocol: Option<u8>,
    /// The sender's port.
    pub source_port: Option<u16>,
    /// The receiver's port.
    pub destination_port: Option<u16>,
    /// The VLAN of its tag; 0 for none.
    pub vlan: Option<u16>,
}

impl FrameFilter {
    /// Whether a frame is meant.
    pub fn matches(&self, frame: &Frame) -> bool {
        let ip = frame.ip.as_ref();
        let in_prefix = |prefix: Option<Prefix>, address: Option<IpAddr>| {
            prefix.is_none_or(|prefix| address.is_some_and(|address| prefix.contains(address)))
        };
        let ports = match ip.map(|ip| ip.transport) {
            Some(Transport::Ports { source, destination }) => Some((source, destination)),
            _ => None,
        };
        self.source_mac.is_none_or(|mac| mac == frame.source)
            && self.destination_mac.is_none_or(|mac| mac == frame.destination)
            && in_prefix(self.source_ip, ip.map(|ip| ip.source))
            && in_prefix(self.destination_ip, ip.map(|ip| ip.destination))
            && self.protocol.is_none_or(|protocol| ip.is_some_and(|ip| ip.protocol == protocol))
            && self.source_port.is_none_or(|port| ports.is_some_and(|ports| ports.0 == port))
            && self.destination_port.is_none_or(|port| ports.is_some_and(|ports| ports.1 == port))
            && self.vlan.is_none_or(|vlan| frame.tag.map_or(0, |tag| tag.vlan) == vlan)
    }
}

/// A frame in one line.
pub fn frame_text(frame: &Frame) -> String {
    let mut text = format!("{} to {}", frame.source, frame.destination);
    if let Some(tag) = frame.tag {
        text += &format!(", tag {}{}", tag.vlan, if frame.stacked { " before another" } else { "" });
    }
    let Some(ip) = &frame.ip else { return text + &format!(", type {:#06x}", frame.ether_type) };
    let protocol = match ip.protocol {
        TCP => "TCP".into(),
        UDP => "UDP".into(),
        ICMP => "ICMP".into(),
        ICMPV6 => "ICMPv6".into(),
        number => format!("protocol {number}"),
    };
    text += &format!(", {} to {}, {protocol}", ip.source, ip.destination);
    match ip.transport {
        Transport::Ports { source, destination } => text += &format!(" {source} to {destination}"),
        Transport::Icmp { kind, code, .. } => text += &format!(" type {kind} code {code}"),
        Transport::Unknown => text += " behind headers that hide what they carry",
        Transport::None => {}
    }
    match ip.fragment {
        Fragment::Whole => text,
        Fragment::First => text + ", first fragment",
        Fragment::Later => text + ", later fragment",
    }
}

/// A change of a tag in words.
pub fn tag_text(edit: TagEdit) -> String {
    match edit {
        TagEdit::Keep => "keep".into(),
        TagEdit::Pop => "pop".into(),
        TagEdit::Push(vlan) => format!("push {vlan}"),
        TagEdit::Replace(vlan) => format!("replace {vlan}"),
    }
}

fn name(names: &Names, port: PortNumber) -> String {
    names.get(&port).cloned().unwrap_or_else(|| format!("port number {port}"))
}

/// An action in words.
pub fn action(action: &Action, names: &Names) -> TraceAction {
    match *action {
        Action::Track(_) => TraceAction::Track,
        Action::Limit => TraceAction::Limit,
        Action::Meter { port, rule } => TraceAction::Meter { port: name(names, port), rule },
        Action::Deliver { port, edit } => TraceAction::Deliver { port: name(names, port), tag: tag_text(edit) },
        Action::Drop { port, reason } => TraceAction::Drop { port: name(names, port), reason: reason.label().into() },
    }
}

/// A trace of a frame from a port in words.
pub fn report(trace: &Trace, port: PortNumber, names: &Names) -> TraceReport {
    let (frame, passes, why) = match &trace.frame {
        Ok(frame) => (frame_text(frame), true, "its headers agree with its length".into()),
        Err(error) => ("not understood".into(), false, error.to_string()),
    };
    let parse = TraceStep { layer: "parse".into(), port: name(names, port), passes, why };
    let steps = trace.steps.iter().map(|step| explain(step, names));
    TraceReport {
        port: name(names, port),
        frame,
        steps: std::iter::once(parse).chain(steps).collect(),
        actions: trace.actions.iter().map(|one| action(one, names)).collect(),
    }
}

fn explain(step: &Step, names: &Names) -> TraceStep {
    let (layer, port, passes, why) = match *step {
        Step::Guard { port, refused } => ("guard", port, refused.is_none(), guard_text(refused).into()),
        Step::VlanIn { port, vlan } => match vlan {
            Ok(0) => ("vlan in", port, true, "in no VLAN".into()),
            Ok(vlan) => ("vlan in", port, true, format!("in VLAN {vlan}")),
            Err(DropReason::Tagged) => ("vlan in", port, false, "a tag that frames of this port must not have".into()),
            Err(_) => ("vlan in", port, false, "its tag is of a VLAN that the port is not in".into()),
        },
        Step::Acl { port, direction, decided } => {
            let class = |class: &str, rule: Option<u32>| match rule {
                Some(rule) => format!("rule {rule} by {class} address"),
                None => format!("no rule by {class} address"),
            };
            let why = format!("{}, {}", class("MAC", decided.mac), class("IP", decided.ip));
            (side("acl", direction), port, decided.allowed, why)
        }
        Step::Answer { port, direction } => {
            (side("connection", direction), port, true, "an answer in a connection that is remembered".into())
        }
        Step::ExtendedAcl { port, direction, verdict, rule } => {
            let (passes, what) = match verdict {
                Verdict::Allow => (true, "allows".into()),
                Verdict::Remember { idle_timeout_ms } => {
                    (true, format!("allows, and answers until idle for {idle_timeout_ms} ms"))
                }
                Verdict::Deny => (false, "denies".into()),
            };
            let why = rule.map_or("no rule by weight is about it".into(), |rule| format!("rule {rule} by weight {what}"));
            (side("acl", direction), port, passes, why)
        }
        Step::Connection { port, direction, remembered } => {
            let why = if remembered { "is remembered" } else { "too many are remembered already (max-connections)" };
            (side("connection", direction), port, remembered, why.into())
        }
        Step::Meter { port, direction, rule } => (side("meter", direction), port, true, format!("rule {rule} counts its bytes")),
        Step::Learning { port, vlan, mac, learned } => {
            let what = match learned {
                Learned::New(_) => "is new behind this port",
                Learned::Here(_) => "is known behind this port",
                Learned::Moved(_) => "moves to this port from another one",
                Learned::Full => "is not learned: the port has as many stations as it may have (max-stations)",
                Learned::Taken => "belongs to another port, whose policy names it",
            };
            let place = if vlan == 0 { String::new() } else { format!(" in VLAN {vlan}") };
            ("learning", port, learned != Learned::Taken, format!("station {mac}{place} {what}"))
        }
        Step::Forwarding { port, mac, destination } => {
            let (passes, why) = match destination {
                Destination::Known(at) => (true, format!("station {mac} is behind {}", name(names, at))),
                Destination::Sender => (false, format!("station {mac} is where the frame comes from")),
                Destination::Group => (true, format!("{mac} is a group: to all")),
                Destination::Unknown => (true, format!("nobody knows station {mac}: to all")),
            };
            ("forwarding", port, passes, why)
        }
        Step::NotForIt { port } => {
            ("forwarding", port, false, "another station is behind it, and no other (mac-spoofing)".into())
        }
        Step::VlanOut { port, vlan, wire } => match wire {
            Some(Wire::Untagged) => ("vlan out", port, true, "takes it, without a tag".into()),
            Some(Wire::Tagged(vlan)) => ("vlan out", port, true, format!("takes it, with the tag {vlan}")),
            None if vlan == 0 => ("vlan out", port, false, "takes nothing that is in no VLAN".into()),
            None => ("vlan out", port, false, format!("is not in VLAN {vlan}")),
        },
        Step::Tag { port, edit } => match edit {
            Ok(edit) => ("tag", port, true, tag_text(edit)),
            Err(_) => ("tag", port, false, "another tag would come to light".into()),
        },
        Step::Mirror { port } => ("mirror", port, true, "gets a copy".into()),
        Step::Storm { port, limit, passes } => {
            let why = match (limit, passes) {
                (0, _) => "no limit".into(),
                (_, true) => format!("within {limit} frames in a second"),
                (_, false) => format!("above {limit} frames in a second"),
            };
            ("storm limit", port, passes, why)
        }
    };
    TraceStep { layer: layer.into(), port: name(names, port), passes, why }
}

/// The layer's name with the direction, seen from the port.
fn side(layer: &'static str, direction: Direction) -> &'static str {
    match (layer, direction) {
        ("acl", Direction::Outbound) => "acl out",
        ("acl", Direction::Inbound) => "acl in",
        ("connection", Direction::Outbound) => "connection out",
        ("connection", Direction::Inbound) => "connection in",
        (_, Direction::Outbound) => "meter out",
        (_, Direction::Inbound) => "meter in",
    }
}

fn guard_text(refused: Option<DropReason>) -> &'static str {
    match refused {
        None => "addresses and guards let it pass",
        Some(DropReason::Address) => "from no station, or to an address that switches keep to themselves",
        Some(DropReason::Spoofed) => "from another address than the policy names (mac-spoofing)",
        Some(DropReason::DhcpGuard) => "from a DHCP server, or hidden (dhcp-server)",
        Some(_) => "from a router, or hidden (router)",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::build::{ethernet, mac};

    #[test]
    fn filters_mean_frames_that_have_all_of_it() {
        let (from, to) = (("10.0.0.1".parse().unwrap(), 4000), ("10.0.0.2".parse().unwrap(), 443));
        let bytes = ethernet(mac(1), mac(2)).tag(5).tcp(from, to);
        let frame = Frame::parse(&bytes, bytes.len()).unwrap();
        assert_eq!(frame_text(&frame), "52:54:00:00:00:01 to 52:54:00:00:00:02, tag 5, 10.0.0.1 to 10.0.0.2, TCP 4000 to 443");
        let all = FrameFilter {
            source_mac: Some(mac(1)),
            destination_mac: Some(mac(2)),
            source_ip: "10.0.0.0/24".parse().ok(),
            destination_ip: "10.0.0.2".parse().ok(),
            protocol: Some(TCP),
            source_port: Some(4000),
            destination_port: Some(443),
            vlan: Some(5),
        };
        assert!(all.matches(&frame) && FrameFilter::default().matches(&frame));
        let others = [
            FrameFilter { source_mac: Some(mac(2)), ..all.clone() },
            FrameFilter { destination_mac: Some(mac(1)), ..all.clone() },
            FrameFilter { source_ip: "10.0.1.0/24".parse().ok(), ..all.clone() },
            FrameFilter { destination_ip: "fd00::/8".parse().ok(), ..all.clone() },
            FrameFilter { protocol: Some(UDP), ..all.clone() },
            FrameFilter { source_port: Some(443), ..all.clone() },
            FrameFilter { destination_port: Some(4000), ..all.clone() },
            FrameFilter { vlan: Some(0), ..all.clone() },
        ];
        assert!(others.iter().all(|filter| !filter.matches(&frame)));
    }
}
