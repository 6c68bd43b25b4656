//! For tests: files in memory, one of them with a power switch, and an executor that does what a mapping asks for.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{Extent, MapError, Mapping, Place, Step, Storage};

const PAGE: u64 = 4096;

/// Random numbers that a seed repeats.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The same seed gives the same numbers.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number (splitmix64).
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// A number below `limit`, which is not zero.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// Bytes that take memory only where they are not zeros. A copy costs little.
#[derive(Clone, Debug, Default)]
pub struct Content {
    pages: BTreeMap<u64, Arc<[u8; PAGE as usize]>>,
    size: u64,
}

impl Content {
    fn write(&mut self, offset: u64, data: &[u8]) {
        self.size = self.size.max(offset + data.len() as u64);
        let mut done = 0;
        while done < data.len() {
            let at = offset + done as u64;
            let within = (at % PAGE) as usize;
            let count = (PAGE as usize - within).min(data.len() - done);
            let page = self.pages.entry(at / PAGE).or_insert_with(|| Arc::new([0; PAGE as usize]));
            Arc::make_mut(page)[within..within + count].copy_from_slice(&data[done..done + count]);
            done += count;
        }
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        if offset.checked_add(buffer.len() as u64).is_none_or(|end| end > self.size) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut done = 0;
        while done < buffer.len() {
            let at = offset + done as u64;
            let within = (at % PAGE) as usize;
            let count = (PAGE as usize - within).min(buffer.len() - done);
            match self.pages.get(&(at / PAGE)) {
                Some(page) => buffer[done..done + count].copy_from_slice(&page[within..within + count]),
                None => buffer[done..done + count].fill(0),
            }
            done += count;
        }
        Ok(())
    }

    fn zero(&mut self, offset: u64, length: u64) {
        let end = (offset + length).min(self.size);
        let inner = offset.div_ceil(PAGE)..(end / PAGE).max(offset.div_ceil(PAGE));
        let whole: Vec<u64> = self.pages.range(inner.clone()).map(|(page, _)| *page).collect();
        whole.iter().for_each(|page| drop(self.pages.remove(page)));
        let edges = [(offset, end.min(inner.start * PAGE)), ((inner.end * PAGE).max(offset.min(end)), end)];
        for (from, to) in edges.into_iter().filter(|(from, to)| from < to) {
            self.write(from, &vec![0; (to - from) as usize]);
        }
    }

    fn set_size(&mut self, size: u64) {
        if size < self.size {
            self.zero(size, self.size - size);
        }
        self.size = size;
    }
}

#[derive(Clone, Debug)]
enum Change {
    Write(u64, Vec<u8>),
    Punch(u64, u64),
    Size(u64),
}

#[derive(Debug, Default)]
struct Power {
    live: Content,
    stable: Content,
    /// Since the last flush.
    pending: Vec<Change>,
    /// Changes and flushes so far.
    done: u64,
    /// The power goes before the one with this number.
    limit: Option<u64>,
    /// Only that one fails.
    is_glitch: bool,
}

/// A file in memory that forgets, when its power goes, any part of what was not flushed.
#[derive(Debug, Default)]
pub struct Memory(Mutex<Power>);

impl Memory {
    /// An empty file.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A file with this content, all of it stable.
    #[must_use]
    pub fn with(content: Content) -> Self {
        Self(Mutex::new(Power { live: content.clone(), stable: content, ..Power::default() }))
    }

    fn lock(&self) -> MutexGuard<'_, Power> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is in the file now.
    #[must_use]
    pub fn content(&self) -> Content {
        self.lock().live.clone()
    }

    /// Bytes that take memory.
    #[must_use]
    pub fn allocated(&self) -> u64 {
        self.lock().live.pages.len() as u64 * PAGE
    }

    /// Changes and flushes so far.
    #[must_use]
    pub fn done(&self) -> u64 {
        self.lock().done
    }

    /// The power goes before the change or flush with this number: it and all later ones fail.
    pub fn cut_at(&self, limit: u64) {
        self.lock().limit = Some(limit);
    }

    /// The change or flush with this number fails and does nothing; later ones work.
    pub fn fail_at(&self, number: u64) {
        let mut power = self.lock();
        (power.limit, power.is_glitch) = (Some(number), true);
    }

    /// What a power failure leaves: all that was flushed, and of each 512 bytes written since, either all or nothing.
    #[must_use]
    pub fn crash(&self, random: &mut Random) -> Content {
        let power = self.lock();
        let mut content = power.stable.clone();
        // Each change is lost, torn, or kept; all lost and all kept are worth more tries than chance gives them.
        let mode = random.below(6);
        for change in &power.pending {
            let chance = match mode {
                0 => 0,
                1 => 100,
                _ => [0, 50, 100][random.below(3) as usize],
            };
            match change {
                Change::Write(offset, data) => {
                    for (index, sector) in data.chunks(512).enumerate() {
                        if random.below(100) < chance {
                            content.write(offset + index as u64 * 512, sector);
                        }
                    }
                }
                Change::Punch(offset, length) if random.below(100) < chance => content.zero(*offset, *length),
                Change::Size(size) if random.below(100) < chance => content.set_size(*size),
                _ => {}
            }
        }
        content
    }

