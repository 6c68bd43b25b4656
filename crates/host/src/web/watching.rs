//! What passes the ports of network cards: traces, captures, flows.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Json;
use axum::body::Body as Answer;
use axum::extract::{Path, State as Shared};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use switch::acl::{Direction, Prefix};
use switch::control::{ClientError, FlowStatus, Request, Streamed};
use switch::explain::{FrameFilter, TraceAction, TraceReport, TraceStep};
use switch::frame::MAX_FRAME_BYTES;
use switch::mac::MacAddress;
use utoipa::IntoParams;

use super::extract::{Body, Params};
use super::ports::{names, on_switch};
use super::vms::find;
use super::{App, Refusal};
use crate::net::port_name;
use crate::net::watching::{Seen, Watch, WatchError, file, lines};
use crate::records::{Cause, VmRecord};

/// The longest file of a capture in bytes.
const MAX_FILE: u64 = 1 << 30;
/// The longest that somebody may look, in seconds.
const MAX_SECONDS: u32 = 3600;

/// How many flows.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct FlowParams {
    /// Those with the most frames, at most so many: 1 to 10000. 100 if left out.
    #[param(minimum = 1, maximum = 10000)]
    most: Option<u64>,
}

/// A port of a VM that runs, and what ports are called for people.
struct Found {
    port: String,
    shown: String,
    names: BTreeMap<String, String>,
}

impl Found {
    /// A text with the names that people know.
    fn text(&self, text: String) -> String {
        if !text.contains('/') {
            return text;
        }
        match self.names.get(&text) {
            Some(name) => name.clone(),
            None => self.names.iter().fold(text, |text, (port, name)| text.replace(port, name)),
        }
    }

    fn action(&self, action: TraceAction) -> api::TraceAction {
        match action {
            TraceAction::Track => api::TraceAction::Track,
            TraceAction::Limit => api::TraceAction::Limit,
            TraceAction::Meter { port, rule } => api::TraceAction::Meter { port: self.text(port), rule },
            TraceAction::Deliver { port, tag } => api::TraceAction::Deliver { port: self.text(port), tag },
            TraceAction::Drop { port, reason } => api::TraceAction::Drop { port: self.text(port), reason },
        }
    }

    fn trace(&self, report: TraceReport) -> api::Trace {
        let step = |TraceStep { layer, port, passes, why }| {
            let (port, why) = (self.text(port), self.text(why));
            api::TraceStep { layer, port, passes, why }
        };
        api::Trace {
            port: self.text(report.port),
            frame: report.frame,
            steps: report.steps.into_iter().map(step).collect(),
            actions: report.actions.into_iter().map(|action| self.action(action)).collect(),
        }
    }

    fn flow(&self, flow: FlowStatus) -> api::Flow {
        api::Flow {
            port: self.text(flow.port),
            frame: flow.frame,
            actions: flow.actions.into_iter().map(|action| self.action(action)).collect(),
            packets: flow.packets,
            bytes: flow.bytes,
            age_ms: flow.age_ms,
            idle_ms: flow.idle_ms,
        }
    }
}

fn bad(message: impl Into<String>, way_out: &str) -> Refusal {
    Refusal::senseless(Cause::new("bad-request", message, way_out))
}

/// What the switch says of a request about a port that is there.
fn refused(error: WatchError) -> Refusal {
    match error {
        WatchError::Switch(ClientError::Refused(failure)) => bad(failure.message, "do what it says"),
        WatchError::Full => {
            Refusal::new(StatusCode::TOO_MANY_REQUESTS, "too-many", error.to_string(), "end another one, and try again")
        }
        WatchError::Switch(_) | WatchError::Io(_) => {
            let way_out = "see marud's log; it is started again by itself";
            Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "switch", vmm::error_chain(&error), way_out)
        }
    }
}

