//! Hosts and VMs of a cluster: who runs where, who is to, and why.

use std::sync::Arc;

use api::FailbackWindow;
use axum::Json;
use axum::extract::State as Shared;
use axum::http::StatusCode;
use cluster::placement::Fate;
use cluster::records::{
    Affinity, Failback, GroupRule, HostRecord, POLICY_KEY, PlacementRecord, PolicyRecord, Priority, RestartPolicy, Scope,
    Strength,
};
use cluster::requests::{self, RequestError};
use cluster::view::Standing;
use cluster::{HostId, Node, VmId};
use serde::Deserialize;
use store::record::{Record, to_bytes};
use store::{MAX_OPERATIONS, Outcome, Transaction};
use utoipa::IntoParams;

use super::extract::{Body, Name, Params};
use super::{App, Refusal, vms};
use crate::cluster::Runtime;
use crate::records::{Cause, VmRecord};
use crate::state::State;

/// VMs whose owners are changed in one transaction.
const BATCH: usize = MAX_OPERATIONS - 2;
/// Between a look at what there is and its change, someone else may have been faster: that often it is tried.
const TRIES: usize = 8;

fn runtime(app: &App) -> Result<Arc<Runtime>, Refusal> {
    app.runtime.clone().ok_or_else(|| {
        let way_out = "make it one with `maru cluster create`, or join one with `maru cluster join`";
        Refusal::conflict("no-cluster", "this host is in no cluster", way_out)
    })
}

/// Asks the node of this host something.
async fn ask<T: Send + 'static>(app: &App, question: impl FnOnce(&Node) -> T + Send + 'static) -> Result<T, Refusal> {
    let runtime = runtime(app)?;
    let answer = tokio::task::spawn_blocking(move || runtime.ask(question)).await;
    answer.ok().flatten().ok_or_else(|| crate::state::StateError::Ending.into())
}

fn refused(error: &RequestError) -> Refusal {
    let (status, code, way_out) = match error {
        RequestError::NoHost(_) => (StatusCode::NOT_FOUND, "not-found", "list those that there are with `maru host list`"),
        RequestError::NoVm(_) => (StatusCode::NOT_FOUND, "not-found", "list those that there are with `maru vm list`"),
        RequestError::Alive(_) => (StatusCode::CONFLICT, "host-alive", "do what it says"),
        RequestError::NotRunning(_) => (StatusCode::CONFLICT, "vm-off", "start it"),
        RequestError::OutOfTouch(..) => (StatusCode::SERVICE_UNAVAILABLE, "host-silent", "do what it says"),
        RequestError::NotReady(_) => (StatusCode::CONFLICT, "host-not-ready", "resume it, or choose another host"),
    };
    Refusal::new(status, code, error.to_string(), way_out)
}

/// Does what the node's view makes of a request; again when something has changed in between.
async fn change(
    app: &App,
    request: impl Fn(&Node) -> Result<Vec<Transaction>, RequestError> + Clone + Send + 'static,
) -> Result<(), Refusal> {
    for _ in 0..TRIES {
        let request = request.clone();
        let transactions = ask(app, move |node| request(node)).await?.map_err(|error| refused(&error))?;
        let commit = move |state: &State| {
            for transaction in &transactions {
                if let Outcome::Conflict { .. } = state.commit(transaction)? {
                    return Ok(false);
                }
            }
            Ok(true)
        };
        if app.host.state.run(commit).await? {
            return Ok(());
        }
    }
    Err(Refusal::conflict("changed", "it is changed by others all the time", "try again"))
}

macro_rules! host_operation {
    ($(#[$about:meta])* $name:ident, $path:literal, $id:literal, $request:expr) => {
        $(#[$about])*
        #[utoipa::path(post, path = $path, tag = "hosts", operation_id = $id,
            params(("host" = String, Path, description = "Its name")), responses(
            (status = 204, description = "It is wanted; events tell what comes of it"),
            (status = "default", description = "Not done", body = api::Error),
        ))]
        pub async fn $name(Shared(app): Shared<App>, Name(name): Name) -> Result<StatusCode, Refusal> {
            let host = HostId::from(name);
            let request: fn(&Node, &HostId) -> Result<Vec<Transaction>, RequestError> = $request;
            change(&app, move |node| request(node, &host)).await?;
            Ok(StatusCode::NO_CONTENT)
        }
    };
}

