//! Which megabytes of the file are taken.
//!
//! A run that is given back passes through quarantine before it is used again:
//!
//! ```text
//!  free ▶ freed ▶ carried by a commit ▶ logged ▶ nobody's (tickets are back) ▶ punched by a commit ▶ free, and zeros
//! ```

use super::layout::{MAX_FILE, UNIT};
use crate::epochs::Epochs;

/// Megabytes, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) start: u64,
    pub(crate) count: u64,
}

impl Run {
    pub(crate) fn offset(&self) -> u64 {
        self.start * UNIT
    }

    pub(crate) fn length(&self) -> u64 {
        self.count * UNIT
    }
}

/// Runs punched by one commit at most, so that no commit takes for ever.
const PUNCHES: usize = 256;
/// Gaps remembered when a file is opened; more are found the next time.
const MAX_GAPS: usize = 65_536;

/// One bit per megabyte of the file: set if it is taken, or in quarantine.
#[derive(Debug, Default)]
pub(crate) struct Space {
    taken: Vec<u64>,
    /// First megabyte behind all that are taken.
    end: u64,
    /// Free ones before the end: they read as zeros.
    free: u64,
    /// Where the next search starts.
    hint: u64,
    /// The shortest run that a whole search did not find since something became free.
    too_long: Option<u64>,
    freed: Vec<Run>,
    carried: Vec<Run>,
    logged: Vec<Run>,
    draining: Vec<Run>,
    unused: Vec<Run>,
    punching: Vec<Run>,
}

impl Space {
    fn is_taken(&self, unit: u64) -> bool {
        self.taken.get((unit / 64) as usize).is_some_and(|word| word >> (unit % 64) & 1 != 0)
    }

    /// Takes a run, for example one found in the BAT; says whether all of it was free.
    pub(crate) fn take(&mut self, run: Run) -> bool {
        let end = run.start + run.count;
        if end > MAX_FILE / UNIT {
            return false;
        }
        if self.taken.len() * 64 < end as usize {
            // Grown in steps of 2 GiB of file, and by half: a growing file does not copy its map each time.
            let words = (end as usize).div_ceil(64).next_multiple_of(32);
            self.taken.reserve(words - self.taken.len());
            self.taken.resize(words, 0);
        }
        let mut was_free = true;
        for unit in run.start..end {
            let (word, bit) = (&mut self.taken[(unit / 64) as usize], 1 << (unit % 64));
            was_free &= *word & bit == 0;
            *word |= bit;
        }
        if run.start > self.end {
            self.free += run.start - self.end;
        }
        self.free -= run.count.min(self.end.saturating_sub(run.start)).min(self.free);
        self.end = self.end.max(end);
        was_free
    }

    /// Finds a free run, before the end of what is taken or behind it. It is not taken yet.
    pub(crate) fn find(&mut self, count: u64) -> Run {
        if self.free >= count && self.too_long.is_none_or(|length| count < length) {
            let found = self.search(self.hint, self.end, count).or_else(|| self.search(0, self.end, count));
            if let Some(start) = found {
                self.hint = start + count;
                return Run { start, count };
            }
            self.too_long = Some(count);
        }
        Run { start: self.end, count }
    }

    fn search(&self, from: u64, to: u64, count: u64) -> Option<u64> {
        let (mut unit, mut start) = (from, from);
        while unit < to {
            let word = self.taken.get((unit / 64) as usize).copied().unwrap_or(0);
            if word == u64::MAX {
                unit = (unit / 64 + 1) * 64;
                start = unit;
                continue;
            }
            unit += 1;
            if word >> ((unit - 1) % 64) & 1 != 0 {
                start = unit;
            } else if unit - start == count {
                return Some(start);
            }
        }
        None
    }

    fn release(&mut self, run: Run) {
        for unit in run.start..run.start + run.count {
            self.taken[(unit / 64) as usize] &= !(1 << (unit % 64));
        }
        self.free += run.count;
        self.too_long = None;
        self.hint = self.hint.min(run.start);
        while self.end > 0 && !self.is_taken(self.end - 1) {
            self.end -= 1;
            self.free -= 1;
        }
    }

    /// The first byte behind all that is taken or in quarantine.
    pub(crate) fn end(&self) -> u64 {
        self.end * UNIT
    }

    /// Bytes before the end that are nobody's.
    pub(crate) fn gaps(&self) -> u64 {
        self.free * UNIT
    }

    /// A run that tables no longer name, from the next commit on.
    pub(crate) fn give_back(&mut self, run: Run) {
        self.freed.push(run);
    }

    /// A run that tables in the file no longer name.
    pub(crate) fn give_back_logged(&mut self, run: Run) {
        self.logged.push(run);
    }