/// Does something with a card's port, where that may block.
async fn at_port<T: Send + 'static>(
    app: &App,
    (vm, net): (String, String),
    work: impl FnOnce(&crate::net::Network, &Found) -> Result<T, WatchError> + Send + 'static,
) -> Result<(T, Found), Refusal> {
    let network = app.host.surroundings.network.clone();
    let done = app.host.state.run(move |state| {
        let stored = match find(state, &vm) {
            Ok(stored) => stored,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let names = names(&state.all::<VmRecord>()?);
        Ok((|| {
            let card = on_switch(&stored.record, &net)?;
            let port = port_name(stored.record.id, &card.id);
            let shown = names.get(&port).cloned().unwrap_or_else(|| port.clone());
            if !network.status().is_some_and(|status| status.ports.iter().any(|known| known.name == port)) {
                return Err(Refusal::conflict("no-port", format!("the port {shown} is not there now"), "start its VM"));
            }
            let found = Found { port, shown, names };
            work(&network, &found).map(|done| (done, found)).map_err(refused)
        })())
    });
    done.await?
}

fn seconds(wanted: u32) -> Result<Duration, Refusal> {
    match (1..=MAX_SECONDS).contains(&wanted) {
        true => Ok(Duration::from_secs(wanted.into())),
        false => Err(bad(format!("{wanted} seconds"), "look for 1 to 3600 seconds")),
    }
}

fn filter(wanted: api::FrameFilter) -> Result<FrameFilter, Refusal> {
    let mac = |text: Option<String>| match text.map(|text| text.parse::<MacAddress>().map_err(|_| text)).transpose() {
        Ok(mac) => Ok(mac),
        Err(text) => Err(bad(format!("'{text}' is no MAC address"), "write it like 52:54:00:12:34:56")),
    };
    let ip = |text: Option<String>| {
        let parsed = text.map(|text| text.parse::<Prefix>()).transpose();
        parsed.map_err(|error| bad(error.to_string(), "write an address, or a net like 10.0.0.0/8"))
    };
    Ok(FrameFilter {
        source_mac: mac(wanted.source_mac)?,
        destination_mac: mac(wanted.destination_mac)?,
        source_ip: ip(wanted.source_ip)?,
        destination_ip: ip(wanted.destination_ip)?,
        protocol: wanted.protocol,
        source_port: wanted.source_port,
        destination_port: wanted.destination_port,
        vlan: wanted.vlan,
    })
}

/// An answer that goes on as long as there is something to see.
fn going_on(kind: &'static str, seen: Seen) -> Response {
    let pieces = futures_util::stream::unfold(seen, |mut seen| async { Some((seen.recv().await?, seen)) });
    ([(header::CONTENT_TYPE, kind)], Answer::from_stream(pieces)).into_response()
}

/// Say what would be done to a frame of a network card
///
/// What each layer of the switch says of a made-up frame that comes from the card, without sending it and without changing anything. The VM must
/// run. For operators, as all that looks at what passes a port.
#[utoipa::path(post, path = "/vms/{vm}/nets/{net}/port/trace", tag = "switches", operation_id = "trace_frame",
    request_body = api::NewTrace, params(
    ("vm" = String, Path, description = "Its name or id"),
    ("net" = String, Path, description = "The id of its network card"),
), responses(
    (status = 200, description = "What would be done, and why", body = api::Trace),
    (status = "default", description = "Not done", body = api::Error),
))]
pub async fn trace(
    Shared(app): Shared<App>,
    Path(card): Path<(String, String)>,
    body: Body,
) -> Result<Json<api::Trace>, Refusal> {
    let api::NewTrace { frame, length } = body.parse()?;
    let length = length.map(|length| length as usize);
    if let Some(length) = length.filter(|length| *length > MAX_FRAME_BYTES) {
        return Err(bad(format!("a frame of {length} bytes"), "the longest has 65557"));
    }
    let asked = at_port(&app, card, move |network, found| {
        Ok(network.connect()?.call::<TraceReport>(&Request::Trace { name: found.port.clone(), frame, length })?)
    });
    let (report, found) = asked.await?;
    Ok(Json(found.trace(report)))
}

