//! Any host of a cluster answers: a request about a VM that another host looks after goes on to that one, and its answer comes back.
//!
//! ```text
//!   client ──▶ this host: who looks after the VM? ──▶ this one: answers
//!                                                  ├─▶ another one that lives: asks it, with the client's own token
//!                                                  │      └─▶ it is silent: whoever only looks is told what is stored
//!                                                  └─▶ one that is not there: what can be answered without it is
//! ```

use std::net::SocketAddr;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State as Shared};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use cluster::records::AliveRecord;
use hyper_util::rt::TokioIo;
use store::{Outcome, Transaction};
use tokio::time::sleep;

use super::{App, Refusal, vms};
use crate::cluster::placements;
use crate::peers::{self, Peers};
use crate::records::{EventKind, EventRecord, Power, TaskRecord, TaskStateRecord, VmRecord};
use crate::state::{Records, State, StateError};

/// Names the host that has passed a request on: it is not passed on twice.
const FORWARDED: HeaderName = HeaderName::from_static("maru-forwarded-by");
/// How often it is looked whether a host that was asked still lives.
const LOOK: Duration = Duration::from_secs(1);

/// Where a VM is looked after.
enum Place {
    Here,
    At { host: String, address: SocketAddr },
    Lost { host: String },
}

/// Sends a request on to the host that looks after its VM, if that is another one.
pub async fn forward(Shared(app): Shared<App>, request: Request, next: Next) -> Response {
    let Some((peers, name)) = app.peers.clone().zip(vm_of(request.uri())) else { return next.run(request).await };
    let place = app.host.state.run(move |state| Ok(find(state, &name))).await;
    match place {
        // There is no such VM, or the store cannot be read: whoever answers says so.
        Err(_) | Ok(Err(_)) | Ok(Ok((Place::Here, _))) => next.run(request).await,
        Ok(Ok((Place::At { host, .. }, _))) if request.headers().contains_key(FORWARDED) => {
            let message = format!("the VM has just gone to the host {host}");
            Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "moved", message, "try again").into_response()
        }
        Ok(Ok((Place::At { host, address }, _))) => {
            let own = app.host.state.own_host().unwrap_or_default().to_owned();
            let (parts, body) = request.into_parts();
            let look = only_looks(&parts.method, &parts.uri).then(|| Request::from_parts(parts.clone(), Body::empty()));
            let refusal = tokio::select! {
                answer = send(&peers, address, Request::from_parts(parts, body), &own) => match answer {
                    Ok(answer) => return answer,
                    Err(error) => {
                        let error = vmm::error_chain(&*error);
                        let message = format!("the host {host}, which looks after the VM, cannot be asked: {error}");
                        let way_out = "try again: if it is not there any more, that is known in some seconds";
                        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "host-silent", message, way_out)
                    }
                },
                () = lost(&app, host.clone()) => {
                    let message = format!("the host {host}, which looks after the VM, is not there any more");
                    let way_out = "look what has become of it: what was asked for may be done";
                    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "host-lost", message, way_out)
                }
            };
            match look {
                Some(look) => next.run(look).await,
                None => refusal.into_response(),
            }
        }
        Ok(Ok((Place::Lost { host }, vm))) => without(app, &host, vm, request, next).await,
    }
}

/// Whether what is stored of a VM answers a request, too, if its host does not.
fn only_looks(method: &Method, uri: &Uri) -> bool {
    matches!(*method, Method::GET | Method::HEAD) && !uri.path().contains("/console")
}

/// The VM that a request is about.
fn vm_of(uri: &Uri) -> Option<String> {
    let rest = uri.path().strip_prefix(api::BASE).unwrap_or(uri.path()).strip_prefix("/vms/")?;
    let name = rest.split('/').next().filter(|name| !name.is_empty() && *name != "import")?;
    // Names of VMs need no escapes.
    (!name.contains('%')).then(|| name.to_owned())
}

fn find(state: &State, name: &str) -> Result<(Place, VmRecord), Refusal> {
    let vm = vms::find(state, name)?.record;
    let Some(host) = vm.host.clone().filter(|_| !state.is_here(&vm)) else { return Ok((Place::Here, vm)) };
    if state.read::<AliveRecord>(&host)?.is_none() {
        return Ok((Place::Lost { host }, vm));
    }
    let address = peers::address(state, &host)?;
    Ok((address.map_or_else(|| Place::Lost { host: host.clone() }, |address| Place::At { host: host.clone(), address }), vm))
}

/// Returns when a host's lease has ended.
async fn lost(app: &App, host: String) {
    loop {
        sleep(LOOK).await;
        let host = host.clone();
        if let Ok(None) = app.host.state.run(move |state| state.read::<AliveRecord>(&host)).await {
            return;
        }
    }
}

