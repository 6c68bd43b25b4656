//! How fast frames may pass, in one direction of a network device.
//!
//! A frame's length is known once it was read from the host, and then it is the guest's. So frames are counted when they have passed, and the
//! next one waits until those before it are paid for. Each queue is ahead by one frame
//! at most, beside what the limiter promises.

use std::sync::Arc;
use std::time::Instant;

use disk::limits::{Admit, Limiter, Ticket};

/// One queue's side of a limit that all queues of a direction share.
pub(super) struct Throttle {
    limiter: Arc<Limiter>,
    /// What has passed and is not paid for.
    owed: Option<Ticket>,
}

impl Throttle {
    pub fn new(limiter: &Arc<Limiter>) -> Throttle {
        Throttle { limiter: limiter.clone(), owed: None }
    }

    /// Whether a frame may pass now.
    pub fn is_open(&mut self) -> bool {
        let Some(ticket) = self.owed.take() else { return true };
        if let Admit::Later(ticket) = self.limiter.again(Instant::now(), ticket) {
            self.owed = Some(ticket);
        }
        self.owed.is_none()
    }

    /// A frame of so many bytes has passed.
    pub fn passed(&mut self, bytes: u64) {
        if let Admit::Later(ticket) = self.limiter.admit(Instant::now(), bytes) {
            self.owed = Some(ticket);
        }
    }

    /// When the next frame may pass, if that is not now.
    pub fn opens_at(&self) -> Option<Instant> {
        self.owed.as_ref().map(Ticket::at)
    }
}
