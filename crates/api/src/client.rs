//! A client: blocking, and small. It asks one server, or several that answer for each other.

use std::io::{BufRead, BufReader, Read};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use ring::digest::{Context, SHA256};
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};
use serde::Serialize;
use serde::de::DeserializeOwned;
pub use ureq::http::Method;
use ureq::http::{Request, Response, StatusCode};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, TlsProvider, parse_pem};
use ureq::{Agent, Body, BodyReader, RequestExt, SendBody};
use uuid::Uuid;

pub use crate::failover::Tried;
use crate::failover::{Asked, Servers, Silent, shown, takes_key};
use crate::reach::{Connecting, Resolving};
pub use crate::websocket::WebSocket;
use crate::{BASE, Error, Event, Page, Task};

/// How long a server may take to be reached.
const CONNECT: Duration = Duration::from_secs(10);
/// The same, where another one answers as well.
const CONNECT_OR_GO_ON: Duration = Duration::from_secs(2);
/// How long it may take to answer, beside the time that it is asked to wait.
const ANSWER: Duration = Duration::from_secs(30);
/// How long it may take to answer when it has all of a file, which must be durable then.
const UPLOADED: Duration = Duration::from_secs(600);
/// How long it is asked to wait at once, in seconds.
const WAIT_SECONDS: u32 = 20;
/// How long it is asked to wait for a task at once, so that progress is seen, in seconds.
const LOOK_SECONDS: u32 = 1;
/// How long it may take to say how far a task is, beside that. A host that has lost its power says nothing.
const LOOKED: Duration = Duration::from_secs(10);
/// How long a task is waited for without a server that says how far it is: `marud` starts anew, or hosts agree on who leads.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two tries to find one.
const AGAIN: Duration = Duration::from_millis(500);
/// How long a stream of events may be silent. A server sends something every 15 s.
const SILENCE: Duration = Duration::from_secs(40);
/// The longest answer that is taken in, in bytes.
const MAX_ANSWER: u64 = 64 << 20;

/// Servers, and who asks them.
pub struct Client {
    agent: Agent,
    tls: Arc<ClientConfig>,
    servers: Servers,
    secret: String,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The certificate authority.
    #[error("the certificate authority cannot be used: {0}")]
    Authority(String),
    /// The server refused.
    #[error("{error}")]
    Refused {
        /// The status of its answer.
        status: u16,
        /// The cause and the way out.
        error: Error,
    },
    /// No server was reached, or all that were went away.
    #[error("{}; is marud running there, and is this the right address and certificate authority?", shown(.tried))]
    Unreachable {
        /// Those that were asked.
        tried: Vec<Tried>,
    },
    /// The server went away when it had been asked for something that may not be done twice.
    #[error(
        "{server} has gone before it answered ({reason}): whether it has done what was asked for is not known. `{told_by}` tells; if it \
         has not, ask again"
    )]
    Unknown {
        /// The server.
        server: String,
        /// Why it does not answer.
        reason: String,
        /// The command that shows it.
        told_by: &'static str,
    },
    /// The answer is not one of Maru.
    #[error("the answer (status {status}) is not understood: {reason}; is the server another version, or not marud?")]
    Strange {
        /// Its status.
        status: u16,
        /// What is strange.
        reason: String,
    },
    /// A task failed.
    #[error("{0}")]
    TaskFailed(Error),
}

impl ClientError {
    /// Whether the same may be answered in some seconds: hosts start anew, or find out who is there.
    pub fn may_pass(&self) -> bool {
        matches!(self, ClientError::Unreachable { .. } | ClientError::Refused { status: 503, .. })
    }
}

/// How long a server may take.
#[derive(Clone, Copy)]
struct Limits {
    answer: Duration,
    /// For each piece of what it answers.
    piece: Option<Duration>,
}

const LIMITS: Limits = {
    let answer = Duration::from_secs(ANSWER.as_secs() + WAIT_SECONDS as u64);
    Limits { answer, piece: Some(answer) }
};

/// An answer that was read.
struct Answer {
    status: StatusCode,
    tag: String,
    text: Vec<u8>,
}

impl Client {
    /// A client of `server`, like `https://h1:8420`, which proves itself by this certificate authority (PEM); the secret is a token's.
    pub fn new(server: &str, authority: &[u8], secret: &str) -> Result<Client, ClientError> {
        Client::of_cluster(vec![server.into()], authority, secret)
    }

