//! Clusters: making one, joining, leaving, and who is in it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ::cluster::HostId;
use ::cluster::records::{AliveRecord, CoordinatorRecord, HostRecord, HostWanted, OwnerRecord, alive_key};
use axum::Json;
use axum::extract::{FromRequestParts, State as Shared};
use axum::http::StatusCode;
use axum::http::request::Parts;
use store::{Outcome, Store, Transaction};
use time::OffsetDateTime;

use super::extract::{Body, Name};
use super::guard::secret;
use super::{App, Refusal};
use crate::cluster::forming::{self, AdmitError, Admitted, FormingError, JoinError};
use crate::cluster::records::{CERTIFICATES, COORDINATOR, CertificatesRecord, ClusterRecord, INFO, MemberRecord, MemberState};
use crate::cluster::standing::{Membership, Standing};
use crate::cluster::{backup, members, placements};
use crate::records::{Cause, EventKind, EventRecord, VmRecord};
use crate::state::{Records, State, StateError};

/// So long an answer may be on its way before `marud` starts itself anew.
const ANSWERED: Duration = Duration::from_millis(200);

impl From<FormingError> for Refusal {
    fn from(error: FormingError) -> Refusal {
        let (code, text) = (error.code(), vmm::error_chain(&error));
        let status = match code {
            "bad-name" | "bad-address" => StatusCode::UNPROCESSABLE_ENTITY,
            "no-etcd" | "in-cluster" | "busy" => StatusCode::CONFLICT,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        Refusal::new(status, code, text, "do what the message says, and try again")
    }
}

impl From<JoinError> for Refusal {
    fn from(error: JoinError) -> Refusal {
        let text = vmm::error_chain(&error);
        match error {
            JoinError::Forming(error) => error.into(),
            JoinError::Refused(error) => Refusal::new(StatusCode::CONFLICT, &error.code, error.message, error.way_out),
            JoinError::Token(_) => Refusal::senseless(Cause::new(
                "bad-token",
                text,
                "make a token with `maru cluster token` on a host of the cluster",
            )),
            JoinError::Stranger(_) => Refusal::conflict("stranger", text, "make a new token, and use it at once"),
            JoinError::NoAnswer(_) => {
                let way_out = "see that this host reaches the others, and ask for the same again: it is the same join";
                Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "no-answer", text, way_out)
            }
        }
    }
}

impl From<AdmitError> for Refusal {
    fn from(error: AdmitError) -> Refusal {
        match error {
            AdmitError::State(error) => error.into(),
            AdmitError::Forming(error) => error.into(),
            AdmitError::Busy => {
                Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "busy", error.to_string(), "ask for the same again")
            }
        }
    }
}

fn membership(standing: &Standing) -> Result<&Membership, Refusal> {
    let alone = || {
        let way_out = "make one with `maru cluster create`, or join one with `maru cluster join`";
        Refusal::conflict("no-cluster", "this host is in no cluster", way_out)
    };
    standing.member.as_ref().ok_or_else(alone)
}

/// Has `marud` start itself anew, when the answer to this request is on its way.
fn start_anew(standing: &Arc<Standing>) {
    let again = standing.again.clone();
    tokio::spawn(async move {
        tokio::time::sleep(ANSWERED).await;
        again.notify_one();
    });
}

/// Does something that waits, with what is shared.
async fn blocking<T: Send + 'static, E: Into<Refusal> + Send + 'static>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, Refusal> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(Into::into),
        Err(_) => Err(StateError::Ending.into()),
    }
}

/// The cluster
///
/// How this host stands to clusters: the one that it is in, with its hosts, or why it is in none.
#[utoipa::path(get, path = "/cluster", tag = "cluster", operation_id = "show_cluster", responses(
    (status = 200, description = "The cluster, if there is one", body = api::ClusterStatus),
    (status = "default", description = "Not done", body = api::Error),
))]
pub async fn show(Shared(app): Shared<App>) -> Result<Json<api::ClusterStatus>, Refusal> {
    let failure = app.cluster.place.failure().map(|cause| (&cause).into());
    let Some(member) = &app.cluster.member else {
        return Ok(Json(api::ClusterStatus { cluster: None, failure }));
    };
    let (this_host, told) = (member.identity.host.clone(), member.follower.told());
    let etcd = member.etcd.clone();
    let store_failure = blocking(move || Ok::<_, Refusal>(etcd.revision().err().map(|error| error.to_string())));
    let store_failure = store_failure.await?;
    let cluster = app.host.state.run(move |state| cluster(state, this_host, told, store_failure)).await?;
    Ok(Json(api::ClusterStatus { cluster: Some(cluster), failure }))
}

