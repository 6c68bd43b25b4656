//! Disks with queues, in virtual time.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::limits::{Admit, Limiter, Ticket};

/// One user of a disk: keeps `depth` requests wanting, each of which takes `service` once it was admitted.
pub struct Client<'a> {
    pub limiter: &'a Limiter,
    pub depth: usize,
    pub bytes: u64,
    pub service: Duration,
    /// When it works; it is idle before and after.
    pub active: std::ops::Range<Duration>,
    /// How late its timers fire.
    pub late: Duration,
}

impl<'a> Client<'a> {
    /// A client that always wants more.
    pub fn greedy(limiter: &'a Limiter, bytes: u64) -> Client<'a> {
        let active = Duration::ZERO..Duration::MAX;
        Client { limiter, depth: 8, bytes, service: Duration::from_micros(50), active, late: Duration::ZERO }
    }
}

/// What was admitted to one client.
#[derive(Default)]
pub struct Log {
    /// When, and how much; in order of time.
    pub admitted: Vec<(Duration, u64)>,
    /// The longest that a request waited.
    pub longest_wait: Duration,
}

impl Log {
    /// How much was admitted between two times.
    pub fn between(&self, from: Duration, to: Duration) -> u64 {
        self.admitted.iter().filter(|(at, _)| (from..to).contains(at)).map(|(_, work)| work).sum()
    }
}

enum Event {
    Wants,
    Asks(Ticket, Duration),
}

/// Runs the clients for a time. `work` says what of a request's size is counted in the logs.
pub fn run(start: Instant, clients: &[Client], length: Duration, work: impl Fn(u64) -> u64) -> Vec<Log> {
    let mut logs: Vec<Log> = clients.iter().map(|_| Log::default()).collect();
    let mut events: BTreeMap<(Duration, u64), (usize, Event)> = BTreeMap::new();
    let mut sequence = 0;
    let mut push = |events: &mut BTreeMap<_, _>, at: Duration, client: usize, event: Event| {
        sequence += 1;
        events.insert((at, sequence), (client, event));
    };
    for (index, client) in clients.iter().enumerate() {
        for _ in 0..client.depth {
            push(&mut events, client.active.start, index, Event::Wants);
        }
    }
    while let Some(((at, _), (index, event))) = events.pop_first() {
        if at >= length {
            break;
        }
        let client = &clients[index];
        let (answer, since) = match event {
            Event::Wants if at >= client.active.end => continue,
            Event::Wants => (client.limiter.admit(start + at, client.bytes), at),
            Event::Asks(ticket, since) => (client.limiter.again(start + at, ticket), since),
        };
        match answer {
            Admit::Now => {
                logs[index].admitted.push((at, work(client.bytes)));
                logs[index].longest_wait = logs[index].longest_wait.max(at - since);
                push(&mut events, at + client.service, index, Event::Wants);
            }
            Admit::Later(ticket) => {
                let next = ticket.at().duration_since(start);
                assert!(next > at, "told to ask again at once");
                push(&mut events, next + client.late, index, Event::Asks(ticket, since));
            }
        }
    }
    logs
}

/// By how much the work of any period exceeds what the rate yields in it.
pub fn worst_excess(admitted: impl IntoIterator<Item = (Duration, u64)>, rate: u64) -> u64 {
    // The excess of the period that ends here, starting where it is largest; in units of 1/10⁹.
    let (mut here, mut worst, mut last) = (0i128, 0i128, Duration::ZERO);
    for (at, work) in admitted {
        here = (here - i128::from(rate) * (at - last).as_nanos() as i128).max(0) + i128::from(work) * 1_000_000_000;
        worst = worst.max(here);
        last = at;
    }
    (worst / 1_000_000_000) as u64
}
