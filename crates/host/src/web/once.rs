//! `Idempotency-Key`: a request that is sent again, since its answer was lost, is not done again.

use axum::http::{HeaderMap, Method, StatusCode, Uri};
use store::Transaction;
use time::OffsetDateTime;
use uuid::Uuid;

use super::Refusal;
use super::document::MAX_KEY;
use super::guard::Caller;
use crate::auth::sha256;
use crate::records::{Cause, OnceRecord};
use crate::state::{Records, State};

/// A request that is to be done once.
#[derive(Clone, Debug)]
pub struct Once {
    name: String,
    request_sha256: String,
}

impl Once {
    /// From a request's header, if it has one.
    pub fn of(caller: &Caller, headers: &HeaderMap, method: &Method, uri: &Uri, body: &[u8]) -> Result<Option<Once>, Refusal> {
        let Some(key) = headers.get("idempotency-key") else { return Ok(None) };
        let fine = |key: &&str| (1..=MAX_KEY).contains(&key.len()) && key.chars().all(|c| c.is_ascii_graphic());
        let key = key.to_str().ok().filter(fine).ok_or_else(|| {
            let way_out = format!("use 1 to {MAX_KEY} visible ASCII characters, like a UUID");
            Refusal::new(StatusCode::BAD_REQUEST, "bad-key", "the Idempotency-Key cannot be used", way_out)
        })?;
        let request = [format!("{method} {uri}\n").as_bytes(), body].concat();
        Ok(Some(Once { name: format!("{}/{key}", caller.name), request_sha256: sha256(&request) }))
    }

    /// What it made when it was done before.
    pub fn made(once: Option<&Once>, state: &State) -> Result<Option<Uuid>, Refusal> {
        let Some(once) = once else { return Ok(None) };
        let Some(found) = state.read::<OnceRecord>(&once.name)? else { return Ok(None) };
        if found.record.request_sha256 == once.request_sha256 {
            return Ok(Some(found.record.made));
        }
        let message = "the Idempotency-Key was used for another request";
        Err(Refusal::senseless(Cause::new(
            "key-reused",
            message,
            "use a new key for each request, and the same only to send it again",
        )))
    }

    /// Notes what it makes.
    pub fn note(once: Option<&Once>, transaction: Transaction, made: Uuid) -> Transaction {
        let Some(once) = once else { return transaction };
        let record = OnceRecord { request_sha256: once.request_sha256.clone(), made, at: OffsetDateTime::now_utc() };
        transaction.if_none::<OnceRecord>(&once.name).write(&once.name, &record)
    }
}
