//! Consoles, over WebSockets.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::State as Shared;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use serde::Deserialize;
use tokio::sync::Semaphore;
use tokio::time::{MissedTickBehavior, interval, timeout};
use utoipa::IntoParams;

use super::extract::{Name, Params};
use super::guard::Caller;
use super::vms::find;
use super::{App, Refusal};
use crate::records::TokenRecord;
use crate::vm::console::{Console, From, Seen, View};

/// Viewers of all VMs at the same time.
const MAX_VIEWERS: usize = 256;
static PLACES: Semaphore = Semaphore::const_new(MAX_VIEWERS);
/// How often a viewer has to show that it is there, and its token is looked at.
const PING: Duration = Duration::from_secs(20);
/// A viewer that takes or sends nothing for so long is gone.
const PATIENCE: Duration = Duration::from_secs(60);
/// The longest message of a viewer in bytes: more than anybody pastes.
const MAX_MESSAGE: usize = 64 * 1024;

/// How to look.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ConsoleParams {
    /// Only look: what is sent is not typed. Viewers may do no more.
    #[serde(default)]
    read_only: bool,
    /// Whether what was printed before comes first.
    #[serde(default = "yes")]
    scroll_back: bool,
}

fn yes() -> bool {
    true
}

/// Open a VM's console
///
/// A WebSocket. Binary messages are the console's bytes, in both directions; messages of text, from the server only, are a `ConsoleEvent` each.
/// It stays open when the VM ends and starts. Several can look and type at the same time.
#[utoipa::path(get, path = "/vms/{vm}/console", tag = "vms", operation_id = "open_console", params(
    ("vm" = String, Path, description = "Its name or id"),
    ConsoleParams,
), responses(
    (status = 101, description = "A WebSocket; its messages of text are of this form", body = api::ConsoleEvent),
    (status = "default", description = "Not done", body = api::Error),
))]
pub async fn open(
    Shared(app): Shared<App>,
    Extension(caller): Extension<Caller>,
    Name(vm): Name,
    Params(params): Params<ConsoleParams>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Refusal> {
    let console = console_of(&app, vm).await?;
    let needed = if params.read_only { api::Role::Viewer } else { api::Role::Operator };
    if caller.role < needed {
        let message = format!("the token '{}' has the role {}, and typing needs {needed}", caller.name, caller.role);
        return Err(Refusal::new(StatusCode::FORBIDDEN, "role", message, "only look, with read_only=true, or use another token"));
    }
    let upgrade = upgrade.map_err(|rejection| {
        let way_out = "use a WebSocket client, like `maru vm console`; the text alone is at /console/log";
        Refusal::new(StatusCode::BAD_REQUEST, "not-websocket", rejection.body_text(), way_out)
    })?;
    let place = PLACES.try_acquire().map_err(|_| {
        let message = format!("{MAX_VIEWERS} consoles of this host are open already");
        Refusal::new(StatusCode::TOO_MANY_REQUESTS, "too-many", message, "close one, and try again")
    })?;
    let view = console.view(if params.scroll_back { From::Oldest } else { From::Now });
    Ok(upgrade.max_message_size(MAX_MESSAGE).max_frame_size(MAX_MESSAGE).on_upgrade(move |socket| async move {
        let (sink, stream) = socket.split();
        let types = (!params.read_only).then_some(console);
        // Each goes on while the other waits; the end of either is the end.
        tokio::select! {
            () = show(sink, view, &app, &caller, needed) => {}
            () = listen(stream, types) => {}
        }
        drop(place);
    }))
}

/// Show what a VM's console has printed
///
/// The last 256 KiB, as they came: text with whatever a terminal would obey. What was printed before `marud` started is there as far as the
/// running VM keeps it, 64 KiB.
#[utoipa::path(get, path = "/vms/{vm}/console/log", tag = "vms", operation_id = "show_console_log",
    params(("vm" = String, Path, description = "Its name or id")), responses(
    (status = 200, description = "The text", body = String, content_type = "text/plain"),
    (status = "default", description = "Not done", body = api::Error),
))]
pub async fn log(Shared(app): Shared<App>, Name(vm): Name) -> Result<Response, Refusal> {
    let log = console_of(&app, vm).await?.log();
    let text = String::from_utf8_lossy(&log).into_owned();
    let headers = [(header::CONTENT_TYPE, "text/plain; charset=utf-8"), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")];
    Ok((headers, text).into_response())
}

async fn console_of(app: &App, vm: String) -> Result<Arc<Console>, Refusal> {
    let id = app.host.state.run(move |state| Ok(find(state, &vm))).await??.record.id;
    app.host.console(id).ok_or_else(|| Refusal::not_found(format_args!("VM '{id}'"), "list those that there are"))
}

/// Shows a viewer what there is to see, until it is gone or may not look any more.
async fn show(mut viewer: SplitSink<WebSocket, Message>, mut view: View, app: &App, caller: &Caller, needed: api::Role) {
    let mut ping = interval(PING);
    ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ping.reset();
    loop {
        let message = tokio::select! {
            seen = view.next() => match seen {
                Some(Seen::Bytes(bytes)) => Message::Binary(bytes.into()),
                Some(Seen::On) => event(&api::ConsoleEvent::On),
                Some(Seen::Off) => event(&api::ConsoleEvent::Off),
                Some(Seen::Lost(bytes)) => event(&api::ConsoleEvent::Lost { bytes }),
                None => close("the VM was deleted"),
            },
            _ = ping.tick() => if still_may(app, caller, needed).await {
                Message::Ping(Vec::new().into())
            } else {
                close("the token is not valid any more")
            },
        };
        let is_last = matches!(message, Message::Close(_));
        if !matches!(timeout(PATIENCE, viewer.send(message)).await, Ok(Ok(()))) || is_last {
            return;
        }
    }
}

/// Types what a viewer sends, until it is gone.
async fn listen(mut viewer: SplitStream<WebSocket>, types: Option<Arc<Console>>) {
    while let Ok(Some(Ok(message))) = timeout(PATIENCE, viewer.next()).await {
        match (message, &types) {
            (Message::Binary(bytes), Some(console)) => console.type_in(bytes.to_vec()).await,
            (Message::Close(_), _) => return,
            _ => {}
        }
    }
}

fn event(event: &api::ConsoleEvent) -> Message {
    Message::Text(serde_json::to_string(event).unwrap_or_default().into())
}

fn close(reason: &'static str) -> Message {
    Message::Close(Some(CloseFrame { code: close_code::NORMAL, reason: reason.into() }))
}

async fn still_may(app: &App, caller: &Caller, needed: api::Role) -> bool {
    let name = caller.name.clone();
    // A store that cannot be read now takes nothing away from anybody.
    match app.host.state.run(move |state| state.read::<TokenRecord>(&name)).await {
        Ok(token) => token.is_some_and(|token| api::Role::from(token.record.role) >= needed),
        Err(_) => true,
    }
}
