//! `marud`: the daemon of a host.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context;
use host::audit::Audit;
use host::cluster::guard;
use host::host::{Host, find_program};
use host::net::Network;
use host::options::{self, Options, Wanted};
use host::state::State;
use host::vm::meter::Meters;
use host::vm::work;
use host::vm::{Capacity, Cgroups, Ledger, Surroundings};
use host::volumes::Volumes;
use host::web::{self, App};
use host::{auth, autostart, tls};
use store::FileStore;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;

/// How often the store is backed up, if it has changed, and old records are forgotten.
const HOUSEKEEPING: Duration = Duration::from_secs(3600);

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
    let done = tokio::runtime::Runtime::new().context("the runtime").and_then(|runtime| {
        let done = runtime.block_on(run(&options));
        // What is stored is durable, and what is not finished goes on at the next start: there is nothing to wait for.
        runtime.shutdown_background();
        done
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("marud: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(options: &Options) -> anyhow::Result<()> {
    let mut ends = [signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?];
    for directory in [&options.state, &options.run] {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
        made.with_context(|| format!("{} cannot be made", directory.display()))?;
    }
    let store = Arc::new(FileStore::open(&options.state)?);
    let state = State::new(store.clone());
    let first = options.state.join("admin.token");
    if auth::make_first(&state, &first)? {
        tracing::info!("the secret of the first token, '{}', is in {}", auth::FIRST_TOKEN, first.display());
    }
    let host_name = web::host_name();
    let listener = TcpListener::bind(&options.listen[..]).await;
    let listener = listener.with_context(|| format!("cannot listen at {}", shown(&options.listen)))?;
    let address = listener.local_addr()?;
    let names = tls::names(&host_name, address.ip(), &options.names);
    let tls = tls::server(&options.state.join("tls"), &host_name, &names)?;
    let audit = options.state.join("audit.log");
    let audit = Audit::open(&audit).with_context(|| format!("the audit log {} cannot be written", audit.display()))?;

    let boot_id = autostart::boot_id(&options.boot_id).inspect_err(|error| {
        tracing::warn!("no VM is started with the host: {}: {error}", options.boot_id.display());
    });
    let host = Host::start(state.clone(), surroundings(options)?, boot_id.ok().as_deref())?;
    let told = options.state.join(api::ADDRESS_FILE);
    auth::write_private(&told, &format!("{address}\n")).with_context(|| format!("{} cannot be written", told.display()))?;
    tracing::info!("listening at {address}, for clients that know this host as {}", names.join(", "));
    let router = web::router(App { host, audit: Arc::new(audit), names: names.into() });
    let [terminated, interrupted] = &mut ends;
    tokio::select! {
        () = web::serve(listener, tls, router) => {}
        () = keep_house(state, store) => {}
        _ = terminated.recv() => {}
        _ = interrupted.recv() => {}
    }
    tracing::info!("ends; VMs go on");
    Ok(())
}

fn shown(addresses: &[std::net::SocketAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ")
}

fn surroundings(options: &Options) -> anyhow::Result<Surroundings> {
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
async fn keep_house(state: State, store: Arc<FileStore>) {
    loop {
        tokio::time::sleep(HOUSEKEEPING).await;
        let (state, store) = (state.clone(), store.clone());
        let work = tokio::task::spawn_blocking(move || {
            if let Err(error) = store.backup() {
                tracing::error!("the store cannot be backed up: {}", vmm::error_chain(&error));
            }
            if let Err(error) = state.prune() {
                tracing::error!("old records cannot be forgotten: {}", vmm::error_chain(&error));
            }
        });
        let _ = work.await;
    }
}
