//! No VM ever runs twice: a guest writes to a disk that all hosts see who it is, while faults hit its host, singly and in pairs.
//!
//! ```text
//!   h1 ── maru-vmm ── guest: record N at place N, by this life of the guest ──▶ witness.raw ◀── read by this process, too
//!   h2 ── …           (it stops with an error if anything is there that is not its own)
//! ```
//!
//! Locks would not help here: those of the shared directory are each host's own. `make test` has a few faults, `make test-witness` all of
//! them and their pairs.

mod common;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use common::managed::{cluster, cluster_with_witness, console, create_shared, until, vm};
use common::{PATIENCE, shell};
use lab::Lab;
use lab::host::Host;
use serde_json::Value;

/// As the guest's.
const UNIT: u64 = 4096;
/// Between two looks at what was written.
const LOOK: Duration = Duration::from_millis(10);
/// How long a fault lasts that nothing comes of.
const LASTS: Duration = Duration::from_secs(20);
const FREEZE_LASTS: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    PowerCut,
    Freeze,
    Cable(usize),
    Kill(&'static str),
    Stop(&'static str),
    /// Nothing more can be written where the host has its state, the store with it.
    DiskFull,
}

const FAULTS: [Fault; 11] = [
    Fault::PowerCut,
    Fault::Freeze,
    Fault::Cable(0),
    Fault::Cable(1),
    Fault::Kill("marud"),
    Fault::Stop("marud"),
    Fault::Kill("maru-guard"),
    Fault::Stop("maru-guard"),
    Fault::Kill("etcd"),
    Fault::Stop("etcd"),
    Fault::DiskFull,
];

impl Fault {
    fn lasts(self) -> Duration {
        if self == Fault::Freeze { FREEZE_LASTS } else { LASTS }
    }

    /// Whether the host is as good as gone: nothing more can be done to it.
    fn is_whole(self) -> bool {
        matches!(self, Fault::PowerCut | Fault::Freeze)
    }

    fn begin(self, lab: &Lab, host: usize) {
        let host_there = lab.host(host);
        match self {
            Fault::PowerCut => host_there.power_cut(),
            Fault::Freeze => host_there.freeze().unwrap(),
            Fault::Cable(cable) => lab.cable(cable).cut(host),
            // Another fault may have ended the program: it is there again soon.
            Fault::Kill(program) => insist(host_there, &format!("kill -9 $(pidof {program})")),
            Fault::Stop(program) => insist(host_there, &format!("kill -STOP $(pidof {program})")),
            // That takes seconds, in which the watchdog may reset the host for what else it suffers.
            Fault::DiskFull => {
                let fill = "dd if=/dev/zero of=/var/lib/maru/full bs=1M 2>/dev/null; df /var/lib/maru";
                match host_there.exec(["sh", "-c", fill]) {
                    Ok(filled) => assert!(filled.text().contains("100%"), "{}", filled.text()),
                    Err(error) => println!("{} was reset while its disk became full: {error}", host_there.name()),
                }
            }
        }
    }

    fn end(self, lab: &Lab, host: usize) {
        let host_there = lab.host(host);
        match self {
            Fault::PowerCut => drop(host_there.power_on().unwrap()),
            Fault::Freeze => host_there.thaw().unwrap(),
            Fault::Cable(cable) => lab.cable(cable).uncut(host),
            Fault::Kill(_) => {}
            // The watchdog may have reset the host meanwhile.
            Fault::DiskFull => insist(host_there, "rm -f /var/lib/maru/full"),
            Fault::Stop(program) => insist(host_there, &format!("kill -CONT $(pidof {program}) 2>/dev/null; :")),
        }
    }
}

/// Has a command done, as soon as the host is there for it and it can be done.
fn insist(host: &Host, command: &str) {
    until(host, command, |host| host.exec(["sh", "-c", command]).is_ok_and(|done| done.success()));
}

/// What the guests have written, as far as it was read.
struct Log {
    path: PathBuf,
    /// Who wrote each record.
    boots: Vec<String>,
    /// When something new was seen.
    grown: Instant,
    /// The longest time without anything new.
    gap: Duration,
}

impl Log {
    /// Reads what was written since, and fails the test if what is there can only be by two at once.
    fn read(&mut self) {
        let file = File::open(&self.path).unwrap();
        let mut unit = vec![0; UNIT as usize];
        // Whoever was not to write any more may have written over the last records.
        let before = self.boots.len();
        let from = before.saturating_sub(64);
        for number in from.. {
            if file.read_exact_at(&mut unit, number as u64 * UNIT).is_err() || unit[0] == 0 {
                assert!(number >= self.boots.len(), "record {number} is gone");
                self.gap = self.gap.max(self.grown.elapsed());
                if number > before {
                    self.grown = Instant::now();
                }
                return;
            }
            let line = String::from_utf8_lossy(unit.split(|byte| *byte == b'\n').next().unwrap()).into_owned();
            let (written, boot) = line.split_once(' ').unwrap_or_else(|| panic!("record {number} is '{line}'"));
            assert_eq!(written, number.to_string(), "the number in record {number}");
            match self.boots.get(number) {
                Some(before) => assert_eq!(before, boot, "record {number} was written twice"),
                None => self.boots.push(boot.to_owned()),
            }
            if number > 0 && self.boots[number - 1] != boot {
                assert!(
                    !self.boots[..number].iter().any(|before| before == boot),
                    "record {number}: {boot} ran beside another one"
                );
            }
        }
    }

    fn last(&self) -> Option<&String> {
        self.boots.last()
    }
}

struct Witness {
    lab: Lab,
    id: String,
    log: Log,
}

impl Witness {
    fn begin(lab: Lab) -> Witness {
        let first = lab.host(0);
        let path = lab.shared_dir().join("witness.raw");
        shell(first, "truncate -s 512M /shared/witness.raw");
        create_shared(&lab, "witness", "witness.raw,format=raw,direct", "maru.test=witness maru.disk=vda");
        shell(first, "maru vm start witness");
        let id = vm(first, "witness")["id"].as_str().unwrap().to_owned();
        let mut witness = Witness { lab, id, log: Log { path, boots: Vec::new(), grown: Instant::now(), gap: Duration::ZERO } };
        witness.well();
        witness
    }

    /// Waits until all hosts are there, the store has its members, and the VM runs and writes; gives the VM's host.
    fn well(&mut self) -> usize {
        let deadline = Instant::now() + PATIENCE;
        let (mut records, mut seen) = (None, Value::Null);
        loop {
            assert!(Instant::now() < deadline, "the cluster does not become well:\n{seen:#}");
            self.log.read();
            let host = self.lab.host(0);
            let asked = |command: &str| -> Option<Value> {
                let output = host.exec(["sh", "-c", &format!("{command} -o json")]).ok()?;
                serde_json::from_str(&output.text()).ok()
            };
            let (Some(status), Some(vm)) = (asked("maru cluster status"), asked("maru vm show witness")) else { continue };
            let hosts = status["cluster"]["hosts"].as_array().map_or(&[][..], Vec::as_slice);
            let all = hosts.len() == self.lab.hosts().len()
                && hosts.iter().all(|host| host["alive"] == true && host["store_answers"] == true)
                && status["cluster"]["waits"].is_null();
            let place = self.lab.hosts().iter().position(|host| vm["host"] == host.name());
            seen = Value::Array(vec![status, vm]);
            let (true, "running", Some(place)) = (all, seen[1]["state"].as_str().unwrap_or_default(), place) else {
                records = None;
                continue;
            };
            match records {
                None => records = Some(self.log.boots.len()),
                Some(before) if self.log.boots.len() > before + 2 => return self.check(place),
                Some(_) => {}
            }
        }
    }

    /// Whether the guest that writes is the one on this host, which has nothing to complain of.
    fn check(&self, place: usize) -> usize {
        let boot = format!("boot={}", self.log.last().unwrap());
        let said = console(self.lab.host(place), &self.id, PATIENCE, |text| text.contains("witness boot="));
        assert!(said.contains(&boot) && !said.contains("FAIL"), "{boot}\n{said}");
        for host in self.lab.hosts() {
            let runs = usize::from(host.name() == self.lab.host(place).name());
            assert_eq!(shell(host, "pidof maru-vmm | wc -w").trim(), runs.to_string(), "monitors on {}", host.name());
        }
        place
    }

    /// Has faults come, and go when the VM runs elsewhere, or after their time.
    fn suffer(&mut self, faults: &[(Fault, usize)]) {
        let before = self.log.last().cloned();
        let began = Instant::now();
        for (fault, host) in faults {
            fault.begin(&self.lab, *host);
        }
        let lasts = faults.iter().map(|(fault, _)| fault.lasts()).max().unwrap_or_default();
        let freezes = faults.iter().any(|(fault, _)| *fault == Fault::Freeze);
        self.log.gap = Duration::ZERO;
        while began.elapsed() < lasts && (freezes || self.log.last() == before.as_ref()) {
            self.log.read();
            std::thread::sleep(LOOK);
        }
        for (fault, host) in faults.iter().rev() {
            fault.end(&self.lab, *host);
        }
        let place = self.well();
        let what: Vec<String> =
            faults.iter().map(|(fault, host)| format!("{fault:?} at {}", self.lab.host(*host).name())).collect();
        let moved = if self.log.last() == before.as_ref() { "goes on" } else { "was started anew" };
        println!(
            "{}: the VM {moved}, on {}; nothing written for {:.1} s; well after {:.1} s",
            what.join(", "),
            self.lab.host(place).name(),
            self.log.gap.as_secs_f64(),
            began.elapsed().as_secs_f64()
        );
    }
}

/// Two hosts and one that only keeps the store.
#[test]
fn a_vm_never_runs_twice_when_its_host_fails() {
    let mut witness = Witness::begin(cluster_with_witness());
    for faults in [&[Fault::PowerCut][..], &[Fault::Freeze], &[Fault::Cable(0), Fault::Cable(1)]] {
        let place = witness.well();
        witness.suffer(&faults.iter().map(|fault| (*fault, place)).collect::<Vec<_>>());
    }
}

#[test]
#[ignore = "eleven faults, one after the other, take seven minutes: make test-witness"]
fn a_vm_never_runs_twice_whatever_happens_to_its_host() {
    let mut witness = Witness::begin(cluster());
    for fault in FAULTS {
        let place = witness.well();
        witness.suffer(&[(fault, place)]);
    }
}

/// Those from a number on, if `MARU_WITNESS_FROM` says one: which it is, is printed with each.
#[test]
#[ignore = "all pairs of faults take more than an hour: make test-witness"]
fn a_vm_never_runs_twice_whatever_happens_in_pairs() {
    let from = std::env::var("MARU_WITNESS_FROM").map_or(0, |from| from.parse().expect("MARU_WITNESS_FROM is a number"));
    let pairs = FAULTS.iter().enumerate().flat_map(|(index, one)| FAULTS[index..].iter().map(move |other| (*one, *other)));
    let mut witness = Witness::begin(cluster());
    for (number, (one, other)) in pairs.enumerate().skip(from) {
        println!("pair {number}");
        // One at the VM's host, and the other one at the next; and both there, where that makes two of them.
        let place = witness.well();
        witness.suffer(&[(one, place), (other, (place + 1) % witness.lab.hosts().len())]);
        if one != other && !one.is_whole() && !other.is_whole() {
            let place = witness.well();
            witness.suffer(&[(one, place), (other, place)]);
        }
    }
}
