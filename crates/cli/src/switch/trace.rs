//! `maru port trace`.

use std::io::{BufRead, BufReader};
use std::net::IpAddr;

use anyhow::{Context, bail, ensure};
use api::client::{Client as Remote, Method};
use clap::Args;
use serde_json::Value;
use switch::acl::Prefix;
use switch::control::{Client, PortConfig, Request, Streamed};
use switch::explain::{FrameFilter, TraceAction, TraceReport, TraceStep};
use switch::frame::{HEADER_BYTES, MAX_FRAME_BYTES};
use switch::hex::to_hex;
use switch::mac::MacAddress;
use switch::vlan::Vlan;

use super::place::{Look, Place, card_path};
use super::{Output, show};
use crate::output::print;

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
/// For experiments (IEEE 802, local experimental ethertype 1).
const TYPE_EXPERIMENT: u16 = 0x88b5;
/// The sender, if neither the options nor the port's policy name one.
const SENDER: MacAddress = MacAddress([2, 0, 0, 0, 0, 1]);

pub(super) const HELP: &str = "\
EXAMPLES
  Would web reach db, and if not, which rule is it?
    maru port trace web/net0 --dst-mac 52:54:00:00:00:02 --src-ip 10.0.0.1 --dst-ip 10.0.0.2 --dst-port 5432

  What is done to the next five packets from web to port 443:
    maru port trace web/net0 --live --count 5 --protocol tcp --dst-port 443";

/// What to trace.
#[derive(Debug, Args)]
pub struct TraceArgs {
    #[command(flatten)]
    look: Look,
    /// The port that the frame comes from: VM/CARD
    #[arg(value_name = "PORT")]
    port_name: String,
    /// The next frames that come from the port; the options below then say which ones
    #[arg(long)]
    live: bool,
    /// How many of them
    #[arg(long, value_name = "N", default_value_t = 1, requires = "live")]
    count: u64,
    /// The frame itself from its first byte on, in hexadecimal digits, instead of what it says
    #[arg(long, value_name = "FRAME", conflicts_with_all = ["live", "HeaderArgs"])]
    hex: Option<String>,
    #[command(flatten)]
    header: HeaderArgs,
    /// The frame's length in bytes, without a checksum; default: as short as it can be
    #[arg(long, value_name = "BYTES", conflicts_with = "live")]
    length: Option<usize>,
}

/// What a frame says.
#[derive(Debug, Args)]
struct HeaderArgs {
    /// The sending station; default: the port's own address
    #[arg(long, value_name = "MAC")]
    src_mac: Option<MacAddress>,
    /// The receiving station; default: all
    #[arg(long, value_name = "MAC")]
    dst_mac: Option<MacAddress>,
    /// The sender of the packet
    #[arg(long, value_name = "IP")]
    src_ip: Option<Prefix>,
    /// The receiver of the packet
    #[arg(long, value_name = "IP")]
    dst_ip: Option<Prefix>,
    /// tcp, udp, icmp, or a number; default: tcp if there are ports, icmp otherwise
    #[arg(long, value_name = "PROTOCOL", value_parser = protocol)]
    protocol: Option<Protocol>,
    /// The sender's port
    #[arg(long, value_name = "PORT")]
    src_port: Option<u16>,
    /// The receiver's port
    #[arg(long, value_name = "PORT")]
    dst_port: Option<u16>,
    /// The VLAN of its tag
    #[arg(long, value_name = "VLAN", value_parser = super::policy::vlan)]
    vlan: Option<Vlan>,
}

/// ICMP is another number in IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Icmp,
    Number(u8),
}

fn protocol(text: &str) -> Result<Protocol, String> {
    match text {
        "tcp" => Ok(Protocol::Number(TCP)),
        "udp" => Ok(Protocol::Number(UDP)),
        "icmp" => Ok(Protocol::Icmp),
        _ => text.parse().map(Protocol::Number).map_err(|_| format!("'{text}' is none of tcp, udp, icmp, and no number to 255")),
    }
}

impl HeaderArgs {
    fn filter(&self) -> FrameFilter {
        let is_v6 = self.src_ip.or(self.dst_ip).is_some_and(|prefix| prefix.address().is_ipv6());
        FrameFilter {
            source_mac: self.src_mac,
            destination_mac: self.dst_mac,
            source_ip: self.src_ip,
            destination_ip: self.dst_ip,
            protocol: self.protocol.map(|protocol| protocol.number(is_v6)),
            source_port: self.src_port,
            destination_port: self.dst_port,
            vlan: self.vlan.map(u16::from),
        }
    }

