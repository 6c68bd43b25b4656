//! The file: what it holds, and what it refuses.

use super::*;

const SIZE: u64 = 5 << 30;

/// Maps with a bit of everything: a full leaf, a partial one, two granularities, a journal with a bit.
fn sample() -> Faulty {
    let storage = Faulty::new(1, Faults::default());
    let tracker = Tracker::create(storage.boxed(), "maps", identity(SIZE)).unwrap();
    tracker.add("nightly", Granularity::DEFAULT).unwrap();
    tracker.add("mirror", granularity(MIB)).unwrap();
    let mut marker = tracker.marker();
    marker.write_begins(0, 2 << 30).unwrap();
    marker.write_begins((3 << 30) + 5, 1).unwrap();
    tracker.announce(*b"somebody-writes!").unwrap();
    marker.write_begins(4 << 30, 512).unwrap();
    storage
}

#[test]
fn the_file_is_as_it_always_was() {
    let content = sample().content();
    if let Some(path) = std::env::var_os("MARU_WRITE_GOLDEN") {
        std::fs::write(path, &content).unwrap();
    }
    let golden = include_bytes!("version-1.dirty");
    assert!(content == golden, "the format changed");
    let (tracker, recovery) = Tracker::open(Faulty::holding(golden.to_vec()).boxed(), "maps", identity(SIZE)).unwrap();
    assert_eq!(recovery, Recovery::Widened { bytes: 16 * MIB });
    let ranges = |name| tracker.take(name, 0..SIZE).unwrap().iter().collect::<Vec<_>>();
    let noted = 4 << 30..(4 << 30) + 16 * MIB;
    assert_eq!(ranges("nightly"), [0..2 << 30, 3 << 30..(3 << 30) + 65536, noted.clone()]);
    assert_eq!(ranges("mirror"), [0..2 << 30, 3 << 30..(3 << 30) + MIB, noted]);
}

#[test]
fn a_clean_stop_keeps_the_maps_exact() {
    let storage = sample();
    let (tracker, _) = Tracker::open(storage.boxed(), "maps", identity(SIZE)).unwrap();
    tracker.take("nightly", 0..SIZE).unwrap().confirm();
    let mut marker = tracker.marker();
    marker.write_begins(9 * MIB, 65536).unwrap();
    marker.write_ended(9 * MIB, 65536);
    tracker.checkpoint().unwrap();
    drop(tracker);
    let (tracker, recovery) = Tracker::open(storage.after_power_loss().boxed(), "maps", identity(SIZE)).unwrap();
    assert_eq!(recovery, Recovery::Exact);
    assert!(tracker.take("nightly", 0..SIZE).unwrap().iter().eq(std::iter::once(9 * MIB..9 * MIB + 65536)));
    assert_eq!(tracker.names(), [("nightly".to_owned(), Granularity::DEFAULT), ("mirror".to_owned(), granularity(MIB))]);
}

#[test]
fn maps_of_another_disk_or_state_are_recognised() {
    let open = |identity| Tracker::open(sample().boxed(), "maps", identity).map(drop);
    open(identity(SIZE)).unwrap();
    open(Identity { data_write: *b"somebody-writes!", ..identity(SIZE) }).unwrap();
    let stale = open(Identity { data_write: [1; 16], ..identity(SIZE) }).unwrap_err();
    assert!(matches!(stale, OpenError::Stale(_)), "{stale}");
    let other = open(Identity { disk: [1; 16], ..identity(SIZE) }).unwrap_err();
    assert!(matches!(other, OpenError::OtherDisk(_)), "{other}");
    let size = open(identity(SIZE / 2)).unwrap_err();
    assert!(size.to_string().contains("for 5368709120 bytes, the disk has 2684354560"), "{size}");
}

#[test]
fn an_announced_change_fits_before_and_after_and_then_only_after() {
    let storage = sample();
    let after = Identity { data_write: *b"somebody-writes!", ..identity(SIZE) };
    let (tracker, _) = Tracker::open(storage.boxed(), "maps", after).unwrap();
    tracker.checkpoint().unwrap();
    Tracker::open(storage.boxed(), "maps", after).map(drop).unwrap();
    assert!(matches!(Tracker::open(storage.boxed(), "maps", identity(SIZE)), Err(OpenError::Stale(_))));
}

#[test]
fn a_later_version_is_named() {
    let mut content = sample().content();
    for slot in 0..2 {
        let sector = &mut content[slot * 4096..slot * 4096 + 512];
        sector[8] = 2;
        let checksum = crc32fast::hash(&sector[..508]);
        sector[508..].copy_from_slice(&checksum.to_le_bytes());
    }
    let error = Tracker::open(Faulty::holding(content).boxed(), "maps", identity(SIZE)).map(drop).unwrap_err();
    assert!(error.to_string().contains("format version 2 is not known"), "{error}");
}

