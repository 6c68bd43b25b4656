//! What fuzzing runs: functions that take any bytes and must come back. They run under cargo-fuzz (`fuzz/`), which looks for bytes that
//! reach new code, and in tests with random bytes.

use crate::counters::DropReason;
use crate::frame::build::{ethernet, mac};
use crate::frame::{Frame, HEADER_BYTES, MAX_FRAME_BYTES};
use crate::mac::MacAddress;
use crate::pipeline::{Limits, PortNumber, Sink, Switch, TagEdit};
use crate::policy::{Permission, PortPolicy};
use crate::team::lacp::pdu::{Lacpdu, PDU_BYTES, PortInfo, SlowPdu, parse};
use crate::team::lacp::{DEFAULT_PRIORITY, Event, Lacp, LacpRate};

/// Reads a frame: the input, or a good frame changed by it, of the length that the input says. Answers whether it was understood.
pub fn frame(data: &[u8]) -> bool {
    let bytes = changed(data);
    let length = bytes.len() + usize::from(data.first().copied().unwrap_or(0) & 3) * MAX_FRAME_BYTES / 3;
    Frame::parse(&bytes[..bytes.len().min(HEADER_BYTES)], length).is_ok()
}

/// Sends frames made from the input through a switch with guards. Answers whether any was delivered.
pub fn pipeline(data: &[u8]) -> bool {
    let limits = Limits { ports: 3, stations: 8, connections: 8, flows: 16, station_age: 100 };
    let mut switch = Switch::new(limits);
    let guarded =
        PortPolicy { router: Permission::Deny, dhcp_server: Permission::Deny, storm_limit: 50, ..PortPolicy::default() };
    for policy in [guarded, PortPolicy::default(), PortPolicy { vlan: crate::vlan::VlanMode::all(), ..PortPolicy::default() }] {
        switch.add_port(policy).expect("a good policy");
    }
    let mut sink = Count(0);
    for (now, part) in (0u64..).zip(data.chunks(32)) {
        let bytes = changed(part);
        let port = PortNumber::from(part[0] % 3);
        switch.trace(port, &bytes[..bytes.len().min(HEADER_BYTES)], bytes.len(), now * 20).expect("there is such a port");
        switch.receive(port, &bytes[..bytes.len().min(HEADER_BYTES)], bytes.len(), now * 20, &mut sink);
        switch.tick(now * 20);
    }
    sink.0 > 0
}

/// Has LACP hear packets made from the input, at one of two ports. Answers whether any was understood.
pub fn lacp(data: &[u8]) -> bool {
    let system = |number| MacAddress([2, 0, 0, 0, 0, number]);
    let mut lacp = Lacp::new(system(1), DEFAULT_PRIORITY, LacpRate::Fast, 2);
    let (mut out, mut understood) = (Vec::new(), false);
    for port in 0..2 {
        lacp.step(0, Event::Link { port, speed_mbps: Some(1000) }, &mut out);
    }
    for (now, part) in (1u64..).zip(data.chunks(32)) {
        // The last answer, as if another system had sent it, with changes: place, value, place, value...
        let sent = out
            .last()
            .map(|(_, pdu): &(usize, Lacpdu)| Lacpdu { actor: PortInfo { system: system(2), ..pdu.actor }, partner: pdu.actor });
        let mut bytes = sent.map_or([0; PDU_BYTES], |pdu| pdu.bytes());
        for change in part[1..].chunks_exact(2) {
            bytes[usize::from(change[0]) % PDU_BYTES] = change[1];
        }
        out.truncate(1);
        let length = PDU_BYTES - usize::from(part[0] >> 1) % PDU_BYTES;
        if let Some(SlowPdu::Lacp(pdu)) = parse(&bytes[..length]) {
            understood = true;
            lacp.step(now * 700, Event::Pdu { port: usize::from(part[0] & 1), pdu: &pdu }, &mut out);
        }
        lacp.step(now * 700, Event::Tick, &mut out);
    }
    understood
}

struct Count(usize);

impl Sink for Count {
    fn deliver(&mut self, _: PortNumber, _: TagEdit, _: u64) -> Result<(), DropReason> {
        self.0 += 1;
        Ok(())
    }
}

/// A good frame that the first byte chooses, with what the others say written into it: place, value, place, value...
fn changed(data: &[u8]) -> Vec<u8> {
    let [first, changes @ ..] = data else { return Vec::new() };
    let (four, six) = (["10.0.0.1", "10.0.0.2"], ["fd00::1", "fd00::2"]);
    let at = |text: &str, port| (text.parse().expect("an address"), port);
    let start = ethernet(mac(first >> 5), mac(first >> 6));
    let mut frame = match first >> 2 & 7 {
        0 => start.tcp(at(four[0], 1), at(four[1], 80)),
        1 => start.tag(5).udp(at(four[0], 67), at(four[1], 68)),
        2 => start.tag(5).tag(6).udp(at(six[0], 1), at(six[1], 2)),
        3 => start.icmp(at(six[0], 0).0, at(six[1], 0).0, 134),
        4 => start.ip(
            at(six[0], 0).0,
            at(six[1], 0).0,
            0,
            &[44, 0, 0, 0, 0, 0, 0, 0, 17, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 2, 0, 8, 0, 0],
        ),
        5 => start.ip(at(six[0], 0).0, at(six[1], 0).0, 60, &[6; 120]),
        6 => start.other(0x0806),
        _ => return changes.to_vec(),
    };
    for change in changes.chunks_exact(2) {
        let place = usize::from(change[0]) % frame.len();
        frame[place] = change[1];
    }
    frame
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_frames_that_are_changed_are_good_ones() {
        for choice in 0..7 {
            assert!(frame(&[choice << 2]), "{choice}");
        }
        // From the plain port and from the trunk; at the guarded port the router advertisement ends.
        assert!(pipeline(&[0x22]) && pipeline(&[0x38]) && !pipeline(&[0x2d]));
    }

    #[test]
    fn the_packets_that_are_changed_are_good_ones() {
        assert!(lacp(&[0]) && lacp(&[1, 109, 7]) && !lacp(&[0, 0, 3]) && !lacp(&[0x90]));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]
        #[test]
        fn no_frame_does_harm(data in prop::collection::vec(any::<u8>(), 0..120)) {
            frame(&data);
            pipeline(&data);
            lacp(&data);
        }
    }
}
