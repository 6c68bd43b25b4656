use super::*;
use crate::devices::net::tests::hostile::{Random, survives};

fn scrambled(queues: &[usize]) {
    let Bench { mut harness, directory, .. } = Bench::idle();
    let path = directory.path().join("v.sock");
    let mut streams = Vec::new();
    survives(&mut harness, MODERN, 2000, queues, |seed| {
        if seed % 4 == 0 {
            let mut stream = UnixStream::connect(&path).unwrap();
            let _ = stream.write_all(b"CONNECT 1\nand then some");
            streams.push(stream);
        }
        if seed % 64 == 0 {
            streams.clear();
        }
    });
}

#[test]
fn scrambled_receive_queues_never_hurt() {
    scrambled(&[0]);
}

#[test]
fn scrambled_transmit_queues_never_hurt() {
    scrambled(&[1]);
}

#[test]
fn scrambled_event_queues_never_hurt() {
    scrambled(&[2]);
}

#[test]
fn all_queues_scrambled_at_once_never_hurt() {
    scrambled(&[0, 1, 2]);
}

#[test]
fn packets_from_or_to_others_are_dropped() {
    let mut bench = Bench::active();
    let listener = bench.listen(1);
    let request = Peer { guest_port: 9, host_port: 1, buf_alloc: 4096, fwd_cnt: 0 }.header(op::REQUEST);
    bench.send(Header { src_cid: 43, ..request }, &[]);
    bench.send(Header { dst_cid: 1, ..request }, &[]);
    bench.send(Header { dst_cid: u64::MAX, ..request }, &[]);
    assert!(bench.poll().is_none());
    let handle = bench.harness.device.handle();
    assert_eq!(handle.counters().drops.load(std::sync::atomic::Ordering::Relaxed), 3);
    bench.connect_to_host(&listener, 1, 9);
}

#[test]
fn packets_that_make_no_sense_are_reset() {
    let mut bench = Bench::active();
    let listener = bench.listen(1);
    let peer = Peer { guest_port: 9, host_port: 1, buf_alloc: 4096, fwd_cnt: 0 };
    // Of a type that we do not have.
    bench.send(Header { kind: 2, ..peer.header(op::REQUEST) }, &[]);
    bench.expect(op::RST);
    // To a connection that does not exist; a reset is not answered.
    bench.send(peer.header(op::RST), &[]);
    bench.send(peer.header(op::RW), b"x");
    bench.expect(op::RST);
    let mut nonsense: Vec<Header> = [0, op::REQUEST, op::RESPONSE, 8, u16::MAX].map(|op| peer.header(op)).to_vec();
    nonsense.push(Header { kind: 7, ..peer.header(op::RW) });
    for header in nonsense {
        let (mut stream, _) = bench.connect_to_host(&listener, 1, 9);
        bench.send(header, &[]);
        bench.expect(op::RST);
        assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0, "{header:?}");
    }
    // Longer than its buffers.
    let _stream = bench.connect_to_host(&listener, 1, 9);
    bench.send_raw(8 << 20, &Header { length: 1000, ..peer.header(op::RW) }, &[1; 999]);
    bench.expect(op::RST);
    let _stream = bench.connect_to_host(&listener, 1, 9);
    bench.send_raw(8 << 20, &Header { length: u32::MAX, ..peer.header(op::RW) }, &[1; 10]);
    bench.expect(op::RST);
}

#[test]
fn receive_buffers_without_room_for_data_do_not_keep_the_device_busy() {
    let mut bench = Bench::idle();
    bench.harness.activate(MODERN).unwrap();
    let mut stream = UnixStream::connect(bench.path()).unwrap();
    stream.write_all(b"CONNECT 1\n").unwrap();
    for _ in 0..10 {
        let used = bench.harness.exchange(0, &[Buffer { address: BUFFERS, length: HEADER_BYTES as u32, device_writes: true }]);
        assert_eq!(used.length, 0);
    }
    bench.post_all();
    // The first buffers were not ours to count.
    assert_eq!(bench.expect(op::REQUEST).0.dst_port, 1);
}

#[test]
fn any_sequence_of_packets_leaves_the_device_working() {
    let mut bench = Bench::active();
    let listeners: Vec<UnixListener> = (0..4).map(|port| bench.listen(port)).collect();
    listeners.iter().for_each(|listener| listener.set_nonblocking(true).unwrap());
    let mut streams = Vec::new();
    for seed in 0..10_000 {
        let mut random = Random::new(seed);
        let peer = Peer {
            guest_port: random.below(4) as u32,
            host_port: random.below(5) as u32,
            buf_alloc: random.next() as u32 >> random.below(32),
            fwd_cnt: if random.below(2) == 0 { 0 } else { random.next() as u32 },
        };
        let operation = if random.below(3) == 0 { op::REQUEST } else { random.below(9) as u16 };
        let header = Header { flags: random.below(4) as u32, ..peer.header(operation) };
        let data = vec![seed as u8; if operation == op::RW { random.below(5000) as usize } else { 0 }];
        bench.send(header, &data);
        while bench.poll().is_some() {}
        for listener in &listeners {
            streams.extend(listener.accept().ok().map(|(stream, _)| stream));
        }
        if let Some(stream) = streams.last_mut() {
            let _ = stream.set_nonblocking(true);
            let _ = stream.write(&[1; 3000]);
        }
        if random.below(50) == 0 {
            streams.clear();
        }
    }
    streams.clear();
    listeners.iter().for_each(|listener| while listener.accept().is_ok() {});
    assert!(bench.harness.interrupt.failed().is_none());
    bench.harness.pause_and_resume();
    while bench.poll().is_some() {}
    let listener = bench.listen(50);
    let peer = Peer { guest_port: 77, host_port: 50, buf_alloc: 4096, fwd_cnt: 0 };
    bench.send(peer.header(op::REQUEST), &[]);
    loop {
        let (header, _) = bench.receive();
        if header.dst_port == 77 {
            assert_eq!(header.op, op::RESPONSE);
            break;
        }
    }
    listener.accept().unwrap();
}
