//! Files of dirty maps that were changed.

use std::io;
use std::sync::Arc;

use vhdx::fuzz::{Input, patch};
use vhdx::testing::Memory;

use crate::dirty::{Granularity, Identity, Storage, Tracker};

/// Two maps of a disk, and a journal with a bit.
const FILE: &[u8] = include_bytes!("../dirty/tests/version-1.dirty");
const SIZE: u64 = 5 << 30;
const SECTOR: usize = 512;
const HEADERS: [usize; 2] = [0, 4096];
const JOURNALS: [usize; 2] = [8192, 12288];
const JOURNAL_SECTORS: usize = 8;
const SNAPSHOTS: u64 = 16384;

fn identity(size: u64) -> Identity {
    Identity { disk: *b"the-disk-itself!", data_write: *b"written-by-nobod", size }
}

#[derive(Clone)]
struct File(Arc<Memory>);

impl Storage for File {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, buffer)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_at(offset, data)
    }

    fn flush(&self) -> io::Result<()> {
        self.0.flush()
    }

    fn size(&self) -> io::Result<u64> {
        self.0.size()
    }

    fn set_size(&self, size: u64) -> io::Result<()> {
        self.0.set_size(size)
    }

    fn punch(&self, offset: u64, length: u64) -> io::Result<()> {
        self.0.punch(offset, length)
    }
}

/// Opens a changed file and uses its maps.
///
/// # Panics
/// If that is not survived; if what is then in the file is not understood.
pub fn dirty(data: &[u8]) -> bool {
    let mut input = Input::new(data);
    let how = input.byte();
    let mut content = FILE.to_vec();
    if how & 0x70 == 0x70 {
        content.truncate(input.below(FILE.len() as u64) as usize);
    }
    let mut places = vec![(SNAPSHOTS, 64), (SNAPSHOTS, FILE.len() as u64 - SNAPSHOTS)];
    places.extend(HEADERS.map(|offset| (offset as u64, SECTOR as u64)));
    places.extend(JOURNALS.map(|offset| (offset as u64, (JOURNAL_SECTORS * SECTOR) as u64)));
    patch(&mut input, &places, |offset, change| {
        if let Some(part) = content.get_mut(offset as usize..offset as usize + change.len()) {
            part.copy_from_slice(change);
        }
    });
    if how & 3 > 0 {
        reseal(&mut content);
    }
    let memory = Arc::new(Memory::new());
    memory.write_at(0, &content).expect("memory does not fail");
    let size = if how & 4 == 0 { SIZE } else { 64 << 30 };
    exercise(&File(memory), size)
}

/// Gives whatever has a checksum the right one.
fn reseal(content: &mut [u8]) {
    let field =
        |content: &[u8], at: usize| content.get(at..at + 8).map(|it| u64::from_le_bytes(it.try_into().unwrap_or_default()));
    for header in HEADERS {
        let (offset, length) = (field(content, header + 80), field(content, header + 88));
        let place = offset.zip(length).and_then(|(offset, length)| Some(offset as usize..offset.checked_add(length)? as usize));
        let snapshot = place.and_then(|place| content.get(place)).map(crc32fast::hash);
        if let (Some(checksum), Some(part)) = (snapshot, content.get_mut(header + 96..header + 100)) {
            part.copy_from_slice(&checksum.to_le_bytes());
        }
    }
    let journals = JOURNALS.into_iter().flat_map(|at| (0..JOURNAL_SECTORS).map(move |sector| at + sector * SECTOR));
    for sector in HEADERS.into_iter().chain(journals) {
        if let Some(sector) = content.get_mut(sector..sector + SECTOR) {
            let checksum = crc32fast::hash(&sector[..SECTOR - 4]);
            sector[SECTOR - 4..].copy_from_slice(&checksum.to_le_bytes());
        }
    }
}

fn exercise(file: &File, size: u64) -> bool {
    let Ok((tracker, _)) = Tracker::open(Box::new(file.clone()), "maps", identity(size)) else { return false };
    let names: Vec<String> = tracker.names().into_iter().map(|(name, _)| name).collect();
    for name in &names {
        let taken = tracker.take(name, 0..size).expect("a map that is there");
        let marked: u64 = taken.iter().take(1000).map(|range| range.end - range.start).sum();
        assert!(marked <= size, "{marked} bytes of {size} marked");
    }
    let _ = tracker.add("one more", Granularity::DEFAULT);
    let mut marker = tracker.marker();
    marker.write_begins(size - 512, 512).expect("memory does not fail");
    marker.write_ended(size - 512, 512);
    tracker.checkpoint().expect("memory does not fail");
    drop((marker, tracker));
    let (tracker, _) = Tracker::open(Box::new(file.clone()), "maps", identity(size)).expect("a file that was just written");
    assert!(names.iter().all(|name| tracker.count(name).is_ok_and(|count| count > 0)), "a mark was lost");
    true
}
