//! The proxy between sockets: no terminal, no monitor.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::time::Duration;

use super::*;

/// The user's ends, the guest's end, and what the proxy gets.
struct Ends {
    keys: UnixStream,
    screen: UnixStream,
    guest: UnixStream,
    input: UnixStream,
    output: UnixStream,
    console: UnixStream,
}

fn ends() -> Ends {
    let (keys, input) = UnixStream::pair().unwrap();
    let (screen, output) = UnixStream::pair().unwrap();
    let (guest, console) = UnixStream::pair().unwrap();
    for end in [&keys, &screen, &guest] {
        end.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    }
    Ends { keys, screen, guest, input, output, console }
}

fn soon() -> Option<Instant> {
    Some(Instant::now() + Duration::from_millis(20))
}

fn read(mut from: &UnixStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes).unwrap();
    bytes
}

#[test]
fn bytes_go_both_ways() {
    let e = ends();
    let mut proxy = Proxy::new(Input::Terminal(e.input.as_fd()), e.output.as_fd(), e.console).unwrap();
    (&e.keys).write_all(b"ls\r").unwrap();
    (&e.guest).write_all(b"login:").unwrap();
    assert_eq!(proxy.wait(&[], soon()).unwrap(), Wake::Deadline);
    assert_eq!(read(&e.guest, 3), b"ls\r");
    assert_eq!(read(&e.screen, 6), b"login:");
}

#[test]
fn the_escape_key_leaves_after_what_was_typed_before_it_and_is_not_the_guests() {
    let e = ends();
    let mut proxy = Proxy::new(Input::Terminal(e.input.as_fd()), e.output.as_fd(), e.console).unwrap();
    (&e.keys).write_all(b"ab\x1dcd").unwrap();
    assert_eq!(proxy.wait(&[], soon()).unwrap(), Wake::Escape);
    drop(proxy);
    let mut rest = Vec::new();
    (&e.guest).read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"ab");
}

#[test]
fn input_that_is_no_terminal_has_no_escape_key_and_its_end_ends_nothing() {
    let e = ends();
    let mut proxy = Proxy::new(Input::Bytes(e.input.as_fd()), e.output.as_fd(), e.console).unwrap();
    (&e.keys).write_all(b"a\x1db").unwrap();
    drop(e.keys);
    assert_eq!(proxy.wait(&[], soon()).unwrap(), Wake::Deadline);
    assert_eq!(read(&e.guest, 3), b"a\x1db");
    (&e.guest).write_all(b"still here").unwrap();
    assert_eq!(proxy.wait(&[], soon()).unwrap(), Wake::Deadline);
    assert_eq!(read(&e.screen, 10), b"still here");
}

#[test]
fn a_console_that_closes_is_told_after_its_last_output() {
    let e = ends();
    let mut proxy = Proxy::new(Input::None, e.output.as_fd(), e.console).unwrap();
    (&e.guest).write_all(b"last words").unwrap();
    drop(e.guest);
    assert_eq!(proxy.wait(&[], None).unwrap(), Wake::ConsoleClosed);
    assert_eq!(read(&e.screen, 10), b"last words");
    // From here on only the others count.
    assert_eq!(proxy.wait(&[], soon()).unwrap(), Wake::Deadline);
}

#[test]
fn a_user_who_stops_looking_does_not_stop_the_guest() {
    let e = ends();
    let mut proxy = Proxy::new(Input::None, e.output.as_fd(), e.console).unwrap();
    drop(e.screen);
    e.guest.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
    let guest = std::thread::spawn(move || {
        (0..100).try_for_each(|_| (&e.guest).write_all(&[b'x'; 65536])).unwrap();
    });
    assert_eq!(proxy.wait(&[], None).unwrap(), Wake::ConsoleClosed);
    guest.join().unwrap();
}

#[test]
fn a_guest_that_does_not_read_does_not_hold_up_its_output_or_the_others() {
    let e = ends();
    let mut proxy = Proxy::new(Input::Bytes(e.input.as_fd()), e.output.as_fd(), e.console).unwrap();
    e.keys.set_nonblocking(true).unwrap();
    loop {
        let full = (&e.keys).write(&[b'k'; 65536]).is_err();
        if proxy.wait(&[], soon()).unwrap() == Wake::Deadline && full {
            break;
        }
    }
    (&e.guest).write_all(b"output").unwrap();
    assert_eq!(proxy.wait(&[], soon()).unwrap(), Wake::Deadline);
    assert_eq!(read(&e.screen, 6), b"output");
    let (other, theirs) = UnixStream::pair().unwrap();
    drop(theirs);
    assert_eq!(proxy.wait(&[other.as_fd()], None).unwrap(), Wake::Other(0));
}

#[test]
fn much_output_arrives_whole_and_in_order() {
    let e = ends();
    let mut proxy = Proxy::new(Input::None, e.output.as_fd(), e.console).unwrap();
    let sent: Vec<u8> = (0..1_000_003u32).map(|i| (i % 251) as u8).collect();
    let bytes = sent.clone();
    let guest = e.guest;
    let writer = std::thread::spawn(move || (&guest).write_all(&bytes).unwrap());
    let (screen, length) = (e.screen, sent.len());
    let reader = std::thread::spawn(move || read(&screen, length));
    assert_eq!(proxy.wait(&[], None).unwrap(), Wake::ConsoleClosed);
    writer.join().unwrap();
    assert!(reader.join().unwrap() == sent);
}
