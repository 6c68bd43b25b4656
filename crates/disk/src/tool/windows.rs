//! Goes through a disk in pieces that one thread deals with at a time, and leaves out what need not be read.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use super::source::{Segment, Source};
use super::{Job, ToolError};

/// Bytes of a piece: large enough that each read and write is worth its system call.
pub(super) const WINDOW: u64 = 2 << 20;

/// How much of the disk is mapped at once: a multiple of [`WINDOW`].
const SPAN: u64 = 1 << 30;

/// A piece of the virtual disk: from one multiple of [`WINDOW`] to the next, or to the disk's end.
pub(super) struct Window {
    pub offset: u64,
    pub length: u64,
    /// What is in it, in order and without gaps.
    pub segments: Vec<Segment>,
}

/// All pieces in which something is wanted.
pub(super) struct Windows<'a> {
    source: &'a Source,
    wanted: fn(&Segment) -> bool,
    at: u64,
    mapped: u64,
    pending: VecDeque<Segment>,
}

impl<'a> Windows<'a> {
    pub fn new(source: &'a Source, wanted: fn(&Segment) -> bool) -> Windows<'a> {
        Windows { source, wanted, at: 0, mapped: 0, pending: VecDeque::new() }
    }

    /// The next piece, and where it begins for a progress bar.
    pub fn next(&mut self, job: &Job) -> Result<Option<Window>, ToolError> {
        loop {
            job.reach(self.at)?;
            if self.at >= self.source.size {
                return Ok(None);
            }
            if self.at >= self.mapped {
                let length = SPAN.min(self.source.size - self.mapped);
                let mut found = Vec::new();
                self.source.find(self.mapped, length, &mut found)?;
                self.mapped += length;
                self.pending = found.into();
            }
            // What is not wanted and reaches over whole pieces is passed over at once.
            if let Some(first) = self.pending.front().copied().filter(|it| !(self.wanted)(it)) {
                let end = first.offset + first.length;
                let next = if end == self.source.size { end } else { end / WINDOW * WINDOW };
                if next > self.at {
                    self.take_until(next);
                    self.at = next;
                    continue;
                }
            }
            let (offset, end) = (self.at, (self.at + WINDOW).min(self.source.size));
            let segments = self.take_until(end);
            self.at = end;
            if segments.iter().any(self.wanted) {
                return Ok(Some(Window { offset, length: end - offset, segments }));
            }
        }
    }

    fn take_until(&mut self, end: u64) -> Vec<Segment> {
        let mut taken = Vec::new();
        while let Some(first) = self.pending.pop_front() {
            if first.offset >= end {
                self.pending.push_front(first);
                break;
            }
            if first.offset + first.length > end {
                let (before, after) = first.split(end);
                taken.push(before);
                self.pending.push_front(after);
                break;
            }
            taken.push(first);
        }
        taken
    }
}

/// Threads that wait for storage most of the time; more than a few only get into each other's way.
fn threads() -> usize {
    std::thread::available_parallelism().map_or(4, |count| count.get().clamp(2, 4) * 2)
}

/// Has a few threads do `work` with each piece in which something is wanted, in no certain order. The first failure ends all.
pub(super) fn in_parallel(
    source: &Source,
    wanted: fn(&Segment) -> bool,
    job: &Job,
    work: impl Fn(&Window, &mut [u8]) -> Result<(), ToolError> + Sync,
) -> Result<(), ToolError> {
    job.begin(source.size);
    let windows = Mutex::new(Windows::new(source, wanted));
    let (failed, first) = (AtomicBool::new(false), Mutex::new(None));
    let worker = || {
        let mut buffer = vec![0; WINDOW as usize];
        while !failed.load(Relaxed) {
            let next = windows.lock().unwrap_or_else(PoisonError::into_inner).next(job);
            let result = match next {
                Ok(Some(window)) => work(&window, &mut buffer[..window.length as usize]),
                Ok(None) => return,
                Err(error) => Err(error),
            };
            if let Err(error) = result {
                failed.store(true, Relaxed);
                first.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            }
        }
    };
    std::thread::scope(|scope| {
        (1..threads()).for_each(|_| drop(scope.spawn(worker)));
        worker();
    });
    first.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}
