//! The machines of one port: receive, periodic, mux (IEEE 802.1AX-2014 §6.4.12, §6.4.13, §6.4.15).

use super::pdu::{Lacpdu, PortInfo, state};
use crate::mac::MacAddress;
use crate::tables::Millis;
use serde::{Deserialize, Serialize};

const FAST_PERIODIC: Millis = 1000;
const SLOW_PERIODIC: Millis = 30_000;
const SHORT_TIMEOUT: Millis = 3000;
const LONG_TIMEOUT: Millis = 90_000;
/// Ports that come up together are attached together.
const AGGREGATE_WAIT: Millis = 2000;
/// No more packets than this in [`FAST_PERIODIC`] (§6.4.16).
const MOST_SENT: usize = 3;

/// States of the receive machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReceiveState {
    /// No link.
    Disabled,
    /// Nothing was heard for too long; there is a short time left.
    Expired,
    /// Nobody speaks LACP there.
    Defaulted,
    /// What is known of the partner is true.
    Current,
}

/// States of the mux machine, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MuxState {
    /// Not part of the team.
    Detached,
    /// About to be.
    Waiting,
    /// Part of it; the partner is told.
    Attached,
    /// Takes frames.
    Collecting,
    /// Takes and sends frames.
    Distributing,
}

/// A partner before any was heard: one that cannot aggregate, takes what it gets, and is asked every second whether it speaks by now.
const NOBODY: PortInfo = PortInfo {
    system_priority: 0,
    system: MacAddress([0; 6]),
    key: 0,
    port_priority: 0,
    port: 0,
    state: state::SHORT_TIMEOUT | state::SYNCHRONIZATION | state::COLLECTING | state::DISTRIBUTING,
};

/// A port.
#[derive(Debug)]
pub(super) struct Port {
    pub actor: PortInfo,
    pub partner: PortInfo,
    pub receive: ReceiveState,
    pub mux: MuxState,
    /// Whether it is chosen for the team.
    pub is_selected: bool,
    /// Of its link; zero if nobody knows.
    pub speed_mbps: u32,
    /// Whether a partner was heard since it has a link.
    pub has_partner: bool,
    current_until: Millis,
    wait_until: Millis,
    /// When the next periodic packet is due, and whether that is a slow one.
    periodic: Option<(Millis, bool)>,
    need_to_transmit: bool,
    /// When the last ones were sent, oldest first.
    sent: [Option<Millis>; MOST_SENT],
}

impl Port {
    pub fn new(actor: PortInfo) -> Port {
        Port {
            actor,
            partner: NOBODY,
            receive: ReceiveState::Disabled,
            mux: MuxState::Detached,
            is_selected: false,
            speed_mbps: 0,
            has_partner: false,
            current_until: 0,
            wait_until: 0,
            periodic: None,
            need_to_transmit: false,
            sent: [None; MOST_SENT],
        }
    }

    /// The link came or went.
    pub fn set_enabled(&mut self, is_enabled: bool, now: Millis) {
        match (is_enabled, self.receive) {
            (true, ReceiveState::Disabled) => {
                self.expire(now);
                self.need_to_transmit = true;
            }
            (false, _) => {
                self.receive = ReceiveState::Disabled;
                (self.is_selected, self.has_partner) = (false, false);
                self.partner = NOBODY;
                self.partner.set(state::SYNCHRONIZATION, false);
            }
            (true, _) => {}
        }
    }

    fn expire(&mut self, now: Millis) {
        self.receive = ReceiveState::Expired;
        self.partner.set(state::SYNCHRONIZATION, false);
        self.partner.set(state::SHORT_TIMEOUT, true);
        self.actor.set(state::EXPIRED, true);
        self.current_until = now + SHORT_TIMEOUT;
    }