    /// A client of several servers, each of which answers for all. They are asked in this order until one answers, which is then the first.
    /// A request that may have been done is asked for again only if that does no harm.
    pub fn of_cluster(servers: Vec<String>, authority: &[u8], secret: &str) -> Result<Client, ClientError> {
        let wrong = |error: &dyn std::fmt::Display| ClientError::Authority(error.to_string());
        let mut roots: Vec<Certificate<'static>> = Vec::new();
        for item in parse_pem(authority) {
            if let PemItem::Certificate(certificate) = item.map_err(|error| wrong(&error))? {
                roots.push(certificate);
            }
        }
        if roots.is_empty() {
            return Err(wrong(&"there is no certificate in it"));
        }
        let mut store = RootCertStore::empty();
        for root in &roots {
            store.add(CertificateDer::from(root.der().to_vec())).map_err(|error| wrong(&error))?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let websockets = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
        let websockets = websockets.map_err(|error| wrong(&error))?.with_root_certificates(store).with_no_client_auth();
        let tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .root_certs(RootCerts::Specific(Arc::new(roots)))
            .unversioned_rustls_crypto_provider(provider)
            .build();
        let servers = Servers::new(servers.iter().map(|server| server.trim_end_matches('/').into()).collect());
        let config = Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            .https_only(true)
            .proxy(None)
            .max_redirects(0)
            .timeout_resolve(Some(connect_limit(&servers)))
            .timeout_connect(Some(connect_limit(&servers)));
        let agent = Agent::with_parts(config.build(), Connecting::default(), Resolving::default());
        Ok(Client { agent, tls: Arc::new(websockets), servers, secret: secret.into() })
    }

    /// `moved` is told whenever another server than the one before answers.
    #[must_use]
    pub fn when_moved(mut self, moved: impl Fn(&str) + Send + Sync + 'static) -> Client {
        self.servers.when_moved(Box::new(moved));
        self
    }

    /// What a request that is sent to several servers needs beside its own headers.
    fn key(&self, method: &Method, path: &str) -> Option<String> {
        (self.servers.are_several() && takes_key(method, path)).then(|| Uuid::new_v4().to_string())
    }

    /// Asks one server after the other; `read` takes in the answer.
    fn ask<T>(
        &self,
        method: &Method,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
        limits: Limits,
        read: impl Fn(Response<Body>) -> Result<T, Silent>,
    ) -> Result<T, ClientError> {
        let key = self.key(method, path);
        let headers: Vec<_> = headers.iter().copied().chain(key.as_deref().map(|key| ("idempotency-key", key))).collect();
        let is_repeatable = key.is_some() || matches!(*method, Method::GET | Method::HEAD);
        self.servers.ask(Asked { path, is_repeatable }, |server| {
            let mut request = Request::builder().method(method).uri(format!("{server}{BASE}{path}"));
            request = request.header("authorization", format!("Bearer {}", self.secret));
            for (name, value) in &headers {
                request = request.header(*name, *value);
            }
            let request = request.body(body).map_err(unsent)?.with_agent(&self.agent).configure();
            let request = request.timeout_recv_response(Some(limits.answer)).timeout_per_read(limits.piece).build();
            Ok(Ok(read(request.run()?)?))
        })
    }

    /// Sends a request; any answer is one. `path` is below [`BASE`].
    pub fn send(&self, method: Method, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Result<Response<Body>, ClientError> {
        self.ask(&method, path, headers, body, Limits { piece: None, ..LIMITS }, Ok)
    }

    /// The same, and all of the answer is read.
    fn exchange(&self, method: &Method, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Result<Answer, ClientError> {
        self.ask(method, path, headers, body, LIMITS, Answer::read)
    }

    /// Opens a WebSocket. `path` is below [`BASE`].
    pub fn open(&self, path: &str) -> Result<WebSocket, ClientError> {
        let limit = connect_limit(&self.servers);
        self.servers.ask(Asked { path, is_repeatable: true }, |server| {
            crate::websocket::open(server, &self.tls, &self.secret, path, limit)
        })
    }

    /// Sends a request, and understands its answer.
    pub fn call<T: DeserializeOwned>(&self, method: Method, path: &str, body: Option<&impl Serialize>) -> Result<T, ClientError> {
        let body = body.map(serde_json::to_vec).transpose().map_err(not_json)?;
        let headers: &[_] = if body.is_some() { &[("content-type", "application/json")] } else { &[] };
        self.exchange(&method, path, headers, body.as_deref().unwrap_or_default())?.understand()
    }

    /// Gets something.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.call(Method::GET, path, None::<&()>)
    }

    /// Gets something that is not JSON.
    pub fn get_bytes(&self, path: &str) -> Result<Vec<u8>, ClientError> {
        let answer = self.exchange(&Method::GET, path, &[], b"")?;
        if answer.status == StatusCode::OK { Ok(answer.text) } else { Err(answer.refused()) }
    }

    /// Gets something with its `ETag`.
    pub fn get_tagged<T: DeserializeOwned>(&self, path: &str) -> Result<(T, String), ClientError> {
        let mut answer = self.exchange(&Method::GET, path, &[], b"")?;
        let tag = std::mem::take(&mut answer.tag);
        Ok((answer.understand()?, tag))
    }

    /// Sends this many bytes of a file, and understands the answer; gives SHA-256 of what was sent, too, in hexadecimal.
    pub fn upload<T: DeserializeOwned>(&self, path: &str, body: impl Read, bytes: u64) -> Result<(T, String), ClientError> {
        let mut body = Hashing { body: body.take(bytes), digest: Context::new(&SHA256) };
        // What was read of it cannot be read again, but where nothing was sent, nothing was read.
        let answer = self.servers.ask(Asked { path, is_repeatable: false }, |server| {
            let request = Request::builder().method(Method::PUT).uri(format!("{server}{BASE}{path}"));
            let request = request.header("authorization", format!("Bearer {}", self.secret)).header("content-length", bytes);
            // A refusal is heard before all of it is sent.
            let request = request.header("content-type", "application/octet-stream").header("expect", "100-continue");
            let request = request.body(SendBody::from_reader(&mut body)).map_err(unsent)?;
            let request = request.with_agent(&self.agent).configure().timeout_recv_response(Some(UPLOADED)).build();
            Ok(Ok(Answer::read(request.run()?)?))
        })?;
        Ok((answer.understand()?, hex(body.digest.finish().as_ref())))
    }

    /// Changes something by a merge patch (RFC 7396), if it still has this `ETag`.
    pub fn patch<T: DeserializeOwned>(&self, path: &str, tag: &str, patch: &impl Serialize) -> Result<T, ClientError> {
        let body = serde_json::to_vec(patch).map_err(not_json)?;
        let headers = [("content-type", "application/merge-patch+json"), ("if-match", tag)];
        self.exchange(&Method::PATCH, path, &headers, &body)?.understand()
    }

    /// Has something done.
    pub fn post<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.call(Method::POST, path, None::<&()>)
    }

    /// Gets all of a list. `path` may have parameters.
    pub fn list<T: DeserializeOwned>(&self, path: &str) -> Result<Vec<T>, ClientError> {
        let mut items = Vec::new();
        let mut next: Option<String> = None;
        loop {
            let page: Page<T> = match &next {
                None => self.get(path)?,
                Some(after) => self.get(&format!("{path}{}after={after}", if path.contains('?') { '&' } else { '?' }))?,
            };
            items.extend(page.items);
            match page.next {
                Some(after) => next = Some(after),
                None => return Ok(items),
            }
        }
    }

    /// Waits for a task's end; `look` sees it whenever it was asked for. A task that failed is an error. It goes on when a server has gone, and
    /// for a minute without any: the task does, too.
    pub fn wait(&self, mut task: Task, mut look: impl FnMut(&Task)) -> Result<Task, ClientError> {
        look(&task);
        let path = format!("/tasks/{}?wait={LOOK_SECONDS}", task.id);
        let answer = Duration::from_secs(LOOK_SECONDS.into()) + LOOKED;
        let limits = Limits { answer, piece: Some(answer) };
        let mut heard = Instant::now();
        while !task.state.is_final() {
            match self.ask(&Method::GET, &path, &[], b"", limits, Answer::read).and_then(Answer::understand) {
                Ok(found) => {
                    (task, heard) = (found, Instant::now());
                    look(&task);
                }
                Err(error) if error.may_pass() && heard.elapsed() < PATIENCE => sleep(AGAIN),
                Err(error) => return Err(error),
            }
        }
        match task.error {
            Some(error) => Err(ClientError::TaskFailed(error)),
            None => Ok(task),
        }
    }

    /// Has something done whose answer goes on; it is read as it comes.
    pub fn stream(&self, path: &str, body: &impl Serialize) -> Result<BodyReader<'static>, ClientError> {
        let body = serde_json::to_vec(body).map_err(not_json)?;
        let response = self.send(Method::POST, path, &[("content-type", "application/json")], &body)?;
        if response.status() == StatusCode::OK { Ok(response.into_body().into_reader()) } else { Err(refused(response)) }
    }

