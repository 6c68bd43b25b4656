//! A host that joins.
//!
//! The token has the fingerprint of the cluster's authority. A connection to a member counts only if that member's certificate is from an
//! authority with this fingerprint, so whoever answers in its place learns nothing. The join has an id of its own, which is kept: asking
//! again, at any member, after an answer that was lost, is the same join.

use std::fs;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use api::client::{Client, ClientError, Method};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, SignatureScheme};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{FormingError, JoinRecord, Place, PlanRecord};
use crate::auth;
use crate::cluster::authority::Authority;
use crate::cluster::identity::{Identity, MemberAddress, remove_file};
use crate::cluster::token::{JoinToken, TokenError};

/// How long a member may take to be reached, and to agree on keys.
const CONNECT: Duration = Duration::from_secs(5);

/// Why a host does not join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// What it is.
    #[error(transparent)]
    Forming(#[from] FormingError),
    /// The token.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The cluster has said no.
    #[error("{0}")]
    Refused(api::Error),
    /// Someone else is where the token says that the cluster is.
    #[error("{0} is not a host of the cluster that the token is from: its certificate is from another authority. Is the token an old one, or the address someone else's?")]
    Stranger(SocketAddr),
    /// Nobody answers.
    #[error("no host of the cluster answers: {0}")]
    NoAnswer(String),
}

impl From<crate::cluster::identity::IdentityError> for JoinError {
    fn from(error: crate::cluster::identity::IdentityError) -> JoinError {
        JoinError::Forming(error.into())
    }
}

/// Asks a cluster to let this host join, and has the rest done at the next start.
pub fn prepare(place: &Place, wanted: &api::JoinCluster, found: &[IpAddr]) -> Result<(), JoinError> {
    super::must_be_alone(place)?;
    let token: JoinToken = wanted.token.parse()?;
    let (host, addresses) = super::name_and_addresses(place, wanted.host.as_deref(), &wanted.addresses, found)?;
    place.programs().map_err(FormingError::from)?;
    remove_file(&place.state.join(super::FAILURE))?;
    let join = match place.plan()? {
        // Its answer may have been lost.
        Some(PlanRecord::Join(earlier)) if earlier.token == token.id => earlier.join,
        _ => Uuid::new_v4(),
    };
    let mut plan = JoinRecord { join, token: token.id, host, addresses, witness: wanted.witness, answer: None };
    place.write_plan(&PlanRecord::Join(plan.clone()))?;
    plan.answer = Some(ask(place, &token, &plan)?);
    Ok(place.write_plan(&PlanRecord::Join(plan))?)
}

/// Asks one member after the other.
fn ask(place: &Place, token: &JoinToken, plan: &JoinRecord) -> Result<api::JoinAnswer, JoinError> {
    let mut silent = Vec::new();
    let mut stranger = None;
    for address in &token.addresses {
        let authority = match authority_at(*address, &token.fingerprint) {
            Ok(authority) => authority,
            Err(Unproven::Stranger) => {
                stranger = Some(*address);
                continue;
            }
            Err(Unproven::Silent(reason)) => {
                silent.push(format!("{address}: {reason}"));
                continue;
            }
        };
        let secret = &token.secret;
        let client = Client::new(&format!("https://{address}"), authority.as_bytes(), secret);
        let client = client.map_err(|error| JoinError::NoAnswer(error.to_string()))?;
        let request = request(place, plan)?;
        match client.call(Method::POST, "/cluster/members", Some(&request)) {
            Ok(answer) => return Ok(answer),
            // It has no majority, or is about to end: another one may answer.
            Err(ClientError::Refused { status: 503, error }) => silent.push(format!("{address}: {error}")),
            Err(ClientError::Refused { error, .. }) => return Err(JoinError::Refused(error)),
            Err(error) => silent.push(vmm::error_chain(&error)),
        }
    }
    match stranger {
        Some(address) if silent.is_empty() => Err(JoinError::Stranger(address)),
        _ => Err(JoinError::NoAnswer(silent.join("; "))),
    }
}