fn cluster(
    state: &State,
    this_host: String,
    told: members::Told,
    store_failure: Option<String>,
) -> Result<api::Cluster, StateError> {
    let info = state.read::<ClusterRecord>(INFO)?.ok_or_else(|| StateError::Gone("the cluster".into()))?.record;
    let alive = state.named::<AliveRecord>()?;
    let hosts = state.named::<HostRecord>()?;
    let coordinator = state.read::<CoordinatorRecord>(COORDINATOR)?;
    let mut vms: BTreeMap<HostId, u32> = BTreeMap::new();
    for owner in state.all::<OwnerRecord>()? {
        if let Some(holder) = owner.record.holder {
            *vms.entry(holder.host).or_default() += 1;
        }
    }
    let show = |(name, member): (String, store::record::Stored<MemberRecord>)| {
        let member = member.record;
        let host = hosts.iter().find(|(host, _)| *host == name).map(|(_, host)| &host.record);
        api::ClusterHost {
            alive: alive.iter().any(|(host, _)| *host == name),
            drained: host.is_some_and(|host| host.wanted == HostWanted::Drained),
            drained_until_back: host.and_then(|host| host.going_down.as_ref()).is_some_and(|going_down| going_down.resumes),
            vms: vms.get(&HostId::from(name.as_str())).copied().unwrap_or_default(),
            addresses: member.addresses,
            api_port: member.api_port,
            witness: member.witness,
            leaving: member.leaving,
            version: member.version,
            store: match member.state {
                MemberState::Client => api::StorePart::Client,
                MemberState::Learner => api::StorePart::Learner,
                MemberState::Voter => api::StorePart::Voter,
            },
            store_answers: member.member.is_some_and(|member| told.answering.contains(&member)),
            leads: member.member.is_some() && member.member == told.leader,
            damaged: member.damaged,
            certificates: member.certificates,
            name,
        }
    };
    Ok(api::Cluster {
        id: info.id,
        name: info.name,
        created_at: info.created_at,
        this_host,
        coordinator: coordinator.map(|stored| stored.record.holder.host.as_str().to_owned()),
        store_failure,
        waits: told.waits,
        hosts: state.named::<MemberRecord>()?.into_iter().map(show).collect(),
    })
}

/// Make a cluster
///
/// This host becomes its first one, and keeps what it has: `marud` starts itself anew for that, and VMs go on. `GET /cluster` says when it is
/// done, or why it was not.
#[utoipa::path(post, path = "/cluster", tag = "cluster", operation_id = "create_cluster", request_body = api::NewCluster, responses(
    (status = 202, description = "marud starts itself anew, and makes it"),
    (status = "default", description = "Not done", body = api::Error),
))]
pub async fn create(Shared(app): Shared<App>, body: Body) -> Result<StatusCode, Refusal> {
    let wanted: api::NewCluster = body.parse()?;
    let standing = app.cluster.clone();
    blocking(move || forming::prepare_create(&standing.place, &wanted, &standing.found)).await?;
    start_anew(&app.cluster);
    Ok(StatusCode::ACCEPTED)
}

/// Join a cluster
///
/// This host asks a host of the cluster that the token is from. When that has agreed, `marud` starts itself anew as a host of the cluster. The
/// same request again is the same join.
#[utoipa::path(post, path = "/cluster/join", tag = "cluster", operation_id = "join_cluster", request_body = api::JoinCluster, responses(
    (status = 202, description = "It is a host of the cluster; marud starts itself anew"),
    (status = "default", description = "Not done", body = api::Error),
))]
pub async fn join(Shared(app): Shared<App>, body: Body) -> Result<StatusCode, Refusal> {
    let wanted: api::JoinCluster = body.parse()?;
    let vms = app.host.state.run(|state| state.all::<VmRecord>()).await?;
    if let Some(vm) = vms.first() {
        let count = vms.len();
        let message = format!("this host has {count} VM(s) of its own, '{}' among them, and would lose them", vm.record.name);
        let way_out = "export them, delete them, and import them in the cluster; or make the cluster on this host";
        return Err(Refusal::conflict("has-vms", message, way_out));
    }
    let standing = app.cluster.clone();
    blocking(move || forming::prepare_join(&standing.place, &wanted, &standing.found)).await?;
    start_anew(&app.cluster);
    Ok(StatusCode::ACCEPTED)
}

