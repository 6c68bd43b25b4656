use std::sync::atomic::Ordering;

use super::*;

#[test]
fn pauses_in_the_middle_of_streams_lose_nothing() {
    let mut bench = Bench::active();
    let (stream, mut peer) = bench.connect_to_guest(1);
    let total = 1 << 20;
    let mut output = stream.try_clone().unwrap();
    let writer = std::thread::spawn(move || output.write_all(&pattern(0, total)).unwrap());
    let mut input = stream;
    let reader = std::thread::spawn(move || {
        let mut data = vec![0; total];
        input.read_exact(&mut data).unwrap();
        assert!(data == pattern(0, total));
    });
    let (mut received, mut sent, mut alloc, mut forwarded, mut round) = (0, 0u32, 256 << 10, 0u32, 0);
    while received < total || (sent as usize) < total {
        round += 1;
        if round % 5 == 0 {
            bench.harness.pause_and_resume();
        }
        let length = (total as u32 - sent).min(alloc - (sent - forwarded)).min(20_000);
        if length > 0 {
            peer.fwd_cnt = received as u32;
            bench.send(peer.header(op::RW), &pattern(sent as usize, length as usize));
            sent += length;
        } else {
            std::thread::sleep(Duration::from_micros(100));
        }
        while let Some((header, data)) = bench.poll() {
            (alloc, forwarded) = (header.buf_alloc, header.fwd_cnt);
            match header.op {
                op::RW => {
                    assert_eq!(data, pattern(received, data.len()), "at {received}");
                    received += data.len();
                }
                op::CREDIT_REQUEST => {
                    peer.fwd_cnt = received as u32;
                    bench.send(peer.header(op::CREDIT_UPDATE), &[]);
                }
                op::CREDIT_UPDATE => {}
                // The host has read all, and closed; the guest has got all that it said before.
                op::SHUTDOWN => assert_eq!((received, sent as usize), (total, total)),
                other => panic!("operation {other}"),
            }
        }
    }
    writer.join().unwrap();
    reader.join().unwrap();
}

#[test]
fn a_restored_device_tells_the_guest_that_its_connections_are_gone() {
    let mut bench = Bench::active();
    let (mut stream, peer) = bench.connect_to_guest(1);
    let queues = bench.harness.device.quiesce();
    let state = bench.harness.device.save();
    bench.harness.device.restore(&state).unwrap();
    assert!(matches!(stream.read(&mut [0; 1]), Ok(0) | Err(_)));
    bench.harness.activate_with(MODERN, queues).unwrap();
    // There is no buffer for events yet; the wish is kept, through a pause too.
    bench.harness.pause_and_resume();
    bench.harness.memory.write_obj(0xaaaa_aaaau32, GuestAddress(0xF0_0000)).unwrap();
    let used = bench.harness.exchange(2, &[Buffer { address: 0xF0_0000, length: 4, device_writes: true }]);
    assert_eq!(used.length, 4);
    assert_eq!(bench.harness.memory.read_obj::<u32>(GuestAddress(0xF0_0000)).unwrap(), 0);
    // Told once.
    bench.harness.queues[2].push(&[Buffer { address: 0xF0_0000, length: 4, device_writes: true }]);
    bench.harness.queues[2].kick();
    bench.send(peer.header(op::RW), b"into the void");
    bench.expect(op::RST);
    assert!(bench.harness.queues[2].pop_used().is_none());
}

#[test]
fn the_encoding_of_the_saved_state_does_not_change() {
    let mut device = Bench::idle().harness.device;
    assert_eq!(device.save(), [8, 42]);
    assert!(device.restore(&[0xff]).is_err());
}

#[test]
fn a_reset_ends_all_connections() {
    let mut bench = Bench::active();
    let (mut stream, _) = bench.connect_to_guest(1);
    bench.harness.device.quiesce();
    bench.harness.device.reset();
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
    assert_eq!(bench.harness.device.handle().counters().connections.load(Ordering::Relaxed), 0);
}

#[test]
fn there_is_an_end_to_the_number_of_connections() {
    let mut bench = Bench::active();
    let waiting: Vec<UnixStream> = (0..MAX_CONNECTIONS)
        .map(|n| {
            let stream = UnixStream::connect(bench.path()).unwrap();
            // The queue of a listener is shorter.
            if n % 64 == 63 {
                let handle = bench.harness.device.handle();
                let count = || handle.counters().connections.load(Ordering::Relaxed) as usize > n;
                bench.harness.interrupt.wait_until("not accepted", count);
            }
            stream
        })
        .collect();
    let mut late = UnixStream::connect(bench.path()).unwrap();
    late.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(late.read(&mut [0; 1]).unwrap(), 0, "one too many is closed");
    drop(waiting);
    let handle = bench.harness.device.handle();
    bench.harness.interrupt.wait_until("not gone", || handle.counters().connections.load(Ordering::Relaxed) == 0);
    bench.connect_to_guest(3);
}

#[test]
fn who_waits_too_long_is_given_up() {
    use crate::devices::vsock::connection::ANSWER_LIMIT;
    let mut bench = Bench::active();
    let mut stream = UnixStream::connect(bench.path()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"CONNECT 1\n").unwrap();
    bench.expect(op::REQUEST);
    let start = std::time::Instant::now();
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
    assert!(start.elapsed() < ANSWER_LIMIT * 2);
    bench.expect(op::RST);
}

#[test]
fn paths_and_contexts_that_cannot_be_are_refused() {
    let bench = Bench::idle();
    let refusal = |guest_cid, socket| Vsock::new(VsockConfig { guest_cid, socket, listener: None }).err().unwrap();
    assert!(matches!(refusal(2, bench.path()), VsockError::GuestCid(2)));
    assert!(matches!(refusal(u64::from(u32::MAX), bench.path()), VsockError::GuestCid(_)));
    assert!(matches!(refusal(3, "x".repeat(100).into()), VsockError::PathTooLong(_)));
    assert!(matches!(refusal(3, bench.path()), VsockError::Busy(_)));
    assert!(matches!(refusal(3, "/nonexistent/v.sock".into()), VsockError::Listen { .. }));
}

#[test]
fn a_socket_left_behind_is_replaced_and_ours_is_removed() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("v.sock");
    drop(UnixListener::bind(&socket).unwrap());
    assert!(socket.exists());
    let device = Vsock::new(VsockConfig { guest_cid: 3, socket: socket.clone(), listener: None }).unwrap();
    UnixStream::connect(&socket).unwrap();
    drop(device);
    assert!(!socket.exists());
    // One that was handed in is not ours to remove.
    let listener = Some(UnixListener::bind(&socket).unwrap());
    drop(Vsock::new(VsockConfig { guest_cid: 3, socket: socket.clone(), listener }).unwrap());
    assert!(socket.exists());
}
