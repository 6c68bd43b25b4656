//! The credit of a connection's two directions (virtio 1.2 §5.10.6.3).

use std::num::Wrapping;

/// The most bytes kept for a host that does not read: the credit that the guest gets.
pub(super) const CREDIT_BYTES: u32 = 256 * 1024;

/// Counters of both directions. All of them wrap.
#[derive(Default)]
pub(super) struct Credit {
    /// Bytes from the guest that the unix socket took.
    pub forwarded: Wrapping<u32>,
    /// What the guest was last told of `forwarded`.
    pub told: Wrapping<u32>,
    /// Bytes sent to the guest.
    pub sent: Wrapping<u32>,
    /// What the guest said of its buffer.
    pub peer_alloc: u32,
    /// What the guest said it has read.
    pub peer_forwarded: Wrapping<u32>,
}

impl Credit {
    /// How much the guest takes now. A guest that claims to have read what it never got has none.
    pub fn available(&self) -> usize {
        self.peer_alloc.saturating_sub((self.sent - self.peer_forwarded).0) as usize
    }

    /// Whether the guest should be told. It has at least three quarters of its credit before, so it cannot wait for it in vain.
    pub fn is_update_due(&self) -> bool {
        (self.forwarded - self.told).0 >= CREDIT_BYTES / 4
    }
}
