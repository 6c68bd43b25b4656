//! `make bench-failover`: from a host's power cut to the guest's init on another host.
//!
//! Three virtual hosts are a cluster, with one VM whose files are on a volume that all see. Again and again the power of the host that
//! runs it is cut; in every other run that host leads the store, too. A watcher on each of the others looks for the VM's monitor and
//! passes on what its console says.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use bench::stats::Summary;
use bench::table::table;
use lab::Lab;
use lab::agent::{Event, Exec, Process};
use lab::appliance::{PROGRAMS, guest_image, program};
use lab::host::Host;
use lexopt::prelude::*;
use serde_json::Value;

const HELP: &str = "\
bench-failover: from a host's power cut to the guest's init on another host

  --runs N    power cuts (20); in every other one the host leads the store, too
";

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(180);
/// Between two looks.
const LOOK: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    match parse().and_then(|runs| runs.map_or(Ok(()), run)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-failover: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn parse() -> anyhow::Result<Option<usize>> {
    let mut runs = 20;
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("runs") => runs = parser.value()?.parse()?,
            Long("help") | Short('h') => {
                print!("{HELP}");
                return Ok(None);
            }
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(Some(runs))
}

fn shell(host: &Host, script: &str) -> anyhow::Result<String> {
    let output = host.exec(["sh", "-ec", script])?;
    ensure!(output.success(), "{}: `{script}`: {}{}", host.name(), output.text(), output.error_text());
    Ok(output.text())
}

fn json(host: &Host, command: &str) -> anyhow::Result<Value> {
    Ok(serde_json::from_str(&shell(host, &format!("{command} -o json"))?)?)
}

/// Waits until something is there; an error on the way counts as not yet.
fn until<T>(what: &str, mut look: impl FnMut() -> anyhow::Result<Option<T>>) -> anyhow::Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let seen = look();
        if let Ok(Some(found)) = seen {
            return Ok(found);
        }
        if Instant::now() >= deadline {
            bail!("never: {what}{}", seen.err().map(|error| format!(": {error:#}")).unwrap_or_default());
        }
        std::thread::sleep(LOOK);
    }
}

/// What one power cut led to.
struct Failover {
    leader_too: bool,
    started: Duration,
    init: Duration,
}

fn run(runs: usize) -> anyhow::Result<()> {
    let lab = start()?;
    let id = json(lab.host(0), "maru vm show web")?["id"].as_str().context("the VM has no id")?.to_owned();
    let mut results = Vec::new();
    for number in 0..runs {
        let result = fail_over(&lab, &id, number % 2 == 1).inspect_err(|_| tell(&lab))?;
        let leader = if result.leader_too { ", which led the store" } else { "" };
        eprintln!(
            "{:3}: power cut of its host{leader}: started after {:.2} s, the guest's init after {:.2} s",
            number + 1,
            result.started.as_secs_f64(),
            result.init.as_secs_f64()
        );
        results.push(result);
    }
    report(&results);
    Ok(())
}

/// Tells what the cluster has done of late, for whoever looks for the reason.
fn tell(lab: &Lab) {
    let told = shell(lab.host(0), "maru task list | tail -n 20; timeout 5 maru event tail --after 0 | tail -n 60 || :");
    eprintln!("{}", told.unwrap_or_else(|error| format!("{error:#}")));
}

fn start() -> anyhow::Result<Lab> {
    let image = guest_image()?;
    let mut spec = Lab::new().hosts(3).memory_mib(1024).managed().state_disk_mib(512).shared_dir().etcd()?;
    for name in PROGRAMS {
        let file = program(name).with_context(|| format!("cannot find {name}: run `cargo build --release` first"))?;
        spec = spec.binary(file, format!("/bin/{name}"));
    }
    let spec = spec.file(image.kernel, "/guest/vmlinuz").file(image.initramfs, "/guest/initramfs");
    let lab = spec.start()?;
    lab.form_cluster(&mut |step| eprintln!("{step}"))?;
    let first = lab.host(0);
    shell(first, "cp /guest/vmlinuz /guest/initramfs /shared/; maru disk create /shared/web.vhdx --size 64M")?;
    shell(
        first,
        "maru vm create web --kernel shared:vmlinuz --initrd shared:initramfs --disk shared:web.vhdx --memory 128M \
         --cmdline 'console=ttyS0 quiet panic=-1 mitigations=off maru.test=idle'",
    )?;
    until("all hosts can have the VM", || {
        let explained = json(first, "maru vm explain web")?;
        let hosts = explained["hosts"].as_array().context("no hosts")?;
        Ok(hosts.iter().all(|host| host["score"].is_i64()).then_some(()))
    })?;
    shell(first, "maru vm start web")?;
    Ok(lab)
}

