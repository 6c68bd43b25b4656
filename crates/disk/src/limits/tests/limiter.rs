//! One disk.

use proptest::prelude::*;

use super::simulation::worst_excess;
use super::*;

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_disk_without_limits_is_never_held_up() {
    let now = Instant::now();
    let limiter = Limiter::new(Limits::default(), now);
    for _ in 0..100_000 {
        assert!(matches!(limiter.admit(now, 1 << 20), Admit::Now));
    }
    let metered = limiter.metered();
    assert_eq!((metered.requests, metered.operations, metered.bytes), (100_000, 12_800_000, 100_000 << 20));
    assert_eq!((metered.throttled, metered.throttled_time), (0, Duration::ZERO));
}

#[test]
fn any_second_has_the_rate_within_five_percent() {
    for (rate, bytes) in [(100, 4096), (1000, 8192), (20_000, 4096), (1000, 65536)] {
        for late in [Duration::ZERO, Duration::from_millis(3)] {
            let start = Instant::now();
            let limiter = Limiter::new(operations_only(Rate::steady(per_second(rate))), start);
            let client = Client { late, ..Client::greedy(&limiter, bytes) };
            let log = &run(start, &[client], 5 * SECOND, operations)[0];
            for step in 0..400 {
                let from = step * SECOND / 100;
                let actual = log.between(from, from + SECOND);
                assert!(close(actual, rate, operations(bytes)), "{actual} of {rate} from {from:?}, {late:?} late");
            }
        }
    }
}

#[test]
fn bandwidth_holds_for_requests_of_any_size() {
    for bytes in [512, 4096, 1 << 20, 64 << 20] {
        let start = Instant::now();
        let rate = 100 << 20;
        let limiter = Limiter::new(bandwidth_only(Rate::steady(per_second(rate))), start);
        let client = Client { depth: 32, ..Client::greedy(&limiter, bytes) };
        let log = &run(start, &[client], 4 * SECOND, |bytes| bytes)[0];
        let actual = log.between(SECOND, 3 * SECOND);
        assert!(close(actual, 2 * rate, bytes), "{actual} with requests of {bytes}");
    }
}

#[test]
fn a_burst_lasts_as_long_as_it_says_and_is_saved_up_again() {
    let start = Instant::now();
    let burst = Burst { per_second: per_second(3000), length: 2 * SECOND };
    let limiter = Limiter::new(operations_only(Rate { per_second: per_second(500), burst: Some(burst) }), start);
    let busy = |from: u32, to: u32| Client { active: from * SECOND..to * SECOND, ..Client::greedy(&limiter, 4096) };
    // What was used up, 5000 above the rate, comes back in 10 idle seconds.
    let logs = run(start, &[busy(0, 4), busy(14, 18)], 20 * SECOND, operations);
    for (log, from) in [(&logs[0], 0), (&logs[1], 14)] {
        let second = |n: u32| log.between((from + n) * SECOND, (from + n + 1) * SECOND);
        assert!(close(second(0), 3000, 1), "{}", second(0));
        assert!(close(second(0) + second(1), 6000, 1), "{}", second(1));
        assert!(close(second(3), 500, 1), "{}", second(3));
    }
}

#[test]
fn the_stricter_limit_decides() {
    let start = Instant::now();
    let limits = Limits { operations: Some(Rate::steady(per_second(1000))), bandwidth: Some(Rate::steady(per_second(1 << 20))) };
    for (bytes, expected) in [(512, 1000), (4096, 256)] {
        let limiter = Limiter::new(limits, start);
        let log = &run(start, &[Client::greedy(&limiter, bytes)], 3 * SECOND, |_| 1)[0];
        let actual = log.between(SECOND, 2 * SECOND);
        assert!(close(actual, expected, 1), "{actual} requests of {bytes}");
    }
}

#[test]
fn queues_of_one_disk_are_served_in_the_order_of_asking() {
    let start = Instant::now();
    let limiter = Limiter::new(operations_only(Rate::steady(per_second(100))), start);
    let clients: Vec<Client> = (0..4).map(|_| Client { depth: 1, ..Client::greedy(&limiter, 4096) }).collect();
    for log in run(start, &clients, 10 * SECOND, operations) {
        assert!(close(log.between(Duration::ZERO, 10 * SECOND), 250, 1));
        assert!(log.longest_wait <= Duration::from_millis(40), "{:?}", log.longest_wait);
    }
}

#[test]
fn a_changed_limit_moves_those_who_wait() {
    let start = Instant::now();
    let limiter = Limiter::new(operations_only(Rate::steady(per_second(1))), start);
    while matches!(limiter.admit(start, 4096), Admit::Now) {}
    let Admit::Later(slow) = limiter.admit(start, 4096) else { panic!("admitted twice") };
    assert!(slow.at() > start + SECOND);
    limiter.set(operations_only(Rate::steady(per_second(1000))), start);
    let Admit::Later(fast) = limiter.again(start, slow) else { panic!("the backlog is still there") };
    assert!(fast.at() <= start + Duration::from_millis(3), "{:?}", fast.at() - start);
    limiter.set(Limits::default(), start);
    assert!(matches!(limiter.again(start, fast), Admit::Now));
    // A limit that comes back starts afresh: nothing of the old line is held against the disk.
    limiter.set(operations_only(Rate::steady(per_second(1))), start);
    assert!(matches!(limiter.admit(start, 4096), Admit::Now));
}