/// Why a host is drained.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct DrainParams {
    /// Whether it is about to be switched off, which it says itself: it takes VMs again by itself when it is back.
    #[serde(default)]
    for_shutdown: bool,
}

/// Drain a host
///
/// Its VMs go to other hosts, and it takes none until it is resumed. A host that is about to be switched off saves those that no other host
/// takes, or shuts them down.
#[utoipa::path(post, path = "/hosts/{host}/drain", tag = "hosts", operation_id = "drain_host",
    params(("host" = String, Path, description = "Its name"), DrainParams), responses(
    (status = 204, description = "It is wanted; events tell what comes of it"),
    (status = "default", description = "Not done", body = api::Error),
))]
pub async fn drain(
    Shared(app): Shared<App>,
    Name(name): Name,
    Params(params): Params<DrainParams>,
) -> Result<StatusCode, Refusal> {
    let host = HostId::from(name);
    if !params.for_shutdown {
        change(&app, move |node| requests::drain(node.view(), &host).map(|one| vec![one])).await?;
        return Ok(StatusCode::NO_CONTENT);
    }
    let runtime = runtime(&app)?;
    if app.host.state.own_host() != Some(host.as_str()) {
        let message = format!("{host} is not the host that was asked");
        return Err(Refusal::conflict("not-own-host", message, "ask the host itself that is to be switched off"));
    }
    let Some(boot_id) = runtime.boot_id() else {
        let message = "it is not known which start of this host this is, so that it could not be told later that it is back";
        return Err(Refusal::conflict("no-boot-id", message, "drain it, and resume it when it is back"));
    };
    change(&app, move |node| requests::go_down(node.view(), &host, &boot_id).map(|one| vec![one])).await?;
    Ok(StatusCode::NO_CONTENT)
}

host_operation!(
    /// Let a drained host take VMs again
    ///
    /// Those that had left it come back.
    resume, "/hosts/{host}/resume", "resume_host", |node, host| requests::resume(node.view(), host).map(|one| vec![one])
);
host_operation!(
    /// Confirm that a host is dead
    ///
    /// For a host without a watchdog whose lease has ended: its VMs are started on other hosts. If it does run some, these run twice, and their disks
    /// are destroyed: make sure that it has no power.
    confirm_dead, "/hosts/{host}/confirm-dead", "confirm_host_dead",
    |node, host| requests::confirm_dead(node.view(), host, BATCH)
);

fn vm_named(state: &State, name: &str) -> Result<VmRecord, Refusal> {
    vms::find(state, name).map(|stored| stored.record)
}

/// Explain where a VM runs
///
/// What speaks for and against each host.
#[utoipa::path(get, path = "/vms/{vm}/explain", tag = "vms", operation_id = "explain_vm",
    params(("vm" = String, Path, description = "Its name or id")), responses(
    (status = 200, description = "The reasons", body = api::Explanation),
    (status = "default", description = "Not done", body = api::Error),
))]
pub async fn explain(Shared(app): Shared<App>, Name(name): Name) -> Result<Json<api::Explanation>, Refusal> {
    runtime(&app)?;
    let vm = app.host.state.run(move |state| Ok(vm_named(state, &name))).await??;
    let id = VmId::from(vm.id.to_string());
    let told = ask(&app, move |node| {
        let (view, unix_s) = (node.view(), node.unix_s());
        let verdicts = view.explain(&id, unix_s);
        let hosts = verdicts.into_iter().map(|verdict| api::HostVerdict {
            host: verdict.host.to_string(),
            score: verdict.score,
            reasons: verdict.reasons.iter().map(ToString::to_string).collect(),
        });
        let (host, standing) = match view.standing(&id) {
            Standing::Off | Standing::Leftover => (None, "it is off".to_owned()),
            Standing::Homeless => (None, format!("it waits for a host: {}", view.why(&id, unix_s))),
            Standing::GaveUp => {
                let reason = view.vm(&id).and_then(|vm| vm.owner.as_ref()).and_then(|owner| owner.record.gave_up.clone());
                let reason = reason.unwrap_or_default();
                (None, format!("it is not started again by itself: {reason}; start it to try anew"))
            }
            Standing::Held(host) => (Some(host.to_string()), format!("it runs on {host}, or is started there")),
            Standing::Unreadable => (None, "a record of it cannot be read by this version".to_owned()),
            Standing::OutOfTouch(host) => {
                let why = view.why(&id, unix_s);
                (Some(host.to_string()), format!("it {why}"))
            }
            Standing::Unconfirmed(host) => (
                Some(host.to_string()),
                format!(
                    "its host {host} is not there, and has no watchdog: `maru host confirm-dead {host}` when it is certain that it runs nothing"
                ),
            ),
        };
        (host, standing, hosts.collect::<Vec<_>>())
    });
    let (host, standing, hosts) = told.await?;
    Ok(Json(api::Explanation { vm: vm.name, host, standing, hosts }))
}

