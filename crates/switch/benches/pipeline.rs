//! What deciding costs, without rings: `cargo bench -p maru-switch --features testing`. Each line is the mean of some seconds at most;
//! the two figures that a design stands on are the look-up of a known flow and the first packet of a new one.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use switch::acl::{Direction, Effect, ExtendedRule, PortRange};
use switch::counters::DropReason;
use switch::frame::build::{ethernet, mac};
use switch::mac::MacAddress;
use switch::pipeline::{Limits, PortNumber, Sink, Switch, TagEdit};
use switch::policy::{Permission, PortPolicy};

struct Count(u64);

impl Sink for Count {
    fn deliver(&mut self, _: PortNumber, _: TagEdit, _: u64) -> Result<(), DropReason> {
        self.0 += 1;
        Ok(())
    }
}

/// A frame of flow `number` from station 1 to station 2.
fn frame(number: u32) -> Vec<u8> {
    let from: IpAddr = Ipv4Addr::from(0x0a00_0000 | number >> 14).into();
    ethernet(mac(1), mac(2)).tcp((from, 1024 + (number & 0x3fff) as u16), (Ipv4Addr::new(10, 200, 0, 2).into(), 80))
}

/// Prints the mean time of `count` frames that go round through `frames`, all of which must arrive.
fn each(what: &str, switch: &mut Switch, frames: &[Vec<u8>], count: u64) {
    let (mut sink, start) = (Count(0), Instant::now());
    for frame in frames.iter().cycle().take(count as usize) {
        switch.receive(0, frame, frame.len(), 0, &mut sink);
    }
    let nanos = start.elapsed().as_nanos() as f64 / count as f64;
    println!("{what:<60} {nanos:>8.1} ns");
    assert_eq!(sink.0, count, "frames were dropped");
}

fn switch(sender: PortPolicy) -> Switch {
    let mut switch = Switch::new(Limits::default());
    for policy in [sender, PortPolicy::default()] {
        switch.add_port(policy).expect("a good policy");
    }
    let hello = ethernet(mac(2), MacAddress::BROADCAST).other(0x0806);
    switch.receive(1, &hello, hello.len(), 0, &mut Count(0));
    switch
}

/// Rules that do not match, of different shapes, over one that remembers everything.
fn rules(count: u32) -> PortPolicy {
    let rule = |effect, weight, remote: Option<&str>, ports: Option<(u16, u16)>| ExtendedRule {
        effect,
        direction: Direction::Outbound,
        weight,
        local: None,
        remote: remote.map(|prefix| prefix.parse().expect("a prefix")),
        protocol: Some(6),
        local_ports: None,
        remote_ports: ports.map(|(first, last)| PortRange { first, last }),
    };
    let mut all = vec![rule(Effect::AllowStateful { idle_timeout_s: 60 }, 1, None, None)];
    all.extend((0..count).map(|number| {
        let prefix = format!("172.{}.{}.0/{}", 16 + number % 16, number / 16 % 256, 20 + number % 9);
        rule(Effect::Deny, 2 + number, Some(&prefix), (number % 2 == 0).then_some((80, 80 + number as u16 % 3)))
    }));
    PortPolicy { extended_acl: all, ..PortPolicy::default() }
}

fn main() {
    let few: Vec<Vec<u8>> = (0..64).map(frame).collect();
    let many: Vec<Vec<u8>> = (0..400_000).map(frame).collect();
    let guarded = PortPolicy {
        mac: Some(mac(1)),
        mac_spoofing: Permission::Deny,
        router: Permission::Deny,
        dhcp_server: Permission::Deny,
        ..PortPolicy::default()
    };
    each("known flows, no policy", &mut switch(PortPolicy::default()), &few, 5_000_000);
    each("known flows, guards", &mut switch(guarded), &few, 5_000_000);
    each("known flows, stateful rule", &mut switch(rules(0)), &few, 5_000_000);
    each("known flows, stateful rule below 10,000 others", &mut switch(rules(10_000)), &few, 5_000_000);
    each("new flows, no policy", &mut switch(PortPolicy::default()), &many, 400_000);
    let open = |count| PortPolicy { max_connections: 1 << 20, ..rules(count) };
    each("new flows, stateful rule", &mut switch(open(0)), &many, 400_000);
    each("new flows, stateful rule below 10,000 others", &mut switch(open(10_000)), &many, 400_000);
}
