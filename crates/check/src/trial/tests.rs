use std::time::Instant;

use super::*;

fn trial(steps: &[(&str, Option<&str>)], slowdown: Option<f64>) -> KvmTrial {
    let mut trial = KvmTrial::unavailable("");
    trial.steps = steps.iter().map(|(title, error)| KvmStep { title: (*title).into(), error: error.map(Into::into) }).collect();
    trial.loop_slowdown = slowdown;
    trial.judge();
    trial
}

#[test]
fn all_right_and_fast_works() {
    for slowdown in [1.0, 2.5, SLOW_RATIO] {
        assert_eq!(trial(&[("loop", None), ("timer", None)], Some(slowdown)).outcome, KvmOutcome::Works);
    }
}

#[test]
fn right_but_slow_is_emulated_and_says_how_slow() {
    let trial = trial(&[("loop", None)], Some(431.2));
    assert_eq!(trial.outcome, KvmOutcome::SlowlyEmulated);
    assert!(trial.reason.contains("431 times"), "{}", trial.reason);
}

#[test]
fn one_wrong_step_fails_and_names_it() {
    let trial = trial(&[("loop", None), ("SSE", Some("suberror 1"))], Some(1.0));
    assert_eq!(trial.outcome, KvmOutcome::Fails);
    assert!(trial.reason.contains("1 of 2") && trial.reason.contains("SSE: suberror 1"), "{}", trial.reason);
}

#[test]
fn an_unmeasured_speed_never_counts_as_working() {
    assert_eq!(trial(&[("timer", None)], None).outcome, KvmOutcome::Fails);
    assert_eq!(trial(&[], None).outcome, KvmOutcome::Unavailable);
}

#[test]
fn a_missing_device_is_unavailable_and_named() {
    let trial = try_device(Path::new("/dev/no-such-kvm"));
    assert_eq!(trial.outcome, KvmOutcome::Unavailable);
    assert!(trial.reason.contains("/dev/no-such-kvm"), "{}", trial.reason);
}

#[test]
fn a_file_that_is_not_kvm_is_unavailable() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let trial = try_device(file.path());
    assert_eq!(trial.outcome, KvmOutcome::Unavailable, "{trial:?}");
    assert!(trial.reason.contains("KVM_CREATE_VM"), "{}", trial.reason);
}

#[test]
fn the_trial_ends_within_its_limit_and_contradicts_itself_nowhere() {
    let began = Instant::now();
    let trial = kvm_works();
    assert!(began.elapsed() < TIME_LIMIT + Duration::from_secs(3));
    assert!(!trial.reason.is_empty());
    let all_right = !trial.steps.is_empty() && trial.steps.iter().all(|step| step.error.is_none());
    let fast = trial.loop_slowdown.is_some_and(|ratio| ratio <= SLOW_RATIO);
    assert_eq!(trial.works(), all_right && fast, "{trial:#?}");
}

#[test]
fn a_guest_that_never_returns_is_broken_out() {
    // A KVM that makes no VM at all has nothing to break out of.
    let makes_vms = kvm_ioctls::Kvm::new().is_ok_and(|kvm| session::Session::new(&kvm).is_ok());
    if !makes_vms {
        return;
    }
    let limit = Duration::from_millis(100);
    let began = Instant::now();
    let trial = child::run(Duration::from_secs(5), || {
        let kvm = kvm_ioctls::Kvm::new().unwrap();
        let mut session = session::Session::new(&kvm).unwrap();
        session.start(Duration::from_secs(2)).unwrap();
        let ended = session.command(session::Command::Loop, u64::MAX, limit);
        KvmTrial::unavailable(format!("{ended:?}"))
    })
    .unwrap();
    assert!(trial.reason.contains("TimedOut"), "{}", trial.reason);
    assert!(began.elapsed() >= limit && began.elapsed() < Duration::from_secs(4));
}

#[test]
fn a_trial_that_hangs_is_killed_at_the_limit() {
    let began = Instant::now();
    let trial = child::run(Duration::from_millis(200), || {
        loop {
            std::thread::sleep(Duration::from_secs(60));
        }
    })
    .unwrap();
    assert_eq!(trial.outcome, KvmOutcome::Fails);
    assert!(trial.reason.contains("broken off"), "{}", trial.reason);
    assert!(began.elapsed() < Duration::from_secs(3));
}

#[test]
fn a_trial_that_dies_is_reported_with_its_signal() {
    let trial = child::run(Duration::from_secs(5), || std::process::abort()).unwrap();
    assert_eq!(trial.outcome, KvmOutcome::Unavailable);
    assert!(trial.reason.contains("signal 6"), "{}", trial.reason);
}

#[test]
fn trials_run_side_by_side_from_many_threads() {
    let outcomes: Vec<KvmOutcome> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..3).map(|_| scope.spawn(|| kvm_works().outcome)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let opened = Path::new("/dev/kvm").exists();
    assert!(opened || outcomes.iter().all(|outcome| *outcome == KvmOutcome::Unavailable));
}

#[test]
fn a_trial_survives_the_pipe_as_it_was() {
    let before = trial(&[("loop", None), ("SSE", Some("wrong"))], Some(1.25));
    let line = serde_json::to_vec(&before).unwrap();
    assert_eq!(serde_json::from_slice::<KvmTrial>(&line).unwrap(), before);
}
