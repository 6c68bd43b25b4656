//! A client: blocking, and small.

use std::io::{BufRead, BufReader, Read};
use std::sync::Arc;
use std::time::Duration;

use ring::digest::{Context, SHA256};
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};
use serde::Serialize;
use serde::de::DeserializeOwned;
pub use ureq::http::Method;
use ureq::http::{Request, Response};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, TlsProvider, parse_pem};
use ureq::{Agent, Body, BodyReader, RequestExt, SendBody};

pub use crate::websocket::WebSocket;
use crate::{BASE, Error, Event, Page, Task};

/// How long a server may take to be reached.
const CONNECT: Duration = Duration::from_secs(10);
/// How long it may take to answer, beside the time that it is asked to wait.
const ANSWER: Duration = Duration::from_secs(30);
/// How long it may take to answer when it has all of a file, which must be durable then.
const UPLOADED: Duration = Duration::from_secs(600);
/// How long it is asked to wait at once, in seconds.
const WAIT_SECONDS: u32 = 20;
/// How long it is asked to wait for a task at once, so that progress is seen, in seconds.
const LOOK_SECONDS: u32 = 1;
/// The longest answer that is taken in, in bytes.
const MAX_ANSWER: u64 = 64 << 20;

/// A server, and who asks it.
pub struct Client {
    agent: Agent,
    tls: Arc<ClientConfig>,
    server: String,
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
    /// The server was not reached, or went away.
    #[error(
        "{server} does not answer: {source}; is marud running there, and is this the right address and certificate authority?"
    )]
    Unreachable {
        /// The server.
        server: String,
        /// Why not.
        source: Box<ureq::Error>,
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

impl Client {
    /// A client of `server`, like `https://h1:8420`, which proves itself by this certificate authority (PEM); the secret is a token's.
    pub fn new(server: &str, authority: &[u8], secret: &str) -> Result<Client, ClientError> {
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
        let config = Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            .https_only(true)
            .proxy(None)
            .max_redirects(0)
            .timeout_connect(Some(CONNECT));
        let tls = Arc::new(websockets);
        Ok(Client { agent: config.build().into(), tls, server: server.trim_end_matches('/').into(), secret: secret.into() })
    }

    /// Sends a request; any answer is one. `path` is below [`BASE`].
    pub fn send(&self, method: Method, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Result<Response<Body>, ClientError> {
        self.send_within(method, path, headers, body, Some(ANSWER + Duration::from_secs(WAIT_SECONDS.into())))
    }

    fn send_within(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
        limit: Option<Duration>,
    ) -> Result<Response<Body>, ClientError> {
        let mut request = Request::builder().method(method).uri(format!("{}{BASE}{path}", self.server));
        request = request.header("authorization", format!("Bearer {}", self.secret));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let unreachable = |source: ureq::Error| ClientError::Unreachable { server: self.server.clone(), source: source.into() };
        let request = request.body(body).map_err(|error| unreachable(error.into()))?;
        let request = request.with_agent(&self.agent).configure().timeout_recv_response(limit).build();
        request.run().map_err(unreachable)
    }

    /// Opens a WebSocket. `path` is below [`BASE`].
    pub fn open(&self, path: &str) -> Result<WebSocket, ClientError> {
        crate::websocket::open(&self.server, &self.tls, &self.secret, path)
    }

    /// Sends a request, and understands its answer.
    pub fn call<T: DeserializeOwned>(&self, method: Method, path: &str, body: Option<&impl Serialize>) -> Result<T, ClientError> {
        let strange = |error: serde_json::Error| ClientError::Strange { status: 0, reason: error.to_string() };
        let body = body.map(serde_json::to_vec).transpose().map_err(strange)?;
        let headers: &[_] = if body.is_some() { &[("content-type", "application/json")] } else { &[] };
        understand(self.send(method, path, headers, body.as_deref().unwrap_or_default())?)
    }

    /// Gets something.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.call(Method::GET, path, None::<&()>)
    }

    /// Gets something that is not JSON.
    pub fn get_bytes(&self, path: &str) -> Result<Vec<u8>, ClientError> {
        let response = self.send(Method::GET, path, &[], b"")?;
        let status = response.status().as_u16();
        if status != 200 {
            return Err(understand::<()>(response).err().unwrap_or(ClientError::Strange { status, reason: "no content".into() }));
        }
        let (mut bytes, body) = (Vec::new(), response.into_body().into_reader());
        let read = body.take(MAX_ANSWER).read_to_end(&mut bytes);
        read.map_err(|error| ClientError::Strange { status, reason: error.to_string() })?;
        Ok(bytes)
    }

    /// Gets something with its `ETag`.
    pub fn get_tagged<T: DeserializeOwned>(&self, path: &str) -> Result<(T, String), ClientError> {
        let response = self.send(Method::GET, path, &[], b"")?;
        let tag = response.headers().get("etag").and_then(|tag| tag.to_str().ok()).unwrap_or_default().to_owned();
        Ok((understand(response)?, tag))
    }

    /// Sends this many bytes of a file, and understands the answer; gives SHA-256 of what was sent, too, in hexadecimal.
    pub fn upload<T: DeserializeOwned>(&self, path: &str, body: impl Read, bytes: u64) -> Result<(T, String), ClientError> {
        let mut body = Hashing { body: body.take(bytes), digest: Context::new(&SHA256) };
        let request = Request::builder().method(Method::PUT).uri(format!("{}{BASE}{path}", self.server));
        let request = request.header("authorization", format!("Bearer {}", self.secret)).header("content-length", bytes);
        // A refusal is heard before all of it is sent.
        let request = request.header("content-type", "application/octet-stream").header("expect", "100-continue");
        let unreachable = |source: ureq::Error| ClientError::Unreachable { server: self.server.clone(), source: source.into() };
        let request = request.body(SendBody::from_reader(&mut body)).map_err(|error| unreachable(error.into()))?;
        let request = request.with_agent(&self.agent).configure().timeout_recv_response(Some(UPLOADED)).build();
        let answer = understand(request.run().map_err(unreachable)?)?;
        Ok((answer, hex(body.digest.finish().as_ref())))
    }

    /// Changes something by a merge patch (RFC 7396), if it still has this `ETag`.
    pub fn patch<T: DeserializeOwned>(&self, path: &str, tag: &str, patch: &impl Serialize) -> Result<T, ClientError> {
        let body = serde_json::to_vec(patch).map_err(|error| ClientError::Strange { status: 0, reason: error.to_string() })?;
        let headers = [("content-type", "application/merge-patch+json"), ("if-match", tag)];
        understand(self.send(Method::PATCH, path, &headers, &body)?)
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

    /// Waits for a task's end; `look` sees it whenever it was asked for. A task that failed is an error.
    pub fn wait(&self, mut task: Task, mut look: impl FnMut(&Task)) -> Result<Task, ClientError> {
        look(&task);
        while !task.state.is_final() {
            task = self.get(&format!("/tasks/{}?wait={LOOK_SECONDS}", task.id))?;
            look(&task);
        }
        match task.error {
            Some(error) => Err(ClientError::TaskFailed(error)),
            None => Ok(task),
        }
    }

    /// Has something done whose answer goes on; it is read as it comes.
    pub fn stream(&self, path: &str, body: &impl Serialize) -> Result<BodyReader<'static>, ClientError> {
        let body = serde_json::to_vec(body).map_err(|error| ClientError::Strange { status: 0, reason: error.to_string() })?;
        let response = self.send(Method::POST, path, &[("content-type", "application/json")], &body)?;
        let status = response.status().as_u16();
        if status != 200 {
            return Err(understand::<()>(response).err().unwrap_or(ClientError::Strange { status, reason: "no content".into() }));
        }
        Ok(response.into_body().into_reader())
    }

    /// Follows events, from now on or behind one with this number, until `take` has had enough or the server goes away.
    pub fn follow(&self, after: Option<u64>, mut take: impl FnMut(Event) -> bool) -> Result<(), ClientError> {
        let path = after.map_or("/events/stream".into(), |after| format!("/events/stream?after={after}"));
        let response = self.send_within(Method::GET, &path, &[("accept", "text/event-stream")], b"", None)?;
        let status = response.status().as_u16();
        if status != 200 {
            return understand::<serde_json::Value>(response).map(drop);
        }
        let lines = BufReader::new(response.into_body().into_reader()).lines().map_while(Result::ok);
        for data in lines.filter_map(|line| line.strip_prefix("data:").map(|data| data.trim().to_owned())) {
            let event = serde_json::from_str(&data);
            if !take(event.map_err(|error| ClientError::Strange { status, reason: error.to_string() })?) {
                break;
            }
        }
        Ok(())
    }
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

fn understand<T: DeserializeOwned>(response: Response<Body>) -> Result<T, ClientError> {
    let status = response.status();
    let strange = |reason: String| ClientError::Strange { status: status.as_u16(), reason };
    let mut text = Vec::new();
    response.into_body().into_reader().take(MAX_ANSWER).read_to_end(&mut text).map_err(|error| strange(error.to_string()))?;
    if status.is_success() {
        let json = if text.is_empty() { b"null".as_slice() } else { &text };
        return serde_json::from_slice(json).map_err(|error| strange(error.to_string()));
    }
    let error = serde_json::from_slice(&text).map_err(|error| strange(error.to_string()))?;
    Err(ClientError::Refused { status: status.as_u16(), error })
}
