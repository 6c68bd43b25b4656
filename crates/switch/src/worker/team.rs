//! Uplinks: frames of their NICs, links that come and go, and stations that are announced.

use std::io;
use std::os::fd::RawFd;

use vmm_sys_util::epoll::{ControlOperation, EpollEvent, EventSet};

use super::announce::announcement;
use super::deliver::Delivery;
use super::pass::BATCH;
use super::{Device, Token, Worker};
use crate::pipeline::{PortNumber, Sink};
use crate::ports::nic::NicPort;
use crate::ports::vnet::LONG;
use crate::ring::split::Segment;
use crate::tables::Station;
use crate::team::nic::LinkState;
use crate::team::{Team, Verdict};

/// Stations that are announced at once; the next ones wait for the next look.
const ANNOUNCED_AT_ONCE: usize = 256;

/// A station that is to be announced.
#[derive(Clone, Copy, Debug)]
pub(super) struct Announcement {
    uplink: PortNumber,
    station: Station,
}

impl Worker {
    pub(super) fn team(&mut self, port: PortNumber) -> Option<&mut Team> {
        match self.devices.get_mut(usize::from(port))?.as_mut()? {
            Device::Team(team) => Some(team),
            Device::Virtio(_) | Device::Fd(_) => None,
        }
    }

    /// How the team behind a port is, if there is one.
    pub fn team_status(&mut self, port: PortNumber) -> Option<crate::team::TeamStatus> {
        Some(self.team(port)?.status())
    }

    /// A link of a team's NIC changed, or the NIC is gone.
    pub fn set_link(&mut self, port: PortNumber, nic: usize, link: Option<LinkState>) {
        let now = self.now();
        if let Some(team) = self.team(port) {
            team.set_link(nic, link, now);
            self.announce_moved(port);
        }
    }

    /// A team's NIC is there (again).
    pub fn set_nic(&mut self, port: PortNumber, nic: usize, socket: NicPort, link: LinkState) -> io::Result<()> {
        self.listen_to_nic(port, nic, &socket.descriptors())?;
        let Some(team) = self.team(port) else { return Ok(()) };
        team.set_socket(nic, socket);
        self.set_link(port, nic, Some(link));
        Ok(())
    }

    /// A team's NIC is there, but cannot be used.
    pub fn refuse_nic(&mut self, port: PortNumber, nic: usize, reason: String) {
        self.set_link(port, nic, None);
        if let Some(team) = self.team(port) {
            team.set_refusal(nic, reason);
        }
    }

    /// The socket of a team's NIC, for the team that is put in its place.
    pub fn take_socket(&mut self, port: PortNumber, name: &str) -> Option<NicPort> {
        self.team(port)?.take_socket(name)
    }

    pub(super) fn listen_to_nic(&self, port: PortNumber, nic: usize, descriptors: &[RawFd]) -> io::Result<()> {
        let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, Token::nic(port, nic).0);
        descriptors.iter().try_for_each(|fd| match self.epoll.ctl(ControlOperation::Add, *fd, event) {
            // It comes from the team that was there before.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => self.epoll.ctl(ControlOperation::Modify, *fd, event),
            added => added,
        })
    }

    /// Has the kernel take what was written to uplinks since the last time. What it does not take now, it is told of again soon.
    pub(super) fn flush_teams(&mut self) {
        for device in self.devices.iter_mut().flatten() {
            if let Device::Team(team) = device {
                self.holding |= team.flush();
            }
        }
    }

    pub(super) fn serve_team(&mut self, port: usize, now: u64) -> usize {
        let number = port as PortNumber;
        let mut count = 0;
        let nics = self.team(number).map_or(0, |team| team.nics().len());
        let mut held = !self.switch.may_send(number);
        for nic in 0..nics {
            for _ in 0..BATCH {
                if held {
                    break;
                }
                let Some(Some(Device::Team(team))) = self.devices.get_mut(port) else { break };
                let Some(taken) = team.read(nic, &mut self.packet) else { break };
                count += 1;
                match taken.map_or_else(Verdict::Drop, |()| team.judge(nic, self.packet.head(), now)) {
                    Verdict::Done => {}
                    Verdict::Drop(reason) => self.switch.refuse(number, reason),
                    Verdict::Take => held = self.pass_on_for_good(number, now),
                }
            }
        }
        self.team(number).into_iter().for_each(|team| team.held = held);
        self.holding |= held;
        if count > 0 {
            self.publish();
            // What LACP said may have changed which NICs are used.
            self.announce_moved(number);
        }
        count
    }

    /// Timers of teams, and announcements that have waited.
    pub(super) fn tick_teams(&mut self, now: u64) {
        for port in 0..self.devices.len() as PortNumber {
            if let Some(team) = self.team(port) {
                team.tick(now);
                self.announce_moved(port);
            }
        }
        self.announce_waiting();
    }

    /// Announces stations whose homes have changed where they are now.
    pub(crate) fn announce_moved(&mut self, uplink: PortNumber) {
        let Some(moved) = self.team(uplink).and_then(Team::take_moved) else { return };
        // What was to be announced for the last change is, if it has moved, among these.
        self.rehomed.retain(|waiting| waiting.uplink != uplink || !moved[usize::from(waiting.station.port as u8)]);
        let stations = self.switch.stations_beyond(uplink).filter(|station| moved[usize::from(station.port as u8)]);
        self.rehomed.extend(stations.map(|station| Announcement { uplink, station: *station }));
        self.announce_waiting();
    }

    fn announce_waiting(&mut self) {
        let now = self.now();
        let count = self.rehomed.len().min(ANNOUNCED_AT_ONCE);
        let due: Vec<Announcement> = self.rehomed.drain(..count).collect();
        for Announcement { uplink, station } in due {
            // What comes back of it must not move the station.
            self.switch.hold_station(station.domain, station.mac, now);
            let wire = self.switch.policy(uplink).ok().and_then(|policy| policy.vlan.egress(station.domain.vlan));
            let Some(edit) = wire.and_then(|wire| wire.edit(None, false)) else { continue };
            let frame = announcement(station.mac, None);
            // SAFETY: the bytes live until the end of this round.
            if unsafe { self.packet.take(&[Segment::of(&frame)], LONG) }.is_ok() {
                let Worker { devices, packet, scratch, watches, .. } = self;
                // It is counted at the NIC.
                let _ = Delivery { devices, packet, scratch, sender: station.port, watches }.deliver(uplink, edit, 0);
            }
        }
    }
}
