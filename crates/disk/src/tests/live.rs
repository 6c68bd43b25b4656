//! Checks of a disk that goes on being written.

use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use vhdx::testing::Random;

use super::images::*;
use super::*;
use crate::tool::{self, AnyFormat, Report};

const SIZE: usize = 8192 * MIB;

/// Checks a disk while another thread writes, trims and flushes all over it, until `enough` and some changes were made.
fn checks_of_a_busy_disk(path: &Path, enough: impl Fn(&[Report]) -> bool) -> Vec<Report> {
    let disk = Disk::open(path, image_options()).unwrap();
    let (is_over, commits) = (AtomicBool::new(false), AtomicU32::new(0));
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut engine = Engine::new(&disk, 1).unwrap();
            let mut random = Random::new(3);
            while !is_over.load(Ordering::Relaxed) {
                for _ in 0..32 {
                    let block = random.below((SIZE / MIB) as u64);
                    if random.below(3) == 0 {
                        run(&mut engine, |engine| engine.discard(0, block * MIB as u64, MIB as u64, Durability::Volatile))
                            .unwrap();
                    } else {
                        write(&mut engine, block as usize * MIB, &[1; 4096], Durability::Volatile).unwrap();
                    }
                }
                flush(&mut engine).unwrap();
                commits.fetch_add(1, Ordering::Relaxed);
            }
        });
        let _over = Over(&is_over);
        let mut reports = Vec::new();
        while !enough(&reports) || commits.load(Ordering::Relaxed) < 10 {
            reports.push(tool::check(path, AnyFormat::Own(Format::Vhdx)).unwrap());
            assert!(!writer.is_finished(), "the writer failed");
        }
        reports
    })
}

#[test]
fn a_check_of_a_disk_in_use_names_its_user_and_takes_no_change_for_damage() {
    let directory = directory();
    let path = directory.path().join("disk.vhdx");
    create(&path, SIZE, None);
    // On two free processors about every fifth check sees a change under way that a single look would have taken for damage.
    for report in checks_of_a_busy_disk(&path, |reports| reports.len() >= 50) {
        assert!(report.is_sound(), "{report:?}");
        assert!(matches!(report.in_use_by, Some(Holder::Process { pid, .. }) if pid == std::process::id()), "{report:?}");
    }
    let report = tool::check(&path, AnyFormat::Own(Format::Vhdx)).unwrap();
    assert!(report.is_sound() && report.in_use_by.is_none() && report.passing == 0, "{report:?}");
}

#[test]
fn damage_is_found_while_the_disk_is_in_use() {
    let directory = directory();
    let path = directory.path().join("disk.vhdx");
    create(&path, SIZE, None);
    // MS-VHDX 2.2.3: the second copy of the region table, which is only read when the first is bad.
    File::options().write(true).open(&path).unwrap().write_all_at(&[0xbd; 64], 256 << 10).unwrap();
    for report in checks_of_a_busy_disk(&path, |reports| reports.len() >= 20) {
        let places: Vec<_> = report.findings.iter().filter_map(|finding| finding.offset).collect();
        assert_eq!(places, [256 << 10], "{report:?}");
    }
}
