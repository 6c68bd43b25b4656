//! Storage that loses power, and storage that fails now and then.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex};

use super::{Random, Storage};

/// What goes wrong.
#[derive(Clone, Default)]
pub struct Faults {
    /// From this operation on (writes and flushes count) there is no power.
    pub power_off_at: Option<u64>,
    /// These operations fail; whether a failed write changed anything is open.
    pub failing: BTreeSet<u64>,
}

/// A file in memory. What was not flushed may be lost, whole or by sectors, when the power goes. Clones are the same file.
#[derive(Clone)]
pub struct Faulty(Arc<Mutex<State>>);

struct State {
    stable: Vec<u8>,
    pending: Vec<(u64, Vec<u8>)>,
    operations: u64,
    faults: Faults,
    random: Random,
}

impl Faulty {
    pub fn new(seed: u64, faults: Faults) -> Faulty {
        let random = Random::new(seed);
        Faulty(Arc::new(Mutex::new(State { stable: Vec::new(), pending: Vec::new(), operations: 0, faults, random })))
    }

    pub fn boxed(&self) -> Box<dyn Storage> {
        Box::new(self.clone())
    }

    pub fn operations(&self) -> u64 {
        self.0.lock().unwrap().operations
    }

    /// What is there after the power came back.
    pub fn after_power_loss(&self) -> Faulty {
        let mut state = self.0.lock().unwrap();
        let State { stable, pending, random, .. } = &mut *state;
        let mut stable = stable.clone();
        for (offset, data) in pending {
            match random.below(3) {
                0 => {}
                1 => put(&mut stable, *offset, data),
                _ => {
                    for (index, sector) in data.chunks(512).enumerate() {
                        if random.below(2) == 0 {
                            put(&mut stable, *offset + 512 * index as u64, sector);
                        }
                    }
                }
            }
        }
        let seed = random.below(u64::MAX);
        let after = Faulty::new(seed, Faults::default());
        after.0.lock().unwrap().stable = stable;
        after
    }

    /// The content, if all of it were stable.
    pub fn content(&self) -> Vec<u8> {
        let state = self.0.lock().unwrap();
        let mut content = state.stable.clone();
        state.pending.iter().for_each(|(offset, data)| put(&mut content, *offset, data));
        content
    }

    pub fn holding(content: Vec<u8>) -> Faulty {
        let file = Faulty::new(0, Faults::default());
        file.0.lock().unwrap().stable = content;
        file
    }
}

fn put(content: &mut Vec<u8>, offset: u64, data: &[u8]) {
    let (start, end) = (offset as usize, offset as usize + data.len());
    content.resize(content.len().max(end), 0);
    content[start..end].copy_from_slice(data);
}

impl State {
    fn operation(&mut self) -> io::Result<()> {
        let number = self.operations;
        self.operations += 1;
        if self.faults.power_off_at.is_some_and(|at| number >= at) {
            return Err(io::Error::other("no power"));
        }
        if self.faults.failing.contains(&number) {
            return Err(io::Error::other("a bad moment"));
        }
        Ok(())
    }
}

impl Storage for Faulty {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let content = self.content();
        let part = content.get(offset as usize..offset as usize + buffer.len());
        buffer.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        let result = state.operation();
        if result.is_ok() || state.random.below(2) == 0 {
            state.pending.push((offset, data.to_vec()));
        }
        result
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.content().len() as u64)
    }

    fn set_size(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn punch(&self, _: u64, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn flush(&self) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        // A flush that fails leaves everything open, as on Linux.
        state.operation()?;
        for (offset, data) in std::mem::take(&mut state.pending) {
            put(&mut state.stable, offset, &data);
        }
        Ok(())
    }
}
