//! A file with changes over it that are in memory only: how an image with a log in use is read without touching it.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use super::layout::PAGE;
use crate::Storage;

const PAGE_U64: u64 = PAGE as u64;

/// Pages and zeros over a file. Memory is bounded by the log that they come from.
pub(crate) struct Overlay {
    base: Arc<dyn Storage>,
    base_size: u64,
    size: u64,
    pages: BTreeMap<u64, Vec<u8>>,
    /// Start to end; they do not touch each other.
    zeros: BTreeMap<u64, u64>,
}

impl Overlay {
    pub(crate) fn new(base: Arc<dyn Storage>) -> io::Result<Self> {
        let size = base.size()?;
        Ok(Self { base, base_size: size, size, pages: BTreeMap::new(), zeros: BTreeMap::new() })
    }

    pub(crate) fn put_page(&mut self, offset: u64, page: Vec<u8>) {
        self.grow(offset + PAGE_U64);
        self.pages.insert(offset, page);
    }

    pub(crate) fn put_zeros(&mut self, offset: u64, length: u64) {
        let (mut start, mut end) = (offset, offset + length);
        if start == end {
            return;
        }
        self.grow(end);
        let covered: Vec<u64> = self.pages.range(start..end).map(|(at, _)| *at).collect();
        covered.iter().for_each(|at| drop(self.pages.remove(at)));
        while let Some((&at, &to)) = self.zeros.range(..=end).next_back() {
            if to < start {
                break;
            }
            self.zeros.remove(&at);
            (start, end) = (start.min(at), end.max(to));
        }
        self.zeros.insert(start, end);
    }

    pub(crate) fn grow(&mut self, size: u64) {
        self.size = self.size.max(size);
    }

    fn read_page(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let start = offset / PAGE_U64 * PAGE_U64;
        if let Some(page) = self.pages.get(&start) {
            let at = (offset - start) as usize;
            buffer.copy_from_slice(&page[at..at + buffer.len()]);
            return Ok(());
        }
        buffer.fill(0);
        let is_zero = self.zeros.range(..=start).next_back().is_some_and(|(_, end)| *end > start);
        let inside = self.base_size.saturating_sub(offset).min(buffer.len() as u64) as usize;
        if is_zero || inside == 0 { Ok(()) } else { self.base.read_at(offset, &mut buffer[..inside]) }
    }
}

impl Storage for Overlay {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        if offset.checked_add(buffer.len() as u64).is_none_or(|end| end > self.size) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut done = 0;
        while done < buffer.len() {
            let at = offset + done as u64;
            let count = ((PAGE_U64 - at % PAGE_U64) as usize).min(buffer.len() - done);
            self.read_page(at, &mut buffer[done..done + count])?;
            done += count;
        }
        Ok(())
    }

    fn write_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.size)
    }

    fn set_size(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn punch(&self, _: u64, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        let below = self.base.next_data(offset)?;
        let above = self.pages.range(offset / PAGE_U64 * PAGE_U64..).next().map(|(at, _)| (*at).max(offset));
        Ok([below, above].into_iter().flatten().min())
    }
}
