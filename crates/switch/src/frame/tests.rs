//! What is read from frames, and what is not believed.

use proptest::prelude::*;

use super::build::{Builder, ethernet, mac};
use super::*;

fn start() -> Builder {
    ethernet(mac(1), mac(2))
}

fn parse(frame: &[u8]) -> Result<Frame, FrameError> {
    Frame::parse(&frame[..frame.len().min(HEADER_BYTES)], frame.len())
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn addresses_tags_and_ports_are_found() {
    let frame = parse(&start().tag(0xa00a).tcp((ip("10.0.0.1"), 4000), (ip("10.0.0.2"), 80))).unwrap();
    assert_eq!((frame.source, frame.destination, frame.ether_type), (mac(1), mac(2), TYPE_IPV4));
    assert_eq!((frame.tag, frame.stacked), (Some(Tag { vlan: 10, priority: 5 }), false));
    let packet = frame.ip.unwrap();
    assert_eq!((packet.protocol, packet.fragment), (TCP, Fragment::Whole));
    assert_eq!(packet.transport, Transport::Ports { source: 4000, destination: 80 });

    let frame = parse(&start().tag(1).tag(2).udp((ip("fd00::1"), 1), (ip("fd00::2"), 2))).unwrap();
    assert!(frame.stacked && frame.tag.unwrap().vlan == 1);
    assert_eq!(frame.ip.unwrap().transport, Transport::Ports { source: 1, destination: 2 });
    let echo = parse(&start().icmp(ip("fd00::1"), ip("fd00::2"), 128)).unwrap().ip.unwrap();
    assert_eq!(echo.transport, Transport::Icmp { kind: 128, code: 0, id: 7 });
}

#[test]
fn lengths_that_lie_are_not_believed() {
    let good = start().tcp((ip("10.0.0.1"), 4000), (ip("10.0.0.2"), 80));
    // Where, what is written there, and what it is then.
    let lies: [(usize, u8, FrameError); 6] = [
        (14, 0x55, FrameError::Ip),
        (14, 0x44, FrameError::Ip),
        // A header that ends with the packet leaves none for TCP.
        (14, 0x4a, FrameError::Transport),
        (16, 0xff, FrameError::Ip),
        (17, 19, FrameError::Ip),
        (17, 39, FrameError::Transport),
    ];
    for (at, value, expected) in lies {
        let mut frame = good.clone();
        frame[at] = value;
        assert_eq!(parse(&frame), Err(expected), "byte {at} is {value:#x}");
    }
    let mut six = start().udp((ip("fd00::1"), 1), (ip("fd00::2"), 2));
    six[19] += 1;
    assert_eq!(parse(&six), Err(FrameError::Ip));
    assert_eq!(parse(&good[..13]), Err(FrameError::Length(13)));
    assert_eq!(parse(&vec![0; MAX_FRAME_BYTES + 1]), Err(FrameError::Length(MAX_FRAME_BYTES + 1)));
    assert_eq!(parse(&start().tag(1).tag(2).tag(3).other(0x0806)), Err(FrameError::VlanStack));
    assert_eq!(parse(&start().tag(1).other(0x0806)[..15]), Err(FrameError::VlanStack));
}

#[test]
fn fragments_say_what_can_be_decided() {
    let part = |protocol, fragment, bytes: usize| {
        parse(&start().ipv4("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap(), protocol, fragment, &vec![0; bytes]))
    };
    let first = part(UDP, 0x2000, 1480).unwrap().ip.unwrap();
    assert_eq!((first.fragment, first.transport), (Fragment::First, Transport::Ports { source: 0, destination: 0 }));
    let later = part(UDP, 185, 100).unwrap().ip.unwrap();
    assert_eq!((later.fragment, later.transport), (Fragment::Later, Transport::None));
    // Tiny first parts, parts that overwrite TCP's header, parts that are no multiple of eight, parts beyond the largest packet.
    assert_eq!(part(TCP, 0x2000, 16), Err(FrameError::Transport));
    assert_eq!(part(TCP, 0x2001, 16), Err(FrameError::Transport));
    assert_eq!(part(UDP, 0x2000, 1479), Err(FrameError::Ip));
    assert_eq!(part(UDP, 0x1fff, 100), Err(FrameError::Ip));
}

#[test]
fn ipv6_extensions_are_followed_as_far_as_they_are_seen() {
    let udp = [0, 1, 0, 2, 0, 8, 0, 0];
    let behind = |next: u8, extensions: &[u8]| {
        let payload = [extensions, &udp].concat();
        parse(&start().ipv6("fd00::1".parse().unwrap(), "fd00::2".parse().unwrap(), next, &payload))
    };
    let found = Transport::Ports { source: 1, destination: 2 };
    let options = |next: u8| [next, 0, 1, 4, 0, 0, 0, 0];
    assert_eq!(behind(HOP_BY_HOP, &options(UDP)).unwrap().ip.unwrap().transport, found);
    let fragment = [UDP, 0, 0, 1, 0, 0, 0, 9];
    let first = behind(FRAGMENT, &fragment).unwrap().ip.unwrap();
    assert_eq!((first.transport, first.fragment), (found, Fragment::First));
    // The upper layer moved out of sight: more options than are looked at, in number and in length.
    let many = [options(DESTINATION_OPTIONS); 9].concat();
    assert_eq!(behind(DESTINATION_OPTIONS, &many).unwrap().ip.unwrap().transport, Transport::Unknown);
    let mut long = vec![UDP, 15];
    long.resize(128, 0);
    assert_eq!(behind(DESTINATION_OPTIONS, &long).unwrap().ip.unwrap().transport, Transport::Unknown);
    // Options longer than the packet.
    assert_eq!(behind(DESTINATION_OPTIONS, &[UDP, 200, 0, 0, 0, 0, 0, 0]), Err(FrameError::Ip));
}

proptest! {
    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200), more in 0usize..70_000) {
        let head = &bytes[..bytes.len().min(HEADER_BYTES)];
        let _ = Frame::parse(head, bytes.len());
        let _ = Frame::parse(head, bytes.len() + more);
    }

    #[test]
    fn a_shorter_frame_is_no_other_frame(cut in 0usize..54) {
        let whole = start().tcp((ip("10.0.0.1"), 4000), (ip("10.0.0.2"), 80));
        prop_assert!(parse(&whole[..cut]).is_err());
    }
}
