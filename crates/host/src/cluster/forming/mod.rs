//! How a host becomes one of a cluster, and how it ceases to be.
//!
//! ```text
//!  a request ──▶ checks, refusals ──▶ forming.json: what is to be done ──▶ marud starts anew
//!                                                                           │
//!  cluster.json ◀── last ◀── all that is to be done, from its beginning ◀───┘ before anything else
//! ```
//!
//! What changes who a host is happens while nobody uses its store: at the start of `marud`, which starts itself anew for that. VMs go on, as with
//! every restart. A plan can be begun again after a crash at any point. It ends with [`Identity`](super::identity::Identity) in place, or gone,
//! and then with its own file: until then the host is what it was before. A cluster that cannot be made leaves a single host, which tells why.

mod create;
mod join;
mod leave;
mod member;
mod restore;

pub use create::prepare as prepare_create;
pub use join::{JoinError, prepare as prepare_join};
pub use member::{AdmitError, Admitted, admit, make_token, unknown};

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ::cluster::records::{Fencing, HostRecord};
use serde::{Deserialize, Serialize};
use store::etcd::server::{Programs, Server, ServerConfig, ServerError};
use store::record::Record;
use store::{OpenError, StoreError, Transaction};
use uuid::Uuid;

use super::authority::{self, AuthorityError};
use super::handover::{Handover, HandoverError};
use super::identity::{Identity, IdentityError, read_file, remove_file, sync_directory_of, write_file};
use super::records::{MAX_HOST, MemberRecord, is_host_name, local_token};
use crate::records::{Cause, TokenRecord};
use crate::state::{Records, StateError};

/// The largest size of the store in bytes.
const QUOTA: u64 = 2 << 30;
/// How often the store's leader compares what the members hold.
const CORRUPTION_CHECK: Duration = Duration::from_secs(600);
/// What is to be done at the next start.
const PLAN: &str = "forming.json";
/// Why it was not done.
const FAILURE: &str = "forming-failed.json";
/// What the store's file was, before the host was in a cluster: `NAME-CLUSTER`.
const BEFORE: &str = "single-host-before";

/// Where and how a host is.
#[derive(Clone, Debug)]
pub struct Place {
    /// The directory of the state.
    pub state: PathBuf,
    /// Directories in which etcd's programs may be.
    pub etcd: Vec<PathBuf>,
    /// The port of the API.
    pub api_port: u16,
    /// The port of etcd for clients.
    pub client_port: u16,
    /// The port of etcd for other members.
    pub peer_port: u16,
    /// More names that clients know this host by.
    pub names: Vec<String>,
}

impl Place {
    /// The directory of the certificates.
    pub fn tls(&self) -> PathBuf {
        self.state.join("tls")
    }

    /// The directory of this host's member of the store.
    pub fn member(&self) -> PathBuf {
        self.state.join("etcd")
    }

    /// etcd's programs.
    pub fn programs(&self) -> Result<Programs, ServerError> {
        Programs::find(&self.etcd)
    }

    /// The URL of this host's member for clients, and for other members.
    pub fn urls(&self, addresses: &[IpAddr]) -> (String, String) {
        let first = addresses.first().copied().unwrap_or(IpAddr::from([127, 0, 0, 1]));
        let url = |port| format!("https://{}", SocketAddr::new(first, port));
        (url(self.client_port), url(self.peer_port))
    }

    /// What is wanted at the next start.
    fn plan(&self) -> Result<Option<PlanRecord>, IdentityError> {
        read_file(&self.state.join(PLAN))
    }

    /// Has something done at the next start.
    fn write_plan(&self, plan: &PlanRecord) -> Result<(), IdentityError> {
        write_file(&self.state.join(PLAN), plan)
    }

    fn end_plan(&self) -> Result<(), IdentityError> {
        remove_file(&self.state.join(PLAN))
    }

    /// Why this host is not in the cluster that it was to be in.
    pub fn failure(&self) -> Option<Cause> {
        read_file::<FailureRecord>(&self.state.join(FAILURE)).ok().flatten().map(|record| record.cause)
    }

    /// How etcd is to run here.
    pub(super) fn server(&self, identity: &Identity, membership: store::etcd::server::Membership) -> ServerConfig {
        ServerConfig {
            name: identity.host.clone(),
            directory: self.member().join("data"),
            peer_url: identity.peer_url.clone(),
            client_url: identity.client_url.clone(),
            members: vec![(identity.host.clone(), identity.peer_url.clone())],
            membership,
            tls: Some(authority::etcd_server(&self.tls())),
            quota_bytes: QUOTA,
            corruption_check: CORRUPTION_CHECK,
        }
    }
}

/// `forming.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum PlanRecord {
    Create(CreateRecord),
    Join(JoinRecord),
    Leave,
}

/// A cluster to make.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct CreateRecord {
    cluster: Uuid,
    name: String,
    host: String,
    addresses: Vec<IpAddr>,
}

