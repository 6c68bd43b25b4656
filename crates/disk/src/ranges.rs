//! Which parts of a disk change, so that copying what was read from a parent never overwrites what is newer.
//!
//! ```text
//!   write  ─▶ begin_change ── overlaps a copy ──▶ waits for its end
//!   copy   ─▶ begin_copy ──── overlaps anything ▶ is left out: what is written there makes it unnecessary
//!                     └─ then looks whether the part is still only in the parent
//! ```
//! Only disks with copy-on-read have this. A request looks at all others under way, which are hundreds at most.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The parts of one disk under way, for all its engines.
#[derive(Default)]
pub(crate) struct Ranges(Mutex<State>);

#[derive(Default)]
struct State {
    last: u64,
    active: Vec<Active>,
}

struct Active {
    number: u64,
    range: Range<u64>,
    is_copy: bool,
}

impl Ranges {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of a change, which has to end; none while a part of it is being copied.
    pub fn begin_change(&self, range: Range<u64>) -> Option<u64> {
        self.lock().begin(range, false)
    }

    /// The number of a copy, which has to end; none while a part of it is being copied or changed.
    pub fn begin_copy(&self, range: Range<u64>) -> Option<u64> {
        self.lock().begin(range, true)
    }

    /// Ends a change or a copy. Whether it was a copy, for whose end others may wait.
    pub fn end(&self, number: u64) -> bool {
        let active = &mut self.lock().active;
        let index = active.iter().position(|it| it.number == number);
        index.is_some_and(|index| active.swap_remove(index).is_copy)
    }
}

impl State {
    fn begin(&mut self, range: Range<u64>, is_copy: bool) -> Option<u64> {
        let overlaps = |it: &Active| it.range.start < range.end && range.start < it.range.end;
        if self.active.iter().any(|it| (it.is_copy || is_copy) && overlaps(it)) {
            return None;
        }
        self.last += 1;
        self.active.push(Active { number: self.last, range, is_copy });
        Some(self.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_keep_to_themselves_and_changes_do_not() {
        let ranges = Ranges::default();
        let change = ranges.begin_change(10..20).unwrap();
        assert!(ranges.begin_change(15..25).is_some());
        assert_eq!(ranges.begin_copy(19..30), None);
        let copy = ranges.begin_copy(30..40).unwrap();
        assert_eq!((ranges.begin_copy(39..41), ranges.begin_change(0..31)), (None, None));
        assert!(ranges.begin_change(40..41).is_some() && ranges.begin_change(25..30).is_some());
        assert!(ranges.end(copy) && !ranges.end(change));
        assert!(ranges.begin_change(0..31).is_some());
    }
}
