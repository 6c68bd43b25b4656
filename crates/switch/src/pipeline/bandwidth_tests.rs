//! Bandwidth, through the whole pipeline.

use super::*;
use crate::frame::HEADER_BYTES;
use crate::frame::build::{ethernet, mac};
use crate::mac::MacAddress;
use crate::policy::{Bandwidth, PortPolicy};

/// 8 Mbit/s: a byte in each microsecond.
const RATE: u64 = 8_000_000;

#[derive(Default)]
struct Count(usize);

impl Sink for Count {
    fn deliver(&mut self, _: PortNumber, _: TagEdit, _: u64) -> Result<(), DropReason> {
        self.0 += 1;
        Ok(())
    }
}

/// A switch whose station 2 is known to be at port 1.
fn switch(bandwidths: [Bandwidth; 3]) -> Switch {
    let mut switch = Switch::new(Limits::default());
    for bandwidth in bandwidths {
        switch.add_port(PortPolicy { bandwidth, ..PortPolicy::default() }).unwrap();
    }
    let hello = ethernet(mac(2), MacAddress::BROADCAST).other(0x0806);
    switch.receive(1, &hello, hello.len(), 0, &mut Count::default());
    switch
}

/// Sends a frame of 1000 bytes from a port; returns what became of it, and how many copies went out.
fn send(switch: &mut Switch, port: PortNumber, to: MacAddress) -> (Taken, usize) {
    let mut frame = ethernet(mac(10 + port as u8), to).other(0x88b5);
    frame.resize(1000, 0);
    let mut sink = Count::default();
    let taken = switch.receive(port, &frame[..HEADER_BYTES], frame.len(), 0, &mut sink);
    (taken, sink.0)
}

fn none() -> Bandwidth {
    Bandwidth::default()
}

#[test]
fn a_port_sends_no_more_than_it_may() {
    let mut switch = switch([Bandwidth { max_out_bps: RATE, burst_bytes: 1500, ..none() }, none(), none()]);
    assert_eq!(send(&mut switch, 0, mac(2)), (Taken::Yes, 1));
    assert_eq!(send(&mut switch, 0, mac(2)), (Taken::Last, 1), "into debt");
    assert!(!switch.may_send(0) && switch.may_send(1));
    switch.elapse(500_000);
    assert!(!switch.may_send(0), "the debt is paid, and not more");
    switch.elapse(100_000);
    assert!(switch.may_send(0));
    let again = switch.policy(0).unwrap().clone();
    assert_eq!(send(&mut switch, 0, mac(2)), (Taken::Last, 1));
    switch.set_policy(0, again).unwrap();
    assert!(!switch.may_send(0), "setting a policy again is no new burst");
}

#[test]
fn a_port_gets_no_more_than_it_may() {
    let mut switch = switch([none(), Bandwidth { max_in_bps: RATE, burst_bytes: 1500, ..none() }, none()]);
    let copies: Vec<usize> = (0..4).map(|_| send(&mut switch, 0, mac(2)).1).collect();
    assert_eq!(copies, [1, 1, 0, 0]);
    assert_eq!(switch.counters(1).unwrap().drops(DropReason::Bandwidth), 2);
    assert_eq!(send(&mut switch, 0, MacAddress::BROADCAST), (Taken::Yes, 1), "the others get theirs");
}

#[test]
fn who_sends_to_a_full_wire_waits_and_nothing_is_counted_or_lost() {
    let mut switch = switch([none(), Bandwidth { capacity_bps: RATE, ..none() }, none()]);
    while send(&mut switch, 0, mac(2)) == (Taken::Yes, 1) {}
    let before = (switch.counters(0).unwrap().clone(), switch.counters(1).unwrap().clone());
    assert_eq!(send(&mut switch, 0, mac(2)), (Taken::Held, 0));
    assert_eq!(send(&mut switch, 2, mac(2)), (Taken::Held, 0));
    assert_eq!((switch.counters(0).unwrap(), switch.counters(1).unwrap()), (&before.0, &before.1));
    assert_eq!(send(&mut switch, 0, mac(12)), (Taken::Yes, 1), "somewhere else is no matter");
    // Both are in debt together by at most a frame; then each has its half.
    switch.elapse(2_000_000);
    switch.elapse(1_000_000);
    assert_eq!(send(&mut switch, 0, mac(2)), (Taken::Yes, 1));
    assert_eq!(send(&mut switch, 2, mac(2)), (Taken::Yes, 1));
    let before = switch.counters(1).unwrap().drops(DropReason::Bandwidth);
    while send(&mut switch, 0, MacAddress::BROADCAST).1 == 2 {}
    assert!(switch.counters(1).unwrap().drops(DropReason::Bandwidth) > before, "what goes to all does not wait for one");
}

#[test]
fn bandwidth_that_makes_no_sense_is_refused() {
    let refused = |bandwidth: Bandwidth| {
        let mut switch = Switch::new(Limits::default());
        switch.add_port(PortPolicy { bandwidth, ..PortPolicy::default() }).unwrap_err().to_string()
    };
    assert!(refused(Bandwidth { max_out_bps: 7_999, ..none() }).contains("8000"));
    assert!(refused(Bandwidth { capacity_bps: u64::MAX, ..none() }).contains("10000000000000"));
    assert!(refused(Bandwidth { weight: 0, ..none() }).contains("1 to 100"));
    assert!(refused(Bandwidth { min_out_bps: 20_000, max_out_bps: 10_000, ..none() }).contains("20000"));
}
