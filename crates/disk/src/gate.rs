//! Where requests of all engines of a disk pass before they start, and where they wait while they may not.
//!
//! ```text
//!   engine, for a write                                   somebody else
//!   Seat::write_begins: counted ─▶ Gate::word ── as seen before ──▶ the write starts     Gate::hold: is_held, another word ─▶
//!                                     └─ another ─▶ looks again: held? not counted, parked      waits until no write is counted
//!   Seat::write_ends ─▶ not counted; tells who waits for that                           Held dropped: another word ─▶ wakes engines
//! ```
//! The count is stored before the word is read, and the word before the counts are, both in one total order: either the engine sees
//! that writes are held, or whoever holds them sees that one is under way. As long as nothing is attached to the disk, a write costs
//! two stores and two loads of memory that hardly ever changes hands.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::limits::Limiter;
use crate::tracking::Tracked;
use crate::wake::Wake;

#[derive(Default)]
pub(crate) struct Gate {
    /// Changes with everything that engines have to know.
    word: AtomicU64,
    is_held: AtomicBool,
    state: Mutex<State>,
    /// Rings when a write ends while writes are held.
    ended: Condvar,
}

#[derive(Default)]
struct State {
    holds: u32,
    attached: Attached,
    seats: Vec<Arc<Seat>>,
}

/// What is attached to a disk besides its engines.
#[derive(Clone, Default)]
pub(crate) struct Attached {
    pub tracked: Vec<Arc<Tracked>>,
    /// Says when requests may start, if that is limited.
    pub limiter: Option<Arc<Limiter>>,
    /// A mirror has taken the disk's place; this one is not written any more.
    pub has_moved: bool,
}

/// What an engine knows of the gate.
pub(crate) struct Seen {
    pub word: u64,
    pub is_held: bool,
    pub attached: Attached,
}

impl Seen {
    /// Whether requests pass without a further look.
    pub fn is_open(&self) -> bool {
        let Attached { tracked, limiter, has_moved } = &self.attached;
        !self.is_held && !has_moved && limiter.is_none() && tracked.is_empty()
    }
}

/// One engine at the gate.
pub(crate) struct Seat {
    pub wake: Arc<Wake>,
    /// Writes, discards and zeroings under way. Only the engine changes it.
    writes: AtomicU32,
    /// The engine has parked requests, and is to be woken when there is news.
    is_waiting: AtomicBool,
}

impl Seat {
    pub fn new() -> std::io::Result<Arc<Seat>> {
        let wake = Arc::new(Wake::new()?);
        Ok(Arc::new(Seat { wake, writes: AtomicU32::new(0), is_waiting: AtomicBool::new(false) }))
    }

    pub fn write_begins(&self) {
        self.writes.store(self.writes.load(Ordering::Relaxed) + 1, Ordering::SeqCst);
    }

    /// Writes have ended, or do not begin yet.
    pub fn writes_end(&self, gate: &Gate, count: u32) {
        self.writes.store(self.writes.load(Ordering::Relaxed) - count, Ordering::SeqCst);
        if gate.is_held.load(Ordering::SeqCst) {
            let _state = gate.lock();
            gate.ended.notify_all();
        }
    }

    /// The engine looks at its parked requests after this: news from before is there to be seen, later news wakes it.
    pub fn waits(&self) {
        self.is_waiting.store(true, Ordering::SeqCst);
    }
}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn join(&self, seat: Arc<Seat>) {
        self.lock().seats.push(seat);
    }

    pub fn leave(&self, seat: &Arc<Seat>) {
        self.lock().seats.retain(|it| !Arc::ptr_eq(it, seat));
        self.ended.notify_all();
    }

    /// Whether there is no engine.
    pub fn is_idle(&self) -> bool {
        self.lock().seats.is_empty()
    }

    pub fn word(&self) -> u64 {
        self.word.load(Ordering::SeqCst)
    }

    pub fn look(&self) -> Seen {
        let state = self.lock();
        Seen { word: self.word(), is_held: state.holds > 0, attached: state.attached.clone() }
    }

    /// Has engines look at what they parked.
    pub fn wake(&self) {
        self.lock().wake();
    }

    /// Holds new writes up. Those that have begun go on.
    pub fn hold(self: &Arc<Self>) -> Held {
        let mut state = self.lock();
        state.holds += 1;
        self.is_held.store(true, Ordering::SeqCst);
        self.word.fetch_add(1, Ordering::SeqCst);
        Held(self.clone())
    }

    /// Waits until no write is under way, which only comes about for certain while they are held. False if `deadline` came first.
    pub fn wait_for_writes(&self, deadline: Option<Instant>) -> bool {
        let mut state = self.lock();
        while state.seats.iter().any(|seat| seat.writes.load(Ordering::SeqCst) > 0) {
            state = match deadline.map(|at| at.saturating_duration_since(Instant::now())) {
                None => self.ended.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(left) if left.is_zero() => return false,
                Some(left) => self.ended.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0,
            };
        }
        true
    }

    /// Changes what is attached. What writes have to know is only changed while they are held.
    pub fn attach<T>(&self, change: impl FnOnce(&mut Attached) -> T) -> T {
        let mut state = self.lock();
        let result = change(&mut state.attached);
        self.word.fetch_add(1, Ordering::SeqCst);
        state.wake();
        result
    }

    pub fn attached(&self) -> Attached {
        self.lock().attached.clone()
    }
}

impl State {
    fn wake(&self) {
        for seat in &self.seats {
            if seat.is_waiting.swap(false, Ordering::SeqCst) {
                seat.wake.signal();
            }
        }
    }
}

/// As long as this exists, no write, discard or zeroing of the disk is under way: engines park them. See [`Disk::hold_writes`](crate::Disk::hold_writes).
#[must_use = "writes go on when this is dropped"]
pub struct Held(Arc<Gate>);

impl Drop for Held {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.holds -= 1;
        if state.holds == 0 {
            self.0.is_held.store(false, Ordering::SeqCst);
        }
        self.0.word.fetch_add(1, Ordering::SeqCst);
        state.wake();
    }
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Held")
    }
}
