//! How many requests came, what they were answered, and how long that took.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::Response;

/// The upper bounds of the times that are told apart, in seconds.
pub const BOUNDS: [f64; 9] = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0];

/// What was answered since `marud` started.
#[derive(Debug, Default)]
pub struct Requests(Mutex<Counts>);

/// The numbers.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// By method and status.
    pub answered: BTreeMap<(&'static str, u16), u64>,
    /// How many took no longer than each of [`BOUNDS`], and longer than the one before; the last took longer than all of them.
    pub took: [u64; BOUNDS.len() + 1],
    /// How long they took together.
    pub took_together: Duration,
}

impl Requests {
    /// The numbers now.
    pub fn counts(&self) -> Counts {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note(&self, method: &Method, status: u16, took: Option<Duration>) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.answered.entry((name(method), status)).or_default() += 1;
        if let Some(took) = took {
            let seconds = took.as_secs_f64();
            counts.took[BOUNDS.iter().position(|bound| seconds <= *bound).unwrap_or(BOUNDS.len())] += 1;
            counts.took_together += took;
        }
    }
}

/// A client may invent methods; they are not counted one by one.
fn name(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        _ => "other",
    }
}

/// Counts a request.
pub async fn count(State(requests): State<Arc<Requests>>, request: Request, next: Next) -> Response {
    let method = request.method().clone();
    // How long a client wants to wait, or takes to send a file, says nothing about this program.
    let sends = method == Method::PUT && request.uri().path().contains("/images/");
    let waits = sends || request.uri().query().is_some_and(|query| query.split('&').any(|part| part.starts_with("wait=")));
    let start = Instant::now();
    let response = next.run(request).await;
    requests.note(&method, response.status().as_u16(), (!waits).then(|| start.elapsed()));
    response
}