#[test]
fn damage_never_makes_a_region_clean() {
    let whole = sample();
    let content = whole.content();
    let marked = |storage: &Faulty| {
        let (tracker, _) = Tracker::open(storage.boxed(), "maps", identity(SIZE))?;
        let (nightly, mirror) = (tracker.take("nightly", 0..SIZE), tracker.take("mirror", 0..SIZE));
        Ok::<_, OpenError>(match (nightly, mirror) {
            (Ok(nightly), Ok(mirror)) => [0, 1 << 30, 3 << 30, 4 << 30]
                .into_iter()
                .all(|offset| nightly.is_dirty(&(offset..offset + 1)) && mirror.is_dirty(&(offset..offset + 1))),
            // Whoever misses a map starts with a full copy.
            _ => true,
        })
    };
    assert!(marked(&whole).unwrap());
    let mut random = Random::new(1);
    for round in 0..3000 {
        let mut damaged = content.clone();
        match round % 3 {
            0 => {
                let sector = random.below(damaged.len() as u64 / 512) as usize * 512;
                damaged[sector..sector + 512].fill(random.below(256) as u8);
            }
            1 => damaged.truncate(random.below(content.len() as u64) as usize),
            _ => {
                let at = random.below(damaged.len() as u64) as usize;
                damaged[at] ^= 1 << random.below(8);
            }
        }
        if let Ok(all) = marked(&Faulty::holding(damaged)) {
            assert!(all, "round {round}");
        }
    }
}

#[test]
fn a_snapshot_of_noise_is_refused() {
    let mut content = sample().content();
    let mut random = Random::new(3);
    for _ in 0..2000 {
        let length = 1 + random.below(60) as usize;
        let noise: Vec<u8> = (0..length).map(|_| [0, 1, 2, 16, 255, random.below(256) as u8][random.below(6) as usize]).collect();
        content.resize(content.len().max(32768 + 64), 0);
        content[32768..32768 + length].copy_from_slice(&noise);
        let storage = Faulty::holding(content.clone());
        let checksum = crc32fast::hash(&noise);
        let noise = format::Snapshot { offset: 32768, length: length as u64, checksum };
        // Also with a checksum that fits, no noise does harm.
        drop(snapshot::read(&storage, noise, SIZE));
    }
    for snapshot in [(0, u64::MAX), (u64::MAX, 2), (u64::MAX - 1, 1), (16384, 1 << 60)] {
        let snapshot = format::Snapshot { offset: snapshot.0, length: snapshot.1, checksum: 0 };
        assert!(snapshot::read(&Faulty::holding(vec![0xff; 65536]), snapshot, SIZE).is_err());
    }
}

#[test]
fn names_are_checked() {
    let tracker = Tracker::in_memory(SIZE);
    tracker.add("a", Granularity::DEFAULT).unwrap();
    assert!(matches!(tracker.add("a", Granularity::DEFAULT), Err(MapError::Exists(_))));
    assert!(matches!(tracker.add("", Granularity::DEFAULT), Err(MapError::Name(_))));
    assert!(matches!(tracker.add(&"x".repeat(129), Granularity::DEFAULT), Err(MapError::Name(_))));
    assert!(matches!(tracker.take("b", 0..1), Err(MapError::Unknown(_))));
    assert!(matches!(tracker.remove("b"), Err(MapError::Unknown(_))));
    for number in 1..MAX_MAPS {
        tracker.add(&number.to_string(), Granularity::DEFAULT).unwrap();
    }
    assert!(matches!(tracker.add("one more", Granularity::DEFAULT), Err(MapError::TooMany)));
}

#[test]
fn a_file_on_a_real_file_system_works_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let path = file_beside(&directory.path().join("disk.raw"));
    let open = || std::fs::File::options().read(true).write(true).create(true).truncate(false).open(&path).unwrap();
    let tracker = Tracker::create(Box::new(open()), &path, identity(SIZE)).unwrap();
    tracker.add("nightly", Granularity::DEFAULT).unwrap();
    tracker.marker().write_begins(7 * MIB, 512).unwrap();
    drop(tracker);
    let (tracker, recovery) = Tracker::open(Box::new(open()), &path, identity(SIZE)).unwrap();
    assert_eq!(recovery, Recovery::Widened { bytes: 16 * MIB });
    assert_eq!(tracker.count("nightly").unwrap(), 256);
}

#[test]
fn a_disk_that_grew_keeps_its_marks_and_its_new_part_is_marked() {
    // From 16 MiB regions in the journal to 2 GiB ones.
    let larger = (40 << 40) + 512;
    let storage = sample();
    let noted = (4 << 30)..(4 << 30) + 16 * MIB;
    let expected = [0..2 << 30, 3 << 30..(3 << 30) + 65536, noted, SIZE..larger];
    for recovered in [Recovery::Widened { bytes: 16 * MIB + larger - SIZE }, Recovery::Exact] {
        let (tracker, recovery) = Tracker::open(storage.boxed(), "maps", identity(larger)).unwrap();
        assert_eq!(recovery, recovered);
        assert_eq!(tracker.take("nightly", 0..larger).unwrap().iter().collect::<Vec<_>>(), expected);
    }
    let (tracker, _) = Tracker::open(storage.boxed(), "maps", identity(larger)).unwrap();
    tracker.take("nightly", 0..larger).unwrap().confirm();
    tracker.checkpoint().unwrap();
    tracker.marker().write_begins(30 << 40, 512).unwrap();
    let (tracker, _) = Tracker::open(storage.after_power_loss().boxed(), "maps", identity(larger)).unwrap();
    assert!(tracker.take("nightly", 0..larger).unwrap().is_dirty(&(30 << 40..(30 << 40) + 1)));
}
