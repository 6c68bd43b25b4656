//! How a wire is shared: ports that all want to send to one, and what of each comes out there.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use switch::mac::MacAddress;
use switch::policy::{Bandwidth, PortPolicy};

use super::{FrontEnd, HEADER, RING, Switch, Way};

/// Bytes of a frame.
const FRAME: usize = 1514;
/// Frames that a sender has waiting.
const WAITING: usize = RING;
/// Bytes of a buffer.
const ROOM: usize = 2048;
/// Before what is measured: bursts are over.
const WARM_UP: Duration = Duration::from_secs(1);
/// Written by the switch.
const WRITABLE: u16 = 2;

/// A port that sends.
#[derive(Clone, Copy, Debug)]
pub struct Sender {
    /// What it may.
    pub policy: Bandwidth,
    /// What it has to send, in bits a second; without it, more than it may.
    pub wants_bps: Option<u64>,
}

/// How the wire is to be shared, in thousandths of the capacity.
#[derive(Clone, Debug)]
pub struct Case {
    /// In words.
    pub name: &'static str,
    /// What the port allows at which all arrives.
    pub receiver: Bandwidth,
    /// Who sends.
    pub senders: Vec<Sender>,
    /// What comes of each.
    pub expected: Vec<u64>,
}

/// The cases, with a capacity in bits a second.
pub fn cases(capacity_bps: u64) -> Vec<Case> {
    let part = |thousandths: u64| capacity_bps / 1000 * thousandths;
    let nothing = Bandwidth::default();
    let wire = Bandwidth { capacity_bps, ..nothing };
    let weight = |weight| Sender { policy: Bandwidth { weight, ..nothing }, wants_bps: None };
    let promised = |thousandths| Sender { policy: Bandwidth { min_out_bps: part(thousandths), ..nothing }, wants_bps: None };
    let at_most = |thousandths| Sender { policy: Bandwidth { max_out_bps: part(thousandths), ..nothing }, wants_bps: None };
    let wanting = |sender: Sender, thousandths| Sender { wants_bps: Some(part(thousandths)), ..sender };
    let case = |name, receiver, senders: &[Sender], expected: &[u64]| Case {
        name,
        receiver,
        senders: senders.into(),
        expected: expected.into(),
    };
    vec![
        case("weights 1 and 3", wire, &[weight(1), weight(3)], &[250, 750]),
        case("weights 10, 30 and 60", wire, &[weight(10), weight(30), weight(60)], &[100, 300, 600]),
        case(
            "what weight 60 leaves is lent to 10 and 30",
            wire,
            &[weight(10), weight(30), wanting(weight(60), 100)],
            &[225, 675, 100],
        ),
        case("600 promised, the rest shared equally", wire, &[promised(600), weight(1), weight(1)], &[733, 133, 133]),
        case(
            "600 promised and 100 used, the rest lent",
            wire,
            &[wanting(promised(600), 100), weight(1), weight(1)],
            &[100, 450, 450],
        ),
        case("1500 and 500 promised: kept in proportion", wire, &[promised(1500), promised(500)], &[750, 250]),
        case("at most 100, beside one without a limit", wire, &[at_most(100), weight(1)], &[100, 900]),
        case("at most 300 and at most 500, which leaves some", wire, &[at_most(300), at_most(500)], &[300, 500]),
        case("the receiver gets at most 500", Bandwidth { max_in_bps: part(500), ..nothing }, &[weight(1)], &[500]),
    ]
}

/// The number in a station's address.
fn station(number: usize) -> MacAddress {
    MacAddress([0x52, 0x54, 0, 0, 1, number as u8])
}

/// Bytes of each sender that arrive in a second. The load runs on this thread; `pause` is how long it rests between two looks at the rings.
///
/// # Errors
/// When the switch does not start or does not let somebody connect.
pub fn measure(case: &Case, directory: &Path, core: Option<usize>, pause: Duration, time: Duration) -> Result<Vec<f64>> {
    let count = case.senders.len();
    let policies = case.senders.iter().map(|sender| sender.policy).chain([case.receiver]).enumerate();
    let policies: Vec<PortPolicy> = policies
        .map(|(number, bandwidth)| PortPolicy { mac: Some(station(number)), bandwidth, ..PortPolicy::default() })
        .collect();
    let switch = Switch::start(directory, core, &policies)?;
    let (to, from) = switch.sockets().split_last().context("a receiver")?;
    let mut receiver = FrontEnd::connect(to, Way::Receive, RING * ROOM)?;
    for index in 0..RING {
        receiver.describe(index, index * ROOM, ROOM, WRITABLE, 0);
        receiver.offer(index);
    }
    receiver.publish();
    let mut senders = Vec::new();
    for (number, socket) in from.iter().enumerate() {
        let mut sender = FrontEnd::connect(socket, Way::Send, WAITING * ROOM)?;
        let mut frame = vec![0; HEADER];
        frame.extend([station(count).0, station(number).0].concat());
        // Of a protocol that nobody has.
        frame.extend([0x88, 0xb5]);
        frame.resize(HEADER + FRAME, 0);
        for index in 0..WAITING {
            sender.write(index * ROOM, &frame);
            sender.describe(index, index * ROOM, frame.len(), 0, 0);
        }
        senders.push((sender, (0..WAITING).collect::<Vec<usize>>(), 0u64));
    }
    let (start, mut arrived) = (Instant::now(), vec![0u64; count]);
    let mut measured: Option<Instant> = None;
    loop {
        let now = start.elapsed();
        for ((sender, idle, sent), wanted) in senders.iter_mut().zip(&case.senders) {
            sender.take(|_, head, _| idle.push(head));
            let due = wanted.wants_bps.map_or(u64::MAX, |bps| (now.as_secs_f64() * bps as f64 / 8.0) as u64 / FRAME as u64);
            while *sent < due
                && let Some(head) = idle.pop()
            {
                sender.offer(head);
                *sent += 1;
            }
            sender.publish();
            sender.kick()?;
        }
        receiver.take(|receiver, head, written| {
            let sender = usize::from(receiver.byte(head * ROOM + HEADER + 11));
            arrived[sender] += (written - HEADER) as u64;
            receiver.offer(head);
        });
        receiver.publish();
        match measured {
            None if now >= WARM_UP => {
                arrived.fill(0);
                measured = Some(Instant::now());
            }
            Some(begun) if begun.elapsed() >= time => {
                let seconds = begun.elapsed().as_secs_f64();
                return Ok(arrived.into_iter().map(|bytes| bytes as f64 / seconds).collect());
            }
            _ => {}
        }
        if !pause.is_zero() {
            std::thread::sleep(pause);
        }
    }
}