    /// Follows events, from now on or behind one with this number, until `take` has had enough. When the server goes away, it goes on at another
    /// one behind the last event, or at the same if that is back at once.
    pub fn follow(&self, mut after: Option<u64>, mut take: impl FnMut(Event) -> bool) -> Result<(), ClientError> {
        let limits = Limits { answer: ANSWER, piece: Some(SILENCE) };
        loop {
            let path = after.map_or("/events/stream".into(), |after| format!("/events/stream?after={after}"));
            let response = self.ask(&Method::GET, &path, &[("accept", "text/event-stream")], b"", limits, Ok)?;
            let status = response.status().as_u16();
            if status != 200 {
                return Err(refused(response));
            }
            let lines = BufReader::new(response.into_body().into_reader()).lines().map_while(Result::ok);
            for data in lines.filter_map(|line| line.strip_prefix("data:").map(|data| data.trim().to_owned())) {
                let event: Event =
                    serde_json::from_str(&data).map_err(|error| ClientError::Strange { status, reason: error.to_string() })?;
                after = Some(event.id);
                if !take(event) {
                    return Ok(());
                }
            }
            sleep(AGAIN);
        }
    }
}

fn connect_limit(servers: &Servers) -> Duration {
    if servers.are_several() { CONNECT_OR_GO_ON } else { CONNECT }
}

