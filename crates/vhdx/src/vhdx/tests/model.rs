//! A disk is an array of bytes, whatever is done to it.

use std::sync::Arc;

use proptest::prelude::*;

use super::{MIB, created, open, small};
use crate::Mapping;
use crate::vhdx::Access;

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, ..ProptestConfig::default() })]

    #[test]
    fn a_disk_of_any_kind_is_an_array_of_bytes(data in prop::collection::vec(any::<u8>(), 1..500)) {
        crate::fuzz::model(&data);
    }
}

#[test]
fn threads_that_write_trim_and_flush_at_once_do_not_disturb_each_other() {
    let file = created(&small(64 * MIB));
    let (image, disk) = open(&file, Access::ReadWrite);
    std::thread::scope(|scope| {
        for thread in 0..4_u8 {
            let disk = disk.clone();
            scope.spawn(move || {
                let mut random = crate::testing::Random::new(thread.into());
                let start = u64::from(thread) * 16 * MIB;
                let mut bytes = vec![0_u8; 16 << 20];
                for round in 0..300_u64 {
                    let block = random.below(16) * MIB;
                    if random.below(3) == 0 {
                        disk.zero(start + block, MIB).unwrap();
                        bytes[block as usize..][..1 << 20].fill(0);
                    } else {
                        let at = block + random.below(128) * 8192;
                        let value = round as u8 | 1;
                        disk.write(start + at, &[value; 8192]).unwrap();
                        bytes[at as usize..][..8192].fill(value);
                    }
                    let at = random.below(16) * MIB;
                    assert!(
                        super::read(&disk, start + at, 1 << 20) == bytes[at as usize..][..1 << 20],
                        "thread {thread} round {round}"
                    );
                }
            });
        }
        let image = Arc::clone(&image);
        scope.spawn(move || (0..400).for_each(|_| image.flush().unwrap()));
    });
    image.close().unwrap();
}

#[test]
fn more_tables_than_one_commit_carries_ask_for_a_commit_first() {
    let file = created(&small(100 << 30));
    let (image, disk) = open(&file, Access::ReadWrite);
    let places = (0..200_u64).map(|index| index * 512 * MIB);
    for offset in places.clone() {
        disk.write(offset, &offset.to_le_bytes().repeat(64)).unwrap();
    }
    let asked = (0..200_u64).filter(|index| {
        let ticket = image.map_write(index * 512 * MIB + MIB, 512, &mut Vec::new());
        ticket.map(|ticket| image.finish(ticket)).is_err()
    });
    assert!(asked.count() > 0);
    disk.flush(|| ()).unwrap();
    image.close().unwrap();
    let (_, disk) = open(&file, Access::ReadOnly);
    for offset in places {
        assert_eq!(super::read(&disk, offset, 512), offset.to_le_bytes().repeat(64));
    }
}