    /// The beginning of the frame, and its length.
    fn frame(&self, sender: MacAddress, length: Option<usize>) -> anyhow::Result<(Vec<u8>, usize)> {
        let mut head = [self.dst_mac.unwrap_or(MacAddress::BROADCAST).0, self.src_mac.unwrap_or(sender).0].concat();
        if let Some(vlan) = self.vlan {
            head.extend([0x8100, u16::from(vlan)].map(u16::to_be_bytes).concat());
        }
        let addresses = match (self.src_ip, self.dst_ip) {
            (None, None) => None,
            (Some(source), Some(destination)) => Some((one(source)?, one(destination)?)),
            _ => bail!("a packet has both --src-ip and --dst-ip"),
        };
        let Some((source, destination)) = addresses else {
            ensure!(
                self.protocol.is_none() && self.src_port.is_none() && self.dst_port.is_none(),
                "a protocol is one of IP: give --src-ip and --dst-ip"
            );
            head.extend(TYPE_EXPERIMENT.to_be_bytes());
            return finish(head, length);
        };
        let has_ports = self.src_port.is_some() || self.dst_port.is_some();
        let default = if has_ports { Protocol::Number(TCP) } else { Protocol::Icmp };
        let protocol = self.protocol.unwrap_or(default).number(source.is_ipv6());
        let transport = self.transport(protocol, has_ports)?;
        let ip = head.len() + 2;
        let least = ip + if source.is_ipv4() { 20 } else { 40 } + transport.len();
        let length = length.unwrap_or(least);
        let packet = length
            .checked_sub(ip)
            .filter(|_| length >= least)
            .with_context(|| format!("such a frame has at least {least} bytes"))?;
        let lengthy = || format!("a frame has at most {MAX_FRAME_BYTES} bytes");
        match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let total = u16::try_from(packet).ok().with_context(lengthy)?;
                head.extend([0x0800, 0x4500, total, 0, 0, 0x4000 | u16::from(protocol), 0].map(u16::to_be_bytes).concat());
                head.extend([source.octets(), destination.octets()].concat());
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let payload = u16::try_from(packet - 40).ok().with_context(lengthy)?;
                head.extend([0x86dd, 0x6000, 0, payload, u16::from(protocol) << 8 | 64].map(u16::to_be_bytes).concat());
                head.extend([source.octets(), destination.octets()].concat());
            }
            _ => bail!("--src-ip and --dst-ip are both of IPv4, or both of IPv6"),
        }
        head.extend(transport);
        finish(head, Some(length))
    }

    fn transport(&self, protocol: u8, has_ports: bool) -> anyhow::Result<Vec<u8>> {
        let ports = [self.src_port, self.dst_port].map(|port| port.unwrap_or(0).to_be_bytes()).concat();
        Ok(match protocol {
            TCP => [&ports[..], &[0, 0, 0, 0, 0, 0, 0, 0, 0x50, 2, 0, 0, 0, 0, 0, 0]].concat(),
            UDP => [&ports[..], &[0, 8, 0, 0]].concat(),
            _ if has_ports => bail!("only tcp and udp have ports"),
            ICMP => vec![8, 0, 0, 0, 0, 0, 0, 0],
            ICMPV6 => vec![128, 0, 0, 0, 0, 0, 0, 0],
            _ => Vec::new(),
        })
    }
}

impl Protocol {
    fn number(self, is_v6: bool) -> u8 {
        match self {
            Protocol::Number(number) => number,
            Protocol::Icmp => {
                if is_v6 {
                    ICMPV6
                } else {
                    ICMP
                }
            }
        }
    }
}

fn one(prefix: Prefix) -> anyhow::Result<IpAddr> {
    prefix.host().with_context(|| format!("a packet is from one address and to one: {} are many", String::from(prefix)))
}

fn finish(head: Vec<u8>, length: Option<usize>) -> anyhow::Result<(Vec<u8>, usize)> {
    let length = length.unwrap_or(head.len());
    ensure!((head.len()..=MAX_FRAME_BYTES).contains(&length), "such a frame has {} to {MAX_FRAME_BYTES} bytes", head.len());
    Ok((head, length))
}

