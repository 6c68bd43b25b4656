//! Hearing of changes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use crate::{Revision, StoreError};

/// How many changes may wait for whoever watches.
const MAX_WAITING: usize = 100_000;

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
    /// What had happened when the watch began, and what has been heard since. All of a transaction, or nothing of it.
    earlier: VecDeque<Changed>,
    /// What happens since, transaction by transaction, and at last why no more is told.
    live: Receiver<Result<Vec<Changed>, StoreError>>,
    waiting: Arc<AtomicUsize>,
    ended: Option<StoreError>,
}

impl Watch {
    /// The next change; waits for it. `None` when the watch has ended.
    pub fn next_change(&mut self) -> Option<Changed> {
        self.hear(|live| live.recv().ok());
        self.earlier.pop_front()
    }

    /// The next change, if there is one before the time is over or the watch has ended.
    pub fn next_within(&mut self, time: Duration) -> Option<Changed> {
        self.hear(|live| live.recv_timeout(time).ok());
        self.earlier.pop_front()
    }

    /// The next change, if there is one already.
    pub fn try_next(&mut self) -> Option<Changed> {
        self.hear(|live| live.try_recv().ok());
        self.earlier.pop_front()
    }

    /// All changes of the next transaction; waits for it. `None` when the watch has ended.
    pub fn next_transaction(&mut self) -> Option<(Revision, Vec<Changed>)> {
        self.hear(|live| live.recv().ok());
        self.transaction()
    }

    /// All changes of the next transaction, if there is one before the time is over or the watch has ended.
    pub fn next_transaction_within(&mut self, time: Duration) -> Option<(Revision, Vec<Changed>)> {
        self.hear(|live| live.recv_timeout(time).ok());
        self.transaction()
    }

    /// The changes that are there already, those of each transaction together.
    pub fn try_transactions(&mut self) -> Vec<(Revision, Vec<Changed>)> {
        std::iter::from_fn(|| {
            self.hear(|live| live.try_recv().ok());
            self.transaction()
        })
        .collect()
    }

    fn transaction(&mut self) -> Option<(Revision, Vec<Changed>)> {
        let revision = self.earlier.front()?.revision;
        let together = self.earlier.iter().take_while(|change| change.revision == revision).count();
        Some((revision, self.earlier.drain(..together).collect()))
    }

    /// Why the watch has ended, when all that it had to tell was taken: whoever wants to know more reads everything anew. `None` while it
    /// goes on, and when the store is closed.
    pub fn ended(&self) -> Option<&StoreError> {
        self.ended.as_ref()
    }

    /// Takes in what comes, if nothing is there yet.
    fn hear(
        &mut self,
        receive: impl FnOnce(&Receiver<Result<Vec<Changed>, StoreError>>) -> Option<Result<Vec<Changed>, StoreError>>,
    ) {
        if !self.earlier.is_empty() {
            return;
        }
        match receive(&self.live) {
            Some(Ok(changes)) => {
                self.waiting.fetch_sub(changes.len(), Ordering::Relaxed);
                self.earlier.extend(changes);
            }
            Some(Err(error)) => self.ended = Some(error),
            None => {}
        }
    }
}

/// Begins a watch, with what had happened before.
pub(crate) fn feed(earlier: Vec<Changed>) -> (Feed, Watch) {
    let (sender, live) = channel();
    let waiting = Arc::default();
    let watch = Watch { earlier: earlier.into(), live, waiting: Arc::clone(&waiting), ended: None };
    (Feed { sender, waiting }, watch)
}

/// The other end of a watch.
pub(crate) struct Feed {
    sender: Sender<Result<Vec<Changed>, StoreError>>,
    waiting: Arc<AtomicUsize>,
}

impl Feed {
    /// Tells of changes: whole transactions. `false` when nobody listens, or nobody has listened for so long that the watch ends.
    pub fn tell(&self, changes: Vec<Changed>) -> bool {
        if changes.is_empty() {
            return true;
        }
        if self.waiting.fetch_add(changes.len(), Ordering::Relaxed) >= MAX_WAITING {
            self.end(StoreError::Behind);
            return false;
        }
        self.sender.send(Ok(changes)).is_ok()
    }

    /// Tells why nothing more will be told.
    pub fn end(&self, why: StoreError) {
        // Nobody listens otherwise.
        let _ = self.sender.send(Err(why));
    }

    /// Whether someone listens.
    pub fn is_heard(&self) -> bool {
        Arc::strong_count(&self.waiting) > 1
    }
}

/// Those who hear of changes of a store within this program.
#[derive(Default)]
pub(crate) struct Watchers(Vec<(String, Feed)>);

impl Watchers {
    /// Begins a watch, with what had happened before.
    pub fn add(&mut self, prefix: &str, earlier: Vec<Changed>) -> Watch {
        let (feed, watch) = feed(earlier);
        self.0.retain(|(_, feed)| feed.is_heard());
        self.0.push((prefix.into(), feed));
        watch
    }

    /// Tells of a transaction's changes, and forgets whoever does not listen any more.
    pub fn tell(&mut self, changed: &[Changed]) {
        self.0.retain(|(prefix, feed)| {
            feed.tell(changed.iter().filter(|change| change.key.starts_with(prefix)).cloned().collect())
        });
    }
}
