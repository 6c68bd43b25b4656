//! `marud` is killed at random points of every operation, with real VMs: each is done or undone, and nothing is left behind.

mod common;

use std::time::{Duration, Instant};

use common::managed::{console, json, managed_lab, start_marud, until, vm};
use common::{PATIENCE, make_taps, shell};
use lab::agent::Exec;
use lab::host::Host;
use serde_json::Value;

const VOLUMES: [&str; 2] = ["local=/srv", "guest=/guest"];
/// How often `marud` is killed, unless `MARU_KILL_ROUNDS` says it.
const KILLS: usize = 100;

/// Waits until the guest has booted, and can give devices back and be shut down.
const BOOTED: &str = "booted";

/// A life of a VM, every operation of which begins where the one before it ended.
const LIFE: [&str; 33] = [
    "maru vm create x --kernel guest:vmlinuz --initrd guest:initramfs --memory 128M --disk size=64M --net tap=t0 \
     --cmdline 'console=ttyS0 quiet panic=-1 mitigations=off maru.test=idle'",
    "maru vm start x",
    "maru vm pause x",
    "maru vm resume x",
    BOOTED,
    "maru vm edit x --add-disk size=16M,id=data",
    "maru vm edit x --remove-disk data",
    "maru vm limit x --cpu-cap 90%",
    "maru vm checkpoint create x one",
    "maru vm save x",
    "maru vm start x",
    "maru vm reset x",
    "maru vm checkpoint create x two",
    "maru vm checkpoint delete x one",
    "maru vm stop x --force",
    "maru vm checkpoint apply x two --discard",
    "maru vm discard x",
    "maru vm checkpoint delete x two --subtree",
    "maru vm clone x y",
    "maru vm delete y --disks delete",
    "maru vm clone x y --linked",
    "maru vm delete y --disks delete",
    "maru vm export x local:out",
    "maru vm import local:out --name y",
    "maru vm delete y --disks delete",
    "rm -r /srv/out",
    "maru vm edit x --name z",
    "maru vm edit z --name x",
    "maru vm start x",
    BOOTED,
    "maru vm stop x",
    "maru vm delete x --disks delete",
    // The disk that was taken from the VM is nobody's, and stays.
    "rm -r /srv/x /srv/vms",
];

/// All that there is of VMs on the host: in `marud`'s words, as processes, groups, files, and the port that has a user.
#[derive(Debug, PartialEq)]
struct Traces {
    vms: Vec<(Value, Value, Vec<usize>, Value)>,
    system: String,
}

impl Traces {
    fn of(host: &Host) -> Traces {
        let vms = json(host, "maru vm list");
        let vms = vms.as_array().unwrap().iter().map(|vm| {
            let name = vm["spec"]["name"].as_str().unwrap();
            let chains = json(host, &format!("maru vm show {name}"))["chains"].as_array().cloned().unwrap_or_default();
            let chains = chains.iter().map(|chain| chain["files"].as_array().unwrap().len()).collect();
            let checkpoints = json(host, &format!("maru vm checkpoint list {name}"));
            let checkpoints = checkpoints.as_array().unwrap().iter().map(|checkpoint| checkpoint["name"].clone()).collect();
            (vm["spec"]["name"].clone(), vm["state"].clone(), chains, Value::Array(checkpoints))
        });
        let system = shell(
            host,
            "echo monitors: $(pidof maru-vmm | wc -w); echo run: $(ls /run/maru/vms); cd /sys/fs/cgroup/maru; echo groups: $(ls -d */); \
             echo tap in use: $(cat /sys/class/net/t0/carrier 2>/dev/null); ls /sys/class/net; find /srv",
        );
        Traces { vms: vms.collect(), system: without_ids(&system) }
    }
}

