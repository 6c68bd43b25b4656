use std::panic::{AssertUnwindSafe, catch_unwind};

use super::fuzz::{Faults, run};
use super::{Counts, Mutation};

/// Runs seeds until one fails, and says which.
fn first_failure(seeds: std::ops::Range<u64>, mutation: Option<Mutation>, faults: Faults) -> Option<(u64, String)> {
    seeds.into_iter().find_map(|seed| match catch_unwind(AssertUnwindSafe(|| run(seed, mutation, faults, false))) {
        Ok(report) => report.violation.map(|violation| (seed, violation)),
        Err(_) => Some((seed, "it panicked".into())),
    })
}

/// All of these seeds are good; one that is not is played again with its log.
fn no_failure(seeds: std::ops::Range<u64>) {
    let seeds = match std::env::var("MARU_CLUSTER_SEED") {
        Ok(seed) => {
            let seed: u64 = seed.parse().expect("MARU_CLUSTER_SEED is a number");
            seed..seed + 1
        }
        Err(_) => seeds,
    };
    if let Some((seed, violation)) = first_failure(seeds, None, Faults::All) {
        let log = catch_unwind(AssertUnwindSafe(|| run(seed, None, Faults::All, true).log)).unwrap_or_default();
        panic!("{log}\n{violation}\nseed {seed}: `maru cluster simulate --seed {seed}` and MARU_CLUSTER_SEED={seed} repeat it");
    }
}

#[test]
fn no_vm_runs_twice_and_nothing_waits_for_ever_in_seeds_0_to_2500() {
    no_failure(0..2500);
}

#[test]
fn no_vm_runs_twice_and_nothing_waits_for_ever_in_seeds_2500_to_5000() {
    no_failure(2500..5000);
}

#[test]
fn no_vm_runs_twice_and_nothing_waits_for_ever_in_seeds_5000_to_7500() {
    no_failure(5000..7500);
}

#[test]
fn no_vm_runs_twice_and_nothing_waits_for_ever_in_seeds_7500_to_10000() {
    no_failure(7500..10_000);
}

#[test]
fn the_same_seed_is_the_same_run() {
    let (first, second) = (run(7, None, Faults::All, true), run(7, None, Faults::All, true));
    assert!(first.log.lines().count() > 50);
    assert_eq!(first.log, second.log);
}

#[test]
fn the_runs_try_what_they_are_there_for() {
    let mut sum = Counts::default();
    for seed in 0..800 {
        let counts = run(seed, None, Faults::All, false).counts;
        sum.starts += counts.starts;
        sum.takeovers += counts.takeovers;
        sum.guard_kills += counts.guard_kills;
        sum.resets += counts.resets;
        sum.conflicts += counts.conflicts;
        sum.late += counts.late;
        sum.restores += counts.restores;
        sum.copies += counts.copies;
        sum.outlived += counts.outlived;
    }
    let all =
        [sum.starts, sum.takeovers, sum.guard_kills, sum.resets, sum.conflicts, sum.late, sum.restores, sum.copies, sum.outlived];
    assert!(all.into_iter().min() >= Some(30), "{sum:?}");
}

/// How many seeds until a mutation is found.
fn found_within(seeds: u64, mutation: Mutation, words: &str) {
    let (seed, violation) = first_failure(0..seeds, Some(mutation), Faults::All).expect("the checker found nothing");
    assert!(violation.contains(words), "seed {seed}: {violation}");
}

#[test]
fn a_host_without_a_margin_is_found() {
    found_within(300, Mutation::NoMargin, "whose lease has ended");
}

#[test]
fn a_deadline_that_is_counted_from_the_answer_is_found() {
    found_within(300, Mutation::DeadlineFromAnswer, "whose lease has ended");
}

#[test]
fn a_takeover_without_a_condition_on_the_lease_is_found() {
    found_within(300, Mutation::TakeoverWithoutLease, "");
}

#[test]
fn an_end_of_a_lease_without_a_condition_on_its_renewals_is_found() {
    found_within(300, Mutation::EndWithoutRenewal, "whose lease has ended");
}

#[test]
fn vms_that_do_not_look_at_the_deadline_are_found_when_a_host_thaws() {
    found_within(300, Mutation::VmsDoNotLook, "");
}

#[test]
fn vms_that_run_on_although_their_owner_record_does_not_say_so_are_found() {
    found_within(300, Mutation::AllBound, "whose lease has ended");
}

#[test]
fn a_guard_that_does_nothing_is_found() {
    found_within(300, Mutation::NoGuard, "");
}

/// The guard and the watchdog alone are enough, as long as no host stands still as a whole.
#[test]
fn the_guard_and_the_watchdog_suffice_where_hosts_do_not_freeze() {
    let failure = first_failure(0..1000, Some(Mutation::VmsDoNotLook), Faults::NoFreezes);
    assert_eq!(failure, None);
}
