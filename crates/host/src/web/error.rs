//! Requests that are not done.

use axum::Json;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};

use crate::records::Cause;
use crate::state::StateError;

/// Why a request is not done.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// The status of the answer.
    pub status: StatusCode,
    /// The body of the answer.
    pub cause: Cause,
}

impl Refusal {
    /// A refusal with this status.
    pub fn new(status: StatusCode, code: &str, message: impl Into<String>, way_out: impl Into<String>) -> Refusal {
        Refusal { status, cause: Cause::new(code, message, way_out) }
    }

    /// What was asked for is not there.
    pub fn not_found(what: impl std::fmt::Display, way_out: &str) -> Refusal {
        Refusal::new(StatusCode::NOT_FOUND, "not-found", format!("there is no {what}"), way_out)
    }

    /// Not in this state.
    pub fn conflict(code: &str, message: impl Into<String>, way_out: &str) -> Refusal {
        Refusal::new(StatusCode::CONFLICT, code, message, way_out)
    }

    /// A request that can never be right.
    pub fn senseless(cause: Cause) -> Refusal {
        Refusal { status: StatusCode::UNPROCESSABLE_ENTITY, cause }
    }
}

impl From<StateError> for Refusal {
    fn from(error: StateError) -> Refusal {
        let text = vmm::error_chain(&error);
        match error {
            StateError::Gone(what) => Refusal::not_found(what, "look at what there is now"),
            _ => Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "store", text, "see marud's log; try again when that is mended"),
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(api::Error::from(&self.cause))).into_response();
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// For what is not there.
pub async fn no_such_address(uri: Uri) -> Refusal {
    Refusal::not_found(format_args!("address {}", uri.path()), "see /api/v1/openapi.json for those that there are")
}

/// For what cannot be done there.
pub async fn no_such_method(uri: Uri) -> Refusal {
    let message = format!("{} does not take this method", uri.path());
    Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "no-method", message, "see /api/v1/openapi.json for those that it takes")
}
