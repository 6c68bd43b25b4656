//! TLS of the API's server: a certificate that can be exchanged while it runs, and clients that may show one of a host.

use std::net::{IpAddr, UdpSocket};
use std::sync::{Arc, PoisonError, RwLock};

use rustls::client::ResolvesClientCert;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig, SignatureScheme};

use crate::cluster::authority::HostCertificate;

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A certificate or key that was just made.
    #[error("the host's certificate is malformed")]
    Malformed(#[from] rustls::pki_types::pem::Error),
    /// TLS itself.
    #[error("TLS cannot be set up")]
    Rustls(#[from] rustls::Error),
    /// Whom to believe.
    #[error("the certificate authority cannot be used")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// The certificate that this host shows now, as a server and as a client.
#[derive(Debug)]
pub struct Shown(RwLock<Arc<CertifiedKey>>);

impl Shown {
    /// Shows this one.
    pub fn new(certificate: &HostCertificate) -> Result<Arc<Shown>, TlsError> {
        Ok(Arc::new(Shown(RwLock::new(certified(certificate)?))))
    }

    /// Shows another one, from the next connection on.
    pub fn exchange(&self, certificate: &HostCertificate) -> Result<(), TlsError> {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = certified(certificate)?;
        Ok(())
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

impl ResolvesClientCert for Shown {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().unwrap_or_else(PoisonError::into_inner).clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn certified(certificate: &HostCertificate) -> Result<Arc<CertifiedKey>, TlsError> {
    let chain = CertificateDer::pem_slice_iter(certificate.chain.as_bytes()).collect::<Result<_, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(certificate.key.as_bytes())?;
    let key = provider().key_provider.load_private_key(key)?;
    Ok(Arc::new(CertifiedKey::new(chain, key)))
}

fn roots(certificate: &HostCertificate) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(certificate.authority.as_bytes())?)?;
    Ok(roots)
}

/// What a server needs. A client that shows a certificate must have it from the same authority; none is needed.
pub fn server(certificate: &HostCertificate, shown: Arc<Shown>) -> Result<ServerConfig, TlsError> {
    let hosts = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(certificate)?), provider());
    let hosts = hosts.allow_unauthenticated().build()?;
    let config = ServerConfig::builder_with_provider(provider()).with_protocol_versions(&[&rustls::version::TLS13])?;
    let mut config = config.with_client_cert_verifier(hosts).with_cert_resolver(shown);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// What a client needs that talks to other hosts, as this host.
pub fn client(certificate: &HostCertificate, shown: Arc<Shown>) -> Result<ClientConfig, TlsError> {
    let config = ClientConfig::builder_with_provider(provider()).with_protocol_versions(&[&rustls::version::TLS13])?;
    let mut config = config.with_root_certificates(roots(certificate)?).with_client_cert_resolver(shown);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// Addresses by which others may reach who listens at this one.
pub fn reachable(listen: IpAddr) -> Vec<IpAddr> {
    if listen.is_unspecified() { outward() } else { vec![listen] }
}

/// The addresses by which this machine reaches others, where it has a way to them. Nothing is sent.
fn outward() -> Vec<IpAddr> {
    // Nobody has these addresses (RFC 5737, RFC 3849), but the kernel knows from which of its own it would write to them.
    let ways = [("0.0.0.0:0", "192.0.2.1:9"), ("[::]:0", "[2001:db8::1]:9")];
    let own = |(from, to)| {
        let socket = UdpSocket::bind::<&str>(from)?;
        socket.connect::<&str>(to)?;
        socket.local_addr()
    };
    ways.into_iter().filter_map(|way| own(way).ok()).map(|address| address.ip()).collect()
}
