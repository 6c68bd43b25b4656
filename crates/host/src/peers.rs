//! How this host talks to others of its cluster: over the API's port, each with the certificate of its host.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::header::CONTENT_TYPE;
use axum::http::{Method, Request, Response};
use cluster::records::HostRecord;
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::state::{State, StateError};

/// How long another host may take to agree on keys.
const CONNECT: Duration = Duration::from_secs(3);
/// When a connection is taken for dead on which nothing is confirmed any more, in seconds: a cable that was cut says nothing.
const SILENCE: libc::c_int = 30;
/// How long nothing has to be said until it is asked whether the other end is there, and between two such questions, in seconds.
const ASK: libc::c_int = 10;

/// Why another host was not heard.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// The connection.
    #[error("it cannot be reached")]
    Connect(#[from] io::Error),
    /// Too slow.
    #[error("it cannot be reached within {} s", CONNECT.as_secs())]
    Late(#[from] tokio::time::error::Elapsed),
    /// HTTP.
    #[error("the connection broke off")]
    Http(#[from] hyper::Error),
    /// What was to be asked.
    #[error("it cannot be asked")]
    Request(#[from] axum::http::Error),
}

/// How this host talks to others.
#[derive(Clone)]
pub struct Peers {
    tls: TlsConnector,
}

impl std::fmt::Debug for Peers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Peers")
    }
}

/// Where a host is, if that is known.
pub fn address(state: &State, host: &str) -> Result<Option<SocketAddr>, StateError> {
    Ok(state.read::<HostRecord>(host)?.and_then(|stored| {
        let address = stored.record.addresses.first()?.parse().ok()?;
        Some(SocketAddr::new(address, stored.record.port))
    }))
}

impl Peers {
    /// With this certificate.
    pub fn new(tls: ClientConfig) -> Peers {
        Peers { tls: TlsConnector::from(Arc::new(tls)) }
    }

    /// Connects to a host.
    pub async fn connect(&self, address: SocketAddr) -> Result<SendRequest<Body>, PeerError> {
        let connected = timeout(CONNECT, async {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            notice_silence(&stream)?;
            self.tls.connect(ServerName::from(address.ip()), stream).await
        });
        let stream = connected.await??;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection.with_upgrades());
        Ok(sender)
    }

    /// Asks a host something of its own, below the API's address.
    pub async fn ask(
        &self,
        address: SocketAddr,
        method: Method,
        path: &str,
        body: Body,
    ) -> Result<Response<Incoming>, PeerError> {
        let mut sender = self.connect(address).await?;
        let request = Request::builder().method(method).uri(format!("{}{path}", api::BASE)).header("host", address.to_string());
        let request = request.header(CONTENT_TYPE, "application/json").body(body)?;
        Ok(sender.send_request(request).await?)
    }
}

/// Has the kernel end a connection whose other end is silent. Without that, it would live for as long as nothing is to be sent.
fn notice_silence(stream: &TcpStream) -> io::Result<()> {
    let options = [
        (libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1),
        (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, ASK),
        (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, ASK),
        (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, SILENCE * 1000),
    ];
    for (level, option, value) in options {
        let size = size_of::<libc::c_int>() as libc::socklen_t;
        // SAFETY: the descriptor is open, and the value is an int that lives through the call, of the length that is told.
        let set = unsafe { libc::setsockopt(stream.as_raw_fd(), level, option, (&raw const value).cast(), size) };
        if set != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
