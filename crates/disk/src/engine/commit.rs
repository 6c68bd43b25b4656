//! The commit that an engine does, for all engines of the image.
//!
//! ```text
//!   flush ─▶ wait_for_commit ─▶ look_at_commits ─┬─ done ───────────▶ the request ends, or is mapped again
//!                 ▲                              ├─ begin ──────────▶ steps, through the ring ─▶ durable ─▶ more steps ─▶ end
//!                 └── woken by another engine ◀──┴─ under way elsewhere                           │                      │
//!                                                                                                 └─── wakes others ─────┘
//! ```

use libc::iovec;
use vhdx::{Commit, Step};

use super::*;
use crate::commits::Goal;

/// Steps under way at a time.
pub(super) const MAX_STEPS: usize = 16;

/// A commit under way in this engine.
pub(super) struct Running {
    commit: Commit,
    in_flight: usize,
    is_flushing: bool,
    error: Option<IoError>,
}

impl Engine {
    /// Has a request wait for the next commit.
    pub(super) fn wait_for_commit(&mut self, tag: u16, goal: Goal) {
        let Some(image) = self.image.as_deref_mut() else { return };
        let target = image.commits.target(goal);
        image.waiting.push((target, tag));
        self.look_at_commits();
    }

    /// Ends or continues requests whose commit is over, and begins the next one if nobody does it.
    pub(super) fn look_at_commits(&mut self) {
        loop {
            let Some(image) = self.image.as_deref_mut() else { return };
            if image.is_closing || image.waiting.is_empty() {
                return;
            }
            let mut over = std::mem::take(&mut image.over);
            let has_begun =
                image.commits.look(&image.wake, &mut image.waiting, |tag, goal, result| over.push((tag, goal, result)));
            if has_begun {
                self.begin_commit();
            }
            for (tag, goal, result) in over.drain(..) {
                let result = match goal {
                    Goal::Durable => Some(result),
                    // An error of the commit is the request's, too: it may be that there is no space.
                    Goal::Ended => result.and_then(|()| self.map(tag)).err().map(Err),
                };
                if let Some(result) = result {
                    let event = self.end(tag, result);
                    self.ended.push_back(event);
                }
            }
            if let Some(image) = self.image.as_deref_mut() {
                image.over = over;
            }
            if !has_begun {
                return;
            }
        }
    }

    fn begin_commit(&mut self) {
        let Some(image) = self.image.as_deref_mut() else { return };
        match image.mappings[0].begin_commit() {
            Ok(Some(commit)) => {
                image.running = Some(Running { commit, in_flight: 0, is_flushing: false, error: None });
                self.drive_commit();
            }
            // Somebody commits behind the engines' back.
            Ok(None) => image.commits.end(Err(IoError::Os(libc::EBUSY))),
            Err(error) => image.commits.end(Err(IoError::from(&error))),
        }
    }

    /// Starts the steps that can be done now, and ends the commit after the last.
    fn drive_commit(&mut self) {
        while let Some(image) = self.image.as_deref_mut() {
            let Some(running) = &mut image.running else { return };
            let is_busy = running.in_flight > 0;
            if is_busy && (running.is_flushing || running.error.is_some()) {
                return;
            }
            let next = if running.error.is_some() { None } else { running.commit.steps.front() };
            match next {
                // These wait for all before them.
                None | Some(Step::Flush | Step::Durable) if is_busy => return,
                Some(Step::Write { .. } | Step::Punch { .. }) if running.in_flight == MAX_STEPS => return,
                None => {
                    self.end_commit();
                    return;
                }
                Some(Step::Durable) => {
                    running.commit.steps.pop_front();
                    image.commits.reached_durable();
                }
                Some(_) => {
                    let Some(number) = image.steps.take(&mut self.slots) else { return };
                    let Some(step) = running.commit.steps.pop_front() else { return };
                    running.in_flight += 1;
                    running.is_flushing = step == Step::Flush;
                    self.slots[number as usize].prepare_step(step, self.files[0]);
                    self.issue(number);
                }
            }
        }
    }

    /// The kernel has done a step.
    pub(super) fn step_ended(&mut self, number: u32, result: Result<(), IoError>) {
        self.slots[number as usize].clear();
        let Some(image) = self.image.as_deref_mut() else { return };
        image.steps.give_back(number);
        if let Some(running) = &mut image.running {
            running.in_flight -= 1;
            running.is_flushing = false;
            if let Err(error) = result {
                running.error.get_or_insert(error);
            }
        }
        self.drive_commit();
        self.look_at_commits();
    }

    fn end_commit(&mut self) {
        let Some(image) = self.image.as_deref_mut() else { return };
        let Some(Running { commit, error, .. }) = image.running.take() else { return };
        let result = error.map_or(Ok(()), Err);
        image.mappings[0].end_commit(commit, result.map_err(IoError::kind));
        image.commits.end(result);
    }
}

impl Slot {
    fn prepare_step(&mut self, step: Step, file: FilePair) {
        (self.owner, self.layer, self.durable, self.route) = (Owner::Commit, 0, false, Route::Plain);
        self.segments.clear();
        self.first = 0;
        match step {
            Step::Write { offset, mut data } => {
                (self.phase, self.offset, self.left) = (Phase::Write, offset, data.len() as u64);
                self.segments.push(iovec { iov_base: data.as_mut_ptr().cast(), iov_len: data.len() });
                self.data = data;
                if file.direct.is_some() {
                    // It is no aligned memory, and others read tables through the page cache.
                    self.route = if file.has_cached { Route::Cached } else { Route::Bounce };
                }
            }
            Step::Punch { offset, length } => {
                (self.phase, self.offset, self.left) = (Phase::Punch { fallback: Fallback::Zero }, offset, length);
            }
            Step::Flush | Step::Durable => self.phase = Phase::Sync,
        }
    }
}