/// Which hosts would fail.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct WhatIfParams {
    /// Their names, with commas between them.
    host_down: String,
}

/// Tell what would happen if hosts failed
#[utoipa::path(get, path = "/cluster/what-if", tag = "cluster", operation_id = "what_if", params(WhatIfParams), responses(
    (status = 200, description = "What would become of their VMs", body = api::WhatIf),
    (status = "default", description = "Not done", body = api::Error),
))]
pub async fn what_if(Shared(app): Shared<App>, Params(params): Params<WhatIfParams>) -> Result<Json<api::WhatIf>, Refusal> {
    let down: Vec<HostId> = params.host_down.split(',').filter(|name| !name.is_empty()).map(HostId::from).collect();
    let asked = down.clone();
    let outlook = ask(&app, move |node| {
        let missing = asked.iter().find(|host| node.view().host(host).is_none_or(|host| host.record.is_none()));
        missing.map_or_else(|| Ok(node.view().what_if(&asked)), |host| Err(RequestError::NoHost(host.clone())))
    });
    let outlook = outlook.await?.map_err(|error| refused(&error))?;
    let names = app.host.state.run(|state| state.all::<VmRecord>()).await?;
    let name = |id: &VmId| {
        let found = names.iter().find(|vm| vm.record.id.to_string() == id.as_str());
        found.map_or_else(|| id.to_string(), |vm| vm.record.name.clone())
    };
    let told = outlook.fates.iter().map(|(vm, fate)| match fate {
        Fate::Goes(host) => api::VmFate { vm: name(vm), goes_to: Some(host.to_string()), waits: None },
        Fate::Waits(reason) => api::VmFate { vm: name(vm), goes_to: None, waits: Some(reason.clone()) },
    });
    Ok(Json(api::WhatIf { down: down.iter().map(ToString::to_string).collect(), vms: told.collect() }))
}

