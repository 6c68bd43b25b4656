use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::host::*;

fn pipe() -> (File, OwnedFd) {
    let mut fds = [0; 2];
    // SAFETY: `fds` has room for the two descriptors.
    assert_eq!(unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) }, 0);
    // SAFETY: both were just opened and belong to nobody else.
    unsafe { (File::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) }
}

fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(20), "timed out: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i % 251) as u8).collect()
}

#[test]
fn the_scroll_back_is_the_end_of_what_was_printed() {
    let output = ConsoleOutput::new();
    let printed = pattern(3 * SCROLL_BACK_BYTES + 17);
    for part in printed.chunks(1000) {
        output.put(part);
    }
    let (start, kept) = output.scroll_back();
    assert_eq!(kept, printed[printed.len() - SCROLL_BACK_BYTES..]);
    assert_eq!(start as usize, printed.len() - SCROLL_BACK_BYTES);
    output.put(&printed);
    assert_eq!(output.scroll_back().1, kept);
    assert_eq!(output.total_bytes() as usize, 2 * printed.len());
}

#[test]
fn an_attached_reader_gets_the_scroll_back_and_then_everything_once() {
    let output = ConsoleOutput::new();
    output.put(b"before ");
    let (mut all, all_writer) = pipe();
    let (mut new, new_writer) = pipe();
    let first = output.attach(all_writer, StartAt::ScrollBack).unwrap();
    let second = output.attach(new_writer, StartAt::Now).unwrap();
    output.put(b"after");
    let mut buffer = [0; 12];
    all.read_exact(&mut buffer).unwrap();
    assert_eq!(&buffer, b"before after");
    new.read_exact(&mut buffer[..5]).unwrap();
    assert_eq!(&buffer[..5], b"after");
    assert_eq!((first.lost_bytes(), second.lost_bytes()), (0, 0));
}

#[test]
fn a_reader_that_does_not_read_neither_stops_the_guest_nor_hides_its_loss() {
    let output = ConsoleOutput::new();
    let (mut reader, writer) = pipe();
    let attachment = output.attach(writer, StartAt::Now).unwrap();
    let start = Instant::now();
    let total = 4 << 20;
    for part in pattern(total).chunks(64) {
        output.put(part);
    }
    assert!(start.elapsed() < Duration::from_secs(10));
    // Draining now: what arrives and what was lost is everything.
    let mut received = 0;
    let mut buffer = [0; 8192];
    wait("the reader catches up", || {
        let mut polled = libc::pollfd { fd: reader.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid entry.
        while unsafe { libc::poll(&mut polled, 1, 20) } == 1 {
            received += reader.read(&mut buffer).unwrap() as u64;
        }
        received + attachment.lost_bytes() == total as u64
    });
    assert!(attachment.lost_bytes() > 0);
}

#[test]
fn a_reader_that_goes_away_ends_its_attachment_only() {
    let output = ConsoleOutput::new();
    let (reader, writer) = pipe();
    let attachment = output.attach(writer, StartAt::Now).unwrap();
    drop(reader);
    output.put(b"x");
    wait("the attachment ends", || !attachment.is_open());
    output.put(b"y");
    assert_eq!(output.scroll_back().1, b"xy");
}

#[test]
fn a_dropped_attachment_closes_its_descriptor_even_with_a_stuck_reader() {
    let output = ConsoleOutput::new();
    for print in [0, 1 << 20] {
        let (mut reader, writer) = pipe();
        let attachment = output.attach(writer, StartAt::Now).unwrap();
        output.put(&pattern(print));
        drop(attachment);
        // Ends only when no writer has the pipe open.
        reader.read_to_end(&mut Vec::new()).unwrap();
    }
}

/// Takes at most three bytes at a time, and nothing every other time.
#[derive(Default)]
struct SlowConsole(Mutex<(Vec<u8>, bool)>);

impl ConsoleInput for SlowConsole {
    fn enqueue(&self, bytes: &[u8]) -> usize {
        let mut inner = self.0.lock().unwrap();
        inner.1 = !inner.1;
        let taken = if inner.1 { bytes.len().min(3) } else { 0 };
        inner.0.extend(&bytes[..taken]);
        taken
    }
}

#[test]
fn typed_input_arrives_whole_however_slowly_the_guest_takes_it() {
    let console = Arc::new(SlowConsole::default());
    let (reader, writer) = pipe();
    let pump = InputPump::start(reader.into(), console.clone()).unwrap();
    let mut writer = File::from(writer);
    writer.write_all(b"one two three").unwrap();
    wait("the input arrives", || console.0.lock().unwrap().0 == b"one two three");
    assert!(pump.is_open());
    drop(writer);
    wait("the pump ends", || !pump.is_open());
}