/// The lines of a text in order, with each id, which no two lives have in common, as `#`.
fn without_ids(text: &str) -> String {
    // With dashes and without.
    let is_id = |word: &&str| match word.len() {
        36 => word.char_indices().all(|(at, c)| if [8, 13, 18, 23].contains(&at) { c == '-' } else { c.is_ascii_hexdigit() }),
        _ => word.chars().all(|c| c.is_ascii_hexdigit()),
    };
    let clean = |line: &str| {
        let mut line = line.to_owned();
        for length in [36, 32] {
            while let Some(at) = (0..line.len()).find(|at| line.get(*at..at + length).as_ref().is_some_and(is_id)) {
                line.replace_range(at..at + length, "#");
            }
        }
        line
    };
    let mut lines: Vec<String> = text.lines().map(clean).collect();
    lines.sort();
    lines.join("\n")
}

/// Waits until nothing is being done.
fn settle(host: &Host) {
    until(host, "all tasks have ended, and each VM was found", |host| {
        let tasks = json(host, "maru task list");
        let vms = json(host, "maru vm list");
        tasks.as_array().unwrap().iter().all(|task| !["queued", "running"].contains(&task["state"].as_str().unwrap()))
            && vms.as_array().unwrap().iter().all(|vm| vm["state"] != "unknown")
    });
}

fn run(host: &Host, step: &str) {
    if step == BOOTED {
        let id = vm(host, "x")["id"].as_str().unwrap().to_owned();
        console(host, &id, PATIENCE, |said| said.contains("maru-guest: facts"));
    } else {
        shell(host, step);
    }
}

/// Moments that differ from one run to the next: what went wrong is told with its moment.
struct Moments(u64);

impl Moments {
    fn within(&mut self, limit: Duration) -> Duration {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        limit.mul_f64((self.0 >> 40) as f64 / (1_u64 << 24) as f64)
    }
}

#[test]
fn whatever_marud_was_killed_in_is_done_or_undone_and_nothing_is_left() {
    let lab = managed_lab().start().unwrap();
    let host = lab.host(0);
    make_taps(host, &["t0"]);
    start_marud(host, &VOLUMES);

    // Once undisturbed: how long each operation takes, and what there is after it.
    let mut expected = vec![Traces::of(host)];
    let mut durations = Vec::new();
    for command in LIFE {
        let start = Instant::now();
        run(host, command);
        durations.push(start.elapsed());
        expected.push(Traces::of(host));
    }
    assert_eq!(expected.first(), expected.last());

    let kills = std::env::var("MARU_KILL_ROUNDS").ok().map_or(KILLS, |kills| kills.parse().expect("MARU_KILL_ROUNDS"));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let mut moments = Moments(now.as_nanos() as u64);
    let (mut done, mut undone) = (0, 0);
    // Lives are lived to their end.
    for step in (0..LIFE.len()).cycle() {
        if step == 0 && done + undone >= kills {
            break;
        }
        let (command, before, after) = (LIFE[step], &expected[step], &expected[step + 1]);
        if done + undone >= kills || !command.starts_with("maru") {
            run(host, command);
            continue;
        }
        let moment = moments.within(durations[step].mul_f64(1.1));
        let what = format!("kill {}, {moment:?} after the start of: {command}", done + undone);
        println!("{what}");
        // The end of the program that asks is not the end of what it asked for.
        let asking = host.spawn(Exec::new(["sh", "-c", command])).unwrap();
        std::thread::sleep(moment);
        shell(host, "kill -9 $(pidof marud)");
        start_marud(host, &VOLUMES);
        // It waits for a marud that is about to be back.
        asking.wait_within(PATIENCE).unwrap();
        settle(host);
        let found = Traces::of(host);
        if found == *after {
            done += 1;
        } else {
            assert_eq!(found, *before, "half done: {what}");
            undone += 1;
            shell(host, command);
            assert_eq!(Traces::of(host), *after, "not done again: {what}");
        }
    }
    println!("{kills} kills: {done} operations were done, {undone} undone");
}