/// Make a token to join with
///
/// It lets one host join, within its time. The answer has it, this once.
#[utoipa::path(post, path = "/cluster/tokens", tag = "cluster", operation_id = "create_join_token",
    request_body = api::NewJoinToken, responses(
    (status = 201, description = "The token", body = api::CreatedJoinToken),
    (status = "default", description = "Not done", body = api::Error),
))]
pub async fn token(Shared(app): Shared<App>, body: Body) -> Result<(StatusCode, Json<api::CreatedJoinToken>), Refusal> {
    let wanted: api::NewJoinToken = body.parse()?;
    let identity = membership(&app.cluster)?.identity.clone();
    let (state, standing) = (app.host.state.clone(), app.cluster.clone());
    let made = blocking(move || forming::make_token(&state, &standing.place, &identity, &wanted)).await?;
    Ok((StatusCode::CREATED, Json(made.map_err(Refusal::senseless)?)))
}

/// The secret of a token to join with. Who shows none has nothing else of the request looked at.
pub struct JoinSecret(String);

impl<S: Sync> FromRequestParts<S> for JoinSecret {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<JoinSecret, Refusal> {
        secret(&parts.headers).map(JoinSecret).ok_or_else(|| stranger(forming::unknown()))
    }
}

fn stranger(cause: Cause) -> Refusal {
    Refusal { status: StatusCode::UNAUTHORIZED, cause }
}

/// Let a host join
///
/// Asked by the host itself, with the secret of a token that was made for it. The same join again has the same answer.
#[utoipa::path(post, path = "/cluster/members", tag = "cluster", operation_id = "admit_host", request_body = api::JoinRequest, responses(
    (status = 200, description = "It is a host of the cluster", body = api::JoinAnswer),
    (status = "default", description = "Not done", body = api::Error),
))]
pub async fn admit(
    Shared(app): Shared<App>,
    JoinSecret(secret): JoinSecret,
    body: Body,
) -> Result<Json<api::JoinAnswer>, Refusal> {
    let now = OffsetDateTime::now_utc();
    let request: api::JoinRequest = body.parse()?;
    membership(&app.cluster)?;
    let (state, standing) = (app.host.state.clone(), app.cluster.clone());
    match blocking(move || forming::admit(&state, &standing.place, &request, &secret, now)).await? {
        Admitted::Yes(answer) => Ok(Json(*answer)),
        Admitted::Unknown(cause) => Err(stranger(cause)),
        Admitted::No(cause) => Err(Refusal { status: StatusCode::CONFLICT, cause }),
    }
}

/// Leave the cluster
///
/// Its part in the store goes to others first; then `marud` starts itself anew as a host that nothing was done on yet. `GET /cluster` says what
/// is waited for.
#[utoipa::path(post, path = "/cluster/leave", tag = "cluster", operation_id = "leave_cluster", responses(
    (status = 202, description = "It is about to leave"),
    (status = "default", description = "Not done", body = api::Error),
))]
pub async fn leave(Shared(app): Shared<App>) -> Result<StatusCode, Refusal> {
    let member = membership(&app.cluster)?;
    let (host, standing) = (member.identity.host.clone(), app.cluster.clone());
    let vms = app.host.state.run(|state| state.all::<VmRecord>()).await?;
    let runs = |vm: &uuid::Uuid| matches!(app.host.live(*vm).state, api::VmState::Running | api::VmState::Paused);
    if let Some(vm) = vms.iter().find(|vm| runs(&vm.record.id)) {
        let message = format!("the VM '{}' runs on this host", vm.record.name);
        return Err(Refusal::conflict("has-vms", message, "drain the host first, and wait until it has no VMs"));
    }
    let etcd = member.etcd.clone();
    let (state, name) = (app.host.state.clone(), host.clone());
    blocking(move || {
        may_leave(&state, &name)?;
        // Whoever regrets it has this.
        let own = state.read::<MemberRecord>(&name)?.filter(|own| own.record.state == MemberState::Voter);
        if let Some(own) = own
            && let Err(error) = backup::save(&etcd, &own.record.client_url, &backup::path(&standing.place.state))
        {
            let message = format!("the store cannot be backed up before this host leaves: {error}");
            return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "no-backup", message, "mend that, and try again"));
        }
        Ok(state.edit::<MemberRecord>(&name, |record| record.leaving = true, None)?)
    })
    .await?;
    member.follower.wake();
    Ok(StatusCode::ACCEPTED)
}