#[test]
fn a_withdrawn_request_makes_room_for_the_next() {
    let start = Instant::now();
    let limiter = Limiter::new(operations_only(Rate::steady(per_second(10))), start);
    while matches!(limiter.admit(start, 4096), Admit::Now) {}
    let line: Vec<Ticket> = (0..100).map(|_| limiter.admit(start, 4096)).map(later_ticket).collect();
    let last = line.last().unwrap().at();
    line.into_iter().for_each(|ticket| limiter.withdraw(ticket));
    let next = later_ticket(limiter.admit(start, 4096)).at();
    assert_eq!(last - next, Duration::from_secs(10) - Duration::from_millis(100));
}

fn later_ticket(admit: Admit) -> Ticket {
    let Admit::Later(ticket) = admit else { panic!("admitted") };
    ticket
}

#[test]
fn extreme_numbers_do_no_harm() {
    let start = Instant::now();
    let most = per_second(u64::MAX);
    let burst = Some(Burst { per_second: most, length: Duration::MAX });
    let limits =
        Limits { operations: Some(Rate { per_second: per_second(1), burst }), bandwidth: Some(Rate { per_second: most, burst }) };
    let limiter = Limiter::new(limits, start);
    for n in 0..100 {
        // Clocks that jump, in both directions.
        let now = start + Duration::from_secs(if n % 2 == 0 { n << 20 } else { 0 });
        if let Admit::Later(ticket) = limiter.admit(now, u64::MAX) {
            limiter.withdraw(ticket);
        }
    }
}

fn any_rate() -> impl Strategy<Value = Rate> {
    let burst = prop::option::of(
        (1u64..20_000, 1u64..3000)
            .prop_map(|(rate, length)| Burst { per_second: per_second(rate), length: Duration::from_millis(length) }),
    );
    (20u64..5000, burst).prop_map(|(rate, burst)| Rate { per_second: per_second(rate), burst })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn never_more_than_the_rate_and_the_burst(
        rate in any_rate(),
        clients in prop::collection::vec((1usize..12, 1u64..200_000, 0u64..2000, 0u64..3000, 0u64..5000), 1..5),
    ) {
        let start = Instant::now();
        let limiter = Limiter::new(operations_only(rate), start);
        let clients: Vec<Client> = clients.iter().map(|&(depth, bytes, from, length, late)| Client {
            limiter: &limiter,
            depth,
            bytes,
            service: Duration::from_micros(100),
            active: Duration::from_millis(from)..Duration::from_millis(from + length),
            late: Duration::from_micros(late),
        }).collect();
        let logs = run(start, &clients, 4 * SECOND, operations);
        let largest = clients.iter().map(|client| operations(client.bytes)).max().unwrap();
        let mut all: Vec<(Duration, u64)> = logs.iter().flat_map(|log| log.admitted.iter().copied()).collect();
        all.sort();
        let slack = rate.per_second.get() / 100 + 1;
        // Late timers let requests pass together that were due one after the other: at most what accrued meanwhile.
        let late = rate.per_second.get() / 200 + 1;
        let excess = worst_excess(all, rate.per_second.get());
        prop_assert!(excess <= rate.burst_size() + slack + late + largest, "{excess}");
    }

    #[test]
    fn a_disk_with_requests_waiting_gets_its_rate(rate in any_rate(), depth in 1usize..8, bytes in 1u64..100_000) {
        let start = Instant::now();
        let limiter = Limiter::new(operations_only(rate), start);
        let client = Client { depth, service: Duration::ZERO, ..Client::greedy(&limiter, bytes) };
        // The service takes no time, so that some request is always waiting.
        let log = &run(start, &[client], 2 * SECOND, operations)[0];
        let admitted = log.between(Duration::ZERO, 2 * SECOND);
        prop_assert!(admitted + operations(bytes) >= 2 * rate.per_second.get() * 95 / 100, "{admitted}");
    }
}

/// Run it by hand, on a quiet machine.
#[test]
#[ignore = "measures time"]
fn a_request_that_is_not_held_up_takes_less_than_100_ns() {
    let start = Instant::now();
    let fast = Some(Rate::steady(per_second(1 << 50)));
    let group = Group::new(GroupLimits { operations: Some(per_second(1 << 50)), bandwidth: Some(per_second(1 << 50)) }, start);
    let limits = Limits { operations: fast, bandwidth: fast };
    for (name, limiter) in [
        ("no limits", Limiter::new(Limits::default(), start)),
        ("limits", Limiter::new(limits, start)),
        ("limits in a group", Limiter::in_group(limits, &group, 100, start)),
    ] {
        let count = 2_000_000u32;
        let begin = Instant::now();
        for n in 0..count {
            let now = start + Duration::from_nanos(u64::from(n) * 1000);
            assert!(matches!(limiter.admit(now, 4096), Admit::Now));
        }
        let each = begin.elapsed() / count;
        println!("{name}: {each:?}");
        assert!(each < Duration::from_nanos(100), "{name}: {each:?}");
    }
}