    fn change(&self, change: Change) -> io::Result<()> {
        let mut power = self.lock();
        power.count()?;
        match &change {
            Change::Write(offset, data) => power.live.write(*offset, data),
            Change::Punch(offset, length) => power.live.zero(*offset, *length),
            Change::Size(size) => power.live.set_size(*size),
        }
        power.pending.push(change);
        Ok(())
    }
}

impl Power {
    fn count(&mut self) -> io::Result<()> {
        if self.limit.is_some_and(|limit| self.done >= limit) {
            if self.is_glitch {
                self.limit = None;
            }
            return Err(io::Error::other("the power is gone"));
        }
        self.done += 1;
        Ok(())
    }
}

impl Storage for Memory {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.lock().live.read(offset, buffer)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.change(Change::Write(offset, data.to_vec()))
    }

    fn flush(&self) -> io::Result<()> {
        let mut power = self.lock();
        power.count()?;
        power.pending.clear();
        power.stable = power.live.clone();
        Ok(())
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.lock().live.size)
    }

    fn set_size(&self, size: u64) -> io::Result<()> {
        self.change(Change::Size(size))
    }

    fn punch(&self, offset: u64, length: u64) -> io::Result<()> {
        self.change(Change::Punch(offset, length))
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        let power = self.lock();
        let next = power.live.pages.range(offset / PAGE..).next();
        Ok(next.map(|(page, _)| (page * PAGE).max(offset)).filter(|at| *at < power.live.size))
    }
}

/// Does data I/O for a mapping, on the calling thread.
#[derive(Clone)]
pub struct Executor {
    /// What says where data is.
    pub mapping: Arc<dyn Mapping>,
    /// Where it is.
    pub file: Arc<dyn Storage>,
    /// Where the rest is; zeros where there is none, and behind its end.
    pub parent: Option<Arc<Executor>>,
}

/// Why an executor failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The range was not mapped.
    #[error(transparent)]
    Map(#[from] MapError),
    /// The file failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Executor {
    /// Reads a range.
    ///
    /// # Errors
    /// See [`Failure`].
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Failure> {
        let mut extents = Vec::new();
        let ticket = self.mapping.map_read(offset, buffer.len() as u64, &mut extents)?;
        let result = self.read_extents(offset, buffer, &extents);
        self.mapping.finish(ticket);
        result
    }

    fn read_extents(&self, offset: u64, buffer: &mut [u8], extents: &[Extent]) -> Result<(), Failure> {
        let mut done = 0;
        for extent in extents {
            let part = &mut buffer[done..done + extent.length as usize];
            match (extent.place, &self.parent) {
                (Place::File(place), _) => self.file.read_at(place, part)?,
                (Place::Parent, Some(parent)) => {
                    let at = offset + done as u64;
                    let inside = parent.mapping.size().saturating_sub(at).min(extent.length) as usize;
                    part.fill(0);
                    parent.read(at, &mut part[..inside])?;
                }
                _ => part.fill(0),
            }
            done += extent.length as usize;
        }
        assert_eq!(done, buffer.len(), "extents cover what was asked for");
        Ok(())
    }

    /// Writes a range.
    ///
    /// # Errors
    /// See [`Failure`].
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<(), Failure> {
        let mut extents = Vec::new();
        let ticket = self.retry(|| self.mapping.map_write(offset, data.len() as u64, &mut extents))?;
        let mut done = 0;
        for extent in extents {
            let Place::File(place) = extent.place else { panic!("writing to {extent:?}") };
            if let Err(error) = self.file.write_at(place, &data[done..done + extent.length as usize]) {
                self.mapping.finish(ticket);
                return Err(error.into());
            }
            done += extent.length as usize;
        }
        assert_eq!(done, data.len(), "extents cover what was asked for");
        self.mapping.complete(ticket);
        Ok(())
    }

    /// Makes a range zeros.
    ///
    /// # Errors
    /// See [`Failure`].
    pub fn zero(&self, offset: u64, length: u64) -> Result<(), Failure> {
        let mut extents = Vec::new();
        let ticket = self.retry(|| self.mapping.map_zero(offset, length, &mut extents))?;
        for extent in extents {
            let Place::File(place) = extent.place else { panic!("punching {extent:?}") };
            if let Err(error) = self.file.punch(place, extent.length) {
                self.mapping.finish(ticket);
                return Err(error.into());
            }
        }
        self.mapping.complete(ticket);
        Ok(())
    }

    fn retry<T>(&self, mut map: impl FnMut() -> Result<T, MapError>) -> Result<T, Failure> {
        loop {
            match map() {
                Err(MapError::CommitFirst) => self.flush(|| ())?,
                other => return Ok(other?),
            }
        }
    }

    /// Commits; calls `durable` at the moment from which on that is promised.
    ///
    /// # Errors
    /// See [`Failure`].
    pub fn flush(&self, mut durable: impl FnMut()) -> Result<(), Failure> {
        let mut commit = self.mapping.begin_commit()?.expect("one commit at a time");
        while let Some(step) = commit.steps.pop_front() {
            let result = match &step {
                Step::Write { offset, data } => self.file.write_at(*offset, data),
                Step::Flush => self.file.flush(),
                Step::Punch { offset, length } => self.file.punch(*offset, *length),
                Step::Durable => {
                    durable();
                    Ok(())
                }
            };
            if let Err(error) = result {
                commit.steps.push_front(step);
                self.mapping.end_commit(commit, Err(error.kind()));
                return Err(error.into());
            }
        }
        self.mapping.end_commit(commit, Ok(()));
        Ok(())
    }
}