fn may_leave(state: &State, host: &str) -> Result<(), Refusal> {
    let hosts = state.named::<HostRecord>()?;
    if hosts.iter().all(|(name, _)| name == host) {
        let way_out = "let another host join first; or leave with `maru cluster leave --force`, and begin with nothing";
        return Err(Refusal::conflict("last-host", "this is the only host of the cluster", way_out));
    }
    if let Some(vm) = owned(state, host)? {
        let message = format!("the VM {vm} belongs to this host");
        return Err(Refusal::conflict("has-vms", message, "drain the host first, and wait until it has no VMs"));
    }
    let shared = placements::shared_volumes(state)?;
    let is_bound = |vm: &VmRecord| placements::volumes(vm).iter().any(|volume| !shared.contains(*volume));
    if let Some(vm) = state.vms_here()?.into_iter().find(|vm| is_bound(&vm.record)) {
        let message = format!("the VM '{}' has files that only this host reaches", vm.record.name);
        let way_out = "drain the host, or move the VM (maru vm move); if nobody needs it, delete it";
        return Err(Refusal::conflict("has-vms", message, way_out));
    }
    let drained = hosts.iter().any(|(name, stored)| name == host && stored.record.wanted == HostWanted::Drained);
    if !drained {
        return Err(Refusal::conflict("not-drained", "this host may still get VMs", "drain it first: `maru host drain`"));
    }
    Ok(())
}

/// A VM that belongs to a host.
fn owned(state: &State, host: &str) -> Result<Option<String>, StateError> {
    let owners = state.named::<OwnerRecord>()?;
    let is_its = |owner: &OwnerRecord| owner.holder.as_ref().is_some_and(|holder| holder.host.as_str() == host);
    Ok(owners.into_iter().find(|(_, owner)| is_its(&owner.record)).map(|(vm, _)| vm))
}

/// Remove a host from the cluster
///
/// For one that is dead and does not come back. Its lease must have ended, and no VM may belong to it.
#[utoipa::path(delete, path = "/cluster/hosts/{host}", tag = "cluster", operation_id = "remove_host",
    params(("host" = String, Path, description = "Its name")), responses(
    (status = 204, description = "The cluster knows it no more"),
    (status = "default", description = "Not done", body = api::Error),
))]
pub async fn remove(Shared(app): Shared<App>, Name(host): Name) -> Result<StatusCode, Refusal> {
    let member = membership(&app.cluster)?;
    if host == member.identity.host {
        let way_out = "let it leave with `maru cluster leave`, or ask another host to remove it";
        return Err(Refusal::conflict("own-host", "a host does not remove itself", way_out));
    }
    let state = app.host.state.clone();
    blocking(move || take_out(&state, &host)).await?;
    member.follower.wake();
    Ok(StatusCode::NO_CONTENT)
}

fn take_out(state: &State, host: &str) -> Result<(), Refusal> {
    let missing = || Refusal::not_found(format_args!("host '{host}'"), "look at `maru cluster status`");
    vmm::config::check_id(host).map_err(|_| missing())?;
    state.read::<MemberRecord>(host)?.ok_or_else(missing)?;
    if let Some(vm) = owned(state, host)? {
        let message = format!("the VM {vm} belongs to it, and might run there");
        return Err(Refusal::conflict("has-vms", message, "make sure that it is off, and say so: `maru host confirm-dead`"));
    }
    let text = format!("the host {host} was removed from the cluster");
    let transaction = forming::forgotten(host).absent(alive_key(&HostId::from(host)));
    match state.commit(&transaction.tell(&EventRecord::now(EventKind::HostLeft, text)))? {
        Outcome::Committed(_) => Ok(()),
        Outcome::Conflict { .. } => {
            let message = format!("the host '{host}' is there: its lease lives");
            Err(Refusal::conflict(
                "host-alive",
                message,
                "let it leave with `maru cluster leave`; a dead one's lease ends within seconds",
            ))
        }
    }
}

/// Have all hosts make new certificates
///
/// The answer's number is in `GET /cluster` with each host that has done it. Hosts that are off do so when they are back.
#[utoipa::path(post, path = "/cluster/certificates/rotate", tag = "cluster", operation_id = "rotate_certificates", responses(
    (status = 200, description = "They do", body = api::Certificates),
    (status = "default", description = "Not done", body = api::Error),
))]
pub async fn rotate(Shared(app): Shared<App>) -> Result<Json<api::Certificates>, Refusal> {
    let member = membership(&app.cluster)?;
    let next = app.host.state.run(|state| {
        loop {
            let found = state.read::<CertificatesRecord>(CERTIFICATES)?;
            let next = CertificatesRecord { generation: found.as_ref().map_or(0, |found| found.record.generation) + 1 };
            let transaction = match &found {
                Some(found) => Transaction::new().if_still(CERTIFICATES, found),
                None => Transaction::new().if_none::<CertificatesRecord>(CERTIFICATES),
            };
            if let Outcome::Committed(_) = state.commit(&transaction.write(CERTIFICATES, &next))? {
                return Ok(next.generation);
            }
        }
    });
    let generation = next.await?;
    member.follower.wake();
    Ok(Json(api::Certificates { generation }))
}
