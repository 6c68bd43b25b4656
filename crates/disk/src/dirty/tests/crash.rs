//! After a crash at any moment, no region that was written is clean.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

const SIZE: u64 = 3000 * MIB + 512;
const REGION: u64 = 64 * 1024;

/// What has to be dirty: the regions written since a map was added, without those confirmed.
#[derive(Default)]
struct Model {
    maps: BTreeMap<String, BTreeSet<u64>>,
}

/// One random step. Errors are the storage's: the caller goes on, or there is no power any more.
fn step(tracker: &Tracker, marker: &mut Marker, model: &mut Model, random: &mut Random) {
    let name = format!("map {}", random.below(3));
    match random.below(20) {
        0 | 1 => {
            let added = tracker.add(&name, granularity(REGION)).is_ok();
            if added {
                model.maps.insert(name, BTreeSet::new());
            }
        }
        // Whether a removal that failed is remembered is open; the map is gone for this process.
        2 => {
            let _ = tracker.remove(&name);
            model.maps.remove(&name);
        }
        3 | 4 => drop(tracker.checkpoint()),
        5 | 6 => {
            let (start, end) = (random.below(SIZE), random.below(SIZE));
            if let Ok(taken) = tracker.take(&name, start..end) {
                // While it is out, other things happen.
                let _ = tracker.checkpoint();
                if random.below(2) == 0 {
                    let set = model.maps.get_mut(&name).unwrap();
                    taken.iter().for_each(|range| {
                        (range.start / REGION..range.end.div_ceil(REGION)).for_each(|it| {
                            set.remove(&it);
                        })
                    });
                    taken.confirm();
                }
            }
        }
        _ => {
            let offset = random.below(SIZE);
            let length = 1 + random.below(3 * REGION).min(SIZE - offset - 1);
            if marker.write_begins(offset, length).is_ok() {
                let regions = offset / REGION..(offset + length).div_ceil(REGION);
                model.maps.values_mut().for_each(|set| set.extend(regions.clone()));
                marker.write_ended(offset, length);
            }
        }
    }
}

fn check(after: &Faulty, model: &Model, what: &str) {
    let (tracker, _) = Tracker::open(after.boxed(), "maps", identity(SIZE)).unwrap_or_else(|error| panic!("{what}: {error}"));
    for (name, set) in &model.maps {
        let found = tracker.take(name, 0..SIZE).unwrap_or_else(|error| panic!("{what}: {error}"));
        let lost = set.iter().find(|region| !found.is_dirty(&(**region * REGION..**region * REGION + 1)));
        assert_eq!(lost, None, "{what}: {name} lost a region");
    }
}

/// Runs 60 steps; returns how many operations the storage saw.
fn run(seed: u64, faults: Faults, what: &str) -> u64 {
    let storage = Faulty::new(seed, faults);
    let Ok(tracker) = Tracker::create(storage.boxed(), "maps", identity(SIZE)) else {
        // No maps were promised: there are none, or empty ones.
        let after = Tracker::open(storage.after_power_loss().boxed(), "maps", identity(SIZE));
        assert!(matches!(&after, Err(OpenError::NoHeader(_))) || after.is_ok_and(|it| it.0.names().is_empty()), "{what}");
        return storage.operations();
    };
    let (mut marker, mut model, mut random) = (tracker.marker(), Model::default(), Random::new(seed));
    for _ in 0..60 {
        step(&tracker, &mut marker, &mut model, &mut random);
    }
    for _ in 0..4 {
        check(&storage.after_power_loss(), &model, what);
    }
    storage.operations()
}

#[test]
fn no_written_region_is_clean_after_power_loss_at_any_operation() {
    for seed in 1..=12 {
        let operations = run(seed, Faults::default(), "without faults");
        for cut in 0..operations {
            run(seed, Faults { power_off_at: Some(cut), ..Faults::default() }, &format!("seed {seed}, cut at {cut}"));
        }
    }
}

#[test]
fn no_written_region_is_clean_after_operations_that_failed_and_then_power_loss() {
    for seed in 1..=400 {
        let mut random = Random::new(seed + 1000);
        let failing = (0..1 + random.below(30)).map(|_| 7 + random.below(250)).collect();
        let power_off_at = Some(100 + random.below(200));
        run(seed, Faults { power_off_at, failing }, &format!("seed {seed}"));
    }
}