/// Sends a request to another host, and gives its answer.
async fn send(
    peers: &Peers,
    address: SocketAddr,
    mut request: Request,
    own: &str,
) -> Result<Response, Box<dyn std::error::Error + Send + Sync>> {
    let mut sender = peers.connect(address).await?;
    // Only what is behind the host's name goes into a request to a server.
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str()).to_owned();
    *request.uri_mut() = if path.starts_with(api::BASE) { path } else { format!("{}{path}", api::BASE) }.parse()?;
    request.headers_mut().insert(FORWARDED, HeaderValue::from_str(own)?);
    let upgrades = request.headers().contains_key(header::UPGRADE);
    let ours = upgrades.then(|| hyper::upgrade::on(&mut request));
    let mut answer = sender.send_request(request).await?;
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS
        && let Some(ours) = ours
    {
        let theirs = hyper::upgrade::on(&mut answer);
        tokio::spawn(async move {
            let (Ok(ours), Ok(theirs)) = (ours.await, theirs.await) else { return };
            // Either side ends it.
            let _ = tokio::io::copy_bidirectional(&mut TokioIo::new(ours), &mut TokioIo::new(theirs)).await;
        });
    }
    Ok(answer.map(Body::new))
}

/// What can be done with a VM whose host is not there.
async fn without(app: App, host: &str, vm: VmRecord, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let is_wanted_on = app.host.state.run({
        let id = vm.id;
        move |state| placements::is_wanted_on(state, id)
    });
    let is_wanted_on = match is_wanted_on.await {
        Ok(is_wanted_on) => is_wanted_on,
        Err(error) => return Refusal::from(error).into_response(),
    };
    match *request.method() {
        _ if only_looks(request.method(), request.uri()) => return next.run(request).await,
        Method::POST if path.ends_with("/start") => return next.run(request).await,
        Method::POST if path.ends_with("/stop") && is_wanted_on => {
            let by = request.extensions().get::<super::guard::Caller>().map(|caller| caller.name.clone()).unwrap_or_default();
            let host = host.to_owned();
            let stopped = app.host.state.run(move |state| call_off(state, &vm, &host, by)).await;
            return stopped.map_or_else(
                |error| Refusal::from(error).into_response(),
                |task| axum::Json(api::Task::from(&task)).into_response(),
            );
        }
        _ if !is_wanted_on => {
            let before = host.to_owned();
            let adopted = app.host.state.run(move |state| adopt(state, &vm, &before)).await;
            match adopted {
                Ok(true) => return next.run(request).await,
                Ok(false) => {}
                Err(error) => return Refusal::from(error).into_response(),
            }
        }
        _ => {}
    }
    let message = format!("the host {host}, which looks after the VM, is not there");
    let way_out = match is_wanted_on {
        true => "wait until the VM runs on another host; `maru vm explain` says what it waits for",
        false => "ask a host that reaches the VM's volumes, or bring that host back",
    };
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "host-lost", message, way_out).into_response()
}

/// A VM whose host is lost is not to run any more: there is nothing to be ended.
fn call_off(state: &State, vm: &VmRecord, host: &str, by: String) -> Result<TaskRecord, StateError> {
    let name = vm.id.to_string();
    loop {
        let Some(stored) = state.read::<VmRecord>(&name)? else { return Err(StateError::Gone(format!("the VM {name}"))) };
        let mut task = TaskRecord::new(vm.id, vm.name.clone(), crate::records::OperationRecord::ForceOff, by.clone());
        task.note(format!("the host {host} is not there: the VM is not started on another one"));
        task.end(TaskStateRecord::Done, None);
        let record = VmRecord { power: Power::Off, ..stored.record.clone() };
        let event = EventRecord::now(EventKind::VmStopped, "it is not started again").of(&task);
        let mut transaction = Transaction::new().if_still(&name, &stored).write(&name, &record).tell(&event);
        transaction = transaction.write(&task.id.to_string(), &task);
        for mut waiting in state.unfinished_tasks(vm.id)? {
            waiting.note("cancelled: the VM is not to run any more");
            waiting.end(TaskStateRecord::Cancelled, None);
            transaction = transaction.write(&waiting.id.to_string(), &waiting);
        }
        transaction = placements::want(state, vm.id, cluster::records::Power::Off, transaction)?;
        if let Outcome::Committed(_) = state.commit(&transaction)? {
            return Ok(task);
        }
    }
}

/// This host looks after a VM that is off and whose host is lost, if it reaches its files.
fn adopt(state: &State, vm: &VmRecord, before: &str) -> Result<bool, StateError> {
    let Some(own) = state.own_host() else { return Ok(false) };
    let name = vm.id.to_string();
    let shared = placements::shared_volumes(state)?;
    let Some(stored) = state.read::<VmRecord>(&name)?.filter(|stored| stored.record.host.as_deref() == Some(before)) else {
        return Ok(false);
    };
    if !placements::volumes(&stored.record).iter().all(|volume| shared.contains(*volume)) {
        return Ok(false);
    }
    let record = VmRecord { host: Some(own.into()), power: Power::Off, ..stored.record.clone() };
    let transaction = Transaction::new().if_still(&name, &stored).if_none::<AliveRecord>(before);
    let transaction = transaction.if_none::<cluster::records::OwnerRecord>(&name).write(&name, &record);
    Ok(matches!(state.commit(&transaction)?, Outcome::Committed(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_about_the_vm_in_its_address() {
        let vm = |text: &str| vm_of(&text.parse().unwrap());
        assert_eq!(vm("/api/v1/vms/web").as_deref(), Some("web"));
        assert_eq!(vm("/vms/web/console?x=1").as_deref(), Some("web"));
        for other in ["/api/v1/vms", "/api/v1/vms/", "/vms/import", "/tasks/web", "/vms/%2e%2e/x"] {
            assert_eq!(vm(other), None, "{other}");
        }
    }
}
