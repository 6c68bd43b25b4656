//! Copies a disk to another one while it is used, and hands over to it.
//!
//! ```text
//!   start ─▶ Copying ──────▶ Following ◀─────────────┐        thread of the mirror
//!            all of it       rounds: what was        │ dropped, too late, or the target's side says no: the source goes on
//!                            written since           │
//!                               │ hand_over          │
//!                               ▼                    │
//!                            HandingOver ─ writes held, the last round, flush ─▶ Ready ─ complete ─▶ Ended: the target is the disk
//!
//!   abort, an error of the target or of the source, in any phase ─▶ Ended: the source is the disk, as if nothing had been
//! ```
//!
//! # What the source pays
//! Each write marks its regions in a map in memory; the mirror copies in rounds what was marked. The guest's writes never go to the
//! target and never wait for it, so that a slow or broken one cannot slow or fail them. (Writing to both sides instead would converge
//! under any load, at the price of exactly that.) What is left for the end is a pause: [`Mirror::hand_over`] holds writes up, copies the
//! last regions, and makes the target durable. The pause has a limit that the caller sets. A guest that writes so much that the rest
//! does not fit into it gets no pause at all: the caller is told, slows the guest down with [`limits`](crate::limits), and tries again.
//!
//! # Hand-over
//! [`HandOver`] exists while writes are held and both disks hold the same, the target durably. Until [`HandOver::complete`] either side can
//! call it off: the source's by dropping it, the target's with [`Mirror::abort`] from any thread, and time does at the limit of the
//! pause. Completing and calling off are decided under one lock. Once completed, the source takes no writes any more: parked and new ones
//! end with [`IoError::Moved`], for their device to start again on the target.
//!
//! # A crash
//! Until a hand-over is completed the source is the disk, whole as without a mirror, and the target a file to be thrown away.

mod copier;
mod error;

use std::num::NonZeroU64;
use std::sync::mpsc;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::disk::{Access, Disk};
use crate::error::IoError;
use crate::gate::Held;
use crate::limits::{Limiter, Limits, Rate};

pub use error::{HandOverError, MirrorEnd, MirrorError};

/// A mirror being made. Dropping it ends it; the source goes on.
///
/// ```
/// # let directory = tempfile::tempdir().unwrap();
/// # let new = |name| { std::fs::File::create(directory.path().join(name)).unwrap().set_len(1 << 20).unwrap(); directory.path().join(name) };
/// use std::time::Duration;
/// use disk::{Disk, OpenOptions, mirror::Mirror};
/// let source = Disk::open(new("here.raw"), OpenOptions::default()).unwrap();
/// let target = Disk::open(new("there.raw"), OpenOptions::default()).unwrap();
/// let mirror = Mirror::start(&source, target, None)?;
/// // ... while engines read and write the source ...
/// let hand_over = mirror.hand_over(Duration::from_secs(5)).unwrap();
/// let disk = hand_over.complete().unwrap();
/// assert!(disk.path().ends_with("there.raw"));
/// # Ok::<(), disk::mirror::MirrorError>(())
/// ```
pub struct Mirror {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// How far a mirror is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What it is doing.
    pub phase: Phase,
    /// The disk's size in bytes.
    pub total_bytes: u64,
    /// Bytes copied so far, those that were copied again included.
    pub copied_bytes: u64,
    /// Bytes that are still to be copied, as of now.
    pub remaining_bytes: u64,
}

/// What a mirror is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The first copy of everything.
    Copying,
    /// Everything was copied once; what is written is copied in rounds.
    Following,
    /// A hand-over was asked for.
    HandingOver,
    /// Both sides hold the same, and writes are held until the hand-over is decided.
    Ready,
    /// It has ended; [`Mirror::wait`] says how.
    Ended,
}

struct Shared {
    source: Disk,
    target: Disk,
    rate: Limiter,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    stage: Stage,
    copied_bytes: u64,
    remaining_bytes: u64,
    /// Numbers hand-overs.
    last: u64,
    /// The one that was asked for and not answered, with the limit of its pause.
    wanted: Option<(u64, Duration)>,
    /// Why the last one that was answered was refused, if it was.
    refused: Option<(u64, HandOverError)>,
}