/// Say what is done to the next frames of a network card
///
/// The answer goes on while frames pass: a line of JSON for each, `{"trace": ...}`, and `{"end": ...}` as the last one, when there were so many or
/// the time is over. It ends when the client goes away. 16 ports of a host can be looked at at the same time.
#[utoipa::path(post, path = "/vms/{vm}/nets/{net}/port/watch", tag = "switches", operation_id = "watch_port",
    request_body = api::NewWatch, params(
    ("vm" = String, Path, description = "Its name or id"),
    ("net" = String, Path, description = "The id of its network card"),
), responses(
    (status = 200, description = "Lines, each of this form", body = api::Watched, content_type = "application/x-ndjson"),
    (status = "default", description = "Not done", body = api::Error),
))]
pub async fn watch(Shared(app): Shared<App>, Path(card): Path<(String, String)>, body: Body) -> Result<Response, Refusal> {
    let api::NewWatch { count, seconds, filter } = body.parse()?;
    let (limit, filter) = (self::seconds(seconds)?, self::filter(filter.unwrap_or_default())?);
    let begun = at_port(&app, card, move |network, found| {
        let request = Request::TraceLive { name: found.port.clone(), count: count.into(), filter };
        network.watch(&request, limit)
    });
    let (watch, found): (Watch, Found) = begun.await?;
    let seen = watch.follow(move |client, pieces| {
        lines(client, pieces, |streamed| match streamed {
            Streamed::Trace(report) => Some(api::Watched::Trace(found.trace(report))),
            Streamed::End { missed } => Some(api::Watched::End(api::WatchEnd { missed })),
            Streamed::Frames { .. } => None,
        })
    });
    Ok(going_on("application/x-ndjson", seen))
}

/// Capture what passes the port of a network card
///
/// The answer is a file that tcpdump and Wireshark read (pcapng), with the frames as they are at the port, while they pass. It ends with the time,
/// the count or the length that it may have, and when the client goes away. 16 ports of a host can be looked at at the same time.
#[utoipa::path(post, path = "/vms/{vm}/nets/{net}/port/capture", tag = "switches", operation_id = "capture_port",
    request_body = api::NewCapture, params(
    ("vm" = String, Path, description = "Its name or id"),
    ("net" = String, Path, description = "The id of its network card"),
), responses(
    (status = 200, description = "The file", body = String, content_type = "application/x-pcapng"),
    (status = "default", description = "Not done", body = api::Error),
))]
pub async fn capture(Shared(app): Shared<App>, Path(card): Path<(String, String)>, body: Body) -> Result<Response, Refusal> {
    let api::NewCapture { seconds, direction, count, snap_bytes, max_bytes } = body.parse()?;
    let limit = self::seconds(seconds)?;
    let max_bytes = max_bytes.unwrap_or(MAX_FILE);
    if max_bytes > MAX_FILE {
        return Err(bad(format!("a file of {max_bytes} bytes"), "capture 1 GiB at most"));
    }
    let snap_bytes = snap_bytes.unwrap_or(MAX_FRAME_BYTES as u32).min(MAX_FRAME_BYTES as u32);
    let direction = direction.map(|direction| match direction {
        api::Direction::Inbound => Direction::Inbound,
        api::Direction::Outbound => Direction::Outbound,
    });
    let begun = at_port(&app, card, move |network, found| {
        let request = Request::Capture { name: found.port.clone(), direction, count, snap_bytes: snap_bytes as usize };
        network.watch(&request, limit)
    });
    let (watch, found): (Watch, Found) = begun.await?;
    let seen = watch.follow(move |client, pieces| file(client, pieces, &found.shown, snap_bytes, max_bytes));
    Ok(going_on("application/x-pcapng", seen))
}

/// List the flows that come from a network card
///
/// Frames that are treated alike, and how many there were: those with the most frames first. The VM must run.
#[utoipa::path(get, path = "/vms/{vm}/nets/{net}/port/flows", tag = "switches", operation_id = "list_flows", params(
    ("vm" = String, Path, description = "Its name or id"),
    ("net" = String, Path, description = "The id of its network card"),
    FlowParams,
), responses(
    (status = 200, description = "Flows", body = api::Page<api::Flow>),
    (status = "default", description = "Not done", body = api::Error),
))]
pub async fn flows(
    Shared(app): Shared<App>,
    Params(params): Params<FlowParams>,
    Path(card): Path<(String, String)>,
) -> Result<Json<api::Page<api::Flow>>, Refusal> {
    let most = params.most.unwrap_or(100);
    let asked = at_port(&app, card, move |network, found| {
        Ok(network.connect()?.call::<Vec<FlowStatus>>(&Request::Flows { name: Some(found.port.clone()), most })?)
    });
    let (flows, found) = asked.await?;
    let items = flows.into_iter().map(|flow| found.flow(flow)).collect();
    Ok(Json(api::Page { items, next: None }))
}
