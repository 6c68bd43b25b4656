//! Commits: what is complete becomes durable.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::Ordering::Acquire;
use std::sync::{MutexGuard, PoisonError};

use super::image::{Flying, Image, PageKey, State};
use super::layout::PAGE;
use super::log::{FileSizes, Page, Tail};
use super::open::Access;
use crate::{Commit, MapError, Mapping, Step};

impl Image {
    pub(super) fn is_settled(&self) -> bool {
        if self.access == Access::ReadOnly {
            return true;
        }
        let state = self.lock();
        !state.is_broken && state.dirty == 0 && state.flying.is_none() && (state.log.is_none() || state.space.is_settled())
    }

    pub(super) fn start_commit(&self) -> Result<Option<Commit>, MapError> {
        let mut state = self.lock();
        if state.flying.is_some() {
            return Ok(None);
        }
        if self.access == Access::ReadOnly {
            return Ok(Some(Commit { steps: VecDeque::from([Step::Durable]), id: 0 }));
        }
        self.prepare(&mut state, Vec::new()).map(Some)
    }

    /// The commit of all dirty pages, and of `more` that are no part of the tables in memory. None is under way.
    pub(super) fn prepare(&self, state: &mut State, more: Vec<Page>) -> Result<Commit, MapError> {
        state.refuse_if_broken()?;
        // See the log's own page for when one flush is enough.
        let flushes_first = self.geometry.has_parent || state.has_new_holes || !more.is_empty();
        let mut pages = more;
        for (key, _) in state.pages.iter().filter(|(_, page)| page.dirty) {
            pages.push(self.snapshot(*key)?);
        }
        let mut steps = VecDeque::new();
        let mut length = 0;
        match &state.log {
            Some(log) if !pages.is_empty() => {
                let (tail, flushed) = match flushes_first {
                    true => (Tail::Itself, state.file_size),
                    false => (Tail::Previous, state.flushed_size),
                };
                let entry = log.encode(&pages, tail, FileSizes { flushed, last: state.file_size });
                length = entry.len() as u64;
                steps.extend(flushes_first.then_some(Step::Flush));
                steps.extend(log.place(entry).into_iter().map(|(offset, data)| Step::Write { offset, data }));
                steps.extend([Step::Flush, Step::Durable]);
                steps.extend(pages.into_iter().map(|Page { offset, data }| Step::Write { offset, data }));
            }
            _ => steps.extend([Step::Flush, Step::Durable]),
        }
        // A file that is not being changed stays as it is.
        if state.log.is_some() {
            let runs = state.space.begin_commit(&self.tickets);
            steps.extend(runs.iter().map(|run| Step::Punch { offset: run.offset(), length: run.length() }));
        }
        for page in state.pages.values_mut() {
            page.flying = page.dirty;
            page.dirty = false;
        }
        state.dirty = 0;
        state.last_id += 1;
        state.flying = Some(Flying { id: state.last_id, length, file_size: state.file_size });
        Ok(Commit { steps, id: state.last_id })
    }

    fn snapshot(&self, key: PageKey) -> Result<Page, MapError> {
        Ok(match key {
            PageKey::Bat(number) => {
                let offset = self.bat_offset.load(Acquire) + number * PAGE as u64;
                Page { offset, data: self.bat_page(number)?.encode() }
            }
            PageKey::Bitmap(number) => {
                Page { offset: self.bitmap_page_offset(number)?, data: self.bitmap_page(number)?.encode() }
            }
        })
    }

    pub(super) fn finish_commit(&self, commit: Commit, result: Result<(), io::ErrorKind>) {
        let mut state = self.lock();
        self.settle(&mut state, &commit, result.is_ok());
    }

    /// An entry that is in the log for good must stay there until its pages are in place for good: later entries stand behind it, even
    /// if writing in place failed. One that may be torn is written again at the same place.
    pub(super) fn settle(&self, state: &mut State, commit: &Commit, is_ok: bool) {
        let Some(flying) = state.flying.take_if(|flying| flying.id == commit.id) else { return };
        let is_logged = !commit.steps.contains(&Step::Durable);
        let is_done = is_ok && commit.steps.is_empty();
        if let Some(log) = state.log.as_mut().filter(|_| is_logged && flying.length > 0) {
            log.advance(flying.length);
        }
        let mut again = 0;
        state.pages.retain(|_, page| {
            if page.flying && !is_done && !page.dirty {
                page.dirty = true;
                again += 1;
            }
            page.flying = false;
            page.dirty || page.held > 0
        });
        state.dirty += again;
        if is_logged {
            state.flushed_size = flying.file_size;
        }
        if state.log.is_some() {
            let has_punched = state.space.end_commit(is_logged, is_done);
            state.has_new_holes = has_punched || (state.has_new_holes && !is_logged);
        }
        self.idle.notify_all();
    }

    /// The lock, at a moment without a commit under way.
    pub(super) fn lock_idle(&self) -> MutexGuard<'_, State> {
        self.idle.wait_while(self.lock(), |state| state.flying.is_some()).unwrap_or_else(PoisonError::into_inner)
    }

    /// Commits what is dirty, and then `pages`, on this thread and under the lock. If that fails, what is in the file is not known to be
    /// what is in memory, and no change is made any more.
    pub(super) fn commit_pages(&self, state: &mut State, pages: Vec<Page>) -> Result<(), MapError> {
        if state.dirty > 0 {
            self.commit_now(state, Vec::new())?;
        }
        let result = self.commit_now(state, pages);
        state.is_broken |= result.is_err();
        result
    }

    pub(super) fn commit_now(&self, state: &mut State, pages: Vec<Page>) -> Result<(), MapError> {
        let mut commit = self.prepare(state, pages)?;
        let result = self.run(&mut commit);
        self.settle(state, &commit, result.is_ok());
        result.map_err(|source| MapError::Io { action: "writing the image", source })
    }

    /// Does the steps of a commit on this thread.
    pub(super) fn run(&self, commit: &mut Commit) -> io::Result<()> {
        while let Some(step) = commit.steps.pop_front() {
            let result = match &step {
                Step::Write { offset, data } => self.storage.write_at(*offset, data),
                Step::Flush => self.storage.flush(),
                Step::Durable => Ok(()),
                Step::Punch { offset, length } => self.storage.punch(*offset, *length),
            };
            if result.is_err() {
                commit.steps.push_front(step);
                return result;
            }
        }
        Ok(())
    }

    /// Makes durable what is complete, on this thread; waits for a commit that is under way elsewhere.
    ///
    /// # Errors
    /// If something could not be written; it stays part of the next commit.
    pub fn flush(&self) -> Result<(), MapError> {
        loop {
            if let Some(mut commit) = self.begin_commit()? {
                let result = self.run(&mut commit);
                self.end_commit(commit, result.as_ref().map(|_| ()).map_err(io::Error::kind));
                return result.map_err(|source| MapError::Io { action: "writing the image", source });
            }
            drop(self.lock_idle());
        }
    }
}
