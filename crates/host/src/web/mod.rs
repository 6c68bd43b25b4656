//! The REST API: requests to the store's records and back.
//!
//! | status | when |
//! |---|---|
//! | 101 | a WebSocket |
//! | 200 | here it is; a task that was waited for has ended, one way or the other |
//! | 201 | made; `Location` says where |
//! | 202 | a task does it; `Location` says which |
//! | 204 | done, and there is nothing to say |
//! | 400 | the request is malformed |
//! | 401, 403 | no token, or one that is not known; its role does not suffice |
//! | 404, 405 | there is no such thing; there is, but not this method |
//! | 408 | the body took too long |
//! | 409 | not in this state, or the name is taken: the same request may be right later |
//! | 410 | the events asked for were forgotten |
//! | 412 | it is not what `If-Match` says any more |
//! | 413, 415 | the body is too long, or is not JSON |
//! | 422 | the request is well-formed and makes no sense: it will never be right |
//! | 429 | too many tasks wait for this VM, or too many look at ports |
//! | 503 | the store, or the virtual switch, cannot be used now |
//!
//! Each answer from 400 on has an [`api::Error`] as its body.

mod checkpoints;
mod clone;
mod cluster;
mod console;
mod copies;
mod document;
mod edit;
mod error;
mod events;
mod extract;
mod fields;
mod forward;
mod guard;
mod host;
mod images;
mod metrics;
mod once;
mod placement;
mod ports;
mod requests;
mod resources;
mod server;
mod suggest;
mod switches;
mod tasks;
mod tokens;
mod transfer;
mod upload;
mod usage;
mod vms;
mod volumes;
mod watching;

use document::Common;
pub use error::Refusal;
pub use guard::Peer;
pub use host::{host_name, memory};
pub use server::serve;

use std::sync::{Arc, LazyLock};

use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::routing::{delete, get, post, put};
use axum::{Extension, Router, middleware};
use utoipa::OpenApi;

use crate::audit::Audit;
use crate::cluster::Runtime;
use crate::cluster::standing::Standing;
use crate::host::Host;
use crate::peers::Peers;

/// The longest body of a request in bytes.
const MAX_BODY: usize = 256 * 1024;
/// The longest that is read to its end before it is refused: who is in the middle of sending does not hear an answer.
const MAX_READ: usize = 1024 * 1024;
/// The longest part of a list.
const MAX_ITEMS: usize = 1000;

/// What requests are answered from.
#[derive(Clone)]
pub struct App {
    /// The host.
    pub host: Arc<Host>,
    /// Where requests are noted.
    pub audit: Arc<Audit>,
    /// What the certificate is for.
    pub names: Arc<[String]>,
    /// The cluster's decisions, if this host is in one.
    pub runtime: Option<Arc<Runtime>>,
    /// How other hosts of the cluster are reached.
    pub peers: Option<Peers>,
    /// How this host stands to clusters.
    pub cluster: Arc<Standing>,
}

