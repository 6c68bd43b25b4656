//! Whatever is in a file: an error or an image, never a panic, and never a write outside of what was understood.

use super::*;

fn sample(kind: NewKind) -> Vec<u8> {
    let memory = new(kind, 9 * u64::from(BLOCK), BLOCK);
    let image = open(&memory);
    write(&image, &*memory, 0, &[3; 2 * BLOCK as usize]);
    write(&image, &*memory, 5 * u64::from(BLOCK) + 512, &[4; 512]);
    image.commit().unwrap();
    memory.bytes()
}

/// Does everything that can be done; only the absence of panics counts.
fn use_all(bytes: Vec<u8>) {
    let memory = Arc::new(Memory::of(bytes.clone()));
    check(&*memory).unwrap();
    let opened = Image::open(memory.clone(), Access::ReadOnly);
    assert_eq!(memory.writes(), 0);
    if let Ok(image) = opened {
        let mut extents = Vec::new();
        let size = image.size().min(1 << 20);
        let ticket = image.map_read(0, size, &mut extents).unwrap();
        image.finish(ticket);
        let length = bytes.len() as u64;
        for extent in extents {
            assert!(!matches!(extent.place, Place::File(offset) if offset + extent.length > length));
        }
    }
    if let Ok(image) = Image::open(memory.clone(), Access::ReadWrite) {
        let size = image.size().min(64 << 10);
        let _ = try_write(&image, &*memory, 0, &vec![1; size as usize]);
        zero(&image, &*memory, 0, size);
        let _ = image.commit();
        let _ = image.set_parent(parent());
        if image.size() < 1 << 20 {
            let _ = image.resize(2 * image.size());
        }
    } else {
        assert_eq!(memory.writes(), 0, "a file that was not understood was written to");
    }
    let memory = Arc::new(Memory::of(bytes));
    match repair(&*memory) {
        Ok(_) => drop(Image::open(memory, Access::ReadWrite).unwrap()),
        Err(_) => assert_eq!(memory.writes(), 0, "a file that could not be repaired was written to"),
    }
}

fn seal(bytes: &mut [u8], at: usize, length: usize, field: usize) {
    if let Some(part) = bytes.get_mut(at..at + length) {
        let sum = super::super::bytes::sum_checksum(part, field);
        super::super::bytes::put(part, field, &sum.to_be_bytes());
    }
}

#[test]
fn changed_bytes_are_an_error_or_an_image() {
    for kind in [NewKind::Fixed, NewKind::Dynamic, NewKind::Differencing(parent())] {
        let good = sample(kind);
        for seed in 0..6000 {
            let mut random = Random(seed);
            let mut bytes = good.clone();
            for _ in 0..=random.below(3) {
                // Mostly where the tables are: the beginning and the end.
                let end = bytes.len() as u64;
                let at = [random.below(end.min(3072)), end - 1 - random.below(512), random.below(end), 1536 + random.below(40)];
                let at = at[random.below(4) as usize].min(end - 1) as usize;
                bytes[at] = [0, 0xff, random.next() as u8, bytes[at] ^ 1][random.below(4) as usize];
            }
            if random.below(8) == 0 {
                bytes.truncate(random.below(bytes.len() as u64) as usize);
            }
            if random.below(4) != 0 {
                let end = bytes.len();
                seal(&mut bytes, 0, 512, 64);
                seal(&mut bytes, 512, 1024, 36);
                seal(&mut bytes, end.saturating_sub(512), 512, 64);
            }
            let run = std::panic::catch_unwind(|| use_all(bytes));
            assert!(run.is_ok(), "seed {seed}");
        }
    }
}

#[test]
fn two_blocks_in_one_place_are_refused() {
    let mut bytes = sample(NewKind::Dynamic);
    bytes.copy_within(1536..1540, 1544);
    let error = Image::open(Arc::new(Memory::of(bytes)), Access::ReadOnly).unwrap_err();
    assert!(error.to_string().contains("two blocks share the place"), "{error}");
}

#[test]
fn a_block_past_the_files_end_is_refused() {
    let mut bytes = sample(NewKind::Dynamic);
    bytes[1544..1548].copy_from_slice(&0x7fff_ffffu32.to_be_bytes());
    let error = Image::open(Arc::new(Memory::of(bytes)), Access::ReadOnly).unwrap_err();
    assert!(matches!(&error, OpenError::Damaged(Damage { structure: "block table", offset: 1544, .. })), "{error}");
}

#[test]
fn a_file_of_anything_is_not_a_vhd() {
    for length in [0, 1, 511, 512, 513, 1023, 4096] {
        let memory = Arc::new(Memory::of(vec![7; length]));
        assert!(matches!(Image::open(memory.clone(), Access::ReadWrite), Err(OpenError::NotVhd { .. })));
        assert!(matches!(repair(&*memory), Err(RepairError::NoFooter)));
        assert_eq!(memory.writes(), 0);
    }
}
