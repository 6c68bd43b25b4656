//! What can be wrong with a link.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Which way of a host's link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// What the host sends.
    FromHost,
    /// What the host receives.
    ToHost,
    /// Both.
    Both,
}

impl Direction {
    pub(super) fn includes(self, way: Way) -> bool {
        match self {
            Direction::FromHost => way == Way::FromHost,
            Direction::ToHost => way == Way::ToHost,
            Direction::Both => true,
        }
    }
}

/// One way of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    FromHost,
    ToHost,
}

impl Way {
    pub const ALL: [Way; 2] = [Way::FromHost, Way::ToHost];
}

/// The state of one way of a link. The default is a good link.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Conditions {
    /// Nothing gets through.
    pub cut: bool,
    /// Part of the frames that get lost, 0 to 100.
    pub loss_percent: f64,
    /// How much later frames arrive.
    pub delay: Duration,
    /// Bits per second that get through at most; what exceeds the queue is dropped.
    pub bits_per_second: Option<u64>,
}

/// Frames and bytes on one link.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Frames the host sent.
    pub frames_from_host: u64,
    /// Bytes the host sent.
    pub bytes_from_host: u64,
    /// Frames handed to the host.
    pub frames_to_host: u64,
    /// Bytes handed to the host.
    pub bytes_to_host: u64,
    /// Frames dropped because the link was cut.
    pub dropped_cut: u64,
    /// Frames lost on purpose.
    pub dropped_loss: u64,
    /// Frames dropped because a queue was full: the rate limit's, or that of a host that does not read.
    pub dropped_full: u64,
}
