use super::*;

#[test]
fn a_program_on_the_host_talks_to_the_guest() {
    let mut bench = Bench::active();
    let (mut stream, peer) = bench.connect_to_guest(1024);
    stream.write_all(b"question").unwrap();
    let (header, data) = bench.expect(op::RW);
    assert_eq!((header.dst_port, data), (1024, b"question".to_vec()));
    bench.send(peer.header(op::RW), b"answer");
    let mut answer = [0; 6];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"answer");
}

#[test]
fn data_sent_right_behind_the_command_is_part_of_the_stream() {
    let mut bench = Bench::active();
    let mut stream = UnixStream::connect(bench.path()).unwrap();
    stream.write_all(b"CONNECT 77\nhello").unwrap();
    let (request, _) = bench.expect(op::REQUEST);
    let peer = Peer { guest_port: 77, host_port: request.src_port, buf_alloc: 4096, fwd_cnt: 0 };
    bench.send(peer.header(op::RESPONSE), &[]);
    assert_eq!(bench.expect(op::RW).1, b"hello");
}

#[test]
fn a_program_in_the_guest_talks_to_the_host() {
    let mut bench = Bench::active();
    let listener = bench.listen(52);
    let (mut stream, peer) = bench.connect_to_host(&listener, 52, 9000);
    bench.send(peer.header(op::RW), b"from the guest");
    let mut data = [0; 14];
    stream.read_exact(&mut data).unwrap();
    assert_eq!(&data, b"from the guest");
    stream.write_all(b"from the host").unwrap();
    assert_eq!(bench.expect(op::RW).1, b"from the host");
}

#[test]
fn connections_to_nobody_are_reset() {
    let mut bench = Bench::active();
    let peer = Peer { guest_port: 9000, host_port: 53, buf_alloc: 4096, fwd_cnt: 0 };
    bench.send(peer.header(op::REQUEST), &[]);
    let (header, _) = bench.expect(op::RST);
    assert_eq!((header.src_port, header.dst_port), (53, 9000));
    // And from the host: the guest refuses.
    let mut stream = UnixStream::connect(bench.path()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"CONNECT 5\n").unwrap();
    let (request, _) = bench.expect(op::REQUEST);
    let peer = Peer { guest_port: 5, host_port: request.src_port, buf_alloc: 4096, fwd_cnt: 0 };
    bench.send(peer.header(op::RST), &[]);
    assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0);
}