/// Move a VM to another host
///
/// Its memory is saved, and restored there: it stands still meanwhile. Files that no other host than its own reaches are copied before, which a task
/// `copy` of the VM does; with such files, it may be off, too.
#[utoipa::path(post, path = "/vms/{vm}/move", tag = "vms", operation_id = "move_vm", request_body = api::MoveVm,
    params(("vm" = String, Path, description = "Its name or id")), responses(
    (status = 204, description = "It is wanted; events tell what comes of it"),
    (status = "default", description = "Not done", body = api::Error),
))]
pub async fn move_vm(Shared(app): Shared<App>, Name(name): Name, body: Body) -> Result<StatusCode, Refusal> {
    runtime(&app)?;
    let wanted: api::MoveVm = body.parse()?;
    let vm = app.host.state.run(move |state| Ok(vm_named(state, &name))).await??;
    let (id, to, volume) = (VmId::from(vm.id.to_string()), HostId::from(wanted.to), wanted.volume);
    let judged = (id.clone(), to.clone(), volume.clone());
    let against = ask(&app, move |node| {
        let verdicts = node.view().explain_move(&judged.0, node.unix_s(), judged.2.as_deref());
        let verdict = verdicts.into_iter().find(|verdict| verdict.host == judged.1 && verdict.score.is_none())?;
        Some(verdict.reasons.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
    });
    if let Some(reasons) = against.await? {
        let message = format!("{to} cannot take '{}': {reasons}", vm.name);
        return Err(Refusal::conflict("host-not-ready", message, "mend what it says, or choose another host"));
    }
    change(&app, move |node| requests::move_vm(node.view(), &id, &to, volume.as_deref()).map(|one| vec![one])).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn told(record: &PlacementRecord) -> api::Placement {
    api::Placement {
        priority: match record.priority {
            Priority::Low => api::Priority::Low,
            Priority::Medium => api::Priority::Medium,
            Priority::High => api::Priority::High,
        },
        preferred: record.preferred.iter().map(ToString::to_string).collect(),
        possible: record.possible.iter().map(ToString::to_string).collect(),
        groups: record.groups.iter().map(told_rule).collect(),
        restart_limit: record.restart.limit,
        restart_period_seconds: record.restart.period_s,
        failback: match record.failback {
            Failback::Never => api::Failback::Never,
            Failback::Immediate => api::Failback::Immediate,
            Failback::Window { from_minute, to_minute } => api::Failback::Window(FailbackWindow { from_minute, to_minute }),
        },
    }
}

fn told_rule(rule: &GroupRule) -> api::GroupRule {
    api::GroupRule {
        group: rule.group.clone(),
        affinity: match rule.affinity {
            Affinity::Together => api::Affinity::Together,
            Affinity::Apart => api::Affinity::Apart,
        },
        scope: match rule.scope {
            Scope::Host => api::Scope::Host,
            Scope::FaultDomain => api::Scope::FaultDomain,
        },
        hard: rule.strength == Strength::Hard,
    }
}

fn take_up(record: &mut PlacementRecord, wanted: &api::Placement) {
    record.priority = match wanted.priority {
        api::Priority::Low => Priority::Low,
        api::Priority::Medium => Priority::Medium,
        api::Priority::High => Priority::High,
    };
    let hosts = |names: &[String]| names.iter().map(|name| HostId::from(name.as_str())).collect();
    (record.preferred, record.possible) = (hosts(&wanted.preferred), hosts(&wanted.possible));
    let rules = wanted.groups.iter().map(|rule| GroupRule {
        group: rule.group.clone(),
        affinity: match rule.affinity {
            api::Affinity::Together => Affinity::Together,
            api::Affinity::Apart => Affinity::Apart,
        },
        scope: match rule.scope {
            api::Scope::Host => Scope::Host,
            api::Scope::FaultDomain => Scope::FaultDomain,
        },
        strength: if rule.hard { Strength::Hard } else { Strength::Soft },
    });
    record.groups = rules.collect();
    record.restart = RestartPolicy { limit: wanted.restart_limit, period_s: wanted.restart_period_seconds };
    record.failback = match wanted.failback {
        api::Failback::Never => Failback::Never,
        api::Failback::Immediate => Failback::Immediate,
        api::Failback::Window(FailbackWindow { from_minute, to_minute }) => Failback::Window { from_minute, to_minute },
    };
}

/// Refuses what makes no sense. `known` are the cluster's hosts.
fn check(wanted: &api::Placement, known: &[String]) -> Result<(), Cause> {
    let bad = |message: String, way_out: &str| Err(Cause::new("bad-placement", message, way_out));
    if let Some(host) = wanted.preferred.iter().chain(&wanted.possible).find(|host| !known.contains(host)) {
        return bad(format!("there is no host '{host}'"), &format!("there are: {}", known.join(", ")));
    }
    if wanted.preferred.len() > 64 || wanted.possible.len() > 64 || wanted.groups.len() > 32 {
        return bad("there are too many hosts or groups".into(), "name 64 hosts and 32 groups at most");
    }
    if let Some(rule) = wanted.groups.iter().find(|rule| !(1..=64).contains(&rule.group.len())) {
        return bad(format!("'{}' cannot be a group's name", rule.group), "use 1 to 64 characters");
    }
    if wanted.restart_limit > 100 || !(1..=31_536_000).contains(&wanted.restart_period_seconds) {
        return bad("restarts are counted up to 100, in 1 s to a year".into(), "give less");
    }
    if let api::Failback::Window(FailbackWindow { from_minute, to_minute }) = wanted.failback
        && (from_minute >= 1440 || to_minute >= 1440)
    {
        return bad("a day has the minutes 0 to 1439".into(), "give a time of the day in UTC");
    }
    Ok(())
}

/// Show what is wanted of the place of a VM
#[utoipa::path(get, path = "/vms/{vm}/placement", tag = "vms", operation_id = "show_placement",
    params(("vm" = String, Path, description = "Its name or id")), responses(
    (status = 200, description = "What is wanted", body = api::Placement),
    (status = "default", description = "Not done", body = api::Error),
))]
pub async fn show(Shared(app): Shared<App>, Name(name): Name) -> Result<Json<api::Placement>, Refusal> {
    runtime(&app)?;
    let read = app.host.state.run(move |state| {
        Ok(vm_named(state, &name)
            .and_then(|vm| Ok(state.read::<PlacementRecord>(&vm.id.to_string())?.map(|stored| told(&stored.record)))))
    });
    Ok(Json(read.await??.unwrap_or_default()))
}

