//! Who of an image's engines does the next commit, and for whom.
//!
//! ```text
//!   flush while no commit is under way ──▶ this engine begins one
//!   flush while one is under way ────────▶ waits for its end; then the first engine to look begins one for all that wait
//! ```
//! Commits are numbered. A flush is done when a commit that began after it became durable: it waits for the number of the next
//! one to begin, or any later.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::error::IoError;
use crate::wake::Wake;

/// What all engines of an image share about its commits.
#[derive(Default)]
pub(crate) struct Commits {
    state: Mutex<State>,
    /// Rings when no commit is under way any more.
    idle: Condvar,
}

#[derive(Default)]
struct State {
    is_running: bool,
    /// The last that began, that became durable, and that ended.
    begun: u64,
    durable: u64,
    ended: u64,
    /// The last that failed before it was durable.
    failed: Option<(u64, IoError)>,
    engines: Vec<Engine>,
}

struct Engine {
    wake: Arc<Wake>,
    is_waiting: bool,
}

/// What a waiter needs of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Goal {
    /// All that was complete is durable.
    Durable,
    /// It is over, and tables can be changed again.
    Ended,
}

/// What a waiter waits for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    goal: Goal,
    commit: u64,
}

/// No commit is under way, and none begins, as long as this exists.
pub(crate) struct Quiet<'a>(&'a Commits);

impl Drop for Quiet<'_> {
    fn drop(&mut self) {
        self.0.stop(&mut self.0.lock());
    }
}

impl Commits {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes an engine known.
    pub fn join(&self, wake: Arc<Wake>) {
        self.lock().engines.push(Engine { wake, is_waiting: false });
    }

    /// Forgets an engine.
    pub fn leave(&self, wake: &Arc<Wake>) {
        self.lock().engines.retain(|engine| !Arc::ptr_eq(&engine.wake, wake));
    }

    /// What a request of this moment has to wait for.
    pub fn target(&self, goal: Goal) -> Target {
        let state = self.lock();
        // A commit under way makes room in the tables as well as the next one, but does not carry what was completed since.
        let is_enough = goal == Goal::Ended && state.is_running;
        Target { goal, commit: if is_enough { state.begun } else { state.begun + 1 } }
    }

    /// Calls `done` for each of `waiting` whose commit is over, and drops it. If others are left that no commit under way is
    /// for, one begins: true means that the caller has to do it. If one is under way, the caller is woken when there is news.
    #[must_use = "nobody else does the commit that has begun"]
    pub fn look<T: Copy>(
        &self,
        wake: &Arc<Wake>,
        waiting: &mut Vec<(Target, T)>,
        mut done: impl FnMut(T, Goal, Result<(), IoError>),
    ) -> bool {
        let mut state = self.lock();
        waiting.retain(|(target, what)| match state.verdict(*target) {
            Some(result) => {
                done(*what, target.goal, result);
                false
            }
            None => true,
        });
        if waiting.is_empty() {
            return false;
        }
        if !state.is_running && waiting.iter().any(|(target, _)| target.commit > state.begun) {
            state.is_running = true;
            state.begun += 1;
            return true;
        }
        if let Some(engine) = state.engines.iter_mut().find(|engine| Arc::ptr_eq(&engine.wake, wake)) {
            engine.is_waiting = true;
        }
        false
    }

    /// The commit under way has made durable what it carries.
    pub fn reached_durable(&self) {
        let mut state = self.lock();
        state.durable = state.begun;
        state.wake_all();
    }

    /// The commit under way is over.
    pub fn end(&self, result: Result<(), IoError>) {
        let mut state = self.lock();
        match result {
            Ok(()) => state.durable = state.begun,
            Err(error) => state.failed = Some((state.begun, error)),
        }
        state.ended = state.begun;
        self.stop(&mut state);
    }

    /// Waits until no commit is under way, and keeps it so.
    pub fn quiet(&self) -> Quiet<'_> {
        let state = self.lock();
        let mut state = self.idle.wait_while(state, |state| state.is_running).unwrap_or_else(PoisonError::into_inner);
        state.is_running = true;
        Quiet(self)
    }

    fn stop(&self, state: &mut State) {
        state.is_running = false;
        state.wake_all();
        self.idle.notify_all();
    }
}

impl State {
    fn verdict(&self, target: Target) -> Option<Result<(), IoError>> {
        let (reached, failed) = match target.goal {
            // A failure after it was durable is none for a flush.
            Goal::Durable => (self.durable, self.failed.filter(|(commit, _)| *commit >= target.commit)),
            Goal::Ended => (self.ended, None),
        };
        if reached >= target.commit {
            let last = self.failed.filter(|(commit, _)| target.goal == Goal::Ended && *commit == self.ended);
            return Some(last.map_or(Ok(()), |(_, error)| Err(error)));
        }
        failed.map(|(_, error)| Err(error))
    }

    fn wake_all(&mut self) {
        for engine in &mut self.engines {
            if std::mem::take(&mut engine.is_waiting) {
                engine.wake.signal();
            }
        }
    }
}
