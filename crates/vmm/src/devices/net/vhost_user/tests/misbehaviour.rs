//! Back ends that are absent, silent, or talk nonsense.

use super::backend::{GET_FEATURES, GET_VRING_BASE};
use super::*;

fn refusal(character: Character) -> VhostUserNetError {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("port");
    let _backend = Backend::start(&path, character);
    VhostUserNet::new(VhostUserConfig { mac: MAC, mtu: None, queue_pairs: 1, socket: path }).err().unwrap()
}

#[test]
fn an_absent_back_end_is_named() {
    let config = |socket: &str| VhostUserConfig { mac: MAC, mtu: None, queue_pairs: 1, socket: socket.into() };
    let error = VhostUserNet::new(config("/nonexistent/port")).err().unwrap();
    assert!(matches!(error, VhostUserNetError::Backend(ProtocolError::Connect { .. })));
    assert!(error.to_string().contains("/nonexistent/port"));
    let error = VhostUserNet::new(config(&"x".repeat(200))).err().unwrap();
    assert!(matches!(error, VhostUserNetError::Backend(ProtocolError::PathTooLong(_))));
}

#[test]
fn a_silent_back_end_is_given_up() {
    let start = Instant::now();
    let error = refusal(Character { hangs_at: Some(GET_FEATURES), ..Character::default() });
    assert!(matches!(error, VhostUserNetError::Backend(ProtocolError::Timeout { request: "GET_FEATURES" })), "{error}");
    assert!(start.elapsed() < Duration::from_secs(4));
}

#[test]
fn a_back_end_without_what_we_need_is_refused() {
    let error = refusal(Character { features: 1 << 32, ..Character::default() });
    assert!(matches!(error, VhostUserNetError::Backend(ProtocolError::Unsupported(_))));
    let error = refusal(Character { features: 1 << 30, ..Character::default() });
    assert!(matches!(error, VhostUserNetError::Backend(ProtocolError::Unsupported(_))));
}

#[test]
fn any_nonsense_for_a_reply_is_an_error() {
    let header = |code: u32, flags: u32, size: u32| [code.to_le_bytes(), flags.to_le_bytes(), size.to_le_bytes()].concat();
    let replies = [
        header(2, 5, 8),
        header(1, 1, 8),
        header(1, 4, 8),
        header(1, 5, u32::MAX),
        header(1, 5, 4096),
        [header(1, 5, 4), vec![0; 4]].concat(),
        header(1, 5, 0),
    ];
    for garbage in replies {
        let error = refusal(Character { garbles: Some((GET_FEATURES, garbage.clone())), ..Character::default() });
        assert!(matches!(error, VhostUserNetError::Backend(ProtocolError::Malformed { .. })), "{garbage:?}: {error}");
    }
    for seed in 0..50 {
        let mut random = hostile::Random::new(seed);
        let garbage: Vec<u8> = (0..12 + random.below(100)).map(|_| random.next() as u8).collect();
        refusal(Character { garbles: Some((GET_FEATURES, garbage)), ..Character::default() });
    }
}

#[test]
fn a_back_end_that_hangs_does_not_hold_up_a_pause() {
    let mut bench = Bench::active(FEATURES, Character { hangs_at: Some(GET_VRING_BASE), ..Character::default() });
    for _ in 0..10 {
        bench.send();
    }
    bench.receive_all();
    let start = Instant::now();
    let queues = bench.harness.device.quiesce();
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    assert_eq!(queues[0].1.next_avail(), 10);
    assert_eq!(queues[1].1.next_used(), 10);
    bench.backend = None;
    bench.restart(Character::default());
    bench.harness.activate_with(FEATURES, queues).unwrap();
    bench.send();
    bench.receive_all();
}

#[test]
fn positions_that_cannot_be_are_not_believed() {
    let mut bench = Bench::active(FEATURES, Character { lies_about_positions: true, ..Character::default() });
    for _ in 0..10 {
        bench.send();
    }
    bench.receive_all();
    bench.harness.pause_and_resume();
    bench.send();
    bench.receive_all();
}

#[test]
fn a_back_end_that_talks_unasked_is_replaced() {
    // The reply to SET_STATUS, the last request of a set-up, with another message behind it.
    let twice = [39u32, 5, 8, 0, 0, 39, 5, 8, 0, 0].iter().flat_map(|word| word.to_le_bytes()).collect();
    let bench = Bench::idle(1, Character { garbles: Some((39, twice)), ..Character::default() });
    let Bench { mut harness, handle, .. } = bench;
    harness.activate(FEATURES).unwrap();
    harness.interrupt.wait_until("not replaced", || handle.backend_status().set_ups >= 3);
    assert_eq!(harness.device.quiesce().len(), 3);
}

#[test]
fn a_successor_with_fewer_features_is_refused_and_one_with_enough_is_taken() {
    let mut bench = Bench::active(FEATURES | 1 << MRG_RXBUF, Character::default());
    let features = Character::default().features & !(1 << MRG_RXBUF);
    bench.backend = None;
    bench.wait_running(false);
    bench.restart(Character { features, ..Character::default() });
    bench.harness.interrupt.wait_until("not refused", || {
        bench.handle.backend_status().last_error.is_some_and(|error| error.contains("lacks features"))
    });
    bench.backend = None;
    bench.restart(Character::default());
    bench.wait_running(true);
    bench.send();
    bench.receive_all();
    assert_eq!(bench.backend.as_ref().unwrap().seen.forwarded.load(Ordering::Relaxed), 1);
}
