//! Hearing of changes.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, Sender, channel};
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
    /// The next change; waits for it. `None` when the store is closed.
    pub fn next_change(&mut self) -> Option<Changed> {
        self.earlier.pop_front().or_else(|| self.live.recv().ok())
    }

    /// The next change, if there is one before the time is over or the store is closed.
    pub fn next_within(&mut self, time: Duration) -> Option<Changed> {
        self.earlier.pop_front().or_else(|| self.live.recv_timeout(time).ok())
    }

    /// The next change, if there is one already.
    pub fn try_next(&mut self) -> Option<Changed> {
        self.earlier.pop_front().or_else(|| self.live.try_recv().ok())
    }
}

/// Those who hear of changes of a store within this program.
#[derive(Default)]
pub(crate) struct Watchers(Vec<Watcher>);

struct Watcher {
    prefix: String,
    sender: Sender<Changed>,
}

impl Watchers {
    /// Begins a watch, with what had happened before.
    pub fn add(&mut self, prefix: &str, earlier: Vec<Changed>) -> Watch {
        let (sender, live) = channel();
        self.0.push(Watcher { prefix: prefix.into(), sender });
        Watch { earlier: earlier.into(), live }
    }

    /// Tells of a transaction's changes, and forgets whoever does not listen any more.
    pub fn tell(&mut self, changed: &[Changed]) {
        self.0.retain(|watcher| {
            let mut of_interest = changed.iter().filter(|change| change.key.starts_with(&watcher.prefix));
            of_interest.all(|change| watcher.sender.send(change.clone()).is_ok())
        });
    }
}
