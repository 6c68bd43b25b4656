use prost::Message;

use super::*;
use crate::devices::net::NetState;
use crate::virtio::{RestoreError, VirtioDevice};

fn saved() -> NetState {
    NetState {
        mac: vec![2, 0, 0, 0, 0, 9],
        active_pairs: 2,
        offloads: 1 << GUEST_CSUM,
        status: 1,
        rx_mode: 3,
        max_pairs: 2,
        configured: true,
    }
}

#[test]
fn a_saved_state_comes_back_as_it_was() {
    let mut device = Bench::idle(2).harness.device;
    let state = saved().encode_to_vec();
    device.restore(&state).unwrap();
    assert_eq!(device.save(), state);
    assert_eq!(device.handle().mac(), [2, 0, 0, 0, 0, 9]);
    assert_eq!(device.handle().active_pairs(), 2);
}

#[test]
fn the_encoding_of_the_saved_state_does_not_change() {
    let golden = [0x0a, 6, 2, 0, 0, 0, 0, 9, 0x10, 2, 0x18, 2, 0x20, 1, 0x28, 3, 0x30, 2, 0x38, 1];
    assert_eq!(saved().encode_to_vec(), golden);
}

#[test]
fn states_that_do_not_fit_are_refused() {
    let mut device = Bench::idle(2).harness.device;
    let before = device.save();
    let wrong = NetState { max_pairs: 4, ..saved() };
    assert!(matches!(device.restore(&wrong.encode_to_vec()), Err(RestoreError::Mismatch { .. })));
    let malformed = [
        NetState { mac: vec![1, 2], ..saved() },
        NetState { active_pairs: 0, ..saved() },
        NetState { active_pairs: 70_000, ..saved() },
        NetState { offloads: u64::MAX, ..saved() },
        NetState { status: 0x1_0000, ..saved() },
    ];
    for state in malformed {
        assert!(matches!(device.restore(&state.encode_to_vec()), Err(RestoreError::Malformed { .. })), "{state:?}");
    }
    assert!(matches!(device.restore(&[0xff; 9]), Err(RestoreError::Malformed { .. })));
    assert_eq!(device.save(), before, "a refused state changes nothing");
}
