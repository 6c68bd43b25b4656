//! HTTPS.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tower_service::Service;

use super::guard::{From, Peer};
use crate::cluster::authority;

/// Connections at the same time; the others wait.
const MAX_CONNECTIONS: usize = 512;
/// How long a client may take to agree on keys, to send the head of a request, and to send its body.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// After a failed `accept`, most likely for want of descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves for ever.
pub async fn serve(listener: TcpListener, tls: ServerConfig, router: Router) {
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = room.clone().acquire_owned().await else { return };
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!("a connection cannot be accepted: {error}");
                sleep(PAUSE).await;
                continue;
            }
        };
        let (acceptor, router) = (acceptor.clone(), router.clone());
        tokio::spawn(async move {
            connection(stream, from, acceptor, router).await;
            drop(place);
        });
    }
}

/// Serves one client. What goes wrong is its own concern.
async fn connection(stream: TcpStream, from: SocketAddr, acceptor: TlsAcceptor, router: Router) {
    let _ = stream.set_nodelay(true);
    let Ok(Ok(stream)) = timeout(PATIENCE, acceptor.accept(stream)).await else { return };
    // TLS has checked it.
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let peer = certificate.and_then(authority::host_of).map(|host| Peer(host.into()));
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(From(from));
        if let Some(peer) = &peer {
            request.extensions_mut().insert(peer.clone());
        }
        // In a task of its own: a client that goes away leaves nothing half done, and what it asked for is in the audit log.
        let answer = tokio::spawn(router.clone().call(request));
        async move { answer.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic())) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
    if let Err(error) = http.serve_connection(TokioIo::new(stream), service).with_upgrades().await {
        tracing::debug!(%from, "a connection ended: {error}");
    }
}
