//! What is seen, reused and written when.

use super::*;

fn whole_block() -> Vec<u8> {
    vec![1; BLOCK as usize]
}

/// Where the first block's data is.
fn place(image: &Image, offset: u64) -> Place {
    let mut extents = Vec::new();
    let ticket = image.map_read(offset, 512, &mut extents).unwrap();
    image.finish(ticket);
    extents[0].place
}

#[test]
fn a_new_sector_of_a_differencing_disk_is_seen_when_it_is_complete() {
    let memory = new(NewKind::Differencing(parent()), 1 << 20, BLOCK);
    let image = open(&memory);
    let ticket = image.map_write(512, 512, &mut Vec::new()).unwrap();
    assert_eq!(place(&image, 512), Place::Parent);
    image.complete(ticket);
    assert!(matches!(place(&image, 512), Place::File(_)));
    assert_eq!(place(&image, 1024), Place::Parent);
    let ticket = image.map_write(1024, 512, &mut Vec::new()).unwrap();
    image.finish(ticket);
    assert_eq!(place(&image, 1024), Place::Parent);
}

#[test]
fn freed_space_is_used_again_after_a_commit_and_reads_as_zeros() {
    let memory = new(NewKind::Dynamic, 1 << 20, BLOCK);
    let image = open(&memory);
    write(&image, &*memory, 0, &whole_block());
    image.commit().unwrap();
    let first = place(&image, 0);
    zero(&image, &*memory, 0, u64::from(BLOCK));
    write(&image, &*memory, 8 * u64::from(BLOCK), &[2; 512]);
    assert_ne!(place(&image, 8 * u64::from(BLOCK)), first, "used before the table in the file forgot it");
    image.commit().unwrap();
    let size = memory.size().unwrap();
    write(&image, &*memory, 9 * u64::from(BLOCK), &[3; 512]);
    assert_eq!(place(&image, 9 * u64::from(BLOCK)), first);
    assert_eq!(read(&image, &*memory, 9 * u64::from(BLOCK) + 512, 512), [0; 512]);
    assert_eq!(memory.size().unwrap(), size);
}

#[test]
fn freed_space_waits_for_requests_that_know_it() {
    let memory = new(NewKind::Dynamic, 1 << 20, BLOCK);
    let image = open(&memory);
    write(&image, &*memory, 0, &whole_block());
    image.commit().unwrap();
    let mut known = Vec::new();
    let reader = image.map_read(0, 512, &mut known).unwrap();
    zero(&image, &*memory, 0, u64::from(BLOCK));
    for block in 1..6 {
        image.commit().unwrap();
        write(&image, &*memory, block * u64::from(BLOCK), &[2; 512]);
        assert_ne!(place(&image, block * u64::from(BLOCK)), known[0].place);
    }
    image.finish(reader);
    image.commit().unwrap();
    image.commit().unwrap();
    write(&image, &*memory, 6 * u64::from(BLOCK), &[2; 512]);
    assert_eq!(place(&image, 6 * u64::from(BLOCK)), known[0].place);
}

#[test]
fn a_commit_flushes_data_before_the_table_and_the_table_before_it_answers() {
    let memory = new(NewKind::Dynamic, 1 << 20, BLOCK);
    let image = open(&memory);
    write(&image, &*memory, 0, &whole_block());
    assert!(!image.is_clean());
    let commit = image.begin_commit().unwrap().unwrap();
    assert!(image.begin_commit().unwrap().is_none(), "two commits at once");
    let table = commit.steps.iter().position(|step| matches!(step, Step::Write { offset: 1536, .. })).unwrap();
    let flushes: Vec<usize> =
        commit.steps.iter().enumerate().filter(|(_, step)| **step == Step::Flush).map(|(at, _)| at).collect();
    let durable = commit.steps.iter().position(|step| *step == Step::Durable).unwrap();
    assert!(flushes.len() == 2 && flushes[0] < table && table < flushes[1] && flushes[1] < durable, "{:?}", commit.steps);
    for step in &commit.steps {
        assert!(!matches!(step, Step::Write { offset, data } if offset % 512 != 0 || data.len() % 512 != 0));
    }
    image.end_commit(commit, Ok(()));
    assert!(image.is_clean());
}