    /// The partner was heard.
    pub fn hear(&mut self, pdu: &Lacpdu, now: Millis) {
        if self.receive == ReceiveState::Disabled {
            return;
        }
        if !pdu.actor.is_same_port(&self.partner) {
            self.is_selected = false;
        }
        let told = state::ACTIVITY | state::SHORT_TIMEOUT | state::SYNCHRONIZATION | state::AGGREGATION;
        let knows_us = pdu.partner.is_same_port(&self.actor);
        if !knows_us || (pdu.partner.state ^ self.actor.state) & told != 0 {
            self.need_to_transmit = true;
        }
        self.partner = pdu.actor;
        let is_in_sync = pdu.actor.has(state::SYNCHRONIZATION) && (knows_us || !pdu.actor.has(state::AGGREGATION));
        self.partner.set(state::SYNCHRONIZATION, is_in_sync);
        self.actor.set(state::DEFAULTED | state::EXPIRED, false);
        self.has_partner = true;
        self.receive = ReceiveState::Current;
        self.current_until = now + if self.actor.has(state::SHORT_TIMEOUT) { SHORT_TIMEOUT } else { LONG_TIMEOUT };
    }

    /// Timers of the receive machine.
    pub fn age(&mut self, now: Millis) {
        match self.receive {
            ReceiveState::Current if now >= self.current_until => self.expire(now),
            ReceiveState::Expired if now >= self.current_until => {
                self.receive = ReceiveState::Defaulted;
                if !self.partner.is_same_port(&NOBODY) {
                    self.is_selected = false;
                }
                (self.partner, self.has_partner) = (NOBODY, false);
                self.actor.set(state::EXPIRED, false);
                self.actor.set(state::DEFAULTED, true);
            }
            _ => {}
        }
    }

    /// Goes on in the mux machine (independent control, figure 6-21) as far as it can.
    pub fn step_mux(&mut self, now: Millis) {
        loop {
            let is_in_sync = self.partner.has(state::SYNCHRONIZATION);
            let is_collected = is_in_sync && self.partner.has(state::COLLECTING);
            let next = match self.mux {
                MuxState::Detached if self.is_selected => {
                    self.wait_until = now + AGGREGATE_WAIT;
                    MuxState::Waiting
                }
                MuxState::Waiting if !self.is_selected => MuxState::Detached,
                MuxState::Waiting if now >= self.wait_until => MuxState::Attached,
                MuxState::Attached if !self.is_selected => MuxState::Detached,
                MuxState::Attached if is_in_sync => MuxState::Collecting,
                MuxState::Collecting if !self.is_selected || !is_in_sync => MuxState::Attached,
                MuxState::Collecting if is_collected => MuxState::Distributing,
                MuxState::Distributing if !self.is_selected || !is_collected => MuxState::Collecting,
                _ => return,
            };
            self.mux = next;
            let mut changed = self.actor.set(state::SYNCHRONIZATION, next >= MuxState::Attached);
            changed |= self.actor.set(state::COLLECTING, next >= MuxState::Collecting);
            changed |= self.actor.set(state::DISTRIBUTING, next >= MuxState::Distributing);
            self.need_to_transmit |= changed;
        }
    }

    /// The packet to be sent now, if there is one.
    pub fn transmit(&mut self, now: Millis) -> Option<Lacpdu> {
        if self.receive == ReceiveState::Disabled {
            (self.periodic, self.need_to_transmit) = (None, false);
            return None;
        }
        let is_slow = !self.partner.has(state::SHORT_TIMEOUT);
        let next = Some((now + if is_slow { SLOW_PERIODIC } else { FAST_PERIODIC }, is_slow));
        match self.periodic {
            // Who has to hear from us more often is told at once.
            Some((due, was_slow)) if now >= due || (was_slow && !is_slow) => {
                self.need_to_transmit = true;
                self.periodic = next;
            }
            Some((_, false)) if is_slow => self.periodic = next,
            Some(_) => {}
            None => self.periodic = next,
        }
        let is_allowed = self.sent[0].is_none_or(|oldest| now >= oldest + FAST_PERIODIC);
        if !(self.need_to_transmit && is_allowed) {
            return None;
        }
        self.need_to_transmit = false;
        self.sent.rotate_left(1);
        self.sent[MOST_SENT - 1] = Some(now);
        Some(Lacpdu { actor: self.actor, partner: self.partner })
    }
}
