//! Servers on this machine that have certificates of one authority, for tests of what asks several.

#![allow(missing_docs)]

use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// Longer than any test waits.
const FOR_EVER: Duration = Duration::from_secs(600);

/// Whom a client believes.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// What a server does with a request.
#[derive(Clone, Debug)]
pub enum Act {
    /// It answers with this status and this JSON.
    Answer(u16, String),
    /// It answers with these events, and goes on listening; then the connection breaks.
    Events(Vec<String>),
    /// The connection breaks.
    HangUp,
    /// Nothing, for ever.
    Nothing,
}

/// What a server was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Like `GET /vms?limit=5`, without where the API is.
    pub line: String,
    /// The `Idempotency-Key`.
    pub key: Option<String>,
    pub body: String,
}

/// A server. It ends when it is dropped.
pub struct Server {
    /// Like `https://127.0.0.1:40343`.
    pub url: String,
    inner: Arc<Inner>,
    accepting: Mutex<Option<JoinHandle<()>>>,
}

struct Inner {
    address: SocketAddr,
    is_dead: AtomicBool,
    connections: Mutex<Vec<TcpStream>>,
    asked: Mutex<Vec<Request>>,
    act: Box<dyn Fn(&Request) -> Act + Send + Sync>,
}

impl Default for Authority {
    fn default() -> Authority {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Authority { issuer: Issuer::new(params, key), pem }
    }
}

impl Authority {
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// A server with a certificate for 127.0.0.1, which does this with each request.
    pub fn server(&self, act: impl Fn(&Request) -> Act + Send + Sync + 'static) -> Server {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec!["127.0.0.1".into()]).unwrap().signed_by(&key, &self.issuer).unwrap();
        let chain = vec![CertificateDer::from_pem_slice(certificate.pem().as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
        let config = config.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
        let config = Arc::new(config.with_single_cert(chain, key).unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let inner = Arc::new(Inner {
            address,
            is_dead: AtomicBool::new(false),
            connections: Mutex::default(),
            asked: Mutex::default(),
            act: Box::new(act),
        });
        let serving = inner.clone();
        let accepting = thread::spawn(move || serving.accept(&listener, &config));
        Server { url: format!("https://{address}"), inner, accepting: Mutex::new(Some(accepting)) }
    }
}

impl Server {
    pub fn address(&self) -> SocketAddr {
        self.inner.address
    }

    /// What it was asked, in that order.
    pub fn asked(&self) -> Vec<Request> {
        self.inner.asked.lock().unwrap().clone()
    }

    /// Ends it, as if its host had no power any more and another machine said so: connections break, and new ones are refused.
    pub fn die(&self) {
        let Some(accepting) = self.accepting.lock().unwrap().take() else { return };
        self.inner.is_dead.store(true, Ordering::SeqCst);
        // It wakes up, and sees it.
        let _ = TcpStream::connect(self.inner.address);
        accepting.join().unwrap();
        for connection in self.inner.connections.lock().unwrap().drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.die();
    }
}

impl Inner {
    fn accept(self: &Arc<Inner>, listener: &TcpListener, config: &Arc<ServerConfig>) {
        for stream in listener.incoming() {
            if self.is_dead.load(Ordering::SeqCst) {
                return;
            }
            let stream = stream.unwrap();
            self.connections.lock().unwrap().push(stream.try_clone().unwrap());
            let (inner, config) = (self.clone(), config.clone());
            thread::spawn(move || {
                let session = ServerConnection::new(config).unwrap();
                let socket = stream.try_clone().unwrap();
                // What goes wrong here, the client sees.
                let _ = inner.serve(BufReader::new(StreamOwned::new(session, stream)));
                let _ = socket.shutdown(Shutdown::Both);
            });
        }
    }

    fn serve(&self, mut stream: BufReader<StreamOwned<ServerConnection, TcpStream>>) -> std::io::Result<()> {
        loop {
            let Some(request) = read(&mut stream)? else { return Ok(()) };
            self.asked.lock().unwrap().push(request.clone());
            let out = stream.get_mut();
            match (self.act)(&request) {
                Act::Answer(status, json) => {
                    let length = json.len();
                    write!(
                        out,
                        "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{json}"
                    )?;
                    out.flush()?;
                }
                Act::Events(events) => {
                    write!(out, "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")?;
                    events.iter().try_for_each(|event| write!(out, "data: {event}\n\n"))?;
                    return out.flush();
                }
                Act::HangUp => return Ok(()),
                Act::Nothing => thread::sleep(FOR_EVER),
            }
        }
    }
}

/// The next request, if there is one.
fn read(stream: &mut impl BufRead) -> std::io::Result<Option<Request>> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let header = |name: &str| {
        let of = |line: &String| {
            line.split_once(": ").filter(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned())
        };
        lines.iter().find_map(of)
    };
    let length = header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    let line = lines[0].trim_end_matches(" HTTP/1.1").replacen(crate::BASE, "", 1);
    Ok(Some(Request { line, key: header("idempotency-key"), body: String::from_utf8_lossy(&body).into_owned() }))
}
