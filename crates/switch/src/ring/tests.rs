//! Rings of hostile drivers, and memory that goes away.

use proptest::prelude::*;

use super::memory::{DirtyLog, Memory, MemoryError, RegionPlace};
use super::split::{Chain, Ring, RingError, RingPlace, SetUpError};
use super::testing::{Driver, GUEST, SIZE, map, memory_file, place};

const NEXT: u16 = 1;
const INDIRECT: u16 = 4;

fn ring(driver: &Driver) -> Ring {
    Ring::new(map(&driver.file), &driver.place(), None).unwrap()
}

fn pop(driver: &Driver) -> Result<Chain, RingError> {
    let mut chain = Chain::default();
    assert!(ring(driver).pop(&mut chain)?);
    Ok(chain)
}

#[test]
fn chains_are_followed_through_tables_and_wrap_around() {
    let file = memory_file();
    let mut driver = Driver::new(&file, 0, 4);
    let mut ring = ring(&driver);
    let mut chain = Chain::default();
    for round in 0..70_000u32 {
        driver.descriptor(3, GUEST + 0x8000, 100, NEXT, 1);
        driver.descriptor(1, GUEST + 0x9000, 200, 2, 0);
        driver.offer(3);
        if round % 1000 != 0 {
            // Only the numbers of most rounds are looked at.
            assert!(ring.pop(&mut chain).unwrap());
            ring.complete(chain.head, round);
            continue;
        }
        assert!(ring.pop(&mut chain).unwrap() && !ring.has_available());
        let lengths = |list: &[super::split::Segment]| list.iter().map(|segment| segment.len()).collect::<Vec<_>>();
        assert_eq!((chain.head, lengths(&chain.readable), lengths(&chain.writable)), (3, vec![100], vec![200]));
        ring.complete(chain.head, round);
        ring.publish();
        assert_eq!(driver.take_used().last(), Some(&(3, round)));
    }
}

#[test]
fn what_makes_no_sense_stops_the_ring_or_spoils_the_chain() {
    let file = memory_file();
    let fresh = || Driver::new(&file, 0, 8);
    let mut driver = fresh();
    driver.offer(8);
    assert_eq!(pop(&driver).unwrap_err(), RingError::Index { index: 8, size: 8 });
    driver = fresh();
    driver.descriptor(0, GUEST, 10, NEXT, 1);
    driver.descriptor(1, GUEST, 10, NEXT, 0);
    driver.offer(0);
    assert_eq!(pop(&driver).unwrap_err(), RingError::Endless);
    driver = fresh();
    driver.write(driver.parts()[1] + 2, &9u16.to_le_bytes());
    assert_eq!(pop(&driver).unwrap_err(), RingError::Available { available: 9, position: 0, size: 8 });
    driver = fresh();
    driver.descriptor(0, GUEST + 0x8000, 32, INDIRECT, 0);
    // A table that refers to itself.
    let mut inner = (GUEST + 0x8000).to_le_bytes().to_vec();
    inner.extend([16, 0, 0, 0, 4, 0, 0, 0]);
    driver.write(0x8000, &inner);
    driver.offer(0);
    assert_eq!(pop(&driver).unwrap_err(), RingError::Indirect(16));
    driver = fresh();
    driver.descriptor(0, GUEST + 0x8000, 17, INDIRECT, 0);
    driver.offer(0);
    assert_eq!(pop(&driver).unwrap_err(), RingError::Indirect(17));
    // Addresses outside, at the edge, and around the end of all addresses.
    for (address, length) in [(0, 1), (GUEST - 1, 2), (GUEST + SIZE, 1), (GUEST + SIZE - 1, 2), (u64::MAX, 2), (GUEST, u32::MAX)]
    {
        driver = fresh();
        driver.descriptor(0, address, length, 0, 0);
        driver.offer(0);
        assert!(pop(&driver).unwrap().is_bad, "{length} bytes at {address:#x}");
    }
    driver = fresh();
    driver.descriptor(0, GUEST + SIZE - 2, 2, 0, 0);
    driver.offer(0);
    assert!(!pop(&driver).unwrap().is_bad);
}

