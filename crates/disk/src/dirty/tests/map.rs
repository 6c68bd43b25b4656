//! A map is a set of regions.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Mark(u64, u64),
    Take(u64, u64),
    TakeAndPutBack(u64, u64),
    Merge(Vec<u64>),
}

fn step() -> impl Strategy<Value = Step> {
    let range = || (0u64..80_000 * 4096, prop_oneof![0u64..20_000, 0u64..200_000_000]);
    prop_oneof![
        4 => range().prop_map(|(offset, length)| Step::Mark(offset, length)),
        2 => range().prop_map(|(offset, length)| Step::Take(offset, length)),
        1 => range().prop_map(|(offset, length)| Step::TakeAndPutBack(offset, length)),
        1 => prop::collection::vec(0u64..70_000, 0..50).prop_map(Step::Merge),
    ]
}

/// 70 000 regions and a part of one: three leaves.
const SIZE: u64 = 70_000 * 4096 + 512;

fn regions(offset: u64, length: u64) -> std::ops::Range<u64> {
    let end = (offset + length).min(SIZE);
    if offset >= end { 0..0 } else { offset / 4096..end.div_ceil(4096) }
}

fn model_of(map: &DirtyMap) -> BTreeSet<u64> {
    map.iter().flat_map(|range| range.start / 4096..range.end.div_ceil(4096)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn a_map_is_a_set_of_regions(steps in prop::collection::vec(step(), 1..40)) {
        let map = DirtyMap::new(SIZE, granularity(4096));
        let mut model = BTreeSet::new();
        for step in steps {
            match step {
                Step::Mark(offset, length) => {
                    map.mark(offset, length);
                    model.extend(regions(offset, length));
                }
                Step::Take(offset, length) => {
                    let range = regions(offset, length);
                    let taken: BTreeSet<u64> = model.iter().copied().filter(|region| range.contains(region)).collect();
                    prop_assert_eq!(map.is_dirty(&(offset..offset + length)), !taken.is_empty());
                    prop_assert_eq!(model_of(&map.take(&(offset..offset + length))), taken);
                    model.retain(|region| !range.contains(region));
                }
                Step::TakeAndPutBack(offset, length) => map.merge(&map.take(&(offset..offset + length))),
                Step::Merge(regions) => {
                    let other = DirtyMap::new(SIZE, granularity(4096));
                    regions.iter().for_each(|region| other.mark(region * 4096, 1));
                    map.merge(&other);
                    model.extend(regions);
                }
            }
            prop_assert_eq!(map.count(), model.len() as u64);
            prop_assert_eq!(&model_of(&map), &model);
            let part = if model.contains(&70_000) { 4096 - 512 } else { 0 };
            prop_assert_eq!(map.dirty_bytes(), model.len() as u64 * 4096 - part);
        }
    }
}

#[test]
fn neighbours_are_joined_across_words_and_leaves() {
    let map = DirtyMap::new(SIZE, granularity(4096));
    map.mark(4096 * 60, 4096 * 40_000);
    map.mark(4096 * 50_000, 1);
    map.mark(SIZE - 1, 1);
    let ranges: Vec<_> = map.iter().collect();
    assert_eq!(ranges, [4096 * 60..4096 * 40_060, 4096 * 50_000..4096 * 50_001, SIZE - 512..SIZE]);
}

#[test]
fn what_lies_past_the_end_is_ignored() {
    for size in [0, 1, 4096, 10_000] {
        let map = DirtyMap::new(size, granularity(4096));
        map.mark(size, 4096);
        map.mark(u64::MAX, u64::MAX);
        map.mark(u64::MAX - 1, 1);
        assert_eq!(map.count(), 0);
        assert!(!map.is_dirty(&(size..u64::MAX)));
        map.mark(0, u64::MAX);
        assert_eq!(map.dirty_bytes(), size);
        assert_eq!(map.take(&(0..u64::MAX)).dirty_bytes(), size);
        #[allow(clippy::reversed_empty_ranges)]
        let backwards = 4096..0;
        assert_eq!(map.take(&backwards).count(), 0);
    }
}

#[test]
fn maps_of_different_regions_merge_outwards() {
    let coarse = DirtyMap::new(64 * MIB, granularity(MIB));
    let fine = DirtyMap::new(64 * MIB, granularity(4096));
    fine.mark(3 * MIB - 1, 2);
    coarse.merge(&fine);
    assert!(coarse.iter().eq(std::iter::once(2 * MIB..4 * MIB)));
    fine.merge(&coarse);
    assert_eq!(fine.dirty_bytes(), 2 * MIB);
}

#[test]
fn the_clean_part_of_a_large_disk_takes_no_memory() {
    let map = DirtyMap::new(64 << 40, Granularity::DEFAULT);
    assert!(map.memory_bytes() <= 512 * 1024, "{}", map.memory_bytes());
    for index in 0..100 {
        map.mark(index << 38, 1);
    }
    assert!(map.memory_bytes() <= 1024 * 1024, "{}", map.memory_bytes());
    assert_eq!(map.take(&(0..64 << 40)).count(), 100);
}

#[test]
fn granularity_is_a_power_of_two_in_range() {
    for bytes in [4096, 65536, 64 * MIB] {
        assert_eq!(granularity(bytes).bytes(), bytes);
    }
    assert!([0, 1, 2048, 5000, 128 * MIB, u64::MAX].into_iter().all(|bytes| Granularity::new(bytes).is_none()));
}