/// A cluster to join: asked for by a request with this id, and, once it has agreed, with its answer.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
struct JoinRecord {
    join: Uuid,
    token: Uuid,
    host: String,
    addresses: Vec<IpAddr>,
    witness: bool,
    answer: Option<api::JoinAnswer>,
}

/// Not the key in the answer: what is printed ends in logs.
impl std::fmt::Debug for JoinRecord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JoinRecord").field("join", &self.join).field("host", &self.host).finish_non_exhaustive()
    }
}

impl Record for PlanRecord {
    const PREFIX: &'static str = "";
    const KIND: &'static str = "forming";
    const VERSION: u32 = 1;
}

/// `forming-failed.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct FailureRecord {
    cause: Cause,
}

impl Record for FailureRecord {
    const PREFIX: &'static str = "";
    const KIND: &'static str = "forming-failed";
    const VERSION: u32 = 1;
}

/// Why this host cannot be what it is to be.
#[derive(Debug, thiserror::Error)]
pub enum FormingError {
    /// Who it is.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Certificates.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// etcd.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// The client of etcd.
    #[error(transparent)]
    Client(#[from] store::etcd::EtcdConfigError),
    /// The single host's store.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Either store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What is in it.
    #[error(transparent)]
    State(#[from] StateError),
    /// The host's lease.
    #[error(transparent)]
    Handover(#[from] HandoverError),
    /// A file.
    #[error("{} cannot be used", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A name.
    #[error("'{0}' cannot be the name of a host or a cluster: use 1 to {MAX_HOST} letters, digits, '-', '_' and '.'")]
    Name(String),
    /// Addresses.
    #[error("a host has one or two addresses, one for each network, and not {0}: name them with --address")]
    Addresses(usize),
    /// An address that is no one's.
    #[error(
        "this host cannot listen at {address}, which etcd is to do ({reason}): name an address of this host with --address, and see that nobody else uses the port"
    )]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why not.
        reason: String,
    },
    /// It is in one.
    #[error("this host is in the cluster {0} already: `maru cluster status` shows it, and `maru cluster leave` leaves it")]
    InCluster(Uuid),
    /// There is nothing to go on with.
    #[error("this host has no member of the store ({} is not there): restore on a host that has one, or from a backup", .0.display())]
    NoData(PathBuf),
    /// Something that is not finished.
    #[error("this host is about to change what it is: wait until it is back")]
    Busy,
}

impl FormingError {
    /// A word for programs.
    pub fn code(&self) -> &'static str {
        match self {
            FormingError::Server(ServerError::Missing { .. } | ServerError::TooOld { .. } | ServerError::NotEtcd { .. }) => {
                "no-etcd"
            }
            FormingError::Name(_) => "bad-name",
            FormingError::Addresses(_) | FormingError::Listen { .. } => "bad-address",
            FormingError::InCluster(_) => "in-cluster",
            FormingError::Busy => "busy",
            _ => "not-formed",
        }
    }
}

fn file(path: &Path) -> impl FnOnce(io::Error) -> FormingError + use<> {
    let path = path.to_owned();
    move |source| FormingError::File { path, source }
}

/// What a host is after its start.
pub struct Formed {
    /// Who it is in its cluster, if it is in one.
    pub identity: Option<Identity>,
    /// Its etcd, if that was started for this.
    pub server: Option<Server>,
    /// The lease under which its VMs run, if it has just become a cluster.
    pub handover: Option<Handover>,
}

/// Whether something is to be done that only a start of `marud` does. What `maru cluster restore` and `maru cluster leave --force` want is told by
/// files: the store, which says who may do what, may not answer any more, or not know this host.
pub fn is_planned(place: &Place) -> bool {
    place.state.join(PLAN).exists() || restore::is_wanted(place)
}

/// Does what was begun before `marud` started, and says what the host is now. Nobody may use the store meanwhile.
///
/// # Errors
/// When that cannot be known, or a step cannot be done that must not be left out. A cluster that cannot be made is no error.
pub fn resume(place: &Place) -> Result<Formed, FormingError> {
    let identity = Identity::read(&place.state)?;
    let plan = place.plan()?;
    if let (None, Some(identity)) = (&plan, &identity)
        && let Some(formed) = restore::run_if_wanted(place, identity)?
    {
        return Ok(formed);
    }
    match (plan, identity) {
        (None, identity) => alone_or(place, identity),
        // The last step is missing.
        (Some(PlanRecord::Create(_) | PlanRecord::Join(_)), Some(identity)) => {
            place.end_plan()?;
            alone_or(place, Some(identity))
        }
        (Some(PlanRecord::Create(plan)), None) => {
            tracing::info!("makes the cluster '{}'", plan.name);
            match create::run(place, &plan) {
                Ok(formed) => Ok(formed),
                Err(error) => {
                    fail(place, &error)?;
                    alone_or(place, None)
                }
            }
        }
        // Asked for, and not agreed: it is asked for again by whoever wants it.
        (Some(PlanRecord::Join(JoinRecord { answer: None, .. })), None) => alone_or(place, None),
        (Some(PlanRecord::Join(plan)), None) => alone_or(place, Some(join::run(place, plan)?)),
        (Some(PlanRecord::Leave), _) => {
            leave::run(place)?;
            alone_or(place, None)
        }
    }
}