#[test]
fn a_failed_commit_is_carried_by_the_next() {
    let memory = new(NewKind::Dynamic, 1 << 20, BLOCK);
    let image = open(&memory);
    write(&image, &*memory, 0, &whole_block());
    let commit = image.begin_commit().unwrap().unwrap();
    image.end_commit(commit, Err(std::io::ErrorKind::StorageFull));
    assert!(!image.is_clean());
    image.commit().unwrap();
    assert_eq!(read(&open(&memory), &*memory, 0, u64::from(BLOCK)), whole_block());
}

#[test]
fn an_image_open_for_reading_is_never_written() {
    let memory = new(NewKind::Dynamic, 1 << 20, BLOCK);
    let writes = memory.writes();
    let image = Image::open(memory.clone(), Access::ReadOnly).unwrap();
    assert!(matches!(image.map_write(0, 512, &mut Vec::new()), Err(MapError::ReadOnly)));
    assert!(matches!(image.map_zero(0, 512, &mut Vec::new()), Err(MapError::ReadOnly)));
    image.commit().unwrap();
    assert_eq!(memory.writes(), writes);
}

#[test]
fn a_range_outside_the_disk_or_between_sectors_is_refused() {
    let image = open(&new(NewKind::Dynamic, 1 << 20, BLOCK));
    for (offset, length) in [(1 << 20, 512), (u64::MAX - 511, 512), (0, u64::MAX), (1, 512), (0, 511)] {
        assert!(matches!(image.map_read(offset, length, &mut Vec::new()), Err(MapError::Range { .. })));
    }
}

#[test]
fn bitmaps_of_other_programs_are_filled_where_we_write() {
    let memory = new(NewKind::Dynamic, 1 << 20, BLOCK);
    let image = open(&memory);
    write(&image, &*memory, 0, &whole_block());
    image.commit().unwrap();
    let Place::File(data) = place(&image, 0) else { panic!("the block is nowhere") };
    memory.write_at(data - 512, &[0x80; 512]).unwrap();
    let image = open(&memory);
    write(&image, &*memory, 512, &[2; 512]);
    image.commit().unwrap();
    assert_eq!(memory.bytes()[data as usize - 512..][..512], [0xff; 512]);
}

#[test]
fn threads_that_write_zero_and_commit_keep_their_own_blocks() {
    let memory = new(NewKind::Dynamic, 64 * u64::from(BLOCK), BLOCK);
    let image = open(&memory);
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let (image, memory) = (&image, &*memory);
            scope.spawn(move || {
                for round in 0..400u64 {
                    let offset = (thread * 16 + round % 16) * u64::from(BLOCK);
                    let value = (thread * 50 + round % 50 + 1) as u8;
                    write(image, memory, offset, &[value; 1024]);
                    assert_eq!(read(image, memory, offset, 2048), [[value; 1024], [0; 1024]].concat());
                    if thread == 0 {
                        image.commit().unwrap();
                    }
                    zero(image, memory, offset, u64::from(BLOCK));
                    assert_eq!(read(image, memory, offset, 1024), [0; 1024]);
                }
            });
        }
    });
    // All is zeros now, and all space comes back: with it the whole disk fits without a longer file.
    image.commit().unwrap();
    image.commit().unwrap();
    let size = memory.size().unwrap();
    write(&image, &*memory, 0, &[1; 64 * BLOCK as usize]);
    assert!(memory.size().unwrap() <= size.max(66 * 8192), "space did not come back");
}

#[test]
fn a_discard_in_a_differencing_disk_takes_no_space() {
    let memory = new(NewKind::Differencing(parent()), 1 << 20, BLOCK);
    let image = open(&memory);
    write(&image, &*memory, 512, &[1; 512]);
    image.commit().unwrap();
    let mut extents = Vec::new();
    let ticket = image.map_discard(0, 1 << 20, &mut extents).unwrap();
    assert!(matches!(extents[..], [Extent { length: 512, place: Place::File(_) }]), "{extents:?}");
    image.complete(ticket);
    assert!(image.is_clean());
    assert_eq!(place(&image, 1024), Place::Parent);
}
