//! What only the kernel's TUN driver can show.

use std::process::Command;

use super::*;
use crate::devices::net::{NetError, TapError};

fn config(backend: TapBackend, queue_pairs: u16) -> NetConfig {
    NetConfig { mac: MAC, mtu: None, queue_pairs, backend }
}

#[test]
fn names_that_cannot_be_used_are_refused_with_a_way_out() {
    let refusal = |name: &str| match Net::new(config(TapBackend::Name(name.into()), 1)) {
        Err(NetError::Tap(error)) => error,
        other => panic!("{:?}", other.err()),
    };
    assert!(matches!(refusal(""), TapError::Name(_)));
    assert!(matches!(refusal("a/b"), TapError::Name(_)));
    assert!(matches!(refusal("sixteen-bytes-xy"), TapError::Name(_)));
    let missing = refusal("maru-no-such");
    assert!(matches!(missing, TapError::NoInterface(_)));
    assert!(missing.to_string().contains("ip tuntap add"));
    // `lo` exists everywhere and is no TAP; without permission for the TUN driver, that is what is said.
    let loopback = refusal("lo");
    assert!(
        matches!(loopback, TapError::WrongKind { .. } | TapError::NoTun | TapError::TunPermission | TapError::Permission(_)),
        "{loopback:?}"
    );
}

#[test]
fn descriptors_that_are_no_taps_are_refused() {
    let (fd, _wire) = packet_pair();
    let error = Net::new(config(TapBackend::Taps(vec![fd]), 1)).err().unwrap();
    assert!(matches!(error, NetError::Tap(TapError::Descriptor { queue: 0, .. })));
    let error = Net::new(config(TapBackend::Taps(vec![]), 1)).err().unwrap();
    assert!(matches!(error, NetError::Tap(TapError::Count { given: 0, pairs: 1 })));
    assert!(matches!(Net::new(config(TapBackend::Name("x".into()), 0)), Err(NetError::QueuePairs(0))));
}

struct Tap(String);

impl Tap {
    fn new(name: &str, extra: &[&str]) -> Tap {
        let mut arguments = vec!["tuntap", "add", "dev", name, "mode", "tap"];
        arguments.extend(extra);
        ip(&arguments);
        ip(&["link", "set", name, "up"]);
        Tap(name.into())
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "del", &self.0]).status();
    }
}

fn ip(arguments: &[&str]) {
    assert!(Command::new("ip").args(arguments).status().unwrap().success(), "ip {arguments:?}");
}

#[test]
#[ignore = "needs CAP_NET_ADMIN, /dev/net/tun and ip(8): cargo nextest run --run-ignored all real_tap"]
fn a_real_tap_carries_frames_both_ways() {
    let tap = Tap::new("maru-test0", &[]);
    ip(&["addr", "add", "10.99.7.1/24", "dev", &tap.0]);
    let device = Net::new(config(TapBackend::Name(tap.0.clone()), 1)).unwrap();
    let busy = Net::new(config(TapBackend::Name(tap.0.clone()), 1)).err().unwrap();
    assert!(matches!(busy, NetError::Tap(TapError::Busy(_))), "{busy:?}");
    let mut bench = Bench { harness: Harness::new(device), wires: vec![] };
    bench.harness.activate(MODERN | GUEST_OFFLOADS | HOST_OFFLOADS | 1 << MRG_RXBUF).unwrap();
    bench.post(0, 50, 2048);
    // A request for the host's address is answered by the host's kernel.
    let mut request = vec![0xff; 6];
    request.extend(MAC);
    request.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    request.extend(MAC);
    request.extend([10, 99, 7, 2]);
    request.extend([0; 6]);
    request.extend([10, 99, 7, 1]);
    request.resize(60, 0);
    bench.offer(0x80_0000, &request);
    bench.harness.queues[1].kick();
    bench.harness.wait_used(1);
    for n in 0..50 {
        let used = bench.harness.wait_used(0);
        let (buffers, frame) = bench.received(n, used);
        assert_eq!(buffers, 1);
        if frame[12..14] == [8, 6] && frame[20..22] == [0, 2] {
            assert_eq!(frame[28..32], [10, 99, 7, 1]);
            return;
        }
    }
    panic!("no answer among 50 frames");
}

#[test]
#[ignore = "needs CAP_NET_ADMIN, /dev/net/tun and ip(8): cargo nextest run --run-ignored all real_tap"]
fn queues_of_a_real_tap_come_and_go_with_the_pairs_and_with_the_tap() {
    let tap = Tap::new("maru-test1", &["multi_queue"]);
    let device = Net::new(config(TapBackend::Name(tap.0.clone()), 4)).unwrap();
    let handle = device.handle();
    let mut harness = Harness::new(device);
    harness.activate(MODERN | bits(&[MQ, CTRL_VQ, STATUS])).unwrap();
    for _ in 0..5 {
        harness.pause_and_resume();
    }
    // Only a device that listens notices at once; a silent guest's would when it sends.
    harness.queues[0].push(&[Buffer { address: BUFFERS, length: 2048, device_writes: true }]);
    harness.queues[0].kick();
    drop(tap);
    harness.interrupt.wait_until("the link is up", || !handle.is_link_up());
    let single = Tap::new("maru-test2", &[]);
    let error = Net::new(config(TapBackend::Name(single.0.clone()), 2)).err().unwrap();
    assert!(matches!(error, NetError::Tap(TapError::WrongKind { .. })), "{error:?}");
    let several = Tap::new("maru-test3", &["multi_queue"]);
    Net::new(config(TapBackend::Name(several.0.clone()), 1)).unwrap();
}