enum Stage {
    Copying,
    Following,
    HandingOver,
    /// Until then.
    Ready {
        number: u64,
        _held: Held,
        until: Instant,
    },
    Ended(MirrorEnd),
}

impl State {
    /// Goes on to another stage, unless somebody has ended the mirror.
    fn go_on(&mut self, stage: Stage) -> Result<(), MirrorEnd> {
        if let Stage::Ended(end) = &self.stage {
            return Err(end.clone());
        }
        self.stage = stage;
        Ok(())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, end: MirrorEnd) {
        let before = {
            let mut state = self.lock();
            if matches!(state.stage, Stage::Ended(_)) {
                return;
            }
            std::mem::replace(&mut state.stage, Stage::Ended(end))
        };
        // Writes go on, if they were held.
        drop(before);
        self.changed.notify_all();
    }
}

impl Mirror {
    /// Starts to copy `source` to `target`, whose content is overwritten as far as the source reaches. `rate` limits the copying, in
    /// bytes per second; the short last round of a hand-over is not limited. Waits for the source's writes under way, like
    /// [`Disk::hold_writes`].
    ///
    /// # Errors
    /// If the target cannot take what the source has; see [`MirrorError`].
    pub fn start(source: &Disk, target: Disk, rate: Option<NonZeroU64>) -> Result<Mirror, MirrorError> {
        let (from, to) = (source.path().to_owned(), target.path().to_owned());
        if target.capacity() < source.capacity() {
            return Err(MirrorError::TooSmall { path: to, size: target.capacity(), needed: source.capacity() });
        }
        if target.access() == Access::ReadOnly {
            return Err(MirrorError::ReadOnly(to));
        }
        if target.sector_size().bytes() > source.sector_size().bytes() {
            return Err(MirrorError::Sectors {
                path: to,
                size: target.sector_size().bytes(),
                needed: source.sector_size().bytes(),
            });
        }
        let is_shared = |layer: &crate::layer::Layer| target.layers().any(|other| other.identity == layer.identity);
        if is_shared(source.own()) || source.layers().any(|layer| layer.identity == target.own().identity) {
            return Err(MirrorError::SameFile { source_path: from, path: to });
        }
        let shared = Arc::new(Shared {
            source: source.clone(),
            target,
            rate: Limiter::new(limits(rate), Instant::now()),
            state: Mutex::new(State {
                stage: Stage::Copying,
                copied_bytes: 0,
                remaining_bytes: source.capacity(),
                last: 0,
                wanted: None,
                refused: None,
            }),
            changed: Condvar::new(),
        });
        let (ready, is_ready) = mpsc::sync_channel(1);
        let of_thread = shared.clone();
        let thread = std::thread::Builder::new()
            .name("mirror".into())
            .spawn(move || copier::run(&of_thread, |result| ready.send(result).is_ok()))
            .map_err(MirrorError::Thread)?;
        let mirror = Mirror { shared, thread: Some(thread) };
        // The channel is only closed unused if the thread panicked.
        is_ready.recv().unwrap_or_else(|_| Err(MirrorError::Thread(std::io::Error::other("it ended"))))?;
        Ok(mirror)
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        let state = self.shared.lock();
        let phase = match state.stage {
            Stage::Copying => Phase::Copying,
            Stage::Following => Phase::Following,
            Stage::HandingOver => Phase::HandingOver,
            Stage::Ready { .. } => Phase::Ready,
            Stage::Ended(_) => Phase::Ended,
        };
        let (copied_bytes, remaining_bytes) = (state.copied_bytes, state.remaining_bytes);
        Progress { phase, total_bytes: self.shared.source.capacity(), copied_bytes, remaining_bytes }
    }

    /// Changes how fast it may copy, in bytes per second.
    pub fn set_rate(&self, rate: Option<NonZeroU64>) {
        self.shared.rate.set(limits(rate), Instant::now());
        // Under the lock, so that a thread that is about to sleep has seen the rate or is woken.
        let _state = self.shared.lock();
        self.shared.changed.notify_all();
    }

