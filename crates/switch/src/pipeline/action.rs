//! What is done to the frames of a flow.

use crate::counters::DropReason;
use crate::tables::Ref;

/// A change of a frame's outer VLAN tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TagEdit {
    /// None.
    Keep,
    /// Take it off.
    Pop,
    /// Put one with this VLAN in front.
    Push(u16),
    /// Give it this VLAN; its priority stays.
    Replace(u16),
}

/// One step of an action list. Layers only ever add to a list: policies first, then (in future) the router's and the overlay's changes,
/// then deliveries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Goes on only while this connection stands; keeps it.
    Track(Ref),
    /// Goes on only within the sender's storm limit.
    Limit,
    /// Counts the bytes at a port's meter.
    Meter {
        /// The port.
        port: u16,
        /// Which of its rules.
        rule: u32,
    },
    /// A copy for a port.
    Deliver {
        /// The port.
        port: u16,
        /// How it looks there.
        edit: TagEdit,
    },
    /// No copy for a port, or for nobody.
    Drop {
        /// The port at which it counts.
        port: u16,
        /// Why.
        reason: DropReason,
    },
}
