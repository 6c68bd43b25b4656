//! Two networks between machines.

use crate::Network;

/// Which frames arrive.
pub(super) struct Links {
    machines: usize,
    /// Cut directions, by network, sender and receiver.
    cut: Vec<bool>,
    /// The share of messages that are lost, in percent.
    pub(super) loss: [u32; 2],
}

impl Links {
    pub(super) fn new(machines: usize) -> Links {
        Links { machines, cut: vec![false; 2 * machines * machines], loss: [0, 0] }
    }

    fn index(&self, network: Network, from: usize, to: usize) -> usize {
        (network as usize * self.machines + from) * self.machines + to
    }

    /// Whether anything sent from one machine arrives at another.
    pub(super) fn up(&self, network: Network, from: usize, to: usize) -> bool {
        from == to || !self.cut[self.index(network, from, to)]
    }

    /// Whether two machines can talk.
    pub(super) fn both(&self, network: Network, a: usize, b: usize) -> bool {
        self.up(network, a, b) && self.up(network, b, a)
    }

    pub(super) fn set(&mut self, network: Network, from: usize, to: usize, cut: bool) {
        let index = self.index(network, from, to);
        self.cut[index] = cut;
    }

    pub(super) fn heal(&mut self) {
        self.cut.fill(false);
        self.loss = [0, 0];
    }
}