fn request(place: &Place, plan: &JoinRecord) -> Result<api::JoinRequest, FormingError> {
    let path = place.state.join("admin.token");
    let secret = fs::read_to_string(&path).map_err(super::file(&path))?;
    Ok(api::JoinRequest {
        token: plan.token,
        join: plan.join,
        host: plan.host.clone(),
        addresses: plan.addresses.clone(),
        api_port: place.api_port,
        client_port: place.client_port,
        peer_port: place.peer_port,
        witness: plan.witness,
        version: env!("CARGO_PKG_VERSION").into(),
        at: OffsetDateTime::now_utc(),
        memory_mib: crate::web::memory().0 >> 20,
        cpus: super::own_cpus(),
        watchdog: super::has_watchdog(),
        admin_sha256: auth::sha256(secret.trim().as_bytes()),
    })
}

/// Becomes a host of the cluster that has agreed.
pub(super) fn run(place: &Place, plan: JoinRecord) -> Result<Identity, FormingError> {
    let Some(answer) = plan.answer else { return Err(FormingError::Busy) };
    super::remove_directory(&place.member())?;
    let (client_url, peer_url) = place.urls(&plan.addresses);
    let member = |address: api::StoreAddress| MemberAddress { host: address.host, client_url: address.client_url };
    let identity = Identity {
        cluster: answer.cluster,
        host: plan.host,
        addresses: plan.addresses,
        api_port: place.api_port,
        client_url,
        peer_url,
        members: answer.members.into_iter().map(member).collect(),
        witness: plan.witness,
    };
    Authority::replace(&place.tls(), &answer.authority, &answer.authority_key)?;
    identity.write(&place.state)?;
    super::retire_file_store(place, &identity)?;
    place.end_plan()?;
    Ok(identity)
}

/// Why the authority at an address is not known.
enum Unproven {
    Stranger,
    Silent(String),
}

/// The certificate of the authority with this fingerprint (PEM), from a server that proves itself by it.
fn authority_at(address: SocketAddr, fingerprint: &str) -> Result<String, Unproven> {
    let silent = |error: &dyn std::error::Error| Unproven::Silent(vmm::error_chain(error));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let pinned = Arc::new(Pinned { fingerprint: fingerprint.into(), provider: provider.clone() });
    let config = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13]);
    let config = config.map_err(|error| silent(&error))?.dangerous().with_custom_certificate_verifier(pinned);
    let config = Arc::new(config.with_no_client_auth());
    let mut connection =
        ClientConnection::new(config, ServerName::from(address.ip())).map_err(|error| silent(&error))?;
    let mut stream = TcpStream::connect_timeout(&address, CONNECT).map_err(|error| silent(&error))?;
    let limited = stream.set_read_timeout(Some(CONNECT)).and_then(|()| stream.set_write_timeout(Some(CONNECT)));
    limited.map_err(|error| silent(&error))?;
    while connection.is_handshaking() {
        connection.complete_io(&mut stream).map_err(|error| {
            let tls = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
            match tls {
                Some(rustls::Error::InvalidCertificate(_)) => Unproven::Stranger,
                _ => silent(&error),
            }
        })?;
    }
    let chain = connection.peer_certificates().unwrap_or_default();
    let authority = chain.iter().find(|certificate| auth::sha256(certificate) == fingerprint).ok_or(Unproven::Stranger)?;
    Ok(pem::encode(&pem::Pem::new("CERTIFICATE", authority.to_vec())))
}

/// Believes who shows the authority with a certain fingerprint, and has a certificate from it.
#[derive(Debug)]
struct Pinned {
    fingerprint: String,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let stranger = rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let authority = intermediates.iter().find(|certificate| auth::sha256(certificate) == self.fingerprint);
        let mut roots = RootCertStore::empty();
        roots.add(authority.ok_or_else(|| stranger.clone())?.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone()).build();
        let verifier = verifier.map_err(|_| stranger)?;
        verifier.verify_server_cert(end_entity, &[], server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
