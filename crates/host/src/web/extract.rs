//! What is taken out of requests, refused in our words.

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;
use utoipa::IntoParams;

use super::server::PATIENCE;
use super::{MAX_BODY, MAX_ITEMS, Refusal};
use crate::records::Cause;

/// The parameters behind the question mark.
pub struct Params<T>(pub T);

impl<T: DeserializeOwned, S: Sync> FromRequestParts<S> for Params<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Params<T>, Refusal> {
        let Query(value) = Query::try_from_uri(&parts.uri).map_err(|rejection| {
            Refusal::new(
                StatusCode::BAD_REQUEST,
                "bad-parameter",
                rejection.body_text(),
                "see /api/v1/openapi.json for the parameters",
            )
        })?;
        Ok(Params(value))
    }
}

/// Which part of a list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PageParams {
    /// How many at once: 1 to 1000.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// Only those behind: `next` of the part before.
    after: Option<String>,
}

impl PageParams {
    /// The part of these items, which are in the order of their keys.
    pub fn part<T>(&self, items: Vec<T>, key: impl Fn(&T) -> String) -> Result<api::Page<T>, Refusal> {
        Ok(page(items, self.after.as_deref(), limit(self.limit)?, key))
    }
}

/// The part of the address that names a thing.
pub struct Name(pub String);

impl<S: Send + Sync> FromRequestParts<S> for Name {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Name, Refusal> {
        let Path(name) = Path::from_request_parts(parts, state).await.map_err(|rejection| {
            Refusal::new(StatusCode::BAD_REQUEST, "bad-address", rejection.body_text(), "write names in UTF-8, percent-encoded")
        })?;
        Ok(Name(name))
    }
}

/// A body that is JSON, as it came.
pub struct Body(pub Bytes);

impl<S: Send + Sync> FromRequest<S> for Body {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Body, Refusal> {
        let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let own = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        if !matches!(own.as_str(), "application/json" | "application/merge-patch+json") {
            let message = format!("the body is '{kind}'");
            let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
            return Err(Refusal::new(status, "not-json", message, "send JSON, with the header Content-Type: application/json"));
        }
        let too_long = || {
            let message = format!("the body has more than {MAX_BODY} bytes");
            Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "too-long", message, "send less")
        };
        let late = |_| {
            let message = format!("the body was not there within {} s", PATIENCE.as_secs());
            Refusal::new(StatusCode::REQUEST_TIMEOUT, "too-slow", message, "send it at once, and all of it")
        };
        let bytes = timeout(PATIENCE, Bytes::from_request(request, state)).await.map_err(late)?;
        let bytes = bytes.map_err(|rejection| match rejection.status() {
            StatusCode::PAYLOAD_TOO_LARGE => too_long(),
            _ => Refusal::new(StatusCode::BAD_REQUEST, "bad-body", rejection.body_text(), "send the whole body"),
        })?;
        if bytes.len() > MAX_BODY {
            return Err(too_long());
        }
        Ok(Body(bytes))
    }
}

impl Body {
    /// What it says.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, Refusal> {
        let way_out = "see /api/v1/openapi.json for its form";
        // Where names are expected, a list of values in their order would do, too, and mean something else after the next release.
        if self.0.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[') {
            return Err(Refusal::senseless(Cause::new("bad-body", "the body is a list, and no object", way_out)));
        }
        serde_json::from_slice(&self.0).map_err(|error| {
            let cause = Cause::new("bad-body", format!("the body cannot be understood: {error}"), way_out);
            if error.is_data() { Refusal::senseless(cause) } else { Refusal { status: StatusCode::BAD_REQUEST, cause } }
        })
    }
}

/// Checks how long a part of a list is to be.
pub fn limit(wanted: Option<usize>) -> Result<usize, Refusal> {
    match wanted {
        None => Ok(MAX_ITEMS),
        Some(limit) if (1..=MAX_ITEMS).contains(&limit) => Ok(limit),
        Some(limit) => {
            let message = format!("limit={limit}");
            Err(Refusal::new(StatusCode::BAD_REQUEST, "bad-parameter", message, format!("ask for 1 to {MAX_ITEMS} items")))
        }
    }
}

/// A part of a list: the items behind that with the key `after`. The keys are in order.
pub fn page<T>(items: Vec<T>, after: Option<&str>, limit: usize, key: impl Fn(&T) -> String) -> api::Page<T> {
    let mut rest: Vec<T> = items.into_iter().filter(|item| after.is_none_or(|after| key(item).as_str() > after)).collect();
    let next = (rest.len() > limit).then(|| key(&rest[limit - 1]));
    rest.truncate(limit);
    api::Page { items: rest, next }
}
