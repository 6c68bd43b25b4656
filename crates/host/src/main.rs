//! `marud`: the daemon of a host.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context;
use host::audit::Audit;
use host::cluster::authority::{self, Authority};
use host::cluster::forming::{self, Place};
use host::cluster::guard;
use host::cluster::handover::Handover;
use host::cluster::members::keeper::Keeper;
use host::cluster::members::{Follower, Setting};
use host::cluster::records::MemberRecord;
use host::cluster::standing::{Membership, Standing};
use host::cluster::{Parts, Runtime};
use host::host::{Host, find_program};
use host::net::Network;
use host::options::{self, Options, Wanted};
use host::peers::Peers;
use host::state::State;
use host::vm::meter::Meters;
use host::vm::{Capacity, Cgroups, Ledger, Surroundings, work};
use host::volumes::Volumes;
use host::web::{self, App};
use host::{anew, auth, autostart, tls};
use store::{EtcdConfig, EtcdStore, FileStore, Replica};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, Semaphore};

/// How often the store is backed up, if it has changed, and old records are forgotten.
const HOUSEKEEPING: Duration = Duration::from_secs(3600);

/// How long the address of the API may be taken by a `marud` that is about to end.
const LISTEN: Duration = Duration::from_secs(5);
/// Between two tries to listen there.
const LISTEN_AGAIN: Duration = Duration::from_millis(50);
/// How long one call of the cluster's store may take.
const STORE_DEADLINE: Duration = Duration::from_secs(3);
/// Between two attempts to read it.
const STORE_PAUSE: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    let options = match options::parse(std::env::args_os().skip(1)) {
        Ok(Wanted::Run(options)) => options,
        Ok(Wanted::Print(text)) => {
            print!("{text}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("marud: {error} (see marud --help)");
            return ExitCode::from(2);
        }
    };
    tracing_subscriber::fmt().with_ansi(false).with_target(false).with_writer(std::io::stderr).init();
    if let Err(error) = anew::reap_inherited() {
        tracing::warn!("processes of an earlier marud are not waited for: {error}");
    }
    let done = tokio::runtime::Runtime::new().context("the runtime").and_then(|runtime| {
        let done = runtime.block_on(run(&options));
        // What is stored is durable, and what is not finished goes on at the next start: there is nothing to wait for.
        runtime.shutdown_background();
        done
    });
    match done {
        Ok(Ended::Told) => ExitCode::SUCCESS,
        Ok(Ended::ToBeginAnew) => {
            eprintln!("marud: cannot start itself anew: {}", anew::exec());
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("marud: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Why it ends.
enum Ended {
    /// It was told to.
    Told,
    /// What this host is has changed.
    ToBeginAnew,
}

async fn run(options: &Options) -> anyhow::Result<Ended> {
    let mut ends = [signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?];
    for directory in [&options.state, &options.run] {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
        made.with_context(|| format!("{} cannot be made", directory.display()))?;
    }
    let listener = listen(&options.listen).await;
    let listener = listener.with_context(|| format!("cannot listen at {}", shown(&options.listen)))?;
    let address = listener.local_addr()?;
    let place = Place {
        state: options.state.clone(),
        etcd: options.etcd.iter().cloned().collect(),
        api_port: address.port(),
        client_port: options.etcd_ports.0,
        peer_port: options.etcd_ports.1,
        names: options.names.clone(),
    };
    let resumed = place.clone();
    let formed = tokio::task::spawn_blocking(move || forming::resume(&resumed)).await??;
    let (host_name, addresses) = match &formed.identity {
        Some(identity) => (identity.host.clone(), identity.addresses.clone()),
        None => (web::host_name(), tls::reachable(address.ip())),
    };
    let names = authority::names(&host_name, &addresses, &options.names);
    let authority = Authority::read_or_make(&place.tls())?;
    let certificate = authority.issue(&host_name, &names)?;
    let shown = tls::Shown::new(&certificate)?;
    let tls = tls::server(&certificate, shown.clone())?;

    let again = Arc::new(Notify::new());
    let [terminated, interrupted] = &mut ends;
    let mut file = None;
    let mut replica = None;
    let (state, member) = match formed.identity {
        None => {
            let store = Arc::new(FileStore::open(&options.state)?);
            file = Some(store.clone());
            guard::let_go(&std::path::absolute(&options.run)?).context("VMs cannot be told that they need no lease")?;
            (State::new(store), None)
        }
        Some(identity) => {
            let keeper = Keeper::start(&place, &identity, formed.server)?;
            let config =
                EtcdConfig { endpoints: identity.endpoints(), tls: Some(certificate.etcd_client()), deadline: STORE_DEADLINE };
            let etcd = Arc::new(EtcdStore::new(&config)?);
            let (read, waiting) = (etcd.clone(), place.clone());
            let refusing = web::waiting("the cluster's store does not answer yet: most of its members are needed");
            let copied = tokio::select! {
                () = web::serve(&listener, tls.clone(), refusing) => return Ok(Ended::Told),
                copied = tokio::task::spawn_blocking(move || copy(&read, &waiting)) => match copied? {
                    Some(copied) => Arc::new(copied),
                    None => return Ok(Ended::ToBeginAnew),
                },
                _ = terminated.recv() => return Ok(Ended::Told),
                _ = interrupted.recv() => return Ok(Ended::Told),
            };
            let state = State::of_cluster(copied.clone(), &identity.host);
            let removed = state.read::<MemberRecord>(&identity.host)?.is_none();
            if removed {
                tracing::error!(
                    "this host was removed from its cluster, and takes no part in it: `maru cluster leave --force` makes it a host of \
                     its own, which can join again"
                );
            }
            // It has no say in what the cluster does.
            replica = (!removed).then_some(copied);
            let setting = Setting {
                place: place.clone(),
                identity: identity.clone(),
                state: state.clone(),
                etcd: etcd.clone(),
                shown: shown.clone(),
                certificate: certificate.clone(),
                again: again.clone(),
                removed,
            };
            (state, Some(Membership { identity, etcd, follower: Follower::start(setting, keeper)? }))
        }
    };
    let first = options.state.join("admin.token");
    if auth::make_first(&state, &first)? {
        tracing::info!("the secret of the first token, '{}', is in {}", auth::FIRST_TOKEN, first.display());
    }
    let audit = options.state.join("audit.log");
    let audit = Audit::open(&audit).with_context(|| format!("the audit log {} cannot be written", audit.display()))?;

    // A cluster's VMs run because the cluster has them run.
    let boot_id = autostart::boot_id(&options.boot_id)
        .inspect_err(|error| tracing::warn!("no VM is started with the host: {}: {error}", options.boot_id.display()))
        .ok();
    let started = boot_id.as_deref().filter(|_| member.is_none());
    let peers = match replica {
        Some(_) => Some(Peers::new(tls::client(&certificate, shown)?)),
        None => None,
    };
    let host = Host::start(state.clone(), surroundings(options, peers.clone())?, started)?;
    let mut runtime = None;
    if let Some((replica, member)) = replica.zip(member.as_ref()) {
        let mut guard = guard_of(options, &host);
        let handed_over = formed.handover.map(Handover::end);
        if let Some((guard, held)) = guard.as_mut().zip(handed_over)
            && let Err(error) = guard.extend(held.lease, held.deadline)
        {
            tracing::error!("VMs will end: {}", vmm::error_chain(&error));
        }
        let parts = Parts {
            host: host.clone(),
            replica,
            guard,
            name: member.identity.host.clone(),
            boot_id: boot_id.clone(),
            addresses: member.identity.addresses.clone(),
            port: address.port(),
            secret: authority.shared_secret("heartbeats"),
            witness: member.identity.witness,
            held: handed_over,
        };
        runtime = Some(Arc::new(tokio::task::spawn_blocking(move || Runtime::start(parts)).await??));
    }
    let told = options.state.join(api::ADDRESS_FILE);
    auth::write_private(&told, &format!("{address}\n")).with_context(|| format!("{} cannot be written", told.display()))?;
    tracing::info!("listening at {address}, for clients that know this host as {}", names.join(", "));
    let standing = Arc::new(Standing { place, found: addresses, again: again.clone(), member });
    let decides = runtime.clone();
    let router =
        web::router(App { host, audit: Arc::new(audit), names: names.into(), runtime, peers, cluster: standing.clone() });
    let ended = tokio::select! {
        () = web::serve(&listener, tls, router) => Ended::Told,
        () = keep_house(state, file) => Ended::Told,
        () = again.notified() => Ended::ToBeginAnew,
        _ = terminated.recv() => Ended::Told,
        _ = interrupted.recv() => Ended::Told,
    };
    tracing::info!("ends; VMs go on");
    let end = move || {
        decides.iter().for_each(|runtime| runtime.end());
        // etcd ends in order: who leads the store hands that over.
        standing.member.as_ref().map(|member| member.follower.stop())
    };
    let _ = tokio::task::spawn_blocking(end).await;
    Ok(ended)
}

/// Who ends this host's VMs in time: where they have control groups.
fn guard_of(options: &Options, host: &Host) -> Option<guard::Guard> {
    let surroundings = &host.surroundings;
    let vms = surroundings.cgroups.directory().filter(|directory| directory.join("cgroup.procs").exists())?;
    Some(guard::Guard::new(options.guard.clone().or_else(|| find_program("maru-guard"))?, &surroundings.run_directory, vms))
}

/// Listens; waits a moment for a `marud` before this one, which may still be about to end.
async fn listen(addresses: &[std::net::SocketAddr]) -> std::io::Result<TcpListener> {
    let begun = std::time::Instant::now();
    loop {
        match TcpListener::bind(addresses).await {
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse && begun.elapsed() < LISTEN => {
                tokio::time::sleep(LISTEN_AGAIN).await;
            }
            bound => return bound,
        }
    }
}

/// Reads all of the cluster's store, as soon as that answers; nothing if someone knows that it never will.
fn copy(etcd: &Arc<EtcdStore>, place: &Place) -> Option<Replica<EtcdStore>> {
    loop {
        match Replica::new(etcd.clone()) {
            Ok(replica) => return Some(replica),
            Err(_) if forming::is_planned(place) => return None,
            Err(error) => tracing::warn!("waits for the cluster's store: {}", vmm::error_chain(&error)),
        }
        std::thread::sleep(STORE_PAUSE);
    }
}

fn shown(addresses: &[std::net::SocketAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ")
}

fn surroundings(options: &Options, peers: Option<Peers>) -> anyhow::Result<Surroundings> {
    let monitor = options.monitor.clone().or_else(|| find_program("maru-vmm"));
    let monitor = monitor.context("there is no maru-vmm beside marud or on PATH: install it there, or name it with --monitor")?;
    let mut volumes = Volumes::default();
    for volume in &options.volumes {
        volumes.add(volume)?;
    }
    let (cgroups, without) = Cgroups::at(&options.cgroup);
    if let Some(reason) = without {
        tracing::warn!("{reason}");
    }
    let run_directory = std::path::absolute(&options.run)?;
    guard::make_page(&run_directory)
        .and_then(|()| work::under_lease(&guard::page(&run_directory)))
        .with_context(|| format!("the page that says until when VMs may run cannot be made in {}", run_directory.display()))?;
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let ledger =
        Ledger::new(Capacity { memory_bytes: web::memory().0, overcommit_percent: options.memory_overcommit, cpus: cpus as u32 });
    let switch = options.switch.clone().or_else(|| find_program("maru-switch"));
    let network = Network::new(switch, &run_directory, &cgroups.beside(), options.unconfined);
    Ok(Surroundings {
        network,
        monitor,
        lease: guard::page(&run_directory),
        peers,
        run_directory,
        cgroups,
        ledger,
        meters: Meters::default(),
        volumes,
        // A VM that is being started reads its files, too: one more than there are processors.
        starts: Arc::new(Semaphore::new(cpus + 1)),
        files: Mutex::default(),
        unconfined: options.unconfined,
    })
}

/// Backs the store up and forgets what is old, for ever.
async fn keep_house(state: State, store: Option<Arc<FileStore>>) {
    loop {
        tokio::time::sleep(HOUSEKEEPING).await;
        let (state, store) = (state.clone(), store.clone());
        let work = tokio::task::spawn_blocking(move || {
            if let Some(Err(error)) = store.map(|store| store.backup()) {
                tracing::error!("the store cannot be backed up: {}", vmm::error_chain(&error));
            }
            if let Err(error) = state.prune() {
                tracing::error!("old records cannot be forgotten: {}", vmm::error_chain(&error));
            }
        });
        let _ = work.await;
    }
}