pub(super) fn run(args: TraceArgs) -> anyhow::Result<()> {
    let TraceArgs { look, port_name: name, live, count, hex, header, length } = args;
    let output = look.output;
    let mut place = look.find()?;
    if live {
        return match place {
            Place::Direct(client) => follow(client, name, count, header.filter(), output),
            Place::Managed(client) => follow_managed(&client, &name, count, &header, output),
        };
    }
    let (frame, length) = match hex {
        Some(hex) => (hex, length),
        None => {
            let (head, length) = header.frame(address_of(&mut place, &name)?, length)?;
            (to_hex(&head[..head.len().min(HEADER_BYTES)]), Some(length))
        }
    };
    let report = match &mut place {
        Place::Direct(client) => client.call::<TraceReport>(&Request::Trace { name, frame, length })?,
        Place::Managed(client) => {
            let wanted = api::NewTrace { frame, length: length.map(u32::try_from).transpose()? };
            let trace: api::Trace = client.call(Method::POST, &card_path(&name, "/trace")?, Some(&wanted))?;
            report_of(trace)
        }
    };
    show(output, &report, || text(&report))
}

/// The address that a port has.
fn address_of(place: &mut Place, name: &str) -> anyhow::Result<MacAddress> {
    match place {
        Place::Direct(client) => {
            let ports: Vec<PortConfig> = client.call(&Request::Config)?;
            Ok(ports.into_iter().find(|port| port.name == name).and_then(|port| port.policy.mac).unwrap_or(SENDER))
        }
        Place::Managed(client) => {
            let port: api::Port = client.get(&card_path(name, "")?)?;
            Ok(port.mac.and_then(|mac| mac.parse().ok()).unwrap_or(SENDER))
        }
    }
}

fn follow(mut client: Client, name: String, count: u64, filter: FrameFilter, output: Output) -> anyhow::Result<()> {
    client.call::<Value>(&Request::TraceLive { name, count, filter })?;
    loop {
        match client.receive()? {
            Streamed::Trace(report) => print(&output.render_next(&report, || text(&report))?)?,
            Streamed::End { missed } => {
                tell_missed(missed);
                return Ok(());
            }
            Streamed::Frames { .. } => {}
        }
    }
}

fn tell_missed(missed: u64) {
    if missed > 0 {
        eprintln!("maru: {missed} more frames passed, for which there was no time");
    }
}

/// How long `marud` looks at most, in seconds.
const LONGEST: u32 = 3600;

fn follow_managed(client: &Remote, name: &str, count: u64, header: &HeaderArgs, output: Output) -> anyhow::Result<()> {
    let FrameFilter { source_mac, destination_mac, source_ip, destination_ip, protocol, source_port, destination_port, vlan } =
        header.filter();
    let filter = api::FrameFilter {
        source_mac: source_mac.map(|mac| mac.to_string()),
        destination_mac: destination_mac.map(|mac| mac.to_string()),
        source_ip: source_ip.map(String::from),
        destination_ip: destination_ip.map(String::from),
        protocol,
        source_port,
        destination_port,
        vlan,
    };
    let wanted = api::NewWatch { count: u32::try_from(count)?, seconds: LONGEST, filter: Some(filter) };
    let seen = BufReader::new(client.stream(&card_path(name, "/watch")?, &wanted)?);
    for line in seen.lines() {
        match serde_json::from_str(&line.context("the switch or marud has ended")?)? {
            api::Watched::Trace(trace) => {
                let report = report_of(trace);
                print(&output.render_next(&report, || text(&report))?)?;
            }
            api::Watched::End(api::WatchEnd { missed }) => tell_missed(missed),
        }
    }
    Ok(())
}

/// A trace of `marud`'s as one of a switch.
fn report_of(trace: api::Trace) -> TraceReport {
    let api::Trace { port, frame, steps, actions } = trace;
    let step = |api::TraceStep { layer, port, passes, why }| TraceStep { layer, port, passes, why };
    TraceReport {
        port,
        frame,
        steps: steps.into_iter().map(step).collect(),
        actions: actions.into_iter().map(action_of).collect(),
    }
}

