//! Who may do this? And what was asked for by whom.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use time::OffsetDateTime;

use super::{App, Refusal};
use crate::audit::Line;
use crate::auth;
use crate::records::TokenRecord;

/// Where a request comes from.
#[derive(Clone, Copy, Debug)]
pub struct From(pub SocketAddr);

/// The host that a request comes from: it has proved itself by a certificate of this host's authority. Whether it is still a host of the
/// cluster is another question.
#[derive(Clone, Debug)]
pub struct Peer(pub Arc<str>);

/// Whose request it is.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The token's name.
    pub name: String,
    /// What its owner may do.
    pub role: api::Role,
}

/// Lets a request through if its token's role suffices; notes it if it changes something, or is refused here.
pub async fn guard(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let from = request.extensions().get::<From>().map_or(SocketAddr::from(([0, 0, 0, 0], 0)), |from| from.0);
    let (mut name, mut refused) = (None, false);
    let response = if is_for_strangers(&method, &path) {
        next.run(request).await
    } else {
        let token = authenticate(&app, secret(request.headers())).await;
        name = token.as_ref().ok().map(|token| token.name.clone());
        let allowed = token.and_then(|token| allow(&token, &method, &path));
        refused = allowed.is_err();
        match allowed {
            Ok(caller) => {
                request.extensions_mut().insert(caller);
                next.run(request).await
            }
            Err(refusal) => refusal.into_response(),
        }
    };
    // A console that was opened is more than reading.
    if refused || !is_reading(&method) || response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let status = response.status().as_u16();
        let audit = app.audit.clone();
        let written = tokio::task::spawn_blocking(move || {
            let at = OffsetDateTime::now_utc();
            audit.write(&Line { at, token: name.as_deref(), from, method: method.as_str(), path: &path, status })
        });
        if let Ok(Err(error)) = written.await {
            tracing::error!("the audit log cannot be written: {error}");
        }
    }
    response
}

/// Whether this has its own way of finding out who asks: a host that joins has no token of the API, and one that copies files has a certificate.
fn is_for_strangers(method: &Method, path: &str) -> bool {
    let path = path.trim_start_matches(api::BASE);
    let copies = path.strip_prefix("/copies").is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    copies || *method == Method::POST && path == "/cluster/members"
}

/// The secret that a request was sent with.
pub fn secret(headers: &HeaderMap) -> Option<String> {
    let header = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (kind, secret) = header.split_once(' ')?;
    kind.eq_ignore_ascii_case("bearer").then(|| secret.trim().to_owned())
}

async fn authenticate(app: &App, secret: Option<String>) -> Result<TokenRecord, Refusal> {
    let refuse = |message: &str| {
        let way_out =
            "send the header Authorization: Bearer SECRET; the secret of the first token is in the file admin.token of marud";
        Refusal::new(StatusCode::UNAUTHORIZED, "no-token", message, way_out)
    };
    let secret = secret.ok_or_else(|| refuse("there is no token"))?;
    let token = app.host.state.run(move |state| auth::find(state, &secret)).await?;
    token.ok_or_else(|| refuse("the token is not known"))
}

fn is_reading(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}

/// The least role that may do something.
fn needed(method: &Method, path: &str) -> api::Role {
    let kind = path.trim_start_matches(api::BASE).trim_start_matches('/').split('/').next();
    match (kind, is_reading(method)) {
        // A volume opens a directory of the host to whoever may create VMs.
        // A switch, a network. A cluster, this host to others.
        (Some("tokens"), _) | (Some("volumes" | "switches" | "cluster"), false) => api::Role::Admin,
        (_, true) => api::Role::Viewer,
        (_, false) => api::Role::Operator,
    }
}

fn allow(token: &TokenRecord, method: &Method, path: &str) -> Result<Caller, Refusal> {
    let (role, needed) = (api::Role::from(token.role), needed(method, path));
    if role >= needed {
        return Ok(Caller { name: token.name.clone(), role });
    }
    let message = format!("the token '{}' has the role {role}, and this needs {needed}", token.name);
    Err(Refusal::new(StatusCode::FORBIDDEN, "role", message, "use another token, or ask an administrator for one"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_role_may_do_what_is_its_own() {
        assert_eq!(needed(&Method::GET, "/vms"), api::Role::Viewer);
        assert_eq!(needed(&Method::GET, "/api/v1/vms/tokens"), api::Role::Viewer);
        assert_eq!(needed(&Method::POST, "/api/v1/vms/web/start"), api::Role::Operator);
        assert_eq!(needed(&Method::DELETE, "/vms/web"), api::Role::Operator);
        assert_eq!(needed(&Method::GET, "/volumes"), api::Role::Viewer);
        assert_eq!(needed(&Method::POST, "/api/v1/volumes"), api::Role::Admin);
        assert_eq!(needed(&Method::DELETE, "/volumes/local"), api::Role::Admin);
        assert_eq!(needed(&Method::POST, "/api/v1/switches"), api::Role::Admin);
        assert_eq!(needed(&Method::PATCH, "/vms/web/nets/net0/policy"), api::Role::Operator);
        for looks in ["trace", "watch", "capture"] {
            assert_eq!(needed(&Method::POST, &format!("/vms/web/nets/net0/port/{looks}")), api::Role::Operator, "{looks}");
        }
        assert_eq!(needed(&Method::GET, "/api/v1/cluster"), api::Role::Viewer);
        assert_eq!(needed(&Method::POST, "/api/v1/cluster/tokens"), api::Role::Admin);
        assert_eq!(needed(&Method::DELETE, "/cluster/hosts/h2"), api::Role::Admin);
        assert!(is_for_strangers(&Method::POST, "/api/v1/cluster/members"));
        assert!(!is_for_strangers(&Method::GET, "/api/v1/cluster/members"));
        assert!(!is_for_strangers(&Method::POST, "/cluster/members/x") && !is_for_strangers(&Method::POST, "/cluster"));
        for path in ["/tokens", "/api/v1/tokens", "/api/v1/tokens/x", "/tokens/x"] {
            assert_eq!(needed(&Method::GET, path), api::Role::Admin, "{path}");
        }
    }
}
