//! Writes the journal of a disk's maps, so that no engine waits for it.
//!
//! ```text
//!   engine: wants_note ─▶ parks the write ─▶ ask ─▶ number      this thread: writes all that is wanted, flushes ─▶ done = number
//!              ▲                                                                                                        │
//!              └── is it noted? otherwise outcome(number) ◀───────────────── woken ◀─────────────────────────────────────┘
//! ```

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::Tracker;
use crate::error::IoError;

pub(crate) struct Noter {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    asked: Condvar,
}

#[derive(Default)]
struct State {
    asked: u64,
    done: u64,
    failed: Option<(u64, IoError)>,
    is_ending: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Noter {
    /// Starts the thread. It calls `wake` each time it is done.
    pub fn start(tracker: Tracker, wake: impl Fn() + Send + 'static) -> io::Result<Noter> {
        let shared = Arc::<Shared>::default();
        let thread_shared = shared.clone();
        let thread =
            std::thread::Builder::new().name("dirty-journal".into()).spawn(move || run(&thread_shared, &tracker, wake))?;
        Ok(Noter { shared, thread: Some(thread) })
    }

    /// Has it write what is wanted by now. The number is for [`outcome`](Noter::outcome).
    pub fn ask(&self) -> u64 {
        let mut state = self.shared.lock();
        state.asked += 1;
        self.shared.asked.notify_one();
        state.asked
    }

    /// How writing ended that was asked for under this number; `None` while it is under way.
    pub fn outcome(&self, number: u64) -> Option<Result<(), IoError>> {
        let state = self.shared.lock();
        let failed = state.failed.filter(|(failed, _)| *failed >= number);
        (state.done >= number).then_some(failed.map_or(Ok(()), |(_, error)| Err(error)))
    }
}

impl Drop for Noter {
    fn drop(&mut self) {
        self.shared.lock().is_ending = true;
        self.shared.asked.notify_one();
        if let Some(thread) = self.thread.take() {
            // It only panics with a bug, which has been printed.
            let _ = thread.join();
        }
    }
}

fn run(shared: &Shared, tracker: &Tracker, wake: impl Fn()) {
    loop {
        let is_idle = |state: &mut State| state.asked == state.done && !state.is_ending;
        let state = shared.asked.wait_while(shared.lock(), is_idle).unwrap_or_else(PoisonError::into_inner);
        if state.is_ending {
            return;
        }
        let number = state.asked;
        drop(state);
        let result = tracker.note_wanted();
        let mut state = shared.lock();
        state.done = number;
        if let Err(error) = result {
            state.failed = Some((number, IoError::from(&error.source)));
        }
        drop(state);
        wake();
    }
}