pub(super) fn action_of(action: api::TraceAction) -> TraceAction {
    match action {
        api::TraceAction::Track => TraceAction::Track,
        api::TraceAction::Limit => TraceAction::Limit,
        api::TraceAction::Meter { port, rule } => TraceAction::Meter { port, rule },
        api::TraceAction::Deliver { port, tag } => TraceAction::Deliver { port, tag },
        api::TraceAction::Drop { port, reason } => TraceAction::Drop { port, reason },
    }
}

fn text(report: &TraceReport) -> String {
    let width = |cells: &dyn Fn(usize) -> usize| (0..report.steps.len()).map(cells).max().unwrap_or(0);
    let layer = width(&|row| report.steps[row].layer.len());
    let port = width(&|row| report.steps[row].port.len());
    let mut text = format!("{}\n", report.frame);
    for step in &report.steps {
        let verdict = if step.passes { "passes" } else { "STOPS" };
        text += &format!("  {:layer$}  {:port$}  {verdict}  {}\n", step.layer, step.port, step.why);
    }
    report.actions.iter().fold(text, |text, action| text + "=> " + &action_text(action) + "\n")
}

pub(super) fn action_text(action: &TraceAction) -> String {
    match action {
        TraceAction::Track => "while the connection stands".into(),
        TraceAction::Limit => "within the storm limit".into(),
        TraceAction::Meter { port, rule } => format!("counted by rule {rule} of {port}"),
        TraceAction::Deliver { port, tag } => format!("a copy to {port}, tag: {tag}"),
        TraceAction::Drop { port, reason } => format!("dropped, and counted at {port} as {reason}"),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use switch::explain::frame_text;
    use switch::frame::Frame;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        args: TraceArgs,
    }

    fn made_up(options: &[&str]) -> Result<String, String> {
        let line = [&["trace", "web"], options].concat();
        let TraceArgs { header, length, .. } = Command::try_parse_from(line).map_err(|error| error.to_string())?.args;
        let (mut head, length) = header.frame(SENDER, length).map_err(|error| error.to_string())?;
        head.resize(length, 0);
        head.truncate(HEADER_BYTES);
        Ok(frame_text(&Frame::parse(&head, length).map_err(|error| error.to_string())?))
    }

    #[test]
    fn options_become_a_frame() {
        let start = "02:00:00:00:00:01 to ff:ff:ff:ff:ff:ff";
        let four = ["--src-ip", "10.0.0.1", "--dst-ip", "10.0.0.2"];
        let six = ["--src-ip", "fd00::1", "--dst-ip", "fd00::2"];
        let cases: [(&[&str], &str); 6] = [
            (&[], ", type 0x88b5"),
            (&["--vlan", "5"], ", tag 5, type 0x88b5"),
            (&four, ", 10.0.0.1 to 10.0.0.2, ICMP type 8 code 0"),
            (&[&four[..], &["--dst-port", "80", "--length", "1500"]].concat(), ", 10.0.0.1 to 10.0.0.2, TCP 0 to 80"),
            (&[&six[..], &["--protocol", "udp", "--src-port", "5"]].concat(), ", fd00::1 to fd00::2, UDP 5 to 0"),
            (&[&six[..], &["--protocol", "icmp", "--length", "65557"]].concat(), ", fd00::1 to fd00::2, ICMPv6 type 128 code 0"),
        ];
        for (options, expected) in cases {
            assert_eq!(made_up(options).unwrap(), format!("{start}{expected}"), "{options:?}");
        }
    }

    #[test]
    fn what_no_frame_can_be_is_explained() {
        let four = ["--src-ip", "10.0.0.1", "--dst-ip", "10.0.0.2"];
        let cases: [(&[&str], &str); 7] = [
            (&["--src-ip", "10.0.0.1"], "--dst-ip"),
            (&["--src-ip", "10.0.0.1", "--dst-ip", "::1"], "both of IPv6"),
            (&["--src-ip", "10.0.0.0/8", "--dst-ip", "10.0.0.1"], "10.0.0.0/8 are many"),
            (&["--dst-port", "80"], "one of IP"),
            (&[&four[..], &["--protocol", "47", "--dst-port", "1"]].concat(), "only tcp and udp"),
            (&[&four[..], &["--length", "20"]].concat(), "at least 42"),
            (&["--hex", "00", "--vlan", "5"], "cannot be used with"),
        ];
        for (options, expected) in cases {
            let error = made_up(options).unwrap_err();
            assert!(error.contains(expected), "{options:?}: {error}");
        }
    }
}
