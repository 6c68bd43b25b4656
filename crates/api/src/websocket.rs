//! WebSockets of a server. Blocking, until told otherwise.

use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use tungstenite::HandshakeError;
use tungstenite::client::IntoClientRequest;
use tungstenite::http::HeaderValue;

use crate::client::ClientError;
use crate::failover::Silent;
use crate::{BASE, Error};

/// How long a server may take for each step up to its answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection.
pub type WebSocket = tungstenite::WebSocket<StreamOwned<ClientConnection, TcpStream>>;

/// Opens the WebSocket at `path` of a server like `https://h1:8420`, which is to be reached within this time.
pub(crate) fn open(
    server: &str,
    tls: &Arc<ClientConfig>,
    secret: &str,
    path: &str,
    limit: Duration,
) -> Result<Result<WebSocket, ClientError>, Silent> {
    let unreachable = |reason: String| Silent { is_asked: false, reason };
    let address = server.strip_prefix("https://").unwrap_or(server);
    let request = format!("wss://{address}{BASE}{path}").into_client_request();
    let mut request = request.map_err(|error| unreachable(error.to_string()))?;
    let bearer = HeaderValue::from_str(&format!("Bearer {secret}"));
    let mut bearer = bearer.map_err(|_| unreachable("the token's secret cannot be sent".into()))?;
    bearer.set_sensitive(true);
    request.headers_mut().insert("authorization", bearer);
    let host = request.uri().host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let port = request.uri().port_u16().unwrap_or(443);

    let name = ServerName::try_from(host.clone()).map_err(|error| unreachable(error.to_string()))?;
    let stream = connect(&host, port, limit).map_err(|error| unreachable(error.to_string()))?;
    let session = ClientConnection::new(tls.clone(), name).map_err(|error| unreachable(error.to_string()))?;
    match tungstenite::client(request, StreamOwned::new(session, stream)) {
        Ok((socket, _)) => Ok(Ok(socket)),
        Err(HandshakeError::Failure(tungstenite::Error::Http(response))) => {
            let status = response.status().as_u16();
            let error = response.body().as_deref().map(serde_json::from_slice::<Error>);
            Ok(Err(match error {
                Some(Ok(error)) => ClientError::Refused { status, error },
                _ => ClientError::Strange { status, reason: "it is no WebSocket".into() },
            }))
        }
        Err(HandshakeError::Failure(error)) => Err(unreachable(error.to_string())),
        Err(HandshakeError::Interrupted(_)) => Err(unreachable("it takes too long".into())),
    }
}

fn connect(host: &str, port: u16, limit: Duration) -> io::Result<TcpStream> {
    let (deadline, mut last) = (Instant::now() + limit, None);
    for address in (host, port).to_socket_addrs()? {
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        match TcpStream::connect_timeout(&address, left) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                return Ok(stream);
            }
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| io::Error::other(format!("'{host}' has no address"))))
}