/// All routes.
pub fn router(app: App) -> Router {
    let requests = Arc::new(requests::Requests::default());
    let guarded = |router: Router<App>| {
        router
            .layer(middleware::from_fn(fields::pick))
            .layer(DefaultBodyLimit::max(MAX_READ))
            .layer(middleware::from_fn_with_state(app.clone(), forward::forward))
            .layer(middleware::from_fn_with_state(app.clone(), guard::guard))
            .layer(middleware::from_fn_with_state(requests.clone(), requests::count))
            .layer(Extension(requests.clone()))
            .with_state(app.clone())
    };
    let v1 = Router::new()
        .route("/host", get(host::show))
        .route("/volumes", get(volumes::list).post(volumes::create))
        .route("/volumes/{volume}", get(volumes::show).patch(volumes::change).delete(volumes::delete))
        .route("/switches", get(switches::list).post(switches::create))
        .route("/switches/{switch}", get(switches::show).patch(switches::change).delete(switches::delete))
        .route("/switches/{switch}/stations", get(switches::stations))
        .route("/ports", get(ports::list))
        .route("/vms/{vm}/nets/{net}/port", get(ports::show))
        .route("/vms/{vm}/nets/{net}/port/trace", post(watching::trace))
        .route("/vms/{vm}/nets/{net}/port/watch", post(watching::watch))
        .route("/vms/{vm}/nets/{net}/port/capture", post(watching::capture))
        .route("/vms/{vm}/nets/{net}/port/flows", get(watching::flows))
        .route("/vms/{vm}/nets/{net}/policy", put(ports::replace).patch(ports::change))
        .route("/images", get(images::list).post(images::import))
        .route("/images/{image}", get(images::show).put(upload::upload).patch(images::change).delete(images::delete))
        .route("/vms", get(vms::list).post(vms::create))
        .route("/vms/{vm}", get(vms::show).patch(edit::edit).delete(vms::delete))
        .route("/vms/{vm}/explain", get(placement::explain))
        .route("/vms/{vm}/move", post(placement::move_vm))
        .route("/vms/{vm}/placement", get(placement::show).patch(placement::change_placement))
        .route("/hosts/{host}/drain", post(placement::drain))
        .route("/hosts/{host}/resume", post(placement::resume))
        .route("/hosts/{host}/confirm-dead", post(placement::confirm_dead))
        .route("/cluster/what-if", get(placement::what_if))
        .route("/cluster/policy", get(placement::policy).put(placement::change_policy))
        .route("/vms/{vm}/start", post(vms::start))
        .route("/vms/{vm}/stop", post(vms::stop))
        .route("/vms/{vm}/reset", post(vms::reset))
        .route("/vms/{vm}/pause", post(vms::pause))
        .route("/vms/{vm}/resume", post(vms::resume))
        .route("/vms/{vm}/console", get(console::open))
        .route("/vms/{vm}/console/log", get(console::log))
        .route("/vms/{vm}/save", post(vms::save))
        .route("/vms/{vm}/discard-saved", post(vms::discard_saved))
        .route("/vms/{vm}/checkpoints", get(checkpoints::list).post(checkpoints::create))
        .route("/vms/{vm}/checkpoints/merge", post(checkpoints::merge))
        .route(
            "/vms/{vm}/checkpoints/{checkpoint}",
            get(checkpoints::show).patch(checkpoints::rename).delete(checkpoints::delete),
        )
        .route("/vms/{vm}/checkpoints/{checkpoint}/apply", post(checkpoints::apply))
        .route("/vms/{vm}/resources", get(resources::show).put(resources::replace).patch(resources::change))
        .route("/vms/{vm}/clone", post(clone::clone))
        .route("/vms/{vm}/export", post(transfer::export))
        .route("/vms/import", post(transfer::import))
        .route("/vms/{vm}/usage", get(usage::show))
        .route("/vms/{vm}/usage/reset", post(usage::reset))
        .route("/usage", get(usage::list))
        .route("/metrics", get(metrics::show))
        .route("/tasks", get(tasks::list))
        .route("/tasks/{task}", get(tasks::show))
        .route("/tasks/{task}/cancel", post(tasks::cancel))
        .route("/cluster", get(cluster::show).post(cluster::create))
        .route("/cluster/join", post(cluster::join))
        .route("/cluster/tokens", post(cluster::token))
        .route("/cluster/members", post(cluster::admit))
        .route("/cluster/leave", post(cluster::leave))
        .route("/cluster/hosts/{host}", delete(cluster::remove))
        .route("/cluster/certificates/rotate", post(cluster::rotate))
        .route("/copies", post(copies::plan))
        .route("/copies/{copy}", put(copies::take))
        .route("/events", get(events::list))
        .route("/events/stream", get(events::stream))
        .route("/tokens", get(tokens::list).post(tokens::create))
        .route("/tokens/{token}", delete(tokens::delete))
        .fallback(error::no_such_address)
        .method_not_allowed_fallback(error::no_such_method);
    Router::new()
        .nest(api::BASE, guarded(v1))
        // Where Prometheus looks if nothing else is said.
        .merge(guarded(Router::new().route("/metrics", get(metrics::show))))
        .route(&format!("{}/openapi.json", api::BASE), get(async || axum::Json(&*DOCUMENT)))
        .fallback(error::no_such_address)
}

/// Refuses everything for now, and says why.
pub fn waiting(reason: &'static str) -> Router {
    Router::new().fallback(async move || {
        Refusal::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "no-quorum",
            reason,
            "start the other hosts, or see `maru cluster restore --help`",
        )
    })
}

/// What describes the API.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Maru",
        description = "Machines of a host. Long work answers with a task; what happens is told in one stream of events.",
        license(name = "Apache-2.0 OR MIT"),
        contact(),
    ),
    servers((url = "/api/v1")),
    paths(
        host::show,
        volumes::list, volumes::create, volumes::show, volumes::change, volumes::delete,
        switches::list, switches::create, switches::show, switches::change, switches::delete, switches::stations,
        ports::list, ports::show, ports::replace, ports::change,
        watching::trace, watching::watch, watching::capture, watching::flows,
        images::list, images::import, upload::upload, images::show, images::change, images::delete,
        vms::list, vms::create, vms::show, vms::delete, vms::start, vms::stop, vms::reset, vms::pause, vms::resume,
        console::open, console::log,
        transfer::export, transfer::import,
        resources::show, resources::replace, resources::change, usage::show, usage::list, usage::reset,
        vms::save, vms::discard_saved,
        checkpoints::list, checkpoints::show, checkpoints::create, checkpoints::rename, checkpoints::apply, checkpoints::delete,
        checkpoints::merge,
        clone::clone, edit::edit,
        placement::explain, placement::move_vm, placement::show, placement::change_placement, placement::drain, placement::resume,
        placement::confirm_dead, placement::what_if, placement::policy, placement::change_policy,
        metrics::show,
        tasks::list, tasks::show, tasks::cancel,
        cluster::show, cluster::create, cluster::join, cluster::token, cluster::admit, cluster::leave, cluster::remove, cluster::rotate,
        events::list, events::stream,
        tokens::list, tokens::create, tokens::delete,
    ),
    components(schemas(api::Error)),
    security(("token" = [])),
    modifiers(&Common),
)]
struct Document;

/// The OpenAPI document.
static DOCUMENT: LazyLock<serde_json::Value> = LazyLock::new(|| {
    // It has no map whose keys are no texts, so it becomes JSON.
    let mut document = serde_json::to_value(Document::openapi()).unwrap_or_default();
    document::complete(&mut document);
    document
});

#[cfg(test)]
mod tests;
