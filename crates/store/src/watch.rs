//! Hearing of changes.

use std::collections::VecDeque;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use crate::Revision;

/// One entry that was changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    /// Its key.
    pub key: String,
    /// Its value; `None` if it is gone.
    pub value: Option<Vec<u8>>,
    /// The transaction that changed it.
    pub revision: Revision,
}

/// Changes, as they happen. Ends when it is dropped.
pub struct Watch {
    /// What had happened when the watch began.
    earlier: VecDeque<Changed>,
    /// What happens since.
    live: Receiver<Changed>,
}

impl Watch {
    pub(crate) fn new(earlier: Vec<Changed>, live: Receiver<Changed>) -> Watch {
        Watch { earlier: earlier.into(), live }
    }

    /// The next change; waits for it. `None` when the store is closed.
    pub fn next_change(&mut self) -> Option<Changed> {
        self.earlier.pop_front().or_else(|| self.live.recv().ok())
    }

    /// The next change, if there is one before the time is over or the store is closed.
    pub fn next_within(&mut self, time: Duration) -> Option<Changed> {
        self.earlier.pop_front().or_else(|| self.live.recv_timeout(time).ok())
    }
}
