//! Telling others where a station is now, as if it had sent a reverse ARP request: switches elsewhere learn from it.
//!
//! One frame may be lost, or come before the switches elsewhere forward: it is sent again, less and less often. In each VLAN in which the
//! station may be.

use std::collections::BTreeSet;

use super::{Device, Worker};
use crate::mac::MacAddress;
use crate::pipeline::{PortNumber, Switch};
use crate::ports::virtio::Mode;
use crate::ports::vnet::LONG;
use crate::ring::split::Segment;
use crate::vlan::{VlanMode, Wire};

/// Milliseconds between the frames. The first one is sent at once.
const PAUSES: [u64; 4] = [100, 200, 400, 800];
/// A port's address is announced in all VLANs of its trunk if they are not more than so many; otherwise where it was seen.
const FEW_VLANS: usize = 64;
/// Stations of a port that are announced.
const MOST: usize = 256;

/// Ports whose stations are to be announced again.
#[derive(Debug, Default)]
pub(super) struct Announcements(Vec<Series>);

#[derive(Debug)]
struct Series {
    port: PortNumber,
    due: u64,
    pauses: &'static [u64],
}

impl Announcements {
    /// Begins a port's series anew.
    fn begin(&mut self, port: PortNumber, now: u64) {
        self.0.retain(|series| series.port != port);
        self.0.push(Series { port, due: now, pauses: &PAUSES });
    }

    /// The ports whose next frames are due.
    fn take_due(&mut self, now: u64) -> Vec<PortNumber> {
        let due = |series: &mut Series| {
            let is_due = series.due <= now;
            if let (true, [pause, rest @ ..]) = (is_due, series.pauses) {
                (series.due, series.pauses) = (now + pause, rest);
            } else if is_due {
                series.due = u64::MAX;
            }
            is_due
        };
        let ports = self.0.iter_mut().filter_map(|series| due(series).then_some(series.port)).collect();
        self.0.retain(|series| series.due < u64::MAX);
        ports
    }
}

impl Worker {
    /// Tells all where a port's stations are now, and some more times a little later.
    pub fn announce(&mut self, port: PortNumber) {
        let now = self.now();
        self.announcements.begin(port, now);
        self.announce_due(now);
    }

    /// Sends the announcements that are due. A VM that has gone is not announced.
    pub(super) fn announce_due(&mut self, now: u64) {
        for port in self.announcements.take_due(now) {
            let is_on = match self.devices.get(usize::from(port)) {
                Some(Some(Device::Virtio(device))) => {
                    device.queues.get(1).and_then(Option::as_ref).is_some_and(|queue| queue.mode == Mode::On)
                }
                _ => false,
            };
            if !is_on {
                continue;
            }
            for (vlan, mac) in announced(&self.switch, port) {
                let frame = announcement(mac, vlan);
                // SAFETY: the bytes live until the end of this turn of the loop, and so longer than the frame is at hand.
                if unsafe { self.packet.take(&[Segment::of(&frame)], LONG) }.is_ok() {
                    // What must wait for bandwidth is lost: the next one is not far.
                    let _ = self.pass_on(port, now);
                }
            }
            self.publish();
        }
    }
}

/// The stations of a port, each with its tag at the port.
fn announced(switch: &Switch, port: PortNumber) -> BTreeSet<(Option<u16>, MacAddress)> {
    let Ok(policy) = switch.policy(port) else { return BTreeSet::new() };
    let tag = |vlan: u16| match (&policy.vlan, policy.vlan.egress(vlan)) {
        (VlanMode::Trunk { .. }, Some(Wire::Tagged(vlan))) => Some(Some(vlan)),
        (VlanMode::Trunk { .. }, None) => None,
        _ => Some(None),
    };
    let seen = switch.stations().filter(|station| station.port == port);
    let mut all: BTreeSet<_> = seen.filter_map(|station| Some((tag(station.domain.vlan)?, station.mac))).take(MOST).collect();
    if let Some(mac) = policy.mac {
        let vlans: Vec<u16> = policy.vlan.given().take(FEW_VLANS + 1).collect();
        all.insert((None, mac));
        if vlans.len() <= FEW_VLANS {
            all.extend(vlans.into_iter().filter_map(tag).map(|tag| (tag, mac)));
        }
    }
    all
}

/// A reverse ARP request for a station's own address (RFC 903), behind an empty header.
pub(super) fn announcement(mac: MacAddress, vlan: Option<u16>) -> Vec<u8> {
    let tag = vlan.map(|vlan| [0x8100, vlan].map(u16::to_be_bytes).concat()).unwrap_or_default();
    // Type, Ethernet and IPv4 with the lengths of their addresses, operation 3.
    let request = [0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3];
    let packet = [&MacAddress::BROADCAST.0[..], &mac.0, &tag, &request, &mac.0, &[0; 4], &mac.0, &[0; 4]].concat();
    let mut frame = vec![0; LONG];
    frame.extend(packet);
    frame.resize(LONG + 60, 0);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::build::mac;
    use crate::pipeline::Limits;
    use crate::policy::PortPolicy;
    use crate::vlan::{Vlan, VlanRange};

    #[test]
    fn a_port_is_announced_less_and_less_often() {
        let mut announcements = Announcements::default();
        announcements.begin(3, 1000);
        let due: Vec<u64> = (1000..5000).filter(|now| announcements.take_due(*now) == [3]).collect();
        assert_eq!(due, [1000, 1100, 1300, 1700, 2500]);
        announcements.begin(3, 6000);
        announcements.begin(4, 6000);
        assert_eq!(announcements.take_due(6000), [3, 4]);
        announcements.begin(3, 6050);
        assert_eq!((announcements.take_due(6050), announcements.take_due(6100)), (vec![3], vec![4]), "anew, not twice");
    }

    #[test]
    fn stations_are_announced_in_their_vlans() {
        let vlan = |number: u16| Vlan::try_from(number).unwrap();
        let trunk =
            |last| VlanMode::Trunk { native: Some(vlan(10)), allowed: vec![VlanRange { first: vlan(20), last: vlan(last) }] };
        let of = |mode| {
            let mut switch = Switch::new(Limits::default());
            switch.add_port(PortPolicy { mac: Some(mac(1)), vlan: mode, ..PortPolicy::default() }).unwrap();
            switch
        };
        let tags = |switch: &Switch| announced(switch, 0).into_iter().map(|(tag, _)| tag).collect::<Vec<_>>();
        assert_eq!(tags(&of(VlanMode::Untagged)), [None]);
        assert_eq!(tags(&of(VlanMode::Access { vlan: vlan(5) })), [None]);
        assert_eq!(tags(&of(VlanMode::Isolated { primary: vlan(5), secondary: vlan(6) })), [None]);
        assert_eq!(tags(&of(trunk(21))), [None, Some(20), Some(21)]);
        let mut wide = of(trunk(4094));
        assert_eq!(tags(&wide), [None]);
        let mut state = wide.export_port(0).unwrap();
        state.stations = vec![crate::pipeline::StationState { mac: mac(2), vlan: 30 }];
        wide.import_port(0, &state, 0).unwrap();
        assert_eq!(announced(&wide, 0).into_iter().collect::<Vec<_>>(), [(None, mac(1)), (Some(30), mac(2))]);
    }
}