    /// Waits until everything was copied once, then until what is left fits into a pause of `longest_pause`, holds the source's writes
    /// up, and returns when both sides hold the same. From the beginning of the pause to [`HandOver::complete`] no more than
    /// `longest_pause` passes; then writes go on, and the hand-over is void.
    ///
    /// # Errors
    /// Only [`HandOverError::Ended`] is the end of the mirror; otherwise it goes on following.
    pub fn hand_over(&self, longest_pause: Duration) -> Result<HandOver<'_>, HandOverError> {
        let shared = &*self.shared;
        let mut state = shared.lock();
        if state.wanted.is_some() || matches!(state.stage, Stage::Ready { .. }) {
            return Err(HandOverError::UnderWay);
        }
        state.last += 1;
        let number = state.last;
        state.wanted = Some((number, longest_pause));
        shared.changed.notify_all();
        loop {
            match &state.stage {
                Stage::Ended(end) => return Err(HandOverError::Ended(end.clone())),
                Stage::Ready { number: ready, .. } if *ready == number => return Ok(HandOver { shared, number }),
                _ => {}
            }
            match state.refused.take() {
                Some((refused, error)) if refused == number => return Err(error),
                // It was ready, and the time of the pause passed before this thread came to see it.
                _ if state.wanted.is_none_or(|(wanted, _)| wanted != number) => return Err(HandOverError::TooLate),
                other => state.refused = other,
            }
            state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Ends the mirror, in any phase but a completed hand-over. Writes go on at once if they were held.
    pub fn abort(&self) {
        self.shared.end(MirrorEnd::Aborted);
    }

    /// Waits for its end: an error, an [`abort`](Mirror::abort) by another thread, or a completed hand-over.
    pub fn wait(&self) -> MirrorEnd {
        let mut state = self.shared.lock();
        loop {
            if let Stage::Ended(end) = &state.stage {
                return end.clone();
            }
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.abort();
        if let Some(thread) = self.thread.take() {
            // It only panics with a bug, which has been printed.
            let _ = thread.join();
        }
    }
}

fn limits(rate: Option<NonZeroU64>) -> Limits {
    Limits { operations: None, bandwidth: rate.map(Rate::steady) }
}

/// Both disks hold the same, and the source's writes are held. Dropped, the source goes on, and the mirror follows it again.
pub struct HandOver<'a> {
    shared: &'a Shared,
    number: u64,
}

impl HandOver<'_> {
    /// Makes the target the disk. The source's writes that were held and those that follow end with [`IoError::Moved`].
    ///
    /// # Errors
    /// If the other side has ended the mirror, or the pause's limit has passed: the source is the disk then.
    pub fn complete(self) -> Result<Disk, HandOverError> {
        let mut state = self.shared.lock();
        match &state.stage {
            Stage::Ended(end) => return Err(HandOverError::Ended(end.clone())),
            Stage::Ready { number, until, .. } if *number == self.number && Instant::now() < *until => {}
            _ => return Err(HandOverError::TooLate),
        }
        self.shared.source.gate().attach(|attached| attached.has_moved = true);
        // What held the writes is dropped after that.
        let held = std::mem::replace(&mut state.stage, Stage::Ended(MirrorEnd::HandedOver));
        drop(state);
        drop(held);
        self.shared.changed.notify_all();
        Ok(self.shared.target.clone())
    }
}

impl Drop for HandOver<'_> {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        if !matches!(state.stage, Stage::Ready { number, .. } if number == self.number) {
            return;
        }
        let held = std::mem::replace(&mut state.stage, Stage::Following);
        drop(state);
        drop(held);
        self.shared.changed.notify_all();
    }
}

/// The end that an error of one side is.
fn failed(is_source: bool, disk: &Disk, offset: u64, error: IoError) -> MirrorEnd {
    let path = disk.path().to_owned();
    if is_source { MirrorEnd::Source { path, offset, error } } else { MirrorEnd::Target { path, offset, error } }
}