#[test]
fn commands_that_make_no_sense_close_the_socket() {
    let bench = Bench::active();
    for command in
        ["CONNECT\n", "CONNECT x\n", "connect 5\n", "CONNECT 5 6\n", "CONNECT 4294967296\n", "\u{ff}\n", &"C".repeat(40)]
    {
        let mut stream = UnixStream::connect(bench.path()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(command.as_bytes()).unwrap();
        // Closed with unread bytes is a reset to the other end.
        assert!(matches!(stream.read(&mut [0; 8]), Ok(0) | Err(_)), "{command:?}");
    }
}

#[test]
fn the_host_is_held_back_by_the_guests_credit() {
    let mut bench = Bench::active();
    let (mut stream, mut peer) = bench.connect_to_guest(1);
    let total = 3 << 20;
    let writer = std::thread::spawn(move || {
        stream.write_all(&pattern(0, total)).unwrap();
        stream
    });
    let mut received = 0;
    while received < total {
        let (header, data) = bench.receive();
        match header.op {
            op::RW => {
                assert_eq!(data, pattern(received, data.len()), "at {received}");
                received += data.len();
                let unread = (received as u32) - peer.fwd_cnt;
                assert!(unread <= peer.buf_alloc, "{unread} bytes sent, {} allowed", peer.buf_alloc);
            }
            op::CREDIT_REQUEST => {
                peer.fwd_cnt = received as u32;
                bench.send(peer.header(op::CREDIT_UPDATE), &[]);
            }
            other => panic!("operation {other}"),
        }
    }
    writer.join().unwrap();
}

#[test]
fn the_guest_is_held_back_by_its_credit_and_nothing_is_lost() {
    let mut bench = Bench::active();
    let (mut stream, peer) = bench.connect_to_guest(1);
    let total = 3 << 20;
    let reader = std::thread::spawn(move || {
        let mut received = 0;
        let mut data = vec![0; 30_000];
        while received < total {
            let count = stream.read(&mut data).unwrap();
            assert_eq!(data[..count], pattern(received, count), "at {received}");
            received += count;
            std::thread::sleep(Duration::from_micros(200));
        }
    });
    let (mut sent, mut alloc, mut forwarded) = (0u32, 256 << 10, 0u32);
    while (sent as usize) < total {
        let credit = alloc - (sent - forwarded);
        let length = (total as u32 - sent).min(credit).min(60_000);
        if length > 0 {
            bench.send(peer.header(op::RW), &pattern(sent as usize, length as usize));
            sent += length;
        }
        let update = if length > 0 { bench.poll() } else { Some(bench.receive()) };
        if let Some((header, _)) = update {
            assert_eq!(header.op, op::CREDIT_UPDATE);
            (alloc, forwarded) = (header.buf_alloc, header.fwd_cnt);
            assert!(forwarded <= sent);
        }
    }
    reader.join().unwrap();
    bench.send(peer.header(op::CREDIT_REQUEST), &[]);
    let handle = bench.harness.device.handle();
    assert_eq!(handle.counters().tx_bytes.load(std::sync::atomic::Ordering::Relaxed), total as u64);
}

#[test]
fn a_guest_that_ignores_its_credit_is_reset() {
    let mut bench = Bench::active();
    let (_stream, peer) = bench.connect_to_guest(1);
    loop {
        bench.send(peer.header(op::RW), &[7; 60_000]);
        if let Some((header, _)) = bench.poll().filter(|(header, _)| header.op != op::CREDIT_UPDATE) {
            assert_eq!(header.op, op::RST);
            return;
        }
        // The socket takes some, the buffer takes 256 KiB; then it ends.
        assert!(bench.sent < 60);
    }
}

#[test]
fn credit_that_cannot_be_stops_only_the_liar() {
    let mut bench = Bench::active();
    let (mut liars, mut liar) = bench.connect_to_guest(1);
    liar.fwd_cnt = 1_000_000;
    bench.send(liar.header(op::CREDIT_UPDATE), &[]);
    let (mut stream, _) = bench.connect_to_guest(2);
    liars.write_all(b"lost").unwrap();
    assert_eq!(bench.expect(op::CREDIT_REQUEST).0.dst_port, 1);
    stream.write_all(b"heard").unwrap();
    assert_eq!(bench.expect(op::RW).1, b"heard");
}

#[test]
fn each_direction_is_closed_by_itself() {
    let mut bench = Bench::active();
    let (mut stream, peer) = bench.connect_to_guest(1);
    // The host has said all it has to say.
    stream.write_all(b"last words").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(bench.expect(op::RW).1, b"last words");
    assert_eq!(bench.expect(op::SHUTDOWN).0.flags, SHUTDOWN_SEND);
    // The guest has not.
    bench.send(peer.header(op::RW), b"more");
    let mut data = [0; 4];
    stream.read_exact(&mut data).unwrap();
    // Now it has.
    bench.send(Header { flags: SHUTDOWN_SEND, ..peer.header(op::SHUTDOWN) }, &[]);
    assert_eq!(stream.read(&mut data).unwrap(), 0);
    assert_eq!(bench.expect(op::SHUTDOWN).0.flags, SHUTDOWN_SEND | SHUTDOWN_RECEIVE);
    bench.send(peer.header(op::RST), &[]);
    let handle = bench.harness.device.handle();
    assert_eq!(handle.counters().connections.load(std::sync::atomic::Ordering::Relaxed), 0);
}

#[test]
fn what_the_guest_sent_before_it_closed_reaches_a_slow_host() {
    let mut bench = Bench::active();
    let (mut stream, peer) = bench.connect_to_guest(1);
    for n in 0..6 {
        bench.send(peer.header(op::RW), &pattern(n * 60_000, 60_000));
    }
    bench.send(Header { flags: SHUTDOWN_SEND | SHUTDOWN_RECEIVE, ..peer.header(op::SHUTDOWN) }, &[]);
    bench.expect(op::RST);
    let mut data = Vec::new();
    stream.read_to_end(&mut data).unwrap();
    assert!(data == pattern(0, 360_000), "{} bytes", data.len());
}

#[test]
fn what_the_host_sent_before_it_closed_reaches_the_guest() {
    let mut bench = Bench::active();
    let (mut stream, peer) = bench.connect_to_guest(1);
    stream.write_all(&pattern(0, 50_000)).unwrap();
    drop(stream);
    let mut received = Vec::new();
    while received.len() < 50_000 {
        received.extend(bench.expect(op::RW).1);
    }
    assert_eq!(received, pattern(0, 50_000));
    assert_eq!(bench.expect(op::SHUTDOWN).0.flags, SHUTDOWN_SEND | SHUTDOWN_RECEIVE);
    // Linux answers the shutdown with a reset, others with a shutdown of their own, which is answered.
    bench.send(Header { flags: 3, ..peer.header(op::SHUTDOWN) }, &[]);
    bench.expect(op::RST);
}

#[test]
fn connections_take_turns() {
    let mut bench = Bench::active();
    let mut streams: Vec<_> = (0..8).map(|port| bench.connect_to_guest(port).0).collect();
    // All of them have more to say than the guest has buffers for.
    let queues = bench.harness.device.quiesce();
    streams.iter_mut().for_each(|stream| stream.write_all(&[1; 60_000]).unwrap());
    bench.harness.activate_with(MODERN, queues).unwrap();
    let mut turns = [0; 8];
    for _ in 0..64 {
        turns[bench.expect(op::RW).0.dst_port as usize] += 1;
    }
    // The sockets seen first have a head start of a few packets.
    assert!(turns.iter().all(|count| (6..=16).contains(count)), "{turns:?}");
}
