//! Counts the tickets that are out, in two groups, so that freed space knows when nobody uses it any more.
//!
//! A ticket is taken before the tables are looked at. Space that was freed before the groups were switched can only be known to tickets
//! of the old group; when that is empty, the space is nobody's.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::SeqCst};

#[derive(Debug, Default)]
pub(crate) struct Epochs {
    current: AtomicU8,
    out: [AtomicU64; 2],
}

impl Epochs {
    /// Counts one more ticket in the current group, and says which that is.
    pub(crate) fn enter(&self) -> u8 {
        loop {
            let epoch = self.current.load(SeqCst);
            self.out[usize::from(epoch)].fetch_add(1, SeqCst);
            // Without a second look, a switch between the two lines could find the group empty.
            if self.current.load(SeqCst) == epoch {
                return epoch;
            }
            self.leave(epoch);
        }
    }

    pub(crate) fn leave(&self, epoch: u8) {
        self.out[usize::from(epoch)].fetch_sub(1, SeqCst);
    }

    /// Starts the other group, unless tickets of it are still out. One caller at a time.
    pub(crate) fn switch(&self) -> bool {
        let next = 1 - self.current.load(SeqCst);
        let empty = self.out[usize::from(next)].load(SeqCst) == 0;
        if empty {
            self.current.store(next, SeqCst);
        }
        empty
    }

    /// Whether any ticket is out.
    pub(crate) fn has_any(&self) -> bool {
        self.out.iter().any(|out| out.load(SeqCst) > 0)
    }

    /// Whether all tickets that were taken before the last switch are back.
    pub(crate) fn is_drained(&self) -> bool {
        self.out[usize::from(1 - self.current.load(SeqCst))].load(SeqCst) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_drained_when_its_last_ticket_is_back() {
        let epochs = Epochs::default();
        let old = epochs.enter();
        assert!(epochs.switch());
        let new = epochs.enter();
        assert!(!epochs.is_drained() && !epochs.switch());
        epochs.leave(old);
        assert!(epochs.is_drained());
        epochs.leave(new);
    }
}
