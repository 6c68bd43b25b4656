//! Events.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::Json;
use axum::extract::State as Shared;
use axum::http::{HeaderMap, StatusCode};
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::Stream;
use serde::Deserialize;
use store::record::{Record, from_bytes};
use store::{Changed, Revision};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use utoipa::IntoParams;

use super::extract::{Params, limit};
use super::{App, Refusal};
use crate::records::EventRecord;

/// A connection on which nothing happens shows that it lives.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Which events.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListParams {
    /// Only those behind the one with this number.
    after: Option<u64>,
    /// How many at once: 1 to 1000.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
}

/// From where on.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct StreamParams {
    /// Only those behind the one with this number; only new ones if left out. The header `Last-Event-ID` means the same, and comes first.
    after: Option<u64>,
}

async fn read(app: &App, after: u64) -> Result<Vec<api::Event>, Refusal> {
    let events = app.host.state.run(move |state| state.events_after(after)).await?;
    events.ok_or_else(|| {
        let message = format!("the events behind number {after} are not all known");
        Refusal::new(StatusCode::GONE, "forgotten", message, "look at how things are now, and go on from the newest event")
    })
}

/// List events
///
/// In their order. The last ten thousand are kept; what was forgotten is answered with 410.
#[utoipa::path(get, path = "/events", tag = "events", operation_id = "list_events", params(ListParams), responses(
    (status = 200, description = "Events", body = api::Page<api::Event>),
    (status = "default", description = "Not done", body = api::Error),
))]
pub async fn list(Shared(app): Shared<App>, Params(params): Params<ListParams>) -> Result<Json<api::Page<api::Event>>, Refusal> {
    let limit = limit(params.limit)?;
    let mut items = read(&app, params.after.unwrap_or(0)).await?;
    let next = (items.len() > limit).then(|| items[limit - 1].id.to_string());
    items.truncate(limit);
    Ok(Json(api::Page { items, next }))
}

/// Follow events
///
/// Server-sent events: the data of each is an event, its id the event's number.
#[utoipa::path(get, path = "/events/stream", tag = "events", operation_id = "follow_events",
    params(StreamParams, ("Last-Event-ID" = Option<u64>, Header, description = "Where to go on")), responses(
    (status = 200, description = "Events, without an end", body = api::Event, content_type = "text/event-stream"),
    (status = "default", description = "Not done", body = api::Error),
))]
pub async fn stream(
    Shared(app): Shared<App>,
    headers: HeaderMap,
    Params(params): Params<StreamParams>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Refusal> {
    let last = match headers.get("last-event-id") {
        Some(id) => Some(id.to_str().ok().and_then(|id| id.parse().ok()).ok_or_else(|| {
            let way_out = "send the id of the last event that you have";
            Refusal::new(StatusCode::BAD_REQUEST, "bad-parameter", "the Last-Event-ID is no number", way_out)
        })?),
        None => params.after,
    };
    // First listen, then read: nothing comes in between.
    let changes = app.host.changes();
    let (last, earlier) = match last {
        Some(last) => (last, read(&app, last).await?),
        None => (app.host.state.run(|state| state.revision()).await?.0, Vec::new()),
    };
    let follower = Follower { app, changes, last, ready: earlier.into() };
    let events = futures_util::stream::unfold(follower, |mut follower| async {
        let event = follower.next().await?;
        let told = Event::default().id(event.id.to_string()).json_data(&event).ok()?;
        Some((Ok(told), follower))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}

struct Follower {
    app: App,
    changes: Receiver<Changed>,
    last: u64,
    ready: VecDeque<api::Event>,
}

impl Follower {
    /// The next event; none when the client was too slow for too long, and has to ask anew, or `marud` ends.
    async fn next(&mut self) -> Option<api::Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                self.last = event.id;
                return Some(event);
            }
            match self.changes.recv().await {
                Ok(changed) => self.ready.extend(self.event(&changed)),
                Err(RecvError::Lagged(_)) => self.ready.extend(read(&self.app, self.last).await.ok()?),
                Err(RecvError::Closed) => return None,
            }
        }
    }

    fn event(&self, changed: &Changed) -> Option<api::Event> {
        let Revision(number) = changed.revision;
        let value = changed.value.as_ref().filter(|_| changed.key.starts_with(EventRecord::PREFIX) && number > self.last)?;
        Some(from_bytes::<EventRecord>(&changed.key, value).ok()?.told(changed.revision))
    }
}
