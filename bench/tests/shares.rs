//! Bandwidth of real ports of the real switch: who contends gets its share, within 5 %.

use std::time::Duration;

use bench::vswitch::shares::{cases, measure};

/// So little that any machine brings it, and so slow that what is kept for a port (128 KiB) is more than a machine with much to do stands still.
const CAPACITY_BPS: u64 = 16_000_000;
const LOOK: Duration = Duration::from_millis(1);
const TIME: Duration = Duration::from_secs(5);

#[test]
fn ports_that_contend_get_their_shares_within_five_percent() {
    // They take little time of a processor, so all of them go on at once.
    std::thread::scope(|scope| {
        let runs: Vec<_> = cases(CAPACITY_BPS)
            .into_iter()
            .map(|case| {
                let run = || {
                    let directory = tempfile::tempdir().unwrap();
                    let measured = measure(&case, directory.path(), None, LOOK, TIME).unwrap();
                    (case, measured)
                };
                scope.spawn(run)
            })
            .collect();
        for run in runs {
            let (case, measured) = run.join().unwrap();
            let parts: Vec<f64> = measured.iter().map(|bytes| bytes * 8000.0 / CAPACITY_BPS as f64).collect();
            println!("{}: {parts:.0?} of 1000, expected {:?}", case.name, case.expected);
            for (part, expected) in parts.iter().zip(&case.expected) {
                let off = part / *expected as f64 - 1.0;
                assert!(off.abs() < 0.05, "{}: {parts:.1?} of 1000 instead of {:?}", case.name, case.expected);
            }
        }
    });
}