/// Change what is wanted of the place of a VM
///
/// A merge patch (RFC 7396). It counts when the VM is started the next time, and for where it goes when its host fails.
#[utoipa::path(patch, path = "/vms/{vm}/placement", tag = "vms", operation_id = "change_placement", request_body = api::Placement,
    params(("vm" = String, Path, description = "Its name or id")), responses(
    (status = 200, description = "What is wanted now", body = api::Placement),
    (status = "default", description = "Not done", body = api::Error),
))]
pub async fn change_placement(Shared(app): Shared<App>, Name(name): Name, body: Body) -> Result<Json<api::Placement>, Refusal> {
    runtime(&app)?;
    let patch: serde_json::Value = body.parse()?;
    Ok(Json(app.host.state.run(move |state| Ok(edit(state, &name, &patch))).await??))
}

fn edit(state: &State, name: &str, patch: &serde_json::Value) -> Result<api::Placement, Refusal> {
    let known = state.names::<HostRecord>()?;
    loop {
        let id = vm_named(state, name)?.id.to_string();
        let stored = state.read::<PlacementRecord>(&id)?;
        let mut record = stored.as_ref().map(|stored| stored.record.clone()).unwrap_or_default();
        let mut json = serde_json::to_value(told(&record)).unwrap_or_default();
        crate::vm::resources::merge(&mut json, patch);
        let wanted: api::Placement = serde_json::from_value(json).map_err(|error| {
            let way_out = "see /api/v1/openapi.json for its form";
            Refusal::senseless(Cause::new("bad-placement", format!("the placement cannot be understood: {error}"), way_out))
        })?;
        check(&wanted, &known).map_err(Refusal::senseless)?;
        take_up(&mut record, &wanted);
        let key = PlacementRecord::key(&id);
        let transaction = match &stored {
            Some(stored) => Transaction::new().unchanged(key.clone(), stored.revision),
            None => Transaction::new().absent(key.clone()),
        };
        if let Outcome::Committed(_) = state.commit(&transaction.put(key, to_bytes(&record)))? {
            return Ok(wanted);
        }
    }
}

/// Show what holds for the cluster
#[utoipa::path(get, path = "/cluster/policy", tag = "cluster", operation_id = "show_cluster_policy", responses(
    (status = 200, description = "The policy", body = api::ClusterPolicy),
    (status = "default", description = "Not done", body = api::Error),
))]
pub async fn policy(Shared(app): Shared<App>) -> Result<Json<api::ClusterPolicy>, Refusal> {
    let survive_failures = ask(&app, |node| node.view().survive_failures()).await?;
    Ok(Json(api::ClusterPolicy { survive_failures }))
}

/// Change what holds for the cluster
#[utoipa::path(put, path = "/cluster/policy", tag = "cluster", operation_id = "change_cluster_policy", request_body = api::ClusterPolicy,
    responses(
    (status = 200, description = "The policy", body = api::ClusterPolicy),
    (status = "default", description = "Not done", body = api::Error),
))]
pub async fn change_policy(Shared(app): Shared<App>, body: Body) -> Result<Json<api::ClusterPolicy>, Refusal> {
    runtime(&app)?;
    let wanted: api::ClusterPolicy = body.parse()?;
    if wanted.survive_failures > 64 {
        let message = format!("{} hosts that may fail", wanted.survive_failures);
        return Err(Refusal::senseless(Cause::new("bad-policy", message, "give 64 at most")));
    }
    let record = to_bytes(&PolicyRecord { survive_failures: wanted.survive_failures });
    app.host.state.run(move |state| state.commit(&Transaction::new().put(POLICY_KEY, record.clone()))).await?;
    Ok(Json(wanted))
}