#[test]
fn rings_that_are_not_in_memory_are_refused() {
    let file = memory_file();
    let driver = Driver::new(&file, 0, 8);
    let good = driver.place();
    let refused = |place: RingPlace| Ring::new(map(&file), &place, None).unwrap_err();
    for size in [0, 3, 65_536, 1 << 31] {
        assert_eq!(refused(RingPlace { size, ..good }), SetUpError::Size(size));
    }
    let address = |part, address| SetUpError::Address { part, address };
    assert_eq!(refused(RingPlace { used: GUEST + SIZE - 60, ..good }), address("used ring", GUEST + SIZE - 60));
    assert_eq!(refused(RingPlace { descriptors: GUEST + 8, ..good }), address("descriptor table", GUEST + 8));
    assert_eq!(refused(RingPlace { available: u64::MAX, ..good }), address("available ring", u64::MAX));
}

#[test]
fn regions_that_lie_are_refused() {
    let file = memory_file();
    let map = |place: RegionPlace| Memory::new([(place, file.try_clone().unwrap())]).map(drop);
    assert!(matches!(map(RegionPlace { length: SIZE + 1, ..place() }), Err(MemoryError::Short { .. })));
    assert!(matches!(map(RegionPlace { offset: u64::MAX, ..place() }), Err(MemoryError::Region { .. })));
    assert!(matches!(map(RegionPlace { guest: u64::MAX - 1, ..place() }), Err(MemoryError::Region { .. })));
    assert!(matches!(map(RegionPlace { length: 0, ..place() }), Err(MemoryError::Region { .. })));
}

#[test]
fn memory_that_is_taken_away_reads_as_zeros() {
    super::bus_error::install().unwrap();
    let file = memory_file();
    let mut driver = Driver::new(&file, 0, 8);
    driver.descriptor(0, GUEST + 0x8000, 10, 0, 0);
    driver.offer(0);
    let mut ring = ring(&driver);
    file.set_len(0).unwrap();
    let mut chain = Chain::default();
    assert_eq!(ring.pop(&mut chain), Ok(false));
    ring.complete(0, 0);
    ring.publish();
}

#[test]
fn pages_that_are_written_are_logged() {
    let file = memory_file();
    let log_file = memory_file();
    let mut driver = Driver::new(&file, 0, 8);
    let used = GUEST + driver.parts()[2];
    let place = RingPlace { log_used: Some(used), ..driver.place() };
    let mut ring = Ring::new(map(&file), &place, None).unwrap();
    ring.log = Some(DirtyLog::new(&log_file, 0, 4096).unwrap());
    driver.descriptor(0, GUEST + 0x8ff0, 0x100, 2, 0);
    driver.offer(0);
    let mut chain = Chain::default();
    assert!(ring.pop(&mut chain).unwrap());
    // SAFETY: the bytes live, and the ring was not stopped.
    unsafe { ring.copy_all(&[super::split::Segment::of(&[7; 0x20])], &chain.writable) };
    ring.complete(0, 0x20);
    ring.publish();
    let log = Driver::new(&log_file, 0, 8).read(0, 4096);
    let pages: Vec<u64> = (0..32_768).filter(|page| log[(page / 8) as usize] & 1 << (page % 8) != 0).collect();
    assert_eq!(pages, [used / 4096, GUEST / 4096 + 8, GUEST / 4096 + 9]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    /// Whatever is in a ring, following it ends, and gives only what is in memory.
    #[test]
    fn any_bytes_are_a_ring(
        table in prop::collection::vec((0u64..40, 0u32..300, 0u16..8, 0u16..12), 8),
        rings in prop::collection::vec(0u16..12, 16),
    ) {
        let file = memory_file();
        let driver = Driver::new(&file, 0, 8);
        for (index, (address, length, flags, next)) in (0u16..).zip(table) {
            // Around the table itself, too: it may be its own indirect table.
            driver.descriptor(index, (GUEST - 64).wrapping_add(address * 16), length, flags, next);
        }
        let bytes: Vec<u8> = rings.iter().flat_map(|word| word.to_le_bytes()).collect();
        driver.write(driver.parts()[1], &bytes);
        let mut ring = ring(&driver);
        let mut chain = Chain::default();
        for _ in 0..20 {
            match ring.pop(&mut chain) {
                Ok(true) => {
                    let all = chain.readable.iter().chain(&chain.writable);
                    prop_assert!(all.map(|segment| segment.len()).all(|length| length as u64 <= SIZE));
                    ring.complete(chain.head, 0);
                }
                Ok(false) | Err(_) => break,
            }
        }
        ring.publish();
    }
}