/// The VM's host and the one that leads the store, when the cluster is as it should be.
fn healthy(lab: &Lab) -> anyhow::Result<(&Host, &Host)> {
    until("all hosts are there, keep the store, and the VM runs", || {
        let host = lab.host(0);
        let status = json(host, "maru cluster status")?;
        let hosts = status["cluster"]["hosts"].as_array().context("no hosts")?;
        let ready = hosts.iter().all(|host| host["alive"] == true && host["store_answers"] == true);
        let vm = json(host, "maru vm show web")?;
        let find = |name: &Value| lab.hosts().iter().find(|host| name == host.name());
        let leader = hosts.iter().find(|host| host["leads"] == true).and_then(|host| find(&host["name"]));
        let is_well = ready && vm["state"] == "running" && status["cluster"]["waits"].is_null();
        ensure!(is_well, "the VM is {} on {}; {}", vm["state"], vm["host"], status["cluster"]);
        Ok(find(&vm["host"]).zip(leader))
    })
}

fn fail_over(lab: &Lab, id: &str, leader_too: bool) -> anyhow::Result<Failover> {
    let (place, leader) = healthy(lab)?;
    let wanted = |host: &Host| (host.name() == leader.name()) == leader_too;
    if !wanted(place) {
        let other = lab.hosts().iter().find(|host| wanted(host)).context("no such host")?;
        shell(place, &format!("maru vm move web --to {}", other.name()))?;
    }
    let place = until("the VM is on the host that is to fail", || {
        let (place, leader) = healthy(lab)?;
        Ok(((place.name() == leader.name()) == leader_too).then_some(place))
    })?;
    let mut watchers = Vec::new();
    for host in lab.hosts().iter().filter(|host| host.name() != place.name()) {
        let socket = format!("/run/maru/vms/{id}/control");
        let script = format!(
            "[ -S {socket} ] && exit; echo watching; until [ -S {socket} ]; do sleep 0.05; done; echo started; \
             until maru vm control --socket {socket} console 2>/dev/null; do :; done"
        );
        let mut watcher = host.spawn(Exec::new(["sh", "-c", &script]))?;
        let mut seen = String::new();
        while !seen.contains("watching") {
            hear(&mut watcher, &mut seen, PATIENCE)?;
        }
        watchers.push((watcher, String::new()));
    }

    let cut = Instant::now();
    place.power_cut();
    let (mut started, deadline) = (None, cut + PATIENCE);
    let init = loop {
        ensure!(Instant::now() < deadline, "the VM is not started on another host");
        for (watcher, seen) in &mut watchers {
            hear(watcher, seen, Duration::from_millis(5))?;
        }
        if watchers.iter().any(|(_, seen)| seen.contains("started")) {
            started.get_or_insert(cut.elapsed());
        }
        if watchers.iter().any(|(_, seen)| seen.contains("maru-guest: init at")) {
            break cut.elapsed();
        }
    };
    place.power_on()?;
    Ok(Failover { leader_too, started: started.context("it ran without having been started")?, init })
}

/// Adds what a program has said.
fn hear(program: &mut Process, seen: &mut String, limit: Duration) -> anyhow::Result<()> {
    match program.next_event(Some(Instant::now() + limit))? {
        Some(Event::Stdout(bytes) | Event::Stderr(bytes)) => seen.push_str(&String::from_utf8_lossy(&bytes)),
        Some(Event::Exit(status)) => bail!("a watcher ended ({status:?}): {seen}"),
        None => {}
    }
    Ok(())
}

fn report(results: &[Failover]) {
    let row = |what: &str, of: &dyn Fn(&Failover) -> bool| {
        let chosen = || results.iter().filter(|result| of(result));
        let started = Summary::of(chosen().map(|result| result.started.as_secs_f64()));
        let init = Summary::of(chosen().map(|result| result.init.as_secs_f64()));
        vec![
            what.to_owned(),
            chosen().count().to_string(),
            format!("{:.1} s", started.median),
            format!("{:.1} s", started.max),
            format!("{:.1} s", init.median),
            format!("{:.1} s", init.max),
        ]
    };
    let head = ["power cut of", "runs", "started: median", "worst", "guest's init: median", "worst"];
    let mut rows = vec![head.map(str::to_owned).to_vec(), row("the VM's host", &|result| !result.leader_too)];
    if results.iter().any(|result| result.leader_too) {
        rows.push(row("the same, which led the store", &|result| result.leader_too));
        rows.push(row("all", &|_| true));
    }
    print!("{}", table(&rows));
}