/// What is no request was not sent.
fn unsent(error: ureq::http::Error) -> Silent {
    Silent { is_asked: false, reason: error.to_string() }
}

fn not_json(error: serde_json::Error) -> ClientError {
    ClientError::Strange { status: 0, reason: error.to_string() }
}

/// What is read, with its hash.
struct Hashing<R> {
    body: R,
    digest: Context,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let length = self.body.read(buffer)?;
        self.digest.update(&buffer[..length]);
        Ok(length)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// SHA-256 of the first certificate in PEM, in hexadecimal: what people compare.
pub fn fingerprint(authority: &[u8]) -> Option<String> {
    let certificate = parse_pem(authority).find_map(|item| match item {
        Ok(PemItem::Certificate(certificate)) => Some(certificate),
        _ => None,
    })?;
    Some(hex(ring::digest::digest(&SHA256, certificate.der()).as_ref()))
}

/// What an answer says that is none of what was asked for.
fn refused(response: Response<Body>) -> ClientError {
    let status = response.status().as_u16();
    match Answer::read(response) {
        Ok(answer) => answer.refused(),
        Err(silent) => ClientError::Strange { status, reason: silent.reason },
    }
}

impl Answer {
    /// Reads all of it. One that breaks off is none.
    fn read(response: Response<Body>) -> Result<Answer, Silent> {
        let status = response.status();
        let tag = response.headers().get("etag").and_then(|tag| tag.to_str().ok()).unwrap_or_default().to_owned();
        let mut text = Vec::new();
        let read = response.into_body().into_reader().take(MAX_ANSWER).read_to_end(&mut text);
        read.map_err(|error| Silent { is_asked: true, reason: error.to_string() })?;
        Ok(Answer { status, tag, text })
    }

    fn strange(&self, reason: impl ToString) -> ClientError {
        ClientError::Strange { status: self.status.as_u16(), reason: reason.to_string() }
    }

    fn understand<T: DeserializeOwned>(self) -> Result<T, ClientError> {
        if !self.status.is_success() {
            return Err(self.refused());
        }
        let json = if self.text.is_empty() { b"null".as_slice() } else { &self.text };
        serde_json::from_slice(json).map_err(|error| self.strange(error))
    }

    fn refused(&self) -> ClientError {
        if self.status.is_success() {
            return self.strange("no content");
        }
        match serde_json::from_slice(&self.text) {
            Ok(error) => ClientError::Refused { status: self.status.as_u16(), error },
            Err(error) => self.strange(error),
        }
    }
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