    /// The free runs before the end, up to a number that bounds what a hostile file can cost.
    pub(crate) fn all_gaps(&self) -> Vec<Run> {
        let mut gaps = Vec::new();
        let (mut unit, mut start) = (0, 0);
        while unit < self.end && gaps.len() < MAX_GAPS {
            let word = self.taken[(unit / 64) as usize];
            let is_full = word == u64::MAX && unit.is_multiple_of(64);
            if is_full || word >> (unit % 64) & 1 != 0 {
                if start < unit {
                    gaps.push(Run { start, count: unit - start });
                }
                unit += if is_full { 64 } else { 1 };
                start = unit;
            } else {
                unit += 1;
            }
        }
        gaps
    }

    /// Puts the gaps of a file that was just opened into quarantine: what is in them is unknown until they are punched.
    pub(crate) fn quarantine_gaps(&mut self) {
        let gaps = self.all_gaps();
        for run in &gaps {
            self.take(*run);
        }
        // What did not fit in the list is taken as well: nobody may use it before it was punched.
        if self.free > 0 {
            let rest = gaps.last().map_or(0, |run| run.start);
            for unit in rest..self.end {
                self.taken[(unit / 64) as usize] |= 1 << (unit % 64);
            }
            self.free = 0;
        }
        self.unused = gaps;
    }

    /// A commit begins: it carries what was freed, and punches what is answered.
    pub(crate) fn begin_commit(&mut self, tickets: &Epochs) -> &[Run] {
        self.carried = std::mem::take(&mut self.freed);
        if !self.draining.is_empty() && tickets.is_drained() {
            self.unused.append(&mut self.draining);
        }
        if self.draining.is_empty() && !self.logged.is_empty() && tickets.advance() {
            self.draining = std::mem::take(&mut self.logged);
            if tickets.is_drained() {
                self.unused.append(&mut self.draining);
            }
        }
        let rest = self.unused.len().saturating_sub(PUNCHES);
        self.punching = self.unused.split_off(rest);
        &self.punching
    }

    /// Whether a commit has something to do for space.
    pub(crate) fn is_settled(&self) -> bool {
        [&self.freed, &self.carried, &self.logged, &self.draining, &self.unused, &self.punching]
            .iter()
            .all(|list| list.is_empty())
    }

    /// A commit has ended: whether its entry is in the log, and whether it did all its steps. Answers whether it made holes that are
    /// free now, and not yet stable.
    pub(crate) fn end_commit(&mut self, logged: bool, done: bool) -> bool {
        if logged {
            self.logged.append(&mut self.carried);
        } else {
            self.freed.append(&mut self.carried);
        }
        if !done {
            self.unused.append(&mut self.punching);
            return false;
        }
        let punched = std::mem::take(&mut self.punching);
        punched.iter().for_each(|run| self.release(*run));
        !punched.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(start: u64, count: u64) -> Run {
        Run { start, count }
    }

    #[test]
    fn freed_space_is_used_again_only_after_it_was_logged_left_and_punched() {
        let (mut space, tickets) = (Space::default(), Epochs::default());
        assert!(space.take(run(0, 10)));
        let ticket = tickets.enter();
        space.give_back(run(4, 2));
        assert!(space.begin_commit(&tickets).is_empty());
        space.end_commit(true, true);
        for _ in 0..3 {
            assert!(space.begin_commit(&tickets).is_empty(), "a ticket is out");
            space.end_commit(true, true);
            assert_eq!(space.find(2), run(10, 2));
        }
        tickets.leave(ticket);
        assert_eq!(space.begin_commit(&tickets), [run(4, 2)]);
        assert_eq!(space.find(2), run(10, 2));
        space.end_commit(true, true);
        assert_eq!(space.find(2), run(4, 2));
        assert!(space.is_settled());
    }

    #[test]
    fn a_run_taken_twice_is_told() {
        let mut space = Space::default();
        assert!(space.take(run(3, 2)));
        assert!(!space.take(run(4, 2)));
    }

    #[test]
    fn gaps_of_an_opened_file_are_punched_before_use() {
        let (mut space, tickets) = (Space::default(), Epochs::default());
        space.take(run(0, 4));
        space.take(run(100, 2));
        space.quarantine_gaps();
        assert_eq!(space.find(1), run(102, 1));
        assert_eq!(space.begin_commit(&tickets), [run(4, 96)]);
        space.end_commit(true, true);
        assert_eq!(space.find(96), run(4, 96));
    }

    #[test]
    fn what_is_free_at_the_end_shortens_the_file() {
        let (mut space, tickets) = (Space::default(), Epochs::default());
        space.take(run(0, 8));
        space.give_back_logged(run(6, 2));
        let _ = space.begin_commit(&tickets);
        space.end_commit(true, true);
        assert_eq!(space.end(), 6 << 20);
        assert_eq!(space.gaps(), 0);
    }
}