fn alone_or(place: &Place, identity: Option<Identity>) -> Result<Formed, FormingError> {
    if let Some(identity) = &identity {
        retire_file_store(place, identity)?;
    }
    Ok(Formed { identity, server: None, handover: None })
}

/// Gives a plan up, and remembers why.
fn fail(place: &Place, error: &FormingError) -> Result<(), FormingError> {
    tracing::error!("the cluster is not made, and this host goes on alone: {}", vmm::error_chain(error));
    remove_directory(&place.member())?;
    remember_failure(place, error)?;
    Ok(place.end_plan()?)
}

fn remember_failure(place: &Place, error: &FormingError) -> Result<(), FormingError> {
    let text = vmm::error_chain(error);
    let cause = Cause::new(error.code(), text, "mend that, and try again; marud's log says more");
    Ok(write_file(&place.state.join(FAILURE), &FailureRecord { cause })?)
}

/// Moves the store that a single host had out of the way: it is out of date now, and kept.
fn retire_file_store(place: &Place, identity: &Identity) -> Result<(), FormingError> {
    let kept = place.state.join(format!("{BEFORE}-{}", identity.cluster));
    for name in ["store.redb", "backup"] {
        let old = place.state.join(name);
        if !old.exists() {
            continue;
        }
        fs::create_dir_all(&kept).map_err(file(&kept))?;
        // What it held went into the cluster; an empty one is of no use to anybody.
        fs::rename(&old, kept.join(name)).map_err(file(&old))?;
    }
    sync_directory_of(&kept).map_err(file(&kept))
}

fn remove_directory(path: &Path) -> Result<(), FormingError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(file(path)(error)),
        _ => Ok(()),
    }
}

/// Checks what a host is to be called, and where it is to be reached; gives both.
fn name_and_addresses(
    place: &Place,
    host: Option<&str>,
    addresses: &[IpAddr],
    found: &[IpAddr],
) -> Result<(String, Vec<IpAddr>), FormingError> {
    let host = host.map_or_else(crate::web::host_name, str::to_owned);
    if !is_host_name(&host) {
        return Err(FormingError::Name(host));
    }
    // One network is enough, and the first of those found is the one that others are reached by.
    let addresses = if addresses.is_empty() { found.first().copied().into_iter().collect() } else { addresses.to_vec() };
    if !(1..=2).contains(&addresses.len()) {
        return Err(FormingError::Addresses(addresses.len()));
    }
    for port in [place.client_port, place.peer_port] {
        let address = SocketAddr::new(addresses[0], port);
        TcpListener::bind(address).map_err(|error| FormingError::Listen { address, reason: error.to_string() })?;
    }
    Ok((host, addresses))
}

/// Refuses to begin something when this host is in a cluster, or about to be.
fn must_be_alone(place: &Place) -> Result<(), FormingError> {
    if let Some(identity) = Identity::read(&place.state)? {
        return Err(FormingError::InCluster(identity.cluster));
    }
    match place.plan()? {
        None | Some(PlanRecord::Join(JoinRecord { answer: None, .. })) => Ok(()),
        Some(_) => Err(FormingError::Busy),
    }
}

/// Has this host leave its cluster at the next start.
pub fn plan_to_leave(place: &Place) -> Result<(), FormingError> {
    Ok(place.write_plan(&PlanRecord::Leave)?)
}

/// Takes all that says that a host is one of the cluster.
pub fn forgotten(host: &str) -> Transaction {
    let token = local_token(host);
    Transaction::new().forget::<HostRecord>(host).forget::<MemberRecord>(host).forget::<TokenRecord>(&token)
}

/// What this host has, for `hosts/HOST`.
pub fn own_record(addresses: &[IpAddr], port: u16) -> HostRecord {
    HostRecord {
        memory_mib: crate::web::memory().0 >> 20,
        cpus: own_cpus(),
        addresses: addresses.iter().map(IpAddr::to_string).collect(),
        port,
        fencing: if has_watchdog() { Fencing::Watchdog } else { Fencing::Manual },
        ..HostRecord::default()
    }
}

fn own_cpus() -> u32 {
    std::thread::available_parallelism().map_or(1, |count| u32::try_from(count.get()).unwrap_or(u32::MAX))
}

fn has_watchdog() -> bool {
    Path::new("/dev/watchdog").exists()
}
