//! Tokens, for administrators.

use axum::extract::State as Shared;
use axum::http::StatusCode;
use axum::{Extension, Json};
use store::{Outcome, Transaction};
use vmm::config::check_id;

use super::extract::{Body, Name, PageParams, Params};
use super::guard::Caller;
use super::{App, Refusal};
use crate::auth;
use crate::records::{Cause, TokenRecord};
use crate::state::{Records, StateError};

/// List tokens
///
/// Without their secrets, which nobody knows but their owners.
#[utoipa::path(get, path = "/tokens", tag = "tokens", operation_id = "list_tokens", params(PageParams), responses(
    (status = 200, description = "Tokens", body = api::Page<api::Token>),
    (status = "default", description = "Not done", body = api::Error),
))]
pub async fn list(Shared(app): Shared<App>, Params(params): Params<PageParams>) -> Result<Json<api::Page<api::Token>>, Refusal> {
    let stored = app.host.state.run(|state| state.all::<TokenRecord>()).await?;
    Ok(Json(params.part(stored.iter().map(|token| api::Token::from(&token.record)).collect(), |token| token.name.clone())?))
}

/// Make a token
///
/// The answer has its secret, this once.
#[utoipa::path(post, path = "/tokens", tag = "tokens", operation_id = "create_token", request_body = api::NewToken, responses(
    (status = 201, description = "The token", body = api::CreatedToken),
    (status = "default", description = "Not done", body = api::Error),
))]
pub async fn create(Shared(app): Shared<App>, body: Body) -> Result<(StatusCode, Json<api::CreatedToken>), Refusal> {
    let wanted: api::NewToken = body.parse()?;
    if check_id(&wanted.name).is_err() {
        let message = format!("'{}' cannot be a token's name", wanted.name);
        return Err(Refusal::senseless(Cause::new("bad-name", message, "use 1 to 64 letters, digits, '-', '_' and '.'")));
    }
    let secret = auth::new_secret().ok_or(StateError::Ending)?;
    let record = auth::token(&wanted.name, wanted.role.into(), &secret);
    let made = app.host.state.run(move |state| {
        let name = record.name.clone();
        state.commit(&Transaction::new().if_none::<TokenRecord>(&name).write(&name, &record))
    });
    match made.await? {
        Outcome::Committed(_) => {
            Ok((StatusCode::CREATED, Json(api::CreatedToken { name: wanted.name, role: wanted.role, secret })))
        }
        Outcome::Conflict { .. } => {
            let message = format!("there is a token called '{}' already", wanted.name);
            Err(Refusal::conflict("name-taken", message, "choose another name, or delete that token first"))
        }
    }
}

/// Delete a token
///
/// It is refused from now on.
#[utoipa::path(delete, path = "/tokens/{token}", tag = "tokens", operation_id = "delete_token",
    params(("token" = String, Path, description = "Its name")), responses(
    (status = 204, description = "It is gone"),
    (status = "default", description = "Not done", body = api::Error),
))]
pub async fn delete(
    Shared(app): Shared<App>,
    Extension(caller): Extension<Caller>,
    Name(name): Name,
) -> Result<StatusCode, Refusal> {
    if caller.name == name {
        let message = "a token cannot delete itself";
        return Err(Refusal::conflict("own-token", message, "use another administrator's token, so that one is left"));
    }
    let missing = || Refusal::not_found(format_args!("token '{name}'"), "list those that there are");
    if check_id(&name).is_err() {
        return Err(missing());
    }
    let wanted = name.clone();
    let deleted = app.host.state.run(move |state| {
        let Some(stored) = state.read::<TokenRecord>(&wanted)? else { return Ok(false) };
        let transaction = Transaction::new().if_still(&wanted, &stored).forget::<TokenRecord>(&wanted);
        Ok(matches!(state.commit(&transaction)?, Outcome::Committed(_)))
    });
    if deleted.await? { Ok(StatusCode::NO_CONTENT) } else { Err(missing()) }
}
