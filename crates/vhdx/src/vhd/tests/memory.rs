//! A file in memory that knows what is stable: a crash keeps any part of what was not flushed, sector by sector.

use std::io;
use std::sync::Mutex;

use super::Random;
use crate::Storage;

const SECTOR: usize = 512;

#[derive(Clone)]
enum Change {
    Write(usize, Vec<u8>),
    Size(usize),
}

#[derive(Default)]
struct Inner {
    now: Vec<u8>,
    stable: Vec<u8>,
    pending: Vec<Change>,
    writes: usize,
}

#[derive(Default)]
pub(super) struct Memory(Mutex<Inner>);

impl Memory {
    pub fn of(bytes: Vec<u8>) -> Memory {
        Memory(Mutex::new(Inner { stable: bytes.clone(), now: bytes, ..Inner::default() }))
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap().now.clone()
    }

    /// How many changes there were.
    pub fn writes(&self) -> usize {
        self.0.lock().unwrap().writes
    }

    /// What a crash now may leave: of all sectors written since the last flush, and of all changes of the size, any part.
    pub fn crash(&self, random: &mut Random) -> Vec<u8> {
        let inner = self.0.lock().unwrap();
        let mut left = inner.stable.clone();
        // Few, half or most of what is pending.
        let keep = [1, 8, 15, 16][random.below(4) as usize];
        for change in &inner.pending {
            match change {
                Change::Size(size) => {
                    if random.below(16) < keep {
                        left.resize(*size, 0);
                    }
                }
                Change::Write(offset, data) => {
                    for (index, sector) in data.chunks(SECTOR).enumerate() {
                        let at = offset + index * SECTOR;
                        if random.below(16) < keep {
                            left.resize(left.len().max(at + sector.len()), 0);
                            left[at..at + sector.len()].copy_from_slice(sector);
                        }
                    }
                }
            }
        }
        left
    }

    fn change(&self, change: Change) {
        let mut inner = self.0.lock().unwrap();
        match &change {
            Change::Size(size) => inner.now.resize(*size, 0),
            Change::Write(offset, data) => {
                let end = offset + data.len();
                let length = inner.now.len().max(end);
                inner.now.resize(length, 0);
                inner.now[*offset..end].copy_from_slice(data);
            }
        }
        inner.writes += 1;
        inner.pending.push(change);
    }
}

impl Storage for Memory {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let inner = self.0.lock().unwrap();
        let end = offset as usize + buffer.len();
        let part = inner.now.get(offset as usize..end).ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(part);
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.change(Change::Write(offset as usize, data.to_vec()));
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        let mut inner = self.0.lock().unwrap();
        inner.pending.clear();
        inner.stable = inner.now.clone();
        Ok(())
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().now.len() as u64)
    }

    fn set_size(&self, size: u64) -> io::Result<()> {
        self.change(Change::Size(size as usize));
        Ok(())
    }

    fn punch(&self, offset: u64, length: u64) -> io::Result<()> {
        let inside = self.size()?.saturating_sub(offset).min(length);
        self.change(Change::Write(offset as usize, vec![0; inside as usize]));
        Ok(())
    }
}
